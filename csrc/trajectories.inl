// The sums of trajectories.h. Included by loops.inl.

// ||velocity - base_velocity||^2 at one point. Not inlined: both losses are to add in one order.
template <typename T>
__attribute__((noinline)) T squared_distance(const T* velocity, const T* base_velocity,
                                             int64_t dim) {
    T squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t d = 0; d < dim; ++d) {
        const T delta = velocity[d] - base_velocity[d];
        squares += delta * delta;
    }
    return squares;
}

// Those of trajectories [begin, end), numbered s * batch + b; step k of one starts at
// ((s * steps + k) * batch + b) * dim.
template <bool kMatching, bool kGradient, typename T>
void sum_trajectories(const TrajectorySums<T>& call, int64_t begin, int64_t end) {
    const Shape shape = call.shape;
    for (int64_t row = begin; row < end; ++row) {
        const int64_t s = row / shape.batch, b = row % shape.batch;
        double root = 1.0, path_kl = 0.0, loss = 0.0;
        if constexpr (kMatching) {
            const double lam = call.lam[s];
            root = __builtin_sqrt(lam < 1e-8 ? 1e-8 : lam);
        }
        for (int64_t k = 0; k < shape.steps; ++k) {
            const int64_t at = ((s * shape.steps + k) * shape.batch + b) * shape.dim;
            const T* velocity = call.velocity + at;
            const T* base_velocity = call.base_velocity + at;
            T sigma = 0, slope = 0, scale = 0;
            if constexpr (kMatching) {
                sigma = static_cast<T>(call.g[k] / root);
                slope = static_cast<T>(2.0 * root / call.g[k]);
            }
            if constexpr (kGradient) {
                const double rows = static_cast<double>(shape.batch);
                scale = static_cast<T>(4.0 * root / (call.g[k] * rows));
            }
            path_kl += call.weights[k] *
                       static_cast<double>(squared_distance(velocity, base_velocity, shape.dim));
            T residuals = 0;
            if constexpr (kMatching) {
#pragma omp simd reduction(+ : residuals)
                for (int64_t d = 0; d < shape.dim; ++d) {
                    const T delta = velocity[d] - base_velocity[d];
                    const T residual = slope * delta + sigma * call.adjoint[at + d];
                    residuals += residual * residual;
                    if constexpr (kGradient) call.grad_velocity[at + d] = scale * residual;
                }
            }
            loss += static_cast<double>(residuals);
        }
        call.path_kl[row] = path_kl;
        if constexpr (kMatching) call.loss[row] = loss;
    }
}

template <typename T>
void sum_any_trajectories(const TrajectorySums<T>& call, int64_t begin, int64_t end) {
    if (call.adjoint == nullptr) {
        sum_trajectories<false, false>(call, begin, end);
    } else if (call.grad_velocity == nullptr) {
        sum_trajectories<true, false>(call, begin, end);
    } else {
        sum_trajectories<true, true>(call, begin, end);
    }
}

// grad_velocity = 2 weights[k] upstream [runs, batch] (velocity - base_velocity).
template <typename T>
void path_kl_gradient(const TrajectorySums<T>& call, const T* upstream, int64_t begin,
                      int64_t end) {
    const Shape shape = call.shape;
    for (int64_t row = begin; row < end; ++row) {
        const int64_t s = row / shape.batch, b = row % shape.batch;
        for (int64_t k = 0; k < shape.steps; ++k) {
            const int64_t at = ((s * shape.steps + k) * shape.batch + b) * shape.dim;
            const T scale = static_cast<T>(2.0 * call.weights[k]) * upstream[row];
#pragma omp simd
            for (int64_t d = 0; d < shape.dim; ++d) {
                call.grad_velocity[at + d] =
                    scale * (call.velocity[at + d] - call.base_velocity[at + d]);
            }
        }
    }
}
