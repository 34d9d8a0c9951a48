#include "path_kl.h"

#include "parallel.h"

namespace trqam {
namespace {

// The clones cannot be templates, so one macro writes them for float and double. Rows are
// trajectories s * batch + b of [runs, steps, batch, dim]; step k of a row starts at
// ((s * steps + k) * batch + b) * dim.
#define TRQAM_DEFINE_ROWS(T)                                                                     \
    TRQAM_SIMD_CLONES void forward_rows(const T* velocity, const T* base_velocity,              \
                                        T* per_trajectory, const double* weights, Shape shape,  \
                                        int64_t begin, int64_t end) {                           \
        for (int64_t row = begin; row < end; ++row) {                                           \
            const int64_t s = row / shape.batch, b = row % shape.batch;                         \
            double total = 0.0;                                                                 \
            for (int64_t k = 0; k < shape.steps; ++k) {                                         \
                const int64_t offset = ((s * shape.steps + k) * shape.batch + b) * shape.dim;   \
                T squares = 0;                                                                  \
                _Pragma("omp simd reduction(+ : squares)") for (int64_t d = 0; d < shape.dim;   \
                                                                ++d) {                          \
                    const T delta = velocity[offset + d] - base_velocity[offset + d];           \
                    squares += delta * delta;                                                   \
                }                                                                               \
                total += weights[k] * static_cast<double>(squares);                             \
            }                                                                                   \
            per_trajectory[row] = static_cast<T>(total);                                        \
        }                                                                                       \
    }                                                                                           \
                                                                                                \
    TRQAM_SIMD_CLONES void backward_rows(const T* velocity, const T* base_velocity,             \
                                         const T* grad_per_trajectory, T* grad_velocity,        \
                                         const double* weights, Shape shape, int64_t begin,     \
                                         int64_t end) {                                         \
        for (int64_t row = begin; row < end; ++row) {                                           \
            const int64_t s = row / shape.batch, b = row % shape.batch;                         \
            for (int64_t k = 0; k < shape.steps; ++k) {                                         \
                const int64_t offset = ((s * shape.steps + k) * shape.batch + b) * shape.dim;   \
                const T scale = static_cast<T>(2.0 * weights[k]) * grad_per_trajectory[row];    \
                _Pragma("omp simd") for (int64_t d = 0; d < shape.dim; ++d) {                   \
                    grad_velocity[offset + d] =                                                 \
                        scale * (velocity[offset + d] - base_velocity[offset + d]);             \
                }                                                                               \
            }                                                                                   \
        }                                                                                       \
    }

TRQAM_DEFINE_ROWS(float)
TRQAM_DEFINE_ROWS(double)
#undef TRQAM_DEFINE_ROWS

}  // namespace

template <typename T>
void path_kl_forward(const T* velocity, const T* base_velocity, T* per_trajectory, T* mean,
                     const Shape& shape, int64_t horizon, int threads) {
    const std::vector<double> weights = path_kl_weights(shape.steps, horizon);
    parallel_rows(shape.runs * shape.batch, threads, [&](int64_t begin, int64_t end) {
        forward_rows(velocity, base_velocity, per_trajectory, weights.data(), shape, begin, end);
    });
    for (int64_t s = 0; s < shape.runs; ++s) {
        double total = 0.0;
        for (int64_t b = 0; b < shape.batch; ++b) total += per_trajectory[s * shape.batch + b];
        mean[s] = static_cast<T>(total / static_cast<double>(shape.batch));
    }
}

template <typename T>
void path_kl_backward(const T* velocity, const T* base_velocity, const T* grad_per_trajectory,
                      T* grad_velocity, const Shape& shape, int64_t horizon, int threads) {
    const std::vector<double> weights = path_kl_weights(shape.steps, horizon);
    parallel_rows(shape.runs * shape.batch, threads, [&](int64_t begin, int64_t end) {
        backward_rows(velocity, base_velocity, grad_per_trajectory, grad_velocity, weights.data(),
                      shape, begin, end);
    });
}

template void path_kl_forward(const float*, const float*, float*, float*, const Shape&, int64_t,
                              int);
template void path_kl_forward(const double*, const double*, double*, double*, const Shape&,
                              int64_t, int);
template void path_kl_backward(const float*, const float*, const float*, float*, const Shape&,
                               int64_t, int);
template void path_kl_backward(const double*, const double*, const double*, double*, const Shape&,
                               int64_t, int);

}  // namespace trqam
