// Shared by the CUDA kernels: one warp per trajectory, one block per run for the mean.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "noise_schedule.h"

namespace trqam {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 8;
constexpr int kReduceThreads = 256;

inline void check_launch(const char* kernel) {
    const cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(status));
    }
}

inline unsigned trajectory_blocks(const Shape& shape) {
    const int64_t rows = shape.runs * shape.batch;
    return static_cast<unsigned>((rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
}

// g_k^2 of the memoryless schedule, evaluated one step ahead.
__device__ inline double diffusion_squared_at(int64_t k, int64_t steps) {
    const double h = 1.0 / static_cast<double>(steps);
    const double t = static_cast<double>(k) / static_cast<double>(steps);
    return 2.0 * (1.0 - t + h) / (t + h);
}

__device__ inline double warp_sum(double value) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        value += __shfl_down_sync(0xffffffffu, value, offset);
    }
    return value;
}

// Sum over the block in a fixed order; the result is valid in thread 0.
__device__ inline double block_sum(double value) {
    __shared__ double partial[kReduceThreads];
    __syncthreads();
    partial[threadIdx.x] = value;
    __syncthreads();
    for (int width = kReduceThreads / 2; width > 0; width /= 2) {
        if (threadIdx.x < width) partial[threadIdx.x] += partial[threadIdx.x + width];
        __syncthreads();
    }
    return partial[0];
}

}  // namespace trqam
