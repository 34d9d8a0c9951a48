// What happens to rows between the products: GELU with its derivative, LayerNorm, and both
// backward. Included by passes.inl inside an anonymous namespace.

// One vector of float32, or a double on its own: what the elementwise code computes on.
template <typename T>
struct Packet {
    typedef double Type;
};
template <>
struct Packet<float> {
    typedef Simd<float>::Vector Type;
};
typedef Packet<float>::Type Floats;

// exp by 2^n times a polynomial of degree 6 on [-ln2/2, ln2/2], relative error below 2 ulp, for
// |x| < 87.
inline __attribute__((always_inline)) Floats exponential(Floats x) {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer in every instruction set.
    const Floats n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    Floats r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Floats p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
#if TRQAM_VECTOR_BYTES == 64
    return (Floats)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
    typedef int32_t Ints __attribute__((vector_size(TRQAM_VECTOR_BYTES)));
    return p * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
#endif
}

inline double exponential(double x) { return __builtin_exp(x); }

// 1 / x for positive x: where there is an estimate of 14 bits, one Newton step makes it 28.
inline __attribute__((always_inline)) Floats reciprocal(Floats x) {
#if TRQAM_VECTOR_BYTES == 64
    const Floats r = (Floats)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
    return r * (2.0f - x * r);
#else
    return 1.0f / x;
#endif
}

inline double reciprocal(double x) { return 1.0 / x; }

// In: pre-activations z. Out: activation = gelu(z) = z s and, unless it is null, slope = gelu'(z),
// where s = 1 / (1 + exp(-2 u)), u = sqrt(2 / pi) (z + 0.044715 z^3): the tanh approximation
// written with one exponential. Beyond |z| = 8, s is 0 or 1 to within 5e-22, so u is evaluated at
// the clamped z: no overflow, and no subnormal quotients, which cost 7x. NaN passes. `count` is a
// multiple of kAlignment.
template <bool kSlope, typename T>
inline __attribute__((always_inline)) void gelu_loop(T* activation, T* slope, int64_t count) {
    typedef typename Packet<T>::Type P;
    const T a = T(0.7978845608028654), c = T(0.044715);
    const P low = P{} - T(8), high = P{} + T(8);
    for (int64_t i = 0; i < count; i += sizeof(P) / sizeof(T)) {
        const P z = *reinterpret_cast<const P*>(activation + i);
        P x = z < low ? low : z;
        x = x > high ? high : x;
        const P square = c * x * x;
        const P e = exponential(T(-2) * a * x * (T(1) + square));
        const P s = reciprocal(T(1) + e);
        *reinterpret_cast<P*>(activation + i) = z * s;
        // 2 x s (1 - s) u'(x), with 1 - s = e s, which does not cancel.
        if (kSlope) {
            *reinterpret_cast<P*>(slope + i) =
                s + T(2) * a * x * (e * s) * s * (T(1) + T(3) * square);
        }
    }
}

template <typename T>
void gelu(T* activation, T* slope, int64_t count) {
    if (slope) {
        gelu_loop<true>(activation, slope, count);
    } else {
        gelu_loop<false>(activation, slope, count);
    }
}

// h <- (h - mean) / sqrt(var + eps) for one row; returns the reciprocal deviation.
template <typename T>
T normalise(T* h, int64_t width) {
    T sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += h[i];
    const T mean = sum / T(width);
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) squares += (h[i] - mean) * (h[i] - mean);
    const T rstd = T(1) / __builtin_sqrt(squares / T(width) + T(kNormEpsilon));
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) h[i] = (h[i] - mean) * rstd;
    return rstd;
}

// Finishes `count` rows of a hidden layer from their pre-activations in layer l of `rows`.
template <typename T>
void activate(const MlpWeights<T>& network, int64_t l, const Rows<T>& rows, int64_t begin,
              int64_t count) {
    const int64_t width = network.widths[l + 1], ld = padded(width);
    T* h = rows.activation[l] + begin * ld;
    gelu(h, rows.slope[l] ? rows.slope[l] + begin * ld : nullptr, count * ld);
    if (!network.norm) return;
    for (int64_t m = 0; m < count; ++m) {
        const T rstd = normalise(h + m * ld, width);
        if (rows.rstd[l]) rows.rstd[l][begin + m] = rstd;
    }
}

// In: `grad`, the gradient of `count` rows with respect to what layer l handed on; out: with
// respect to its pre-activations. For LayerNorm, with n the normalised row:
//   dh = rstd (dn - mean(dn) - n mean(dn n))
template <typename T>
void deactivate(const MlpWeights<T>& network, int64_t l, const Rows<T>& rows, T* grad,
                int64_t begin, int64_t count) {
    const int64_t width = network.widths[l + 1], ld = padded(width);
    const T* slope = rows.slope[l] + begin * ld;
    grad += begin * ld;
    if (!network.norm) {
#pragma omp simd
        for (int64_t i = 0; i < count * ld; ++i) grad[i] *= slope[i];
        return;
    }
    const T* normal = rows.activation[l] + begin * ld;
    for (int64_t m = 0; m < count; ++m, grad += ld, slope += ld, normal += ld) {
        T sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
        for (int64_t i = 0; i < width; ++i) {
            sum += grad[i];
            product += grad[i] * normal[i];
        }
        const T rstd = rows.rstd[l][begin + m], mean = sum / T(width), slant = product / T(width);
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
            grad[i] = rstd * (grad[i] - mean - normal[i] * slant) * slope[i];
        }
    }
}
