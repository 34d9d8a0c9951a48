#include "philox.h"

#include <algorithm>

#include "parallel.h"

namespace trqam {
namespace {

constexpr int64_t kGroupsPerThread = 64;  // fewer do not pay for a thread

}  // namespace

template <typename T>
void philox(const Philox<T>& call, const Loops<T>& loops, int threads) {
    const int64_t groups = call.runs * (philox_groups(call.normals, kPhiloxLanes<T>) +
                                        philox_groups(call.uniforms, kPhiloxLanes<T>) +
                                        philox_groups(call.integers, kPhiloxLanes<int64_t>));
    const int64_t useful = std::max<int64_t>(1, groups / kGroupsPerThread);
    parallel_rows(groups, static_cast<int>(std::min<int64_t>(threads, useful)),
                  [&](int64_t begin, int64_t end) { loops.philox(call, begin, end); });
}

template void philox(const Philox<float>&, const Loops<float>&, int);
template void philox(const Philox<double>&, const Loops<double>&, int);

}  // namespace trqam
