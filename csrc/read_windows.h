// Pieces of a file, the first part of which is mapped into memory.
#pragma once

#include <cstdint>

namespace trqam {

// out [count, size] <- the `size` bytes from first + starts[i] * stride of file `descriptor` on,
// for i < count. Where starts[i] < inside they are copied from `mapped` + starts[i] * stride
// instead.
// Returns whether the file held all of them; throws std::system_error if it cannot be read.
bool read_windows(int descriptor, int64_t first, const char* mapped, int64_t inside,
                  const int64_t* starts, int64_t count, int64_t stride, int64_t size, char* out);

}  // namespace trqam
