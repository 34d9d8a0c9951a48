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

template <typename T>
inline __attribute__((always_inline)) typename Simd<T>::Vector load(const T* from) {
    return *reinterpret_cast<const typename Simd<T>::Vector*>(from);
}

// Arithmetic of a product. `Element` is what packed operands hold; `kPair` consecutive steps of
// the depth lie side by side. A vector of elements is made of `kPair` vectors of numbers: `along`
// takes them from one place, where the depth is contiguous, `across` from as many rows of it, so
// that each column's elements of one step come together.
template <typename T>
struct Exact {
    using Real = T;
    using Element = T;
    using Vector = typename Simd<T>::Vector;
    static constexpr int kPair = 1;
    static constexpr bool kConverts = false;
    static Element convert(T value) { return value; }
    static Vector along(const T* from, T factor) { return factor * load(from); }
    static Vector across(const Vector* rows) { return rows[0]; }
};

// Operands are rounded to bfloat16 and multiplied in float32.
struct Rounded {
    using Real = float;
    using Element = float;
    using Vector = Simd<float>::Vector;
    static constexpr int kPair = 1;
    static constexpr bool kConverts = true;
    static inline __attribute__((always_inline)) Element convert(float value) {
        const uint32_t bits = bf16_bits(value) << 16;
        float result;
        std::memcpy(&result, &bits, sizeof(result));
        return result;
    }
    static inline __attribute__((always_inline)) Vector along(const float* from, float factor) {
        const Vector values = factor * load(from);
        return across(&values);
    }
    static inline __attribute__((always_inline)) Vector across(const Vector* rows) {
        typedef uint32_t Bits __attribute__((vector_size(TRQAM_VECTOR_BYTES)));
        const Bits bits = (Bits)rows[0], nearest = bits + 0x7fffu + ((bits >> 16) & 1u);
        return (Vector)((rows[0] == rows[0] ? nearest : Bits{} + 0x7fc00000u) & 0xffff0000u);
    }
};

#ifdef TRQAM_DOT_BF16
// Operands are bfloat16, multiplied in pairs and summed in float32 by one instruction. It takes
// subnormal operands for zero, as the instruction that rounds does; `convert` leaves them.
struct Dot {
    using Real = float;
    using Element = uint16_t;
    using Vector = Simd<float>::Vector;
    static constexpr int kPair = 2;
    static constexpr bool kConverts = true;
    static inline __attribute__((always_inline)) Element convert(float value) {
        return static_cast<Element>(bf16_bits(value));
    }
    static inline __attribute__((always_inline)) Vector along(const float* from, float factor) {
        const Vector first = factor * load(from), second = factor * load(from + 16);
        return (Vector)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    }
    static inline __attribute__((always_inline)) Vector across(const Vector* rows) {
        typedef uint16_t Words __attribute__((vector_size(TRQAM_VECTOR_BYTES)));
        const Words both = (Words)_mm512_cvtne2ps_pbh((__m512)rows[1], (__m512)rows[0]);
        Words order;
        for (int j = 0; j < 16; ++j) {
            order[2 * j] = j;
            order[2 * j + 1] = 16 + j;
        }
        return (Vector)__builtin_shuffle(both, order);
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
        low[m] = init ? load(init + m * ld_init) : Vector{};
        high[m] = init ? load(init + m * ld_init + lanes) : Vector{};
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

// `kRows` rows of `kWide` numbers, `ld` apart: those at `given`, or a copy filled up with zeros
// where only `rows` rows of `columns` numbers are there.
template <int kRows, int64_t kWide, typename Real>
struct Filled {
    Filled(const Real* given, int64_t given_ld, int64_t rows, int64_t columns)
        : from(given), ld(given_ld) {
        if (rows >= kRows && columns >= kWide) return;
        std::memset(copy, 0, sizeof(copy));
        const int64_t wide = columns < kWide ? columns : kWide;
        for (int64_t i = 0; i < kRows && i < rows; ++i) {
            std::memcpy(copy + i * kWide, given + i * given_ld, wide * sizeof(Real));
        }
        from = copy;
        ld = kWide;
    }
    const Real* from;
    int64_t ld;
    Real copy[kRows * kWide];
};

// Writes the elements of one step of the depth: value(i, v) is vector v of its row i.
template <class Arithmetic, int kVectors, class Value>
inline __attribute__((always_inline)) void write_step(typename Arithmetic::Element* out,
                                                      const Value& value) {
    using Vector = typename Arithmetic::Vector;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
        Vector rows[Arithmetic::kPair];
#pragma GCC unroll 2
        for (int i = 0; i < Arithmetic::kPair; ++i) rows[i] = value(i, v);
        *reinterpret_cast<Vector*>(out + v * kLanes<Arithmetic> * Arithmetic::kPair) =
            Arithmetic::across(rows);
    }
}

// Packs scale[k] * source[k, :] for k < depth, and adds sum_k shift[k] * source[k, :] to the bias;
// rows of `source` are `ld` apart. A null scale is 1, a null shift 0.
template <class Arithmetic>
void pack(const Matrix<Arithmetic>& matrix, const typename Arithmetic::Real* source, int64_t ld,
          const typename Arithmetic::Real* scale, const typename Arithmetic::Real* shift) {
    using Real = typename Arithmetic::Real;
    using Vector = typename Arithmetic::Vector;
    constexpr int64_t panel = kPanel<Arithmetic>, lanes = kLanes<Arithmetic>;
    constexpr int pair = Arithmetic::kPair;
    const int64_t depth = matrix.depth, width = matrix.width;
    for (int64_t p = 0; p < matrix.panel_count(); ++p) {
        auto* to = matrix.panels + p * matrix.panel_elements();
        Vector sums[2] = {};
        for (int64_t k = 0; k < depth; k += pair, to += panel * pair) {
            const Real* first = source + k * ld + p * panel;
            Real factor[pair], offset[pair];
            for (int i = 0; i < pair; ++i) {
                __builtin_prefetch(first + (kPackAhead + i) * ld);
                __builtin_prefetch(first + (kPackAhead + i) * ld + lanes);
                factor[i] = scale && k + i < depth ? scale[k + i] : Real(1);
                offset[i] = shift && k + i < depth ? shift[k + i] : Real(0);
            }
            const Filled<pair, panel, Real> rows(first, ld, depth - k, width - p * panel);
            write_step<Arithmetic, 2>(to, [&](int i, int v) {
                const Vector values = load(rows.from + i * rows.ld + v * lanes);
                sums[v] += offset[i] * values;
                return factor[i] * values;
            });
        }
        for (int v = 0; v < 2; ++v) {
            auto* bias = reinterpret_cast<Vector*>(matrix.bias + p * panel + v * lanes);
            *bias += sums[v];
        }
    }
}

// Transposes a square of vectors in registers: log2 rounds that interleave its halves.
template <typename Real>
inline __attribute__((always_inline)) void transpose(typename Simd<Real>::Vector* rows) {
    using Vector = typename Simd<Real>::Vector;
    constexpr int n = TRQAM_VECTOR_BYTES / sizeof(Real);
    typedef typename std::conditional<sizeof(Real) == 4, int32_t, int64_t>::type Index;
    typedef Index Mask __attribute__((vector_size(TRQAM_VECTOR_BYTES)));
    Mask first, second;
    for (int i = 0; i < n; ++i) {
        first[i] = i % 2 * n + i / 2;
        second[i] = first[i] + n / 2;
    }
    Vector mixed[n];
    for (int round = 1; round < n; round *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < n / 2; ++i) {
            mixed[2 * i] = __builtin_shuffle(rows[i], rows[i + n / 2], first);
            mixed[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + n / 2], second);
        }
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) rows[i] = mixed[i];
    }
}

