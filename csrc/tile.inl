// Matrix products for one instruction set: packing, and tiles of the result held in registers.
//
// A product C = A B reads B packed in panels: `kPanel` = two vectors of columns, row after row, so
// that one step of the depth is two contiguous loads. A tile is `kTileRows` rows of A by one panel:
// its sums stay in registers over the whole depth, an element of A is broadcast to both vectors.
// Bytes of B per multiply-add fall with kTileRows; the registers limit it.
//
// Included by passes.inl inside an anonymous namespace. No standard containers here: their shared
// template code would be compiled for this instruction set and linked into the others.

template <typename T>
struct Simd;
template <>
struct Simd<float> {
    typedef float Vector
        __attribute__((vector_size(TRQAM_VECTOR_BYTES), aligned(sizeof(float)), may_alias));
};
template <>
struct Simd<double> {
    typedef double Vector
        __attribute__((vector_size(TRQAM_VECTOR_BYTES), aligned(sizeof(double)), may_alias));
};

constexpr int kTileRows = TRQAM_TILE_ROWS;
constexpr int64_t kPrefetch = 8;    // steps of the depth that B is fetched ahead
constexpr int64_t kPackAhead = 24;  // rows that what is to be packed is fetched ahead

// Nearest bfloat16, ties to even; a NaN stays one.
inline __attribute__((always_inline)) uint32_t bf16_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return value == value ? rounded : 0x7fc0u;
}

// Arithmetic of a product. `Element` is what packed operands hold; `kPair` consecutive steps of
// the depth lie side by side.
template <typename T>
struct Exact {
    using Real = T;
    using Element = T;
    static constexpr int kPair = 1;
    static constexpr bool kConverts = false;
    static Element convert(T value) { return value; }
};

// Operands are rounded to bfloat16 and multiplied in float32.
struct Rounded {
    using Real = float;
    using Element = float;
    static constexpr int kPair = 1;
    static constexpr bool kConverts = true;
    static inline __attribute__((always_inline)) Element convert(float value) {
        const uint32_t bits = bf16_bits(value) << 16;
        float result;
        std::memcpy(&result, &bits, sizeof(result));
        return result;
    }
};

#ifdef TRQAM_DOT_BF16
// Operands are bfloat16, multiplied in pairs and summed in float32 by one instruction.
struct Dot {
    using Real = float;
    using Element = uint16_t;
    static constexpr int kPair = 2;
    static constexpr bool kConverts = true;
    static inline __attribute__((always_inline)) Element convert(float value) {
        return static_cast<Element>(bf16_bits(value));
    }
};
#endif

template <class Arithmetic>
constexpr int64_t kLanes = TRQAM_VECTOR_BYTES / sizeof(typename Arithmetic::Real);
template <class Arithmetic>
constexpr int64_t kPanel = 2 * kLanes<Arithmetic>;

// Not inlined: where it is, its pointers leave the registers.
template <class Arithmetic, int kRows, bool kColumns>
__attribute__((noinline)) void tile(int64_t steps, const typename Arithmetic::Element* a,
                                    int64_t lda, const typename Arithmetic::Element* b,
                                    typename Arithmetic::Real* c, int64_t ldc,
                                    const typename Arithmetic::Real* init, int64_t ld_init) {
    using Real = typename Arithmetic::Real;
    using Vector = typename Simd<Real>::Vector;
    constexpr int64_t lanes = kLanes<Arithmetic>, step = kPanel<Arithmetic> * Arithmetic::kPair;
    Vector low[kRows], high[kRows];
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
        low[m] = init ? *reinterpret_cast<const Vector*>(init + m * ld_init) : Vector{};
        high[m] = init ? *reinterpret_cast<const Vector*>(init + m * ld_init + lanes) : Vector{};
    }
    for (int64_t k = 0; k < steps; ++k, b += step) {
        const auto* row = reinterpret_cast<const char*>(b);
        __builtin_prefetch(row + kPrefetch * step * sizeof(*b));
        if constexpr (TRQAM_VECTOR_BYTES == 64) {
            __builtin_prefetch(row + kPrefetch * step * sizeof(*b) + 64);
        }
        const Vector left = *reinterpret_cast<const Vector*>(row);
        const Vector right = *reinterpret_cast<const Vector*>(row + TRQAM_VECTOR_BYTES);
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) {
            const auto* element = kColumns ? a + (k * kTileRows + m) * Arithmetic::kPair
                                           : a + m * lda + k * Arithmetic::kPair;
            if constexpr (Arithmetic::kPair == 1) {
                low[m] += *element * left;
                high[m] += *element * right;
            } else {
#ifdef TRQAM_DOT_BF16
                int pair;
                std::memcpy(&pair, element, sizeof(pair));
                const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
                low[m] = (Vector)_mm512_dpbf16_ps((__m512)low[m], both, (__m512bh)left);
                high[m] = (Vector)_mm512_dpbf16_ps((__m512)high[m], both, (__m512bh)right);
#endif
            }
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
        *reinterpret_cast<Vector*>(c + m * ldc) = low[m];
        *reinterpret_cast<Vector*>(c + m * ldc + lanes) = high[m];
    }
}

