#include "cuda_common.cuh"
#include "path_kl.h"

namespace trqam {
namespace {

template <typename T>
__global__ void forward_kernel(PathKl<T> call) {
    const Shape& shape = call.shape;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
    if (row >= shape.runs * shape.batch) return;
    const int lane = threadIdx.x % kWarp;
    const int64_t s = row / shape.batch, b = row % shape.batch;
    double total = 0.0;
    for (int64_t k = 0; k < shape.steps; ++k) {
        const int64_t offset = ((s * shape.steps + k) * shape.batch + b) * shape.dim;
        T squares = 0;
        for (int64_t d = lane; d < shape.dim; d += kWarp) {
            const T delta = call.velocity[offset + d] - call.base_velocity[offset + d];
            squares += delta * delta;
        }
        total += path_kl_weight(call.schedule, k, call.horizon) * static_cast<double>(squares);
    }
    total = warp_sum(total);
    if (lane == 0) {
        call.sums[row] = total;
        call.per_trajectory[row] = static_cast<T>(total);
    }
}

template <typename T>
__global__ void backward_kernel(PathKlBackward<T> call) {
    const Shape& shape = call.shape;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
    if (row >= shape.runs * shape.batch) return;
    const int lane = threadIdx.x % kWarp;
    const int64_t s = row / shape.batch, b = row % shape.batch;
    for (int64_t k = 0; k < shape.steps; ++k) {
        const int64_t offset = ((s * shape.steps + k) * shape.batch + b) * shape.dim;
        const T scale =
            static_cast<T>(2.0 * path_kl_weight(call.schedule, k, call.horizon)) *
            call.upstream[row];
        for (int64_t d = lane; d < shape.dim; d += kWarp) {
            call.grad_velocity[offset + d] =
                scale * (call.velocity[offset + d] - call.base_velocity[offset + d]);
        }
    }
}

}  // namespace

template <typename T>
void path_kl_cuda(const PathKl<T>& call, void* stream) {
    const cudaStream_t queue = static_cast<cudaStream_t>(stream);
    const Shape& shape = call.shape;
    forward_kernel<<<trajectory_blocks(shape), kWarp * kWarpsPerBlock, 0, queue>>>(call);
    mean_kernel<<<static_cast<unsigned>(shape.runs), kReduceThreads, 0, queue>>>(
        call.sums, call.mean, shape.batch);
    check_launch("path_kl");
}

template <typename T>
void path_kl_backward_cuda(const PathKlBackward<T>& call, void* stream) {
    backward_kernel<<<trajectory_blocks(call.shape), kWarp * kWarpsPerBlock, 0,
                      static_cast<cudaStream_t>(stream)>>>(call);
    check_launch("path_kl_backward");
}

template void path_kl_cuda(const PathKl<float>&, void*);
template void path_kl_cuda(const PathKl<double>&, void*);
template void path_kl_backward_cuda(const PathKlBackward<float>&, void*);
template void path_kl_backward_cuda(const PathKlBackward<double>&, void*);

}  // namespace trqam
