#include "adam_step.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"

namespace trqam {
namespace {

// Computed in double: 1 - 0.999 has only 10 correct bits in float.
template <typename T>
struct Rates {
    T keep1, take1, keep2, take2;  // of the moments: beta and 1 - beta
    T rate, root, eps;             // lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
};

#define TRQAM_DEFINE_BLOCKS(T)                                                                   \
    TRQAM_SIMD_CLONES double sum_of_squares(const T* values, int64_t count) {                    \
        double sum = 0.0;                                                                        \
        _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < count; ++i) {             \
            sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);              \
        }                                                                                        \
        return sum;                                                                              \
    }                                                                                            \
                                                                                                 \
    TRQAM_SIMD_CLONES void move_targets(T* targets, const T* params, int64_t count, T tau) {     \
        _Pragma("omp simd") for (int64_t i = 0; i < count; ++i) {                                \
            targets[i] += tau * (params[i] - targets[i]);                                        \
        }                                                                                        \
    }                                                                                            \
                                                                                                 \
    TRQAM_SIMD_CLONES void move_params(T* params, const T* gradient, T* exp_avg, T* exp_avg_sq,  \
                                       int64_t count, T scale, const Rates<T>& rates) {          \
        const T keep1 = rates.keep1, take1 = rates.take1, keep2 = rates.keep2,                   \
                take2 = rates.take2, rate = rates.rate, root = rates.root, eps = rates.eps;      \
        _Pragma("omp simd") for (int64_t i = 0; i < count; ++i) {                                \
            const T g = scale * gradient[i];                                                     \
            const T m = keep1 * exp_avg[i] + take1 * g;                                          \
            const T v = keep2 * exp_avg_sq[i] + take2 * g * g;                                   \
            exp_avg[i] = m;                                                                      \
            exp_avg_sq[i] = v;                                                                   \
            params[i] -= rate * m / (__builtin_sqrt(v) * root + eps);                            \
        }                                                                                        \
    }

TRQAM_DEFINE_BLOCKS(float)
TRQAM_DEFINE_BLOCKS(double)
#undef TRQAM_DEFINE_BLOCKS

}  // namespace

template <typename T>
void adam_step(const AdamStep<T>& call, int threads) {
    const int64_t blocks = adam_blocks(call.size), all = call.runs * blocks;
    const int team = static_cast<int>(std::min<int64_t>(threads, all));
    parallel_rows(all, team, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            const int64_t at = block % blocks * kAdamBlock;
            call.sums[block] = sum_of_squares(call.gradient + block / blocks * call.size + at,
                                              std::min(kAdamBlock, call.size - at));
        }
    });
    for (int64_t s = 0; s < call.runs; ++s) {
        double sum = 0.0;
        for (int64_t block = 0; block < blocks; ++block) sum += call.sums[s * blocks + block];
        call.norms[s] = static_cast<T>(std::sqrt(sum));
    }
    const Rates<T> rates{
        static_cast<T>(call.beta1), static_cast<T>(1.0 - call.beta1),
        static_cast<T>(call.beta2), static_cast<T>(1.0 - call.beta2),
        static_cast<T>(call.lr / (1.0 - std::pow(call.beta1, call.step))),
        static_cast<T>(1.0 / std::sqrt(1.0 - std::pow(call.beta2, call.step))),
        static_cast<T>(call.eps)};
    const int64_t first_target = call.size - call.target_size;
    parallel_rows(all, team, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            const int64_t s = block / blocks, first = block % blocks * kAdamBlock;
            const int64_t count = std::min(kAdamBlock, call.size - first);
            const int64_t offset = s * call.size + first;
            const int64_t skipped = std::max<int64_t>(0, first_target - first);
            if (skipped < count) {
                move_targets(call.targets + s * call.target_size + first + skipped - first_target,
                             call.params + offset + skipped, count - skipped,
                             static_cast<T>(call.tau));
            }
            // A norm that is not finite passes, so that the run shows it.
            const double norm = call.norms[s];
            const double scale = norm <= call.max_norm ? 1.0 : call.max_norm / norm;
            move_params(call.params + offset, call.gradient + offset, call.exp_avg + offset,
                        call.exp_avg_sq + offset, count, static_cast<T>(scale), rates);
        }
    });
}

template void adam_step(const AdamStep<float>&, int);
template void adam_step(const AdamStep<double>&, int);

}  // namespace trqam
