// The loops of philox.cpp: counters to words, words to numbers. Included by loops.inl.

// The four words of each counter of a group.
struct Words {
    uint32_t word[4][kPhiloxGroup];
};

// 32-bit words in the lower halves of 64-bit lanes; what the upper halves hold does not matter.
typedef uint64_t Lanes __attribute__((vector_size(TRQAM_VECTOR_BYTES)));
typedef uint32_t HalfLanes __attribute__((vector_size(TRQAM_VECTOR_BYTES / 2), may_alias,
                                          aligned(sizeof(uint32_t))));

// Products of the lower halves.
inline __attribute__((always_inline)) Lanes multiply_words(Lanes a, Lanes b) {
#if TRQAM_VECTOR_BYTES == 64
    return (Lanes)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
#elif TRQAM_VECTOR_BYTES == 32
    return (Lanes)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#else
    return (Lanes)_mm_mul_epu32((__m128i)a, (__m128i)b);
#endif
}

// Words of the counters (first + i, c1, c2, c3) under the key `seed`, two vectors at a time: one
// alone would wait for its own products.
inline void make_words(uint64_t seed, uint32_t first, uint32_t c1, uint32_t c2, uint32_t c3,
                       Words& words) {
    constexpr int64_t lanes = TRQAM_VECTOR_BYTES / 8;
    Lanes number{};
    for (int64_t l = 0; l < lanes; ++l) number[l] = l;
    const Lanes factor_a = Lanes{} + 0xD2511F53u, factor_b = Lanes{} + 0xCD9E8D57u;
    for (int64_t i = 0; i < kPhiloxGroup; i += 2 * lanes) {
        Lanes x[2][4];
        for (int half = 0; half < 2; ++half) {
            x[half][0] = number + static_cast<uint64_t>(first + i + half * lanes);
            x[half][1] = Lanes{} + c1;
            x[half][2] = Lanes{} + c2;
            x[half][3] = Lanes{} + c3;
        }
        Lanes key_a = Lanes{} + static_cast<uint32_t>(seed), key_b = Lanes{} + (seed >> 32);
#pragma GCC unroll 10
        for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                Lanes* c = x[half];
                const Lanes a = multiply_words(c[0], factor_a), b = multiply_words(c[2], factor_b);
                c[0] = (b >> 32) ^ c[1] ^ key_a;
                c[1] = b;
                c[2] = (a >> 32) ^ c[3] ^ key_b;
                c[3] = a;
            }
            key_a += 0x9E3779B9u;
            key_b += 0xBB67AE85u;
        }
        for (int half = 0; half < 2; ++half) {
            for (int w = 0; w < 4; ++w) {
                *reinterpret_cast<HalfLanes*>(words.word[w] + i + half * lanes) =
                    __builtin_convertvector(x[half][w], HalfLanes);
            }
        }
    }
}

// The bits of a T, and the kUsed of them from which a number is made.
template <typename T>
struct Layout;
template <>
struct Layout<float> {
    typedef uint32_t Bits;
    typedef int32_t Signed;
    static constexpr int kBits = 32, kMantissa = 23, kUsed = 32;
    static constexpr uint32_t kRootHalf = 0x3f3504f3u;  // of sqrt(1/2)
    static inline __attribute__((always_inline)) uint32_t take(const Words& words, int lane,
                                                               int64_t i) {
        return words.word[lane][i];
    }
    static inline __attribute__((always_inline)) float real(uint32_t bits) {
        return static_cast<float>(bits);
    }
};
template <>
struct Layout<double> {
    typedef uint64_t Bits;
    typedef int64_t Signed;
    static constexpr int kBits = 64, kMantissa = 52, kUsed = 53;
    static constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcdull;
    static inline __attribute__((always_inline)) uint64_t take(const Words& words, int lane,
                                                               int64_t i) {
        const uint64_t high = words.word[2 * lane + 1][i];
        return (high << 32 | words.word[2 * lane][i]) >> 11;
    }
    static inline __attribute__((always_inline)) double real(uint64_t bits) {
        return static_cast<double>(static_cast<int64_t>(bits));
    }
};

