#include "adjoint_matching.h"
#include "cuda_common.cuh"

namespace trqam {
namespace {

template <typename T>
__global__ void forward_kernel(const T* velocity, const T* base_velocity, const T* adjoint,
                               const T* lam, double* scratch, T* grad_velocity, Shape shape,
                               int64_t horizon) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
    if (row >= shape.runs * shape.batch) return;
    const int lane = threadIdx.x % kWarp;
    const int64_t s = row / shape.batch, b = row % shape.batch;
    const double lam_s = static_cast<double>(lam[s]);
    const double root = sqrt(lam_s < 1e-8 ? 1e-8 : lam_s);
    const double kl_scale =
        2.0 / (static_cast<double>(shape.steps) * static_cast<double>(horizon));
    double loss = 0.0, kl = 0.0;
    for (int64_t k = 0; k < shape.steps; ++k) {
        const int64_t offset = ((s * shape.steps + k) * shape.batch + b) * shape.dim;
        const double g_squared = diffusion_squared_at(k, shape.steps);
        const double g = sqrt(g_squared);
        const T sigma = static_cast<T>(g / root);
        const T slope = static_cast<T>(2.0 * root / g);
        const T scale = static_cast<T>(4.0 * root / (g * static_cast<double>(shape.batch)));
        T residuals = 0, deltas = 0;
        for (int64_t d = lane; d < shape.dim; d += kWarp) {
            const T delta = velocity[offset + d] - base_velocity[offset + d];
            const T residual = slope * delta + sigma * adjoint[offset + d];
            residuals += residual * residual;
            deltas += delta * delta;
            if (grad_velocity != nullptr) grad_velocity[offset + d] = scale * residual;
        }
        loss += static_cast<double>(residuals);
        kl += kl_scale / g_squared * static_cast<double>(deltas);
    }
    loss = warp_sum(loss);
    kl = warp_sum(kl);
    if (lane == 0) {
        scratch[2 * row] = loss;
        scratch[2 * row + 1] = kl;
    }
}

template <typename T>
__global__ void mean_kernel(const double* scratch, T* loss, T* path_kl, int64_t batch) {
    double loss_total = 0.0, kl_total = 0.0;
    for (int64_t b = threadIdx.x; b < batch; b += kReduceThreads) {
        loss_total += scratch[2 * (blockIdx.x * batch + b)];
        kl_total += scratch[2 * (blockIdx.x * batch + b) + 1];
    }
    loss_total = block_sum(loss_total);
    if (threadIdx.x == 0) loss[blockIdx.x] = static_cast<T>(loss_total / static_cast<double>(batch));
    kl_total = block_sum(kl_total);
    if (threadIdx.x == 0) path_kl[blockIdx.x] = static_cast<T>(kl_total / static_cast<double>(batch));
}

}  // namespace

template <typename T>
void adjoint_matching_forward_cuda(const T* velocity, const T* base_velocity, const T* adjoint,
                                   const T* lam, double* scratch, T* loss, T* path_kl,
                                   T* grad_velocity, const Shape& shape, int64_t horizon,
                                   void* stream) {
    const cudaStream_t queue = static_cast<cudaStream_t>(stream);
    forward_kernel<<<trajectory_blocks(shape), kWarp * kWarpsPerBlock, 0, queue>>>(
        velocity, base_velocity, adjoint, lam, scratch, grad_velocity, shape, horizon);
    mean_kernel<<<static_cast<unsigned>(shape.runs), kReduceThreads, 0, queue>>>(
        scratch, loss, path_kl, shape.batch);
    check_launch("adjoint_matching_forward");
}

template void adjoint_matching_forward_cuda(const float*, const float*, const float*,
                                            const float*, double*, float*, float*, float*,
                                            const Shape&, int64_t, void*);
template void adjoint_matching_forward_cuda(const double*, const double*, const double*,
                                            const double*, double*, double*, double*, double*,
                                            const Shape&, int64_t, void*);

}  // namespace trqam
