#include "adjoint_matching.h"
#include "cuda_common.cuh"

namespace trqam {
namespace {

template <typename T>
__global__ void forward_kernel(AdjointMatching<T> call) {
    const Shape& shape = call.shape;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
    if (row >= shape.runs * shape.batch) return;
    const int lane = threadIdx.x % kWarp;
    const int64_t s = row / shape.batch, b = row % shape.batch;
    const double lam = static_cast<double>(call.lam[s]);
    const double root = sqrt(lam < 1e-8 ? 1e-8 : lam);
    double loss = 0.0, kl = 0.0;
    for (int64_t k = 0; k < shape.steps; ++k) {
        const int64_t offset = ((s * shape.steps + k) * shape.batch + b) * shape.dim;
        const double g = sqrt(call.schedule.g_squared[k]);
        const T sigma = static_cast<T>(g / root);
        const T slope = static_cast<T>(2.0 * root / g);
        const T scale = static_cast<T>(4.0 * root / (g * static_cast<double>(shape.batch)));
        T residuals = 0, deltas = 0;
        for (int64_t d = lane; d < shape.dim; d += kWarp) {
            const T delta = call.velocity[offset + d] - call.base_velocity[offset + d];
            const T residual = slope * delta + sigma * call.adjoint[offset + d];
            residuals += residual * residual;
            deltas += delta * delta;
            if (call.grad_velocity != nullptr) call.grad_velocity[offset + d] = scale * residual;
        }
        loss += static_cast<double>(residuals);
        kl += path_kl_weight(call.schedule, k, call.horizon) * static_cast<double>(deltas);
    }
    loss = warp_sum(loss);
    kl = warp_sum(kl);
    if (lane == 0) {
        call.sums[row] = kl;
        call.sums[shape.runs * shape.batch + row] = loss;
    }
}

}  // namespace

template <typename T>
void adjoint_matching_cuda(const AdjointMatching<T>& call, void* stream) {
    const cudaStream_t queue = static_cast<cudaStream_t>(stream);
    const Shape& shape = call.shape;
    const unsigned runs = static_cast<unsigned>(shape.runs);
    forward_kernel<<<trajectory_blocks(shape), kWarp * kWarpsPerBlock, 0, queue>>>(call);
    mean_kernel<<<runs, kReduceThreads, 0, queue>>>(call.sums, call.path_kl, shape.batch);
    mean_kernel<<<runs, kReduceThreads, 0, queue>>>(call.sums + shape.runs * shape.batch,
                                                    call.loss, shape.batch);
    check_launch("adjoint_matching");
}

template void adjoint_matching_cuda(const AdjointMatching<float>&, void*);
template void adjoint_matching_cuda(const AdjointMatching<double>&, void*);

}  // namespace trqam
