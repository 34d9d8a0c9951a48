// One Adam step of independent runs on the CPU, with clipping and Polyak targets.
#pragma once

#include <cstdint>

#include "instruction_sets.h"

namespace trqam {

// gradient is [runs, size], norms [runs].
template <typename T>
struct GradientNorm {
    int64_t runs;
    int64_t size;
    const T* gradient;
    T* norms;
};

// params, gradient, exp_avg and exp_avg_sq are [runs, size], targets [runs, target_size] those of
// the last target_size parameters, with `stride` and `target_stride` elements from run to run.
// norms are [runs], of the gradient of which this may be a part.
template <typename T>
struct AdamStep {
    int64_t runs;
    int64_t size;
    int64_t stride;
    int64_t target_size;
    int64_t target_stride;
    T* params;
    const T* gradient;
    T* exp_avg;
    T* exp_avg_sq;
    T* targets;
    const T* norms;
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
void gradient_norm(const GradientNorm<T>& call, const Loops<T>& loops, int threads);

template <typename T>
void adam_step(const AdamStep<T>& call, const Loops<T>& loops, int threads);

}  // namespace trqam