// log u for u in (0, 1]: u = m 2^e with m in [sqrt(1/2), sqrt(2)), log m = 2 artanh s by its series
// in s = (m - 1) / (m + 1), |s| < 0.172, to 2 units in the last place. Never positive.
template <typename T>
inline __attribute__((always_inline)) T logarithm(T u) {
    typedef typename Layout<T>::Bits Bits;
    Bits bits;
    __builtin_memcpy(&bits, &u, sizeof(T));
    const Bits above = bits - Layout<T>::kRootHalf;
    const int32_t e = static_cast<int32_t>(above >> (Layout<T>::kBits - 32)) >>
                      (Layout<T>::kMantissa - (Layout<T>::kBits - 32));
    bits = (above & ((Bits(1) << Layout<T>::kMantissa) - 1)) + Layout<T>::kRootHalf;
    T m;
    __builtin_memcpy(&m, &bits, sizeof(T));
    const T s = (m - T(1)) / (m + T(1)), z = s * s;
    T series = 0;
#pragma GCC unroll 10
    for (int n = sizeof(T) == 4 ? 4 : 10; n > 0; --n) series = z * (series + T(1) / T(2 * n + 1));
    // log 2 in two parts, so that e times the first is exact.
    const T high = sizeof(T) == 4 ? T(0.693145751953125) : T(0.6931471803691238);
    const T low = sizeof(T) == 4 ? T(1.42860682030941723e-6) : T(1.9082149292705877e-10);
    const T exponent = static_cast<T>(e);
    return exponent * high + (T(2) * s + (T(2) * s * series + exponent * low));
}

// Cosine and sine of a turn times x / 2^kUsed, by their series on an eighth of a turn to both
// sides.
template <typename T>
inline __attribute__((always_inline)) void cosine_and_sine(typename Layout<T>::Bits x, T* cosine,
                                                           T* sine) {
    typedef typename Layout<T>::Bits Bits;
    constexpr int quarter = Layout<T>::kUsed - 2;
    const Bits turn = x + (Bits(1) << (quarter - 1)), quadrant = turn >> quarter;
    const Bits rest = (turn & ((Bits(1) << quarter) - 1)) - (Bits(1) << (quarter - 1));
    const T angle = static_cast<T>(static_cast<typename Layout<T>::Signed>(rest)) *
                    T(1.5707963267948966 / (Bits(1) << quarter));
    const T z = angle * angle;
    T s = 1, c = 1;
#pragma GCC unroll 9
    for (int n = sizeof(T) == 4 ? 4 : 8; n > 0; --n) {
        s = T(1) - z * s * (T(1) / T(2 * n * (2 * n + 1)));
    }
#pragma GCC unroll 9
    for (int n = sizeof(T) == 4 ? 5 : 9; n > 0; --n) {
        c = T(1) - z * c * (T(1) / T(2 * n * (2 * n - 1)));
    }
    s *= angle;
    const T first = quadrant & 1 ? s : c, second = quadrant & 1 ? c : s;
    *cosine = (quadrant + 1) & 2 ? -first : first;
    *sine = quadrant & 2 ? -second : second;
}

// Each pair of lanes is a radius and an angle (Box and Muller), numbers from both lanes.
template <typename T>
inline void normals_of(const Words& words, T* out) {
    constexpr int used = Layout<T>::kUsed;
    const T unit = T(1) / T(typename Layout<T>::Bits(1) << (used - 1)) / T(2);
    for (int lane = 0; lane < kPhiloxLanes<T>; lane += 2, out += 2 * kPhiloxGroup) {
#pragma omp simd
        for (int64_t i = 0; i < kPhiloxGroup; ++i) {
            const T u = Layout<T>::real(Layout<T>::take(words, lane, i)) * unit + unit / T(2);
            const T square = T(-2) * logarithm(u);
            const T radius = __builtin_sqrt(square > T(0) ? square : T(0));
            T cosine, sine;
            cosine_and_sine<T>(Layout<T>::take(words, lane + 1, i), &cosine, &sine);
            out[i] = radius * cosine;
            out[i + kPhiloxGroup] = radius * sine;
        }
    }
}

