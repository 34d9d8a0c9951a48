// One Adam step of independent runs on the CPU, with clipping and Polyak targets.
#pragma once

#include <cstdint>

#include "instruction_sets.h"

namespace trqam {

// params, gradient, exp_avg and exp_avg_sq are [runs, size], targets [runs, target_size] those of
// the last target_size parameters, norms [runs].
template <typename T>
struct AdamStep {
    int64_t runs;
    int64_t size;
    int64_t target_size;
    T* params;
    const T* gradient;
    T* exp_avg;
    T* exp_avg_sq;
    T* targets;
    T* norms;
    double step;
    double lr;
    double beta1;
    double beta2;
    double eps;
    double max_norm;
    double tau;
};

// What a step multiplies by: beta and 1 - beta of the moments, lr / (1 - beta1^t),
// 1 / sqrt(1 - beta2^t), eps.
template <typename T>
struct AdamRates {
    T keep1, take1, keep2, take2, rate, root, eps;
};

template <typename T>
void adam_step(const AdamStep<T>& call, const Loops<T>& loops, int threads);

}  // namespace trqam
