// GELU (tanh approximation) and its pullback on the CPU.
#pragma once

#include <cstdint>

namespace trqam {

// `groups` blocks of `count` contiguous elements; consecutive blocks are a stride apart.
//
//   out = z / (1 + exp(-2 u)),  u = sqrt(2 / pi) (z + 0.044715 z^3)
//
// which is the tanh approximation written with one exponential. `threads` is the OpenMP team size.
template <typename T>
void gelu_forward(const T* z, T* out, int64_t groups, int64_t count, int64_t z_stride,
                  int64_t out_stride, int threads);

// grad *= gelu'(z), in place.
template <typename T>
void gelu_backward(const T* z, T* grad, int64_t groups, int64_t count, int64_t z_stride,
                   int64_t grad_stride, int threads);

}  // namespace trqam
