// One Adam step of independent runs on the CPU, with clipping and Polyak targets.
#pragma once

#include <cstdint>

namespace trqam {

// Elements of a run whose squares are summed at a time: sums do not depend on the threads.
constexpr int64_t kAdamBlock = 16384;

inline int64_t adam_blocks(int64_t size) { return (size + kAdamBlock - 1) / kAdamBlock; }

// params, gradient, exp_avg and exp_avg_sq are [runs, size], targets [runs, target_size] those of
// the last target_size parameters, norms [runs], sums [runs, adam_blocks(size)].
template <typename T>
struct AdamStep {
    T* params;
    const T* gradient;
    T* exp_avg;
    T* exp_avg_sq;
    T* targets;
    T* norms;
    double* sums;
    int64_t runs, size, target_size;
    double step, lr, beta1, beta2, eps, max_norm, tau;
};

template <typename T>
void adam_step(const AdamStep<T>& call, int threads);

}  // namespace trqam
