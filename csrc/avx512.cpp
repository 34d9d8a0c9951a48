// Passes and loops for the instruction set "avx512".
#include <immintrin.h>
#include <omp.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "adam_step.h"
#include "instruction_sets.h"
#include "noise_schedule.h"
#include "philox.h"
#include "trajectories.h"

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#define TRQAM_VECTOR_BYTES 64
#define TRQAM_TILE_ROWS 14
#include "passes.inl"
#include "loops.inl"

namespace trqam {

const Passes<float> avx512_exact_float32 = kPasses<Exact<float>>;
const Passes<double> avx512_exact_float64 = kPasses<Exact<double>>;
const Passes<float> avx512_rounded = kPasses<Rounded>;
const Loops<float> avx512_loops_float32 = kLoops<float>;
const Loops<double> avx512_loops_float64 = kLoops<double>;

}  // namespace trqam
