// The passes for the instruction set "avx512"; passes.inl is the code.
#include <immintrin.h>
#include <omp.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "passes.h"

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#define TRQAM_VECTOR_BYTES 64
#define TRQAM_TILE_ROWS 14
#include "passes.inl"

namespace trqam {

const Passes<float> avx512_exact_float32 = kPasses<Exact<float>>;
const Passes<double> avx512_exact_float64 = kPasses<Exact<double>>;
const Passes<float> avx512_rounded = kPasses<Rounded>;

}  // namespace trqam
