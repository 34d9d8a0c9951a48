// Passes through stacks of MLPs on the CPU: forward and backward, and the rollouts and sweeps of
// a velocity field, whole in one call.
//
// Every function needs scratch memory. It returns 0 when it has run; given less than it needs, it
// does nothing and returns the number of bytes.
#pragma once

#include "mlp_weights.h"

namespace trqam {

struct Workspace {
    char* data;
    int64_t bytes;
    int threads;  // OpenMP team size
};

// out [stack, rows, out] = network(inputs [runs, rows, in]); the members of a run share inputs.
// `tape`, tape_elements() of them, is kept for mlp_backward; null for none.
template <typename T>
struct MlpForward {
    Network<T> network;
    const T* inputs;
    int64_t rows;
    T* out;
    T* tape;
};

// Pulls cotangent [stack, rows, out] back. `gradients` has the structure of `network` and is
// written if `want_weights`; d_inputs [stack, rows, in] unless it is null.
template <typename T>
struct MlpBackward {
    Network<T> network;
    Network<T> gradients;
    const T* inputs;
    const T* cotangent;
    T* tape;
    int64_t rows;
    bool want_weights;
    T* d_inputs;
};

// Sizes of a field v(s, x, t): inputs are [observation, action, time].
struct FieldShape {
    int64_t batch;
    int64_t observation;
    int64_t action;
    int64_t steps;
};

// Chains of the memoryless SDE, trajectory [runs, steps + 1, batch, action] and the velocities
// along them [runs, steps, batch, action], from x0 and noise [runs, steps - 1, batch, action]; the
// last step is the base field's ODE. The ode_* rows follow the noise-free flow of `velocity`.
// `tape` keeps steps * batch rows, step after step; null for none.
template <typename T>
struct Rollout {
    Network<T> velocity;
    Network<T> base;
    FieldShape shape;
    int64_t ode_batch;
    const T* observations;
    const T* x0;
    const T* noise;
    const T* ode_observations;
    const T* ode_x0;
    T* trajectory;
    T* velocities;
    T* ode_x;
    T* tape;
};

// Lean adjoint of the base field, adjoints [runs, steps, batch, action], backward along trajectory
// [runs, steps + 1, batch, action] from terminal [runs, batch, action].
template <typename T>
struct Sweep {
    Network<T> base;
    FieldShape shape;
    const T* observations;
    const T* trajectory;
    const T* terminal;
    T* adjoints;
};

// Values v(s, X_k, t_k) [runs, steps, batch, action] at points [runs, steps, batch, action], whose
// runs are `point_stride` elements apart.
template <typename T>
struct Along {
    Network<T> velocity;
    FieldShape shape;
    const T* observations;
    const T* points;
    int64_t point_stride;
    T* velocities;
};

// One instruction set's passes in one arithmetic.
template <typename T>
struct Passes {
    int64_t (*forward)(const MlpForward<T>&, const Workspace&);
    int64_t (*backward)(const MlpBackward<T>&, const Workspace&);
    int64_t (*rollout)(const Rollout<T>&, const Workspace&);
    int64_t (*sweep)(const Sweep<T>&, const Workspace&);
    int64_t (*along)(const Along<T>&, const Workspace&);
};

// Operands of matrix products in full precision, or rounded to bfloat16 with float32 sums.
enum class Operands { exact, bf16 };

// Instruction sets that this machine can run, best first: "avx512_bf16" (which has bf16 operands
// only), "avx512", "avx2", "baseline".
int instruction_sets(const char* names[4]);

// Passes of `instruction_set`; of the fastest one for these operands if it is null. Throws
// std::invalid_argument if there is none.
template <typename T>
const Passes<T>& passes(const char* instruction_set, Operands operands);

}  // namespace trqam
