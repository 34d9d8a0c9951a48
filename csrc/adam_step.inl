// The loops of adam_step.cpp. Included by loops.inl.

template <typename T>
double sum_of_squares(const T* values, int64_t count) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) {
        sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
    }
    return sum;
}

template <typename T>
void move_targets(T* targets, const T* params, int64_t count, T tau) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) targets[i] += tau * (params[i] - targets[i]);
}

template <typename T>
void move_params(T* params, const T* gradient, T* exp_avg, T* exp_avg_sq, int64_t count, T scale,
                 const AdamRates<T>& rates) {
    const T keep1 = rates.keep1, take1 = rates.take1, keep2 = rates.keep2, take2 = rates.take2;
    const T rate = rates.rate, root = rates.root, eps = rates.eps;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const T g = scale * gradient[i];
        const T m = keep1 * exp_avg[i] + take1 * g;
        const T v = keep2 * exp_avg_sq[i] + take2 * g * g;
        exp_avg[i] = m;
        exp_avg_sq[i] = v;
        params[i] -= rate * m / (__builtin_sqrt(v) * root + eps);
    }
}
