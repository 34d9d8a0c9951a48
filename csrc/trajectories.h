// Velocities along sampled trajectories, and what the losses sum over them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace trqam {

// Sizes of velocities and adjoints: contiguous arrays [runs, steps, batch, dim].
struct Shape {
    int64_t runs;
    int64_t steps;
    int64_t batch;
    int64_t dim;
};

inline void check_positive(int64_t value, const char* name) {
    if (value < 1) {
        throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) +
                                    "; it must be at least 1");
    }
}

inline void check_shape(const Shape& shape) {
    check_positive(shape.runs, "runs");
    check_positive(shape.steps, "steps");
    check_positive(shape.batch, "batch");
    check_positive(shape.dim, "dim");
}

// Sums over the steps of every trajectory, in double. With Delta = velocity - base_velocity:
//   path_kl [runs, batch] = sum_k weights[k] ||Delta_k||^2
// and, unless `adjoint` is null, with sigma_k = g[k] / sqrt(max(lam[s], 1e-8)):
//   r_k = 2 Delta_k / sigma_k + sigma_k adjoint_k
//   loss [runs, batch] = sum_k ||r_k||^2
//   grad_velocity = 4 / (batch sigma_k) r_k; null leaves it out
template <typename T>
struct TrajectorySums {
    Shape shape;
    const T* velocity;
    const T* base_velocity;
    const double* weights;
    double* path_kl;
    const T* adjoint;
    const T* lam;
    const double* g;
    double* loss;
    T* grad_velocity;
};

// mean [runs] of sums [runs, batch].
template <typename T>
void mean_over_batch(const double* sums, const Shape& shape, T* mean) {
    for (int64_t s = 0; s < shape.runs; ++s) {
        double total = 0.0;
        for (int64_t b = 0; b < shape.batch; ++b) total += sums[s * shape.batch + b];
        mean[s] = static_cast<T>(total / static_cast<double>(shape.batch));
    }
}

}  // namespace trqam
