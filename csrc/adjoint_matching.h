// Adjoint-matching loss, its gradient with respect to the fine-tuned velocity, and the path KL of
// the same trajectories, all in one pass.
#pragma once

#include "instruction_sets.h"
#include "noise_schedule.h"
#include "trajectories.h"

namespace trqam {

// With sigma_k = g_k / sqrt(max(lam[s], 1e-8)) and Delta = velocity - base_velocity:
//   loss [runs]    = mean_b sum_k || 2 Delta_k / sigma_k + sigma_k adjoint_k ||^2
//   path_kl [runs] = mean_b sum_k 2 h_k / (g_k^2 horizon) || Delta_k ||^2
//   grad_velocity [runs, steps, batch, dim] = d loss[s] / d velocity; null leaves it out
// `sums` is scratch [2, runs, batch], needed on CUDA alone.
template <typename T>
struct AdjointMatching {
    Shape shape;
    NoiseSchedule schedule;
    int64_t horizon;
    const T* velocity;
    const T* base_velocity;
    const T* adjoint;
    const T* lam;
    double* sums;
    T* loss;
    T* path_kl;
    T* grad_velocity;
};

template <typename T>
void adjoint_matching(const AdjointMatching<T>& call, const Loops<T>& loops, int threads);

#ifdef TRQAM_WITH_CUDA
// The same on device memory, the schedule's too, enqueued on `stream` (a cudaStream_t). Throws on
// a launch error.
template <typename T>
void adjoint_matching_cuda(const AdjointMatching<T>& call, void* stream);
#endif

}  // namespace trqam
