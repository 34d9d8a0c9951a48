// Shared by every op: sizes of the arrays, argument checks, and the memoryless schedule.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace trqam {

// Velocities and adjoints are contiguous arrays [runs, steps, batch, dim].
struct Shape {
    int64_t runs;
    int64_t steps;
    int64_t batch;
    int64_t dim;
};

inline void check_shape(const Shape& shape) {
    const auto positive = [](int64_t value, const char* name) {
        if (value < 1) {
            throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) +
                                        "; it must be at least 1");
        }
    };
    positive(shape.runs, "runs");
    positive(shape.steps, "steps");
    positive(shape.batch, "batch");
    positive(shape.dim, "dim");
}

// g_k^2 = 2 (1 - t_k + h) / (t_k + h) with t_k = k h and h = 1 / steps.
inline std::vector<double> diffusion_squared(int64_t steps) {
    std::vector<double> g_squared(steps);
    const double h = 1.0 / static_cast<double>(steps);
    for (int64_t k = 0; k < steps; ++k) {
        const double t = static_cast<double>(k) / static_cast<double>(steps);
        g_squared[k] = 2.0 * (1.0 - t + h) / (t + h);
    }
    return g_squared;
}

// Weight of ||Delta_k||^2 in the path KL: 2 h / (g_k^2 * horizon).
inline std::vector<double> path_kl_weights(int64_t steps, int64_t horizon) {
    std::vector<double> weights = diffusion_squared(steps);
    for (double& weight : weights) {
        weight = 2.0 / (static_cast<double>(steps) * static_cast<double>(horizon) * weight);
    }
    return weights;
}

}  // namespace trqam
