// The compiled passes of every instruction set, for mlp.cpp to choose from.
#pragma once

#include "mlp.h"

namespace trqam {

extern const Passes<float> avx512_exact_float32, avx2_exact_float32, baseline_exact_float32;
extern const Passes<double> avx512_exact_float64, avx2_exact_float64, baseline_exact_float64;
extern const Passes<float> avx512_rounded, avx2_rounded, baseline_rounded, avx512_dot;

}  // namespace trqam
