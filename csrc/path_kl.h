// Path-space KL of sampled trajectories and its gradient.
#pragma once

#include "noise_schedule.h"

namespace trqam {

// per_trajectory [runs, batch] = sum_k 2 h / (g_k^2 horizon) || velocity - base_velocity ||^2,
// mean [runs] over the batch. Steps are accumulated in double. `threads` is the OpenMP team size.
template <typename T>
void path_kl_forward(const T* velocity, const T* base_velocity, T* per_trajectory, T* mean,
                     const Shape& shape, int64_t horizon, int threads);

// grad_velocity [runs, steps, batch, dim] for an upstream gradient [runs, batch]; the gradient
// with respect to base_velocity is its negative.
template <typename T>
void path_kl_backward(const T* velocity, const T* base_velocity, const T* grad_per_trajectory,
                      T* grad_velocity, const Shape& shape, int64_t horizon, int threads);

#ifdef TRQAM_WITH_CUDA
// The same on device memory, enqueued on `stream` (a cudaStream_t). Throws on a launch error.
template <typename T>
void path_kl_forward_cuda(const T* velocity, const T* base_velocity, T* per_trajectory, T* mean,
                          const Shape& shape, int64_t horizon, void* stream);

template <typename T>
void path_kl_backward_cuda(const T* velocity, const T* base_velocity,
                           const T* grad_per_trajectory, T* grad_velocity, const Shape& shape,
                           int64_t horizon, void* stream);
#endif

}  // namespace trqam
