// What is compiled once for every instruction set, and the choice of one when the program runs.
//
// A set has a file of its own (avx512.cpp, avx2.cpp, ...), which includes the code as passes.inl
// and loops.inl with the compiler's target set.
#pragma once

#include <cstdint>

#include "mlp.h"

namespace trqam {

// Passes through networks in one arithmetic.
template <typename T>
struct Passes {
    int64_t (*forward)(const MlpForward<T>&, const Workspace&);
    int64_t (*backward)(const MlpBackward<T>&, const Workspace&);
    int64_t (*action_gradient)(const ActionGradient<T>&, const Workspace&);
    int64_t (*rollout)(const Rollout<T>&, const Workspace&);
    int64_t (*lean_adjoint)(const LeanAdjoint<T>&, const Workspace&);
    int64_t (*velocity_along)(const VelocityAlong<T>&, const Workspace&);
};

template <typename T>
struct AdamRates;
template <typename T>
struct Philox;
template <typename T>
struct TrajectorySums;

// Loops over arrays; the ops that call them share them out among threads.
template <typename T>
struct Loops {
    void (*sum_trajectories)(const TrajectorySums<T>&, int64_t begin, int64_t end);
    void (*path_kl_gradient)(const TrajectorySums<T>&, const T* upstream, int64_t begin,
                             int64_t end);
    double (*sum_of_squares)(const T*, int64_t count);
    void (*move_targets)(T* targets, const T* params, int64_t count, T tau);
    void (*move_params)(T* params, const T* gradient, T* exp_avg, T* exp_avg_sq, int64_t count,
                        T scale, const AdamRates<T>&);
    void (*philox)(const Philox<T>&, int64_t begin, int64_t end);
};

// Operands of matrix products in full precision, or rounded to bfloat16 with float32 sums.
enum class Operands { exact, bf16 };

// Instruction sets that this machine can run, best first: "avx512_bf16" (which has passes with bf16
// operands only), "avx512", "avx2", "baseline".
int instruction_sets(const char* names[4]);

// Passes and loops of `instruction_set`; of the fastest one for these operands if it is null. Throw
// std::invalid_argument if there is none.
template <typename T>
const Passes<T>& passes(const char* instruction_set, Operands operands);
template <typename T>
const Loops<T>& loops(const char* instruction_set);

extern const Passes<float> avx512_exact_float32, avx2_exact_float32, baseline_exact_float32;
extern const Passes<double> avx512_exact_float64, avx2_exact_float64, baseline_exact_float64;
extern const Passes<float> avx512_rounded, avx2_rounded, baseline_rounded, avx512_dot;
extern const Loops<float> avx512_loops_float32, avx2_loops_float32, baseline_loops_float32;
extern const Loops<double> avx512_loops_float64, avx2_loops_float64, baseline_loops_float64;

}  // namespace trqam
