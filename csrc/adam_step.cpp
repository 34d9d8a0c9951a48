#include "adam_step.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"

namespace trqam {
namespace {

// Elements of a run whose squares are summed at a time: sums do not depend on the threads.
constexpr int64_t kBlock = 16384;

}  // namespace

template <typename T>
void gradient_norm(const GradientNorm<T>& call, const Loops<T>& loops, int threads) {
    const int64_t blocks = (call.size + kBlock - 1) / kBlock, all = call.runs * blocks;
    std::vector<double> sums(all);
    const int team = static_cast<int>(std::min<int64_t>(threads, all));
    parallel_rows(all, team, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            const int64_t at = block % blocks * kBlock;
            sums[block] = loops.sum_of_squares(call.gradient + block / blocks * call.size + at,
                                                    std::min(kBlock, call.size - at));
        }
    });
    for (int64_t s = 0; s < call.runs; ++s) {
        double sum = 0.0;
        for (int64_t block = 0; block < blocks; ++block) sum += sums[s * blocks + block];
        call.norms[s] = static_cast<T>(std::sqrt(sum));
    }
}

template <typename T>
void adam_step(const AdamStep<T>& call, const Loops<T>& loops, int threads) {
    const int64_t blocks = (call.size + kBlock - 1) / kBlock, all = call.runs * blocks;
    const int team = static_cast<int>(std::min<int64_t>(threads, all));
    // Computed in double: 1 - 0.999 has only 10 correct bits in float.
    const AdamRates<T> rates{
        static_cast<T>(call.beta1), static_cast<T>(1.0 - call.beta1),
        static_cast<T>(call.beta2), static_cast<T>(1.0 - call.beta2),
        static_cast<T>(call.lr / (1.0 - std::pow(call.beta1, call.step))),
        static_cast<T>(1.0 / std::sqrt(1.0 - std::pow(call.beta2, call.step))),
        static_cast<T>(call.eps)};
    const int64_t first_target = call.size - call.target_size;
    parallel_rows(all, team, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            const int64_t s = block / blocks, first = block % blocks * kBlock;
            const int64_t count = std::min(kBlock, call.size - first);
            const int64_t offset = s * call.stride + first;
            const int64_t skipped = std::max<int64_t>(0, first_target - first);
            if (skipped < count) {
                const int64_t target = s * call.target_stride + first + skipped - first_target;
                loops.move_targets(call.targets + target, call.params + offset + skipped,
                                   count - skipped, static_cast<T>(call.tau));
            }
            // A norm that is not finite passes, so that the run shows it.
            const double norm = call.norms[s];
            const double scale = norm <= call.max_norm ? 1.0 : call.max_norm / norm;
            loops.move_params(call.params + offset, call.gradient + offset, call.exp_avg + offset,
                              call.exp_avg_sq + offset, count, static_cast<T>(scale), rates);
        }
    });
}

template void gradient_norm(const GradientNorm<float>&, const Loops<float>&, int);
template void gradient_norm(const GradientNorm<double>&, const Loops<double>&, int);
template void adam_step(const AdamStep<float>&, const Loops<float>&, int);
template void adam_step(const AdamStep<double>&, const Loops<double>&, int);

}  // namespace trqam