template <class Arithmetic, bool kColumns, int kRows = kTileRows>
void any_tile(int64_t rows, int64_t steps, const typename Arithmetic::Element* a, int64_t lda,
              const typename Arithmetic::Element* b, typename Arithmetic::Real* c, int64_t ldc,
              const typename Arithmetic::Real* init, int64_t ld_init) {
    if constexpr (kRows > 1) {
        if (rows < kRows) {
            any_tile<Arithmetic, kColumns, kRows - 1>(rows, steps, a, lda, b, c, ldc, init,
                                                      ld_init);
            return;
        }
    }
    tile<Arithmetic, kRows, kColumns>(steps, a, lda, b, c, ldc, init, ld_init);
}

// Calls work(first row, rows) on nearly equal blocks of at most kTileRows rows.
template <class Work>
inline void for_blocks(int64_t rows, const Work& work) {
    const int64_t blocks = (rows + kTileRows - 1) / kTileRows;
    for (int64_t q = 0; q < blocks; ++q) {
        const int64_t begin = rows * q / blocks;
        work(begin, rows * (q + 1) / blocks - begin);
    }
}

// A packed right operand [depth, width] and the bias that its product starts from.
template <class Arithmetic>
struct Matrix {
    typename Arithmetic::Element* panels;
    typename Arithmetic::Real* bias;  // padded(width)
    int64_t depth;
    int64_t width;

    int64_t steps() const { return (depth + Arithmetic::kPair - 1) / Arithmetic::kPair; }
    int64_t panel_elements() const { return steps() * Arithmetic::kPair * kPanel<Arithmetic>; }
    int64_t panel_count() const { return (width + kPanel<Arithmetic> - 1) / kPanel<Arithmetic>; }

    Matrix() = default;
    Matrix(Arena& arena, int64_t depth, int64_t width) : depth(depth), width(width) {
        panels = arena.take<typename Arithmetic::Element>(panel_elements() * panel_count());
        bias = arena.take<typename Arithmetic::Real>(padded(width));
    }
};

// Packs scale[k] * source[k, :] for k < depth, and adds sum_k shift[k] * source[k, :] to the bias;
// rows of `source` are `ld` apart. A null scale is 1, a null shift 0.
template <class Arithmetic>
void pack(const Matrix<Arithmetic>& matrix, const typename Arithmetic::Real* source, int64_t ld,
          const typename Arithmetic::Real* scale, const typename Arithmetic::Real* shift) {
    using Real = typename Arithmetic::Real;
    constexpr int64_t panel = kPanel<Arithmetic>;
    for (int64_t p = 0; p < matrix.panel_count(); ++p) {
        auto* to = matrix.panels + p * matrix.panel_elements();
        Real* bias = matrix.bias + p * panel;
        const int64_t left = matrix.width - p * panel, columns = left < panel ? left : panel;
        Real sums[panel] = {};
        for (int64_t k = 0; k < matrix.steps() * Arithmetic::kPair; ++k) {
            auto* out =
                to + k / Arithmetic::kPair * panel * Arithmetic::kPair + k % Arithmetic::kPair;
            const Real* from = source + k * ld + p * panel;
            const int64_t given = k < matrix.depth ? columns : 0;
            const Real factor = scale && given ? scale[k] : Real(1);
            const Real offset = shift && given ? shift[k] : Real(0);
            if (given == panel) {
                __builtin_prefetch(from + kPackAhead * ld);
                __builtin_prefetch(from + kPackAhead * ld + panel / 2);
#pragma omp simd
                for (int64_t j = 0; j < panel; ++j) {
                    sums[j] += offset * from[j];
                    out[j * Arithmetic::kPair] = Arithmetic::convert(factor * from[j]);
                }
                continue;
            }
            for (int64_t j = 0; j < panel; ++j) {
                const Real value = j < given ? from[j] : Real(0);
                sums[j] += offset * value;
                out[j * Arithmetic::kPair] = Arithmetic::convert(factor * value);
            }
        }
        for (int64_t j = 0; j < panel; ++j) bias[j] += sums[j];
    }
}

