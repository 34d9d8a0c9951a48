// Passes and loops for the instruction set "baseline".
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

#define TRQAM_VECTOR_BYTES 16
#define TRQAM_TILE_ROWS 6
#include "passes.inl"
#include "loops.inl"

namespace trqam {

const Passes<float> baseline_exact_float32 = kPasses<Exact<float>>;
const Passes<double> baseline_exact_float64 = kPasses<Exact<double>>;
const Passes<float> baseline_rounded = kPasses<Rounded>;
const Loops<float> baseline_loops_float32 = kLoops<float>;
const Loops<double> baseline_loops_float64 = kLoops<double>;

}  // namespace trqam
