// The passes for the instruction set "avx2"; passes.inl is the code.
#include <omp.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "passes.h"

#pragma GCC target("avx2,fma")
#define TRQAM_VECTOR_BYTES 32
#define TRQAM_TILE_ROWS 6
#include "passes.inl"

namespace trqam {

const Passes<float> avx2_exact_float32 = kPasses<Exact<float>>;
const Passes<double> avx2_exact_float64 = kPasses<Exact<double>>;
const Passes<float> avx2_rounded = kPasses<Rounded>;

}  // namespace trqam