// Transposes a square of kLanes x kLanes in registers: log2 rounds that interleave its halves.
template <typename Real>
inline void transpose_square(const Real* from, int64_t ld_from, Real* to, int64_t ld_to) {
    using Vector = typename Simd<Real>::Vector;
    constexpr int n = TRQAM_VECTOR_BYTES / sizeof(Real);
    typedef typename std::conditional<sizeof(Real) == 4, int32_t, int64_t>::type Index;
    typedef Index Mask __attribute__((vector_size(TRQAM_VECTOR_BYTES)));
    Mask first, second;
    for (int i = 0; i < n; ++i) {
        first[i] = i % 2 * n + i / 2;
        second[i] = first[i] + n / 2;
    }
    Vector rows[n], mixed[n];
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = *reinterpret_cast<const Vector*>(from + i * ld_from);
    for (int round = 1; round < n; round *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < n / 2; ++i) {
            mixed[2 * i] = __builtin_shuffle(rows[i], rows[i + n / 2], first);
            mixed[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + n / 2], second);
        }
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) rows[i] = mixed[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) *reinterpret_cast<Vector*>(to + i * ld_to) = rows[i];
}

// Packs the transpose of source [width, depth]: element (k, j) is scale[j] * source[j, k].
// `square` is scratch of kLanes * kLanes reals.
template <class Arithmetic>
void pack_transposed(const Matrix<Arithmetic>& matrix, const typename Arithmetic::Real* source,
                     int64_t ld, const typename Arithmetic::Real* scale,
                     typename Arithmetic::Real* square) {
    using Real = typename Arithmetic::Real;
    constexpr int64_t n = kLanes<Arithmetic>, panel = kPanel<Arithmetic>;
    const int64_t depth = matrix.steps() * Arithmetic::kPair;
    for (int64_t j0 = 0; j0 < matrix.panel_count() * panel; j0 += n) {
        auto* to =
            matrix.panels + j0 / panel * matrix.panel_elements() + j0 % panel * Arithmetic::kPair;
        for (int64_t k0 = 0; k0 < depth; k0 += n) {
            if (j0 + n <= matrix.width && k0 + n <= matrix.depth) {
                transpose_square(source + j0 * ld + k0, ld, square, n);
            } else {
                for (int64_t k = 0; k < n; ++k) {
                    for (int64_t j = 0; j < n; ++j) {
                        const bool inside = j0 + j < matrix.width && k0 + k < matrix.depth;
                        square[k * n + j] = inside ? source[(j0 + j) * ld + k0 + k] : Real(0);
                    }
                }
            }
            for (int64_t k = 0; k < n && k0 + k < depth; ++k) {
                auto* out = to + (k0 + k) / Arithmetic::kPair * panel * Arithmetic::kPair +
                            (k0 + k) % Arithmetic::kPair;
                const Real* from = square + k * n;
                if (scale && j0 + n <= matrix.width) {
#pragma omp simd
                    for (int64_t j = 0; j < n; ++j) {
                        out[j * Arithmetic::kPair] = Arithmetic::convert(scale[j0 + j] * from[j]);
                    }
                    continue;
                }
                for (int64_t j = 0; j < n; ++j) {
                    const Real factor = scale && j0 + j < matrix.width ? scale[j0 + j] : Real(1);
                    out[j * Arithmetic::kPair] = Arithmetic::convert(factor * from[j]);
                }
            }
        }
    }
}

// c [rows, padded width] = init + a b for at most kTileRows rows. With ld_init 0, init is one row;
// null is zero. `rounded` is scratch of kTileRows * (b.depth + 1) elements where Arithmetic
// converts.
template <class Arithmetic>
void multiply(int64_t rows, const typename Arithmetic::Real* a, int64_t lda,
              const Matrix<Arithmetic>& b, typename Arithmetic::Real* c, int64_t ldc,
              const typename Arithmetic::Real* init, int64_t ld_init,
              typename Arithmetic::Element* rounded) {
    const typename Arithmetic::Element* operand;
    int64_t ld = lda;
    if constexpr (Arithmetic::kConverts) {
        ld = b.steps() * Arithmetic::kPair;
        for (int64_t m = 0; m < rows; ++m) {
            auto* to = rounded + m * ld;
            const auto* from = a + m * lda;
#pragma omp simd
            for (int64_t k = 0; k < b.depth; ++k) to[k] = Arithmetic::convert(from[k]);
            if (ld > b.depth) to[b.depth] = 0;
        }
        operand = rounded;
    } else {
        operand = a;
    }
    for (int64_t p = 0; p < b.panel_count(); ++p) {
        const int64_t column = p * kPanel<Arithmetic>;
        any_tile<Arithmetic, false>(rows, b.steps(), operand, ld, b.panels + p * b.panel_elements(),
                            c + column, ldc, init ? init + column : nullptr, ld_init);
    }
}
