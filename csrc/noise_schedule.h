// The noise schedules of the sampling SDE.
#pragma once

#include <cstdint>
#include <vector>

namespace trqam {

// The flow's own schedule: g_k^2 = 2 (1 - t_k + h) / (t_k + h) with t_k = k h and h = 1 / steps.
// Static, as it is compiled again for every instruction set.
static inline __attribute__((always_inline)) double diffusion_squared(int64_t k, int64_t steps) {
    const double t = static_cast<double>(k) / static_cast<double>(steps);
    const double h = 1.0 / static_cast<double>(steps);
    return 2.0 * (1.0 - t + h) / (t + h);
}

// Any schedule: step sizes h_k and squared diffusion coefficients g_k^2, [steps] each.
struct NoiseSchedule {
    const double* step_sizes;
    const double* g_squared;
};

// Weights 2 h_k / (g_k^2 horizon) of ||Delta_k||^2 in the path KL.
inline std::vector<double> path_kl_weights(const NoiseSchedule& schedule, int64_t steps,
                                           int64_t horizon) {
    std::vector<double> weights(steps);
    for (int64_t k = 0; k < steps; ++k) {
        weights[k] = 2.0 * schedule.step_sizes[k] /
                     (schedule.g_squared[k] * static_cast<double>(horizon));
    }
    return weights;
}

}  // namespace trqam
