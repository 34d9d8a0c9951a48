// Limits of a Hopper GPU that benchmarks/gpu_model.py takes as constants, one line of JSON each. One
// file, long as it is: on a new machine one command builds it.
//
//   nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a benchmarks/gpu_micro.cu -o gpu_micro
//   ./gpu_micro
//
// node_us, node_pdl_us       a dependent kernel in a CUDA graph: with an ordinary edge, and with a
//                            programmatic one (the next kernel is launched before this one ends)
// clusters_8, clusters_16    clusters of that many blocks with 227 KiB each that fit the GPU at once
// cluster_barrier_clk        arrive and wait of a cluster of 8
// dsmem_latency_clk_C        a bulk copy of 64 bytes to the next block of a cluster of C, there
// dsmem_clk_per_28k_C        28 KiB out of and 28 KiB into every block, in slices of 4 KiB
// flag_us                    round trip of a flag in global memory between two blocks
// l2_sm_bytes_clk            bytes a clock that one multiprocessor reads from L2
// l2_bytes_us                bytes a microsecond that all of them read from L2
// copy_bytes_us              bytes a microsecond of a copy in memory, read and written
// mma_clk, wgmma_clk         a product of 64 x 32 x 512 in shared memory, float16, 4 warps
//
// Clocks are those of the multiprocessor (%clock64); every number is the median of 15.

#include <cooperative_groups.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

namespace cg = cooperative_groups;

#define CHECK(call)                                                                          \
  do {                                                                                       \
    cudaError_t status = (call);                                                             \
    if (status != cudaSuccess) {                                                             \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(status));   \
      std::exit(1);                                                                          \
    }                                                                                        \
  } while (0)

constexpr int kRounds = 15;
constexpr int kSharedLimit = 227 * 1024;

void report(const char* name, double value, const char* unit) {
  std::printf("{\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"}\n", name, value, unit);
  std::fflush(stdout);
}

double median_of(const std::function<double()>& measure) {
  measure();  // loads the module
  std::vector<double> values(kRounds);
  for (double& value : values) value = measure();
  std::sort(values.begin(), values.end());
  return values[kRounds / 2];
}

// What a kernel has left there, once it has ended.
double value_of(const long long* clocks) {
  long long value = 0;
  CHECK(cudaMemcpy(&value, clocks, sizeof value, cudaMemcpyDeviceToHost));
  return double(value);
}

// Microseconds of what `work` puts on the stream.
double elapsed_us(cudaStream_t stream, const std::function<void()>& work) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  CHECK(cudaEventRecord(begin, stream));
  work();
  CHECK(cudaEventRecord(end, stream));
  CHECK(cudaEventSynchronize(end));
  float milliseconds = 0;
  CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  return 1e3 * milliseconds;
}

// ---- A dependent kernel in a graph -----------------------------------------------------------

__global__ void small_kernel(float* data, bool programmatic) {
  if (programmatic) {
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
  }
  data[blockIdx.x * blockDim.x + threadIdx.x] += 1.0f;
}

double node_us(bool programmatic) {
  constexpr int nodes = 500;
  float* data;
  CHECK(cudaMalloc(&data, 64 * 128 * sizeof(float)));
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = 64;
  config.blockDim = 128;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = programmatic ? 1 : 0;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < nodes; ++i) {
    CHECK(cudaLaunchKernelEx(&config, small_kernel, data, programmatic));
  }
  cudaGraph_t graph;
  CHECK(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t executable;
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  double time = median_of([&] {
    return elapsed_us(stream, [&] { CHECK(cudaGraphLaunch(executable, stream)); }) / nodes;
  });
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cudaStreamDestroy(stream));
  CHECK(cudaFree(data));
  return time;
}

// ---- Clusters --------------------------------------------------------------------------------

