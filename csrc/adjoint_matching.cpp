#include "adjoint_matching.h"

#include <cmath>

#include "parallel.h"

namespace trqam {
namespace {

// g and kl_weights have one entry per step. Writes the two sums of every trajectory of
// [begin, end) to scratch[2 * row] (loss) and scratch[2 * row + 1] (path KL).
#define TRQAM_DEFINE_ROWS(T)                                                                     \
    TRQAM_SIMD_CLONES void rows(const T* velocity, const T* base_velocity, const T* adjoint,    \
                                const T* lam, double* scratch, T* grad_velocity,                \
                                const double* g, const double* kl_weights, Shape shape,         \
                                int64_t begin, int64_t end) {                                   \
        for (int64_t row = begin; row < end; ++row) {                                           \
            const int64_t s = row / shape.batch, b = row % shape.batch;                         \
            const double lam_s = lam[s];                                                        \
            const double root = __builtin_sqrt(lam_s < 1e-8 ? 1e-8 : lam_s);                    \
            double loss = 0.0, kl = 0.0;                                                        \
            for (int64_t k = 0; k < shape.steps; ++k) {                                         \
                const int64_t offset = ((s * shape.steps + k) * shape.batch + b) * shape.dim;   \
                const T sigma = static_cast<T>(g[k] / root);                                    \
                const T slope = static_cast<T>(2.0 * root / g[k]);                              \
                T residuals = 0, deltas = 0;                                                    \
                if (grad_velocity == nullptr) {                                                 \
                    _Pragma("omp simd reduction(+ : residuals, deltas)") for (                  \
                        int64_t d = 0; d < shape.dim; ++d) {                                    \
                        const T delta = velocity[offset + d] - base_velocity[offset + d];       \
                        const T residual = slope * delta + sigma * adjoint[offset + d];         \
                        residuals += residual * residual;                                       \
                        deltas += delta * delta;                                                \
                    }                                                                           \
                } else {                                                                        \
                    const T scale =                                                             \
                        static_cast<T>(4.0 * root / (g[k] * static_cast<double>(shape.batch))); \
                    _Pragma("omp simd reduction(+ : residuals, deltas)") for (                  \
                        int64_t d = 0; d < shape.dim; ++d) {                                    \
                        const T delta = velocity[offset + d] - base_velocity[offset + d];       \
                        const T residual = slope * delta + sigma * adjoint[offset + d];         \
                        residuals += residual * residual;                                       \
                        deltas += delta * delta;                                                \
                        grad_velocity[offset + d] = scale * residual;                           \
                    }                                                                           \
                }                                                                               \
                loss += static_cast<double>(residuals);                                         \
                kl += kl_weights[k] * static_cast<double>(deltas);                              \
            }                                                                                   \
            scratch[2 * row] = loss;                                                            \
            scratch[2 * row + 1] = kl;                                                          \
        }                                                                                       \
    }

TRQAM_DEFINE_ROWS(float)
TRQAM_DEFINE_ROWS(double)
#undef TRQAM_DEFINE_ROWS

}  // namespace

template <typename T>
void adjoint_matching_forward(const T* velocity, const T* base_velocity, const T* adjoint,
                              const T* lam, double* scratch, T* loss, T* path_kl,
                              T* grad_velocity, const Shape& shape, int64_t horizon,
                              int threads) {
    std::vector<double> g = diffusion_squared(shape.steps);
    for (double& value : g) value = std::sqrt(value);
    const std::vector<double> kl_weights = path_kl_weights(shape.steps, horizon);
    parallel_rows(shape.runs * shape.batch, threads, [&](int64_t begin, int64_t end) {
        rows(velocity, base_velocity, adjoint, lam, scratch, grad_velocity, g.data(),
             kl_weights.data(), shape, begin, end);
    });
    for (int64_t s = 0; s < shape.runs; ++s) {
        double loss_total = 0.0, kl_total = 0.0;
        for (int64_t b = 0; b < shape.batch; ++b) {
            loss_total += scratch[2 * (s * shape.batch + b)];
            kl_total += scratch[2 * (s * shape.batch + b) + 1];
        }
        loss[s] = static_cast<T>(loss_total / static_cast<double>(shape.batch));
        path_kl[s] = static_cast<T>(kl_total / static_cast<double>(shape.batch));
    }
}

template void adjoint_matching_forward(const float*, const float*, const float*, const float*,
                                       double*, float*, float*, float*, const Shape&, int64_t,
                                       int);
template void adjoint_matching_forward(const double*, const double*, const double*,
                                       const double*, double*, double*, double*, double*,
                                       const Shape&, int64_t, int);

}  // namespace trqam
