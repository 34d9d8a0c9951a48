// Counter-based random numbers: Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as
// 1, 2, 3, 2011). kernels/philox/__init__.py says which number comes from which bits.
#pragma once

#include <cstdint>

#include "instruction_sets.h"

namespace trqam {

constexpr int64_t kPhiloxGroup = 64;  // counters whose words make a group of numbers

// Numbers of every run, [runs, normals], [runs, uniforms] and [runs, integers] (in [0, high)), from
// the keys `seeds` [runs] and the counter `offset` [1].
template <typename T>
struct Philox {
    int64_t runs;
    int64_t stream;
    int64_t high;
    int64_t normals;
    int64_t uniforms;
    int64_t integers;
    const int64_t* seeds;
    const int64_t* offset;
    T* normal;
    T* uniform;
    int64_t* integer;
};

template <typename T>
void philox(const Philox<T>& call, const Loops<T>& loops, int threads);

// Groups of numbers for `count` numbers of which a counter makes `lanes`.
static inline __attribute__((always_inline)) int64_t philox_groups(int64_t count, int64_t lanes) {
    return (count + lanes * kPhiloxGroup - 1) / (lanes * kPhiloxGroup);
}

// Numbers of type T that a counter makes: one from each word, or from each pair of words.
template <typename T>
constexpr int64_t kPhiloxLanes = 16 / static_cast<int64_t>(sizeof(T));

}  // namespace trqam
