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
    MlpWeights<T> network;
    const T* inputs;
    int64_t rows;
    T* out;
    T* tape;
};

// Pulls cotangent [stack, rows, out] back. `gradients` has the structure of `network` and is
// written if `want_weights`; d_inputs [stack, rows, in] unless it is null.
template <typename T>
struct MlpBackward {
    MlpWeights<T> network;
    MlpWeights<T> gradients;
    const T* inputs;
    const T* cotangent;
    T* tape;
    int64_t rows;
    bool want_weights;
    T* d_inputs;
};

// Values out [stack, rows, out] of networks that read [observation, action], inputs [runs, rows, in]
// as of MlpForward, and gradient [stack, rows, in - observation], that of `cotangent` times their
// sum over the outputs with respect to the action.
template <typename T>
struct ActionGradient {
    MlpWeights<T> network;
    const T* inputs;
    int64_t rows;
    int64_t observation;
    T cotangent;
    T* out;
    T* gradient;
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
    MlpWeights<T> velocity;
    MlpWeights<T> base;
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
struct LeanAdjoint {
    MlpWeights<T> base;
    FieldShape shape;
    const T* observations;
    const T* trajectory;
    const T* terminal;
    T* adjoints;
};

// Values v(s, X_k, t_k) [runs, steps, batch, action] at points [runs, steps, batch, action], whose
// runs are `point_stride` elements apart.
template <typename T>
struct VelocityAlong {
    MlpWeights<T> velocity;
    FieldShape shape;
    const T* observations;
    const T* points;
    int64_t point_stride;
    T* velocities;
};

}  // namespace trqam
