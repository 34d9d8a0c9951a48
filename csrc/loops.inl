// The loops of instruction_sets.h for one instruction set. Included after passes.inl by the set's
// file.

namespace trqam {
namespace {

#include "adam_step.inl"
#include "philox.inl"
#include "trajectories.inl"

template <typename T>
constexpr Loops<T> kLoops = {sum_any_trajectories<T>, path_kl_gradient<T>, sum_of_squares<T>,
                             move_targets<T>,         move_params<T>,      draw_groups<T>};

}  // namespace
}  // namespace trqam
