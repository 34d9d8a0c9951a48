// Passes with bfloat16 operands for the instruction set "avx512_bf16".
#include <immintrin.h>
#include <omp.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "instruction_sets.h"
#include "noise_schedule.h"

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma")
#define TRQAM_VECTOR_BYTES 64
#define TRQAM_TILE_ROWS 14
#define TRQAM_DOT_BF16
#include "passes.inl"

namespace trqam {

const Passes<float> avx512_dot = kPasses<Dot>;

}  // namespace trqam
