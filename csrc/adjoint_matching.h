// Adjoint-matching loss, its gradient with respect to the fine-tuned velocity, and the path KL of
// the same trajectories, all in one pass.
#pragma once

#include "noise_schedule.h"

namespace trqam {

// With sigma_k = g_k / sqrt(max(lam[s], 1e-8)) and Delta = velocity - base_velocity:
//   loss [runs]          = mean_b sum_k || 2 Delta / sigma_k + sigma_k adjoint ||^2
//   path_kl [runs]       = mean_b sum_k 2 h / (g_k^2 horizon) || Delta ||^2
//   grad_velocity [runs, steps, batch, dim] = d loss[s] / d velocity; null leaves it out
// `scratch` holds 2 * runs * batch doubles. Steps are accumulated in double.
template <typename T>
void adjoint_matching_forward(const T* velocity, const T* base_velocity, const T* adjoint,
                              const T* lam, double* scratch, T* loss, T* path_kl,
                              T* grad_velocity, const Shape& shape, int64_t horizon, int threads);

#ifdef TRQAM_WITH_CUDA
// The same on device memory, enqueued on `stream` (a cudaStream_t). Throws on a launch error.
template <typename T>
void adjoint_matching_forward_cuda(const T* velocity, const T* base_velocity, const T* adjoint,
                                   const T* lam, double* scratch, T* loss, T* path_kl,
                                   T* grad_velocity, const Shape& shape, int64_t horizon,
                                   void* stream);
#endif

}  // namespace trqam
