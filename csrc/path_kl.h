// Path-space KL of sampled trajectories and its gradient.
#pragma once

#include "instruction_sets.h"
#include "noise_schedule.h"
#include "trajectories.h"

namespace trqam {

// With Delta = velocity - base_velocity and w_k = 2 h_k / (g_k^2 horizon):
//   per_trajectory [runs, batch] = sum_k w_k ||Delta_k||^2,   mean [runs] over the batch
// `sums` is scratch [runs, batch], needed on CUDA alone.
template <typename T>
struct PathKl {
    Shape shape;
    NoiseSchedule schedule;
    int64_t horizon;
    const T* velocity;
    const T* base_velocity;
    double* sums;
    T* per_trajectory;
    T* mean;
};

template <typename T>
void path_kl(const PathKl<T>& call, const Loops<T>& loops, int threads);

// grad_velocity [runs, steps, batch, dim] for an upstream gradient [runs, batch]; the gradient
// with respect to base_velocity is its negative.
template <typename T>
struct PathKlBackward {
    Shape shape;
    NoiseSchedule schedule;
    int64_t horizon;
    const T* velocity;
    const T* base_velocity;
    const T* upstream;
    T* grad_velocity;
};

template <typename T>
void path_kl_backward(const PathKlBackward<T>& call, const Loops<T>& loops, int threads);

#ifdef TRQAM_WITH_CUDA
// The same on device memory, the schedule's too, enqueued on `stream` (a cudaStream_t). Throws on
// a launch error.
template <typename T>
void path_kl_cuda(const PathKl<T>& call, void* stream);

template <typename T>
void path_kl_backward_cuda(const PathKlBackward<T>& call, void* stream);
#endif

}  // namespace trqam
