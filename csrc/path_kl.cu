#include "cuda_common.cuh"
#include "path_kl.h"

namespace trqam {
namespace {

template <typename T>
__global__ void forward_kernel(const T* velocity, const T* base_velocity, T* per_trajectory,
                               Shape shape, int64_t horizon) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
    if (row >= shape.runs * shape.batch) return;
    const int lane = threadIdx.x % kWarp;
    const int64_t s = row / shape.batch, b = row % shape.batch;
    const double scale = 2.0 / (static_cast<double>(shape.steps) * static_cast<double>(horizon));
    double total = 0.0;
    for (int64_t k = 0; k < shape.steps; ++k) {
        const int64_t offset = ((s * shape.steps + k) * shape.batch + b) * shape.dim;
        T squares = 0;
        for (int64_t d = lane; d < shape.dim; d += kWarp) {
            const T delta = velocity[offset + d] - base_velocity[offset + d];
            squares += delta * delta;
        }
        total += scale / diffusion_squared_at(k, shape.steps) * static_cast<double>(squares);
    }
    total = warp_sum(total);
    if (lane == 0) per_trajectory[row] = static_cast<T>(total);
}

template <typename T>
__global__ void mean_kernel(const T* per_trajectory, T* mean, int64_t batch) {
    double total = 0.0;
    for (int64_t b = threadIdx.x; b < batch; b += kReduceThreads) {
        total += static_cast<double>(per_trajectory[blockIdx.x * batch + b]);
    }
    total = block_sum(total);
    if (threadIdx.x == 0) mean[blockIdx.x] = static_cast<T>(total / static_cast<double>(batch));
}

template <typename T>
__global__ void backward_kernel(const T* velocity, const T* base_velocity,
                                const T* grad_per_trajectory, T* grad_velocity, Shape shape,
                                int64_t horizon) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
    if (row >= shape.runs * shape.batch) return;
    const int lane = threadIdx.x % kWarp;
    const int64_t s = row / shape.batch, b = row % shape.batch;
    const double factor = 4.0 / (static_cast<double>(shape.steps) * static_cast<double>(horizon));
    for (int64_t k = 0; k < shape.steps; ++k) {
        const int64_t offset = ((s * shape.steps + k) * shape.batch + b) * shape.dim;
        const T scale = static_cast<T>(factor / diffusion_squared_at(k, shape.steps)) *
                        grad_per_trajectory[row];
        for (int64_t d = lane; d < shape.dim; d += kWarp) {
            grad_velocity[offset + d] = scale * (velocity[offset + d] - base_velocity[offset + d]);
        }
    }
}

}  // namespace

template <typename T>
void path_kl_forward_cuda(const T* velocity, const T* base_velocity, T* per_trajectory, T* mean,
                          const Shape& shape, int64_t horizon, void* stream) {
    const cudaStream_t queue = static_cast<cudaStream_t>(stream);
    forward_kernel<<<trajectory_blocks(shape), kWarp * kWarpsPerBlock, 0, queue>>>(
        velocity, base_velocity, per_trajectory, shape, horizon);
    mean_kernel<<<static_cast<unsigned>(shape.runs), kReduceThreads, 0, queue>>>(
        per_trajectory, mean, shape.batch);
    check_launch("path_kl_forward");
}

template <typename T>
void path_kl_backward_cuda(const T* velocity, const T* base_velocity,
                           const T* grad_per_trajectory, T* grad_velocity, const Shape& shape,
                           int64_t horizon, void* stream) {
    backward_kernel<<<trajectory_blocks(shape), kWarp * kWarpsPerBlock, 0,
                      static_cast<cudaStream_t>(stream)>>>(velocity, base_velocity,
                                                           grad_per_trajectory, grad_velocity,
                                                           shape, horizon);
    check_launch("path_kl_backward");
}

template void path_kl_forward_cuda(const float*, const float*, float*, float*, const Shape&,
                                   int64_t, void*);
template void path_kl_forward_cuda(const double*, const double*, double*, double*, const Shape&,
                                   int64_t, void*);
template void path_kl_backward_cuda(const float*, const float*, const float*, float*,
                                    const Shape&, int64_t, void*);
template void path_kl_backward_cuda(const double*, const double*, const double*, double*,
                                    const Shape&, int64_t, void*);

}  // namespace trqam