__device__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ uint32_t address_in(uint32_t address, uint32_t rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

__device__ void expect_bytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ void wait_for(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ void copy_to(uint32_t into, uint32_t from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
      ::"r"(into), "r"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// Every block sends `slices` slices to the blocks after it and waits for as many; `clocks` of one
// such exchange go to the first element.
__global__ void exchange_kernel(long long* clocks, int slices, int bytes, int rounds) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ __align__(8) unsigned long long barrier_word;
  cg::cluster_group cluster = cg::this_cluster();
  uint32_t barrier = shared_address(&barrier_word);
  uint32_t from = shared_address(memory);
  uint32_t into = from + slices * bytes;
  uint32_t rank = cluster.block_rank(), size = cluster.num_blocks();
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster.sync();
  long long begin = clock64();
  for (int round = 0; round < rounds; ++round) {
    if (threadIdx.x == 0) {
      expect_bytes(barrier, slices * bytes);
      for (int slice = 0; slice < slices; ++slice) {
        uint32_t peer = (rank + 1 + slice % (size - 1)) % size;
        copy_to(address_in(into + slice * bytes, peer), from + slice * bytes, bytes,
                address_in(barrier, peer));
      }
    }
    wait_for(barrier, round & 1);
    __syncthreads();
  }
  long long end = clock64();
  cluster.sync();
  if (blockIdx.x == 0 && threadIdx.x == 0) *clocks = (end - begin) / rounds;
}

__global__ void barrier_kernel(long long* clocks, int rounds) {
  cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  long long begin = clock64();
  for (int round = 0; round < rounds; ++round) cluster.sync();
  long long end = clock64();
  if (blockIdx.x == 0 && threadIdx.x == 0) *clocks = (end - begin) / rounds;
}

__global__ void full_kernel(int* data) {
  extern __shared__ unsigned char memory[];
  memory[threadIdx.x] = 1;
  __syncthreads();
  data[threadIdx.x] = memory[threadIdx.x];
}

cudaLaunchConfig_t cluster_config(cudaLaunchAttribute* attribute, int blocks, int size,
                                  int threads, int shared) {
  attribute->id = cudaLaunchAttributeClusterDimension;
  attribute->val.clusterDim.x = size;
  attribute->val.clusterDim.y = 1;
  attribute->val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared;
  config.attrs = attribute;
  config.numAttrs = 1;
  return config;
}

template <typename Kernel>
void allow(Kernel kernel, int shared) {
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
}

void measure_clusters(long long* clocks) {
  cudaLaunchAttribute attribute;
  allow(full_kernel, kSharedLimit);
  for (int size : {8, 16}) {
    int found = 0;
    auto config = cluster_config(&attribute, size, size, 256, kSharedLimit);
    CHECK(cudaOccupancyMaxActiveClusters(&found, full_kernel, &config));
    report(size == 8 ? "clusters_8" : "clusters_16", found, "clusters");
  }
  allow(barrier_kernel, 0);
  auto config = cluster_config(&attribute, 8, 8, 256, 0);
  report("cluster_barrier_clk", median_of([&] {
           CHECK(cudaLaunchKernelEx(&config, barrier_kernel, clocks, 1000));
           return value_of(clocks);
         }),
         "clk");
  constexpr int slices = 7, bytes = 4096;
  allow(exchange_kernel, 2 * slices * bytes);
  for (int size : {2, 4, 8, 16}) {
    // As many clusters as fit, so that neighbours load the network too.
    config = cluster_config(&attribute, 64 / size * size, size, 256, 2 * slices * bytes);
    char name[64];
    for (bool large : {false, true}) {
      double time = median_of([&] {
        int count = large ? slices : 1, length = large ? bytes : 64;
        CHECK(cudaLaunchKernelEx(&config, exchange_kernel, clocks, count, length, 1000));
        return value_of(clocks);
      });
      const char* form = large ? "dsmem_clk_per_28k_%d" : "dsmem_latency_clk_%d";
      std::snprintf(name, sizeof name, form, size);
      report(name, time, "clk");
    }
  }
}

// ---- L2 and memory ---------------------------------------------------------------------------

__global__ void flag_kernel(unsigned* flags, int rounds) {
  unsigned mine = blockIdx.x;
  for (int round = 1; round <= rounds; ++round) {
    if (mine == 0) {
      asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flags), "r"(round) : "memory");
    }
    unsigned seen = 0;
    while (seen != unsigned(round)) {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                   : "=r"(seen)
                   : "l"(flags + (mine == 0 ? 32 : 0))
                   : "memory");
    }
    if (mine == 1) {
      asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flags + 32), "r"(round) : "memory");
    }
  }
}

