#include "path_kl.h"

#include "parallel.h"

namespace trqam {

template <typename T>
void path_kl(const PathKl<T>& call, const Loops<T>& loops, int threads) {
    const Shape& shape = call.shape;
    const auto weights = path_kl_weights(call.schedule, shape.steps, call.horizon);
    std::vector<double> path_kl(shape.runs * shape.batch);
    TrajectorySums<T> sums{};
    sums.shape = shape;
    sums.velocity = call.velocity;
    sums.base_velocity = call.base_velocity;
    sums.weights = weights.data();
    sums.path_kl = path_kl.data();
    parallel_rows(shape.runs * shape.batch, threads, [&](int64_t begin, int64_t end) {
        loops.sum_trajectories(sums, begin, end);
        for (int64_t row = begin; row < end; ++row) {
            call.per_trajectory[row] = static_cast<T>(path_kl[row]);
        }
    });
    mean_over_batch(path_kl.data(), shape, call.mean);
}

template <typename T>
void path_kl_backward(const PathKlBackward<T>& call, const Loops<T>& loops, int threads) {
    const Shape& shape = call.shape;
    const auto weights = path_kl_weights(call.schedule, shape.steps, call.horizon);
    TrajectorySums<T> sums{};
    sums.shape = shape;
    sums.velocity = call.velocity;
    sums.base_velocity = call.base_velocity;
    sums.weights = weights.data();
    sums.grad_velocity = call.grad_velocity;
    parallel_rows(shape.runs * shape.batch, threads, [&](int64_t begin, int64_t end) {
        loops.path_kl_gradient(sums, call.upstream, begin, end);
    });
}

template void path_kl(const PathKl<float>&, const Loops<float>&, int);
template void path_kl(const PathKl<double>&, const Loops<double>&, int);
template void path_kl_backward(const PathKlBackward<float>&, const Loops<float>&, int);
template void path_kl_backward(const PathKlBackward<double>&, const Loops<double>&, int);

}  // namespace trqam
