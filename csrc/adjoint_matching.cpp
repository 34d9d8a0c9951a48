#include "adjoint_matching.h"

#include <cmath>

#include "parallel.h"

namespace trqam {

template <typename T>
void adjoint_matching(const AdjointMatching<T>& call, const Loops<T>& loops, int threads) {
    const Shape& shape = call.shape;
    const auto weights = path_kl_weights(call.schedule, shape.steps, call.horizon);
    std::vector<double> g(call.schedule.g_squared, call.schedule.g_squared + shape.steps);
    for (double& value : g) value = std::sqrt(value);
    std::vector<double> path_kl(shape.runs * shape.batch), loss(shape.runs * shape.batch);
    const TrajectorySums<T> sums{shape,          call.velocity, call.base_velocity, weights.data(),
                                 path_kl.data(), call.adjoint,  call.lam,           g.data(),
                                 loss.data(),    call.grad_velocity};
    parallel_rows(shape.runs * shape.batch, threads, [&](int64_t begin, int64_t end) {
        loops.sum_trajectories(sums, begin, end);
    });
    mean_over_batch(path_kl.data(), shape, call.path_kl);
    mean_over_batch(loss.data(), shape, call.loss);
}

template void adjoint_matching(const AdjointMatching<float>&, const Loops<float>&, int);
template void adjoint_matching(const AdjointMatching<double>&, const Loops<double>&, int);

}  // namespace trqam