// Packs the transpose of source [width, depth]: element (k, j) is scale[j] * source[j, k]. Where
// elements are pairs, a square of pairs is transposed.
template <class Arithmetic>
void pack_transposed(const Matrix<Arithmetic>& matrix, const typename Arithmetic::Real* source,
                     int64_t ld, const typename Arithmetic::Real* scale) {
    using Real = typename Arithmetic::Real;
    using Vector = typename Arithmetic::Vector;
    constexpr int pair = Arithmetic::kPair;
    constexpr int64_t n = kLanes<Arithmetic>, panel = kPanel<Arithmetic>, deep = n * pair;
    for (int64_t j0 = 0; j0 < matrix.panel_count() * panel; j0 += n) {
        auto* to = matrix.panels + j0 / panel * matrix.panel_elements() + j0 % panel * pair;
        for (int64_t k0 = 0; k0 < matrix.depth; k0 += deep) {
            if (j0 + n <= matrix.width && k0 + deep <= matrix.depth) {
                Vector rows[n];
#pragma GCC unroll 16
                for (int64_t i = 0; i < n; ++i) {
                    rows[i] = Arithmetic::along(source + (j0 + i) * ld + k0,
                                                scale ? scale[j0 + i] : Real(1));
                }
                transpose<Real>(rows);
#pragma GCC unroll 16
                for (int64_t i = 0; i < n; ++i) {
                    *reinterpret_cast<Vector*>(to + (k0 / pair + i) * panel * pair) = rows[i];
                }
                continue;
            }
            for (int64_t k = k0; k < k0 + deep && k < matrix.steps() * pair; ++k) {
                for (int64_t j = 0; j < n; ++j) {
                    const bool inside = j0 + j < matrix.width && k < matrix.depth;
                    const Real factor = scale && inside ? scale[j0 + j] : Real(1);
                    const Real value = inside ? source[(j0 + j) * ld + k] : Real(0);
                    to[k / pair * panel * pair + j * pair + k % pair] =
                        Arithmetic::convert(factor * value);
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
            constexpr int64_t wide = kLanes<Arithmetic> * Arithmetic::kPair;
            int64_t k = 0;
            for (; k + wide <= b.depth; k += wide) {
                *reinterpret_cast<typename Arithmetic::Vector*>(to + k) =
                    Arithmetic::along(from + k, 1);
            }
            for (; k < b.depth; ++k) to[k] = Arithmetic::convert(from[k]);
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
