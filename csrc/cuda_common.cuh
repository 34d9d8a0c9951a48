// Shared by the CUDA kernels: one warp per trajectory, one block per run for the mean.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "noise_schedule.h"
#include "trajectories.h"

namespace trqam {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 8;
constexpr int kReduceThreads = 256;

inline void check_launch(const char* kernel) {
    const cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(status));
    }
}

inline unsigned trajectory_blocks(const Shape& shape) {
    const int64_t rows = shape.runs * shape.batch;
    return static_cast<unsigned>((rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
}

__device__ inline double warp_sum(double value) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        value += __shfl_down_sync(0xffffffffu, value, offset);
    }
    return value;
}

// Sum over the block in a fixed order; the result is valid in thread 0.
__device__ inline double block_sum(double value) {
    __shared__ double partial[kReduceThreads];
    __syncthreads();
    partial[threadIdx.x] = value;
    __syncthreads();
    for (int width = kReduceThreads / 2; width > 0; width /= 2) {
        if (threadIdx.x < width) partial[threadIdx.x] += partial[threadIdx.x + width];
        __syncthreads();
    }
    return partial[0];
}

// Weight 2 h_k / (g_k^2 horizon) of ||Delta_k||^2 in the path KL.
__device__ inline double path_kl_weight(const NoiseSchedule& schedule, int64_t k,
                                        int64_t horizon) {
    return 2.0 * schedule.step_sizes[k] / (schedule.g_squared[k] * static_cast<double>(horizon));
}

namespace {

// mean [runs] of sums [runs, batch], a block for each run.
template <typename T>
__global__ void mean_kernel(const double* sums, T* mean, int64_t batch) {
    double total = 0.0;
    for (int64_t b = threadIdx.x; b < batch; b += kReduceThreads) {
        total += sums[blockIdx.x * batch + b];
    }
    total = block_sum(total);
    if (threadIdx.x == 0) mean[blockIdx.x] = static_cast<T>(total / static_cast<double>(batch));
}

}  // namespace

}  // namespace trqam
