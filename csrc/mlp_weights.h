// Stacks of MLPs in memory: what the passes of mlp.h read, keep and write.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trqam {

constexpr int kMaxLayers = 16;      // hidden layers
constexpr int64_t kAlignment = 32;  // elements to which rows of activations are padded
constexpr double kNormEpsilon = 1e-6;

// Functions here are compiled again for every instruction set, so none may have a symbol that the
// linker would share between them.
#define TRQAM_PER_SET static inline __attribute__((always_inline))

TRQAM_PER_SET constexpr int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

TRQAM_PER_SET constexpr int64_t padded(int64_t width) { return round_up(width, kAlignment); }

// One parameter of all networks of a stack; each network's share is contiguous.
template <typename T>
struct Strided {
    T* data;
    int64_t run_stride;
    int64_t member_stride;
};

// `runs` x `members` equal MLPs: kernels [in, out], biases [out], and with `norm` the affine
// parameters of a LayerNorm after every hidden activation. Hidden layer: Dense, GELU, LayerNorm.
template <typename T>
struct MlpWeights {
    int64_t runs;
    int64_t members;
    int64_t layers;  // hidden ones
    bool norm;
    int64_t widths[kMaxLayers + 2];  // input, hidden layers, output
    Strided<T> kernels[kMaxLayers + 1];
    Strided<T> biases[kMaxLayers + 1];
    Strided<T> scales[kMaxLayers];
    Strided<T> shifts[kMaxLayers];

    __attribute__((always_inline)) int64_t stack() const { return runs * members; }
    __attribute__((always_inline)) int64_t in() const { return widths[0]; }
    __attribute__((always_inline)) int64_t out() const { return widths[layers + 1]; }
    __attribute__((always_inline)) T* of(const Strided<T>& tensor, int64_t network) const {
        return tensor.data + network / members * tensor.run_stride +
               network % members * tensor.member_stride;
    }
};

// Rows of one network on the way through its hidden layers. `activation` is what the next layer
// reads: gelu(z), or with LayerNorm the normalised gelu(z) before its affine part; `slope` is
// gelu'(z); `rstd` the reciprocal deviation of every row. Rows are `padded(width)` apart.
template <typename T>
struct Rows {
    T* activation[kMaxLayers];
    T* slope[kMaxLayers];
    T* rstd[kMaxLayers];
};

// A tape holds `rows` rows of every network of a stack, layer after layer: activations
// [stack, rows, padded(width)], slopes likewise, and with LayerNorm rstd [stack, rows].
template <typename T>
TRQAM_PER_SET int64_t tape_elements(const MlpWeights<T>& network, int64_t rows) {
    int64_t per_row = 0;
    for (int64_t l = 0; l < network.layers; ++l) {
        per_row += 2 * padded(network.widths[l + 1]) + (network.norm ? 1 : 0);
    }
    return per_row * rows * network.stack();
}

template <typename T>
TRQAM_PER_SET Rows<T> tape_rows(T* tape, const MlpWeights<T>& network, int64_t rows, int64_t g,
                                int64_t row) {
    Rows<T> result{};
    const int64_t all = rows * network.stack(), at = g * rows + row;
    for (int64_t l = 0; l < network.layers; ++l) {
        const int64_t ld = padded(network.widths[l + 1]);
        result.activation[l] = tape + at * ld;
        result.slope[l] = tape + (all + at) * ld;
        tape += 2 * all * ld;
        if (network.norm) {
            result.rstd[l] = tape + at;
            tape += all;
        }
    }
    return result;
}

}  // namespace trqam