template <typename T>
inline void uniforms_of(const Words& words, T* out) {
    constexpr int mantissa = Layout<T>::kMantissa + 1, dropped = Layout<T>::kUsed - mantissa;
    const T unit = T(1) / T(typename Layout<T>::Bits(1) << mantissa);
    for (int lane = 0; lane < kPhiloxLanes<T>; ++lane, out += kPhiloxGroup) {
#pragma omp simd
        for (int64_t i = 0; i < kPhiloxGroup; ++i) {
            const auto kept = Layout<T>::take(words, lane, i) >> dropped;
            out[i] = static_cast<T>(static_cast<typename Layout<T>::Signed>(kept)) * unit;
        }
    }
}

// floor(high x / 2^64) of 64 bits x.
inline void integers_of(const Words& words, uint64_t high, int64_t* out) {
    for (int pair = 0; pair < 2; ++pair, out += kPhiloxGroup) {
#pragma omp simd
        for (int64_t i = 0; i < kPhiloxGroup; ++i) {
            const uint64_t carried = words.word[2 * pair][i] * high >> 32;
            out[i] = static_cast<int64_t>((words.word[2 * pair + 1][i] * high + carried) >> 32);
        }
    }
}

// Writes group `group` of `count` numbers of one kind and run, which `make(words, out)` makes.
template <typename N, class Make>
inline void draw_group(uint64_t seed, uint32_t c1, uint64_t offset, int64_t group, int64_t count,
                       N* out, const Make& make) {
    constexpr int64_t size = kPhiloxLanes<N> * kPhiloxGroup;
    Words words;
    make_words(seed, static_cast<uint32_t>(group * kPhiloxGroup), c1,
               static_cast<uint32_t>(offset), static_cast<uint32_t>(offset >> 32), words);
    const int64_t left = count - group * size;
    if (left >= size) {
        make(words, out + group * size);
        return;
    }
    N part[size];
    make(words, part);
    std::memcpy(out + group * size, part, left * sizeof(N));
}

// Groups [begin, end), numbered run by run: normals, uniforms, integers.
template <typename T>
void draw_groups(const Philox<T>& call, int64_t begin, int64_t end) {
    const int64_t normals = philox_groups(call.normals, kPhiloxLanes<T>);
    const int64_t uniforms = philox_groups(call.uniforms, kPhiloxLanes<T>);
    const int64_t all = normals + uniforms + philox_groups(call.integers, kPhiloxLanes<int64_t>);
    const uint64_t offset = *call.offset;
    const uint32_t stream = static_cast<uint32_t>(call.stream) << 2;
    for (int64_t index = begin; index < end; ++index) {
        const int64_t run = index / all, group = index % all;
        const uint64_t seed = call.seeds[run];
        if (group < normals) {
            draw_group(seed, stream, offset, group, call.normals,
                       call.normal + run * call.normals,
                       [](const Words& words, T* out) { normals_of(words, out); });
        } else if (group < normals + uniforms) {
            draw_group(seed, stream | 1, offset, group - normals, call.uniforms,
                       call.uniform + run * call.uniforms,
                       [](const Words& words, T* out) { uniforms_of(words, out); });
        } else {
            const uint64_t high = call.high;
            draw_group(seed, stream | 2, offset, group - normals - uniforms, call.integers,
                       call.integer + run * call.integers,
                       [high](const Words& words, int64_t* out) { integers_of(words, high, out); });
        }
    }
}
