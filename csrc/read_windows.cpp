#include "read_windows.h"

#include <cerrno>
#include <cstring>
#include <system_error>
#include <unistd.h>

namespace trqam {

bool read_windows(int descriptor, int64_t first, const char* mapped, int64_t inside,
                  const int64_t* starts, int64_t count, int64_t stride, int64_t size, char* out) {
    for (int64_t i = 0; i < count; ++i, out += size) {
        const int64_t at = starts[i] * stride;
        if (starts[i] < inside) {
            std::memcpy(out, mapped + at, static_cast<size_t>(size));
            continue;
        }
        int64_t done = 0;
        while (done < size) {
            const ssize_t got = pread(descriptor, out + done, static_cast<size_t>(size - done),
                                      static_cast<off_t>(first + at + done));
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) throw std::system_error(errno, std::generic_category(), "pread");
            if (got == 0) return false;
            done += got;
        }
    }
    return true;
}

}  // namespace trqam