__global__ void read_kernel(const uint4* data, uint4* into, size_t count, int rounds) {
  uint4 sum = make_uint4(0, 0, 0, 0);
  size_t step = size_t(gridDim.x) * blockDim.x;
  for (int round = 0; round < rounds; ++round) {
    size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; at < count; at += 4 * step) {
      uint4 values[4];  // requested together
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        values[i] = at + i * step < count ? __ldcg(data + at + i * step) : sum;  // past the L1
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum.x ^= values[i].x, sum.y ^= values[i].y, sum.z ^= values[i].z, sum.w ^= values[i].w;
      }
    }
  }
  if ((sum.x ^ sum.y ^ sum.z ^ sum.w) == 0x12345678u) into[threadIdx.x] = sum;
}

void measure_memory(int multiprocessors, double clocks_a_us) {
  unsigned* flags;
  CHECK(cudaMalloc(&flags, 64 * sizeof(unsigned)));
  constexpr int trips = 1000;
  report("flag_us", median_of([&] {
           CHECK(cudaMemset(flags, 0, 64 * sizeof(unsigned)));
           return elapsed_us(0, [&] { flag_kernel<<<2, 1>>>(flags, trips); }) / trips;
         }),
         "us");
  constexpr size_t bytes = size_t(1) << 30, cached = size_t(1) << 24;
  unsigned char *source, *target;
  CHECK(cudaMalloc(&source, bytes));
  CHECK(cudaMalloc(&target, bytes));
  CHECK(cudaMemset(source, 1, bytes));
  auto read = [&](int blocks, size_t amount, int rounds) {
    return median_of([&] {
      double time = elapsed_us(0, [&] {
        read_kernel<<<blocks, 1024>>>(reinterpret_cast<uint4*>(source),
                                      reinterpret_cast<uint4*>(target), amount / 16, rounds);
      });
      CHECK(cudaGetLastError());
      return double(amount) * rounds / time;
    });
  };
  report("l2_sm_bytes_clk", read(1, cached / 16, 32) / clocks_a_us, "bytes/clk");
  report("l2_bytes_us", read(2 * multiprocessors, cached, 64), "bytes/us");
  report("copy_bytes_us", median_of([&] {
           return 2.0 * bytes / elapsed_us(0, [&] {
                    CHECK(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice));
                  });
         }),
         "bytes/us");
  CHECK(cudaFree(flags));
  CHECK(cudaFree(source));
  CHECK(cudaFree(target));
}

// ---- Products --------------------------------------------------------------------------------

constexpr int kDepth = 512, kFeatures = 64, kRows = 32;

__device__ void load_matrices(uint32_t (&found)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(found[0]), "=r"(found[1]), "=r"(found[2]), "=r"(found[3])
               : "r"(address));
}

// A warp: 16 features, 32 rows, the whole depth; rows of 16 bytes more than the depth keep the
// loads free of bank conflicts.
__global__ void mma_kernel(long long* clocks, float* into, int rounds) {
  extern __shared__ __align__(1024) __half operands[];
  constexpr int stride = kDepth + 8;
  for (int i = threadIdx.x; i < (kFeatures + kRows) * stride; i += blockDim.x) {
    operands[i] = __float2half(0.01f);
  }
  __syncthreads();
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const __half* a = operands + (warp * 16 + lane % 16) * stride + lane / 16 * 8;
  const __half* b = operands + (kFeatures + lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8;
  uint32_t a_at = shared_address(a), b_at = shared_address(b);
  float sums[4][4] = {};
  long long begin = clock64();
  for (int round = 0; round < rounds; ++round) {
#pragma unroll 8
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t left[4], right[2][4];
      load_matrices(left, a_at + 2 * k);
      load_matrices(right[0], b_at + 2 * k);
      load_matrices(right[1], b_at + 2 * (k + 16 * stride));
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sums[n][0]), "+f"(sums[n][1]), "+f"(sums[n][2]), "+f"(sums[n][3])
            : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]),
              "r"(right[n / 2][n % 2 * 2]), "r"(right[n / 2][n % 2 * 2 + 1]));
      }
    }
    __syncthreads();
  }
  long long end = clock64();
  for (int n = 0; n < 4; ++n) {
    for (int i = 0; i < 4; ++i) into[(threadIdx.x * 4 + n) * 4 + i] = sums[n][i];
  }
  if (threadIdx.x == 0) *clocks = (end - begin) / rounds;
}

