// Work sharing on the CPU.
#pragma once

#include <omp.h>

#include <cstdint>

namespace trqam {

// Calls work(begin, end) on contiguous shares of [0, rows), one per thread.
template <typename Work>
void parallel_rows(int64_t rows, int threads, const Work& work) {
    if (threads <= 1) {
        work(int64_t{0}, rows);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        const int64_t team = omp_get_num_threads(), rank = omp_get_thread_num();
        work(rows * rank / team, rows * (rank + 1) / team);
    }
}

}  // namespace trqam
