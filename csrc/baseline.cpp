// The passes for the instruction set "baseline"; passes.inl is the code.
#include <omp.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "passes.h"

#define TRQAM_VECTOR_BYTES 16
#define TRQAM_TILE_ROWS 6
#include "passes.inl"

namespace trqam {

const Passes<float> baseline_exact_float32 = kPasses<Exact<float>>;
const Passes<double> baseline_exact_float64 = kPasses<Exact<double>>;
const Passes<float> baseline_rounded = kPasses<Rounded>;

}  // namespace trqam