// Operands without swizzle: core matrices of 8 rows by 16 bytes lie one after another, first along
// the depth (128 bytes apart), then along the rows.
__device__ uint64_t descriptor(uint32_t address) {
  constexpr uint64_t along_depth = 128, along_rows = 8 * kDepth * 2;
  return (uint64_t(address & 0x3ffff) >> 4) | (along_depth >> 4) << 16 | (along_rows >> 4) << 32;
}

__global__ void wgmma_kernel(long long* clocks, float* into, int rounds) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) __half operands[];
  for (int i = threadIdx.x; i < (kFeatures + kRows) * kDepth; i += blockDim.x) {
    operands[i] = __float2half(0.01f);
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  uint32_t a = shared_address(operands), b = shared_address(operands + kFeatures * kDepth);
  float s[16] = {};
  long long begin = clock64();
  for (int round = 0; round < rounds; ++round) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int k = 0; k < kDepth; k += 16) {
      asm volatile(
          "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
          "%16, %17, 1, 1, 1, 0, 0;"
          : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]),
            "+f"(s[7]), "+f"(s[8]), "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]),
            "+f"(s[13]), "+f"(s[14]), "+f"(s[15])
          : "l"(descriptor(a + k / 8 * 128)), "l"(descriptor(b + k / 8 * 128)));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  long long end = clock64();
  for (int i = 0; i < 16; ++i) into[threadIdx.x * 16 + i] = s[i];
  if (threadIdx.x == 0) *clocks = (end - begin) / rounds;
#endif
}

void measure_products(long long* clocks) {
  float* into;
  CHECK(cudaMalloc(&into, 128 * 16 * sizeof(float)));
  constexpr int padded = (kFeatures + kRows) * (kDepth + 8) * 2;
  constexpr int packed = (kFeatures + kRows) * kDepth * 2;
  CHECK(cudaFuncSetAttribute(mma_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, padded));
  CHECK(cudaFuncSetAttribute(wgmma_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, packed));
  report("mma_clk", median_of([&] {
           mma_kernel<<<1, 128, padded>>>(clocks, into, 100);
           return value_of(clocks);
         }),
         "clk");
  report("wgmma_clk", median_of([&] {
           wgmma_kernel<<<1, 128, packed>>>(clocks, into, 100);
           return value_of(clocks);
         }),
         "clk");
  // Of equal numbers every element of the product is the same, whatever the layout.
  float first = 0;
  CHECK(cudaMemcpy(&first, into, sizeof first, cudaMemcpyDeviceToHost));
  report("wgmma_element", first, "(100 rounds of 512 x 1e-4: 5.12)");
  CHECK(cudaFree(into));
}

__global__ void clock_kernel(long long* clocks) {
  long long begin = clock64();
  while (clock64() - begin < 10000000) {
  }
  *clocks = clock64() - begin;
}

int main() {
  cudaDeviceProp properties;
  CHECK(cudaGetDeviceProperties(&properties, 0));
  if (properties.major != 9) {
    std::fprintf(stderr, "%s has compute capability %d.%d; this program needs 9.0\n",
                 properties.name, properties.major, properties.minor);
    return 1;
  }
  long long* clocks;
  CHECK(cudaMalloc(&clocks, sizeof *clocks));
  double clocks_a_us = median_of([&] {
    double time = elapsed_us(0, [&] { clock_kernel<<<1, 1>>>(clocks); });
    return value_of(clocks) / time;
  });
  report("sm_clk_us", clocks_a_us, "clk/us");
  report("multiprocessors", properties.multiProcessorCount, "");
  report("node_us", node_us(false), "us");
  report("node_pdl_us", node_us(true), "us");
  measure_clusters(clocks);
  measure_memory(properties.multiProcessorCount, clocks_a_us);
  measure_products(clocks);
  CHECK(cudaFree(clocks));
  return 0;
}
