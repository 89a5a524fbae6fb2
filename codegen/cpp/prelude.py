"""C++ that every generated source begins with: types, vectors, conversions, powers of two."""

from __future__ import annotations

from attndsl.plan.kernel_plan import KernelPlan

# C++ types by dtype; the first are structs of the prelude.
TYPES = {
    "bfloat16": "BFloat16",
    "float16": "Half",
    "float32": "float",
    "float64": "double",
    "bool": "uint8_t",
    "uint8": "uint8_t",
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
}

HEADERS = """\
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#define INDEPENDENT _Pragma("GCC ivdep")
#endif
"""

VECTORS = """\
// The widest vectors that the CPU has, and how many of them a block of a product is wide: its sums,
// six rows of them, fill the registers.
#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64, MOST_VECTORS = 4 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32, MOST_VECTORS = 2 };
#elif defined(__aarch64__)
enum { VECTOR_BYTES = 16, MOST_VECTORS = 4 };
#else
enum { VECTOR_BYTES = 16, MOST_VECTORS = 2 };
#endif
enum : int64_t { LANES = VECTOR_BYTES / sizeof(A), PANEL = MOST_VECTORS * LANES };

typedef A Vector __attribute__((vector_size(VECTOR_BYTES)));

template <class To, class From> static inline To same_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To y;
    memcpy(&y, &x, sizeof(y));
    return y;
}

static inline Vector load(const A *from) {
    Vector x;
    memcpy(&x, from, sizeof(x));
    return x;
}

static inline void store(A *to, Vector x) { memcpy(to, &x, sizeof(x)); }

// A number in every lane: x - 0 is x, whatever its sign.
static inline Vector spread(A x) { return x - Vector{}; }

static inline int64_t rounded_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

static inline A greatest_of(Vector x) {
    A lanes[LANES];
    store(lanes, x);
    for (int64_t half = LANES / 2; half > 0; half /= 2)
        for (int64_t at = 0; at < half; ++at)
            lanes[at] = lanes[at] < lanes[at + half] ? lanes[at + half] : lanes[at];
    return lanes[0];
}

static inline A sum_of(Vector x) {
    A lanes[LANES];
    store(lanes, x);
    for (int64_t half = LANES / 2; half > 0; half /= 2)
        for (int64_t at = 0; at < half; ++at) lanes[at] += lanes[at + half];
    return lanes[0];
}
"""

BFLOAT16 = """\
struct BFloat16 {
    uint16_t bits;
};

static inline float wide(BFloat16 x) { return same_bits<float>((uint32_t)x.bits << 16); }

static inline void narrow(BFloat16 &to, float x) {
    const uint32_t bits = same_bits<uint32_t>(x);
    const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // halves to even
    to.bits = (uint16_t)(x == x ? nearest : 0x7fc0);
}
"""

HALF = """\
#if defined(__FLT16_MANT_DIG__)
typedef _Float16 Half;
static inline float wide(Half x) { return (float)x; }
static inline void narrow(Half &to, float x) { to = (Half)x; }
#else
struct Half {
    uint16_t bits;
};

static inline float wide(Half x) {
    const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, size = x.bits & 0x7fff;
    // A float with the exponent of the half, then put right by a power of two; inf and NaN keep
    // theirs.
    const uint32_t special = size >= 0x7c00 ? 0x7f800000u : 0;
    const float scaled = same_bits<float>(size << 13) * 0x1p112f;
    return same_bits<float>((special ? special | size << 13 : same_bits<uint32_t>(scaled)) | sign);
}

static inline void narrow(Half &to, float x) {
    const uint32_t sign = same_bits<uint32_t>(x) >> 16 & 0x8000;
    const float size = fabsf(x);
    // Adding a power of two rounds to the last digit that the half has.
    float unit = same_bits<float>((same_bits<uint32_t>(size) & 0x7f800000u) + (13u << 23));
    unit = unit < 0x1p-1f ? 0x1p-1f : unit;
    const uint32_t below = (same_bits<uint32_t>((size + unit) - unit) >> 13) - (112u << 10);
    const uint32_t tiny = (uint32_t)((size + 0x1p-1f - 0x1p-1f) * 0x1p24f);
    uint32_t bits = size < 0x1p-14f ? tiny : below;
    bits = size >= 65520.0f ? 0x7c00 : bits;
    to.bits = (uint16_t)(sign | (x == x ? bits : 0x7e00));
}
#endif
"""

SAME = """\
static inline float wide(float x) { return x; }
static inline double wide(double x) { return x; }
static inline void narrow(float &to, double x) { to = (float)x; }
static inline void narrow(double &to, double x) { to = x; }
"""

FLOAT_POWERS = """\
// 2 ** x for x up to 127, in every lane; 0 below -126.5. The polynomial is within 1e-7 of 2 ** x
// for x in -0.5 .. 0.5. Adding SHIFT rounds x to a whole number, which then stands, 127 added, in
// the lowest bits: shifted to the exponent's place they are a power of two.
static inline Vector powers_of_two(Vector x) {
    typedef uint32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
    const float SHIFT = 12582912.0f + 127.0f;
    x = x < -127.0f ? spread(-127.0f) : x;  // NaN stays
    const Vector shifted = x + SHIFT, rest = x - (shifted - SHIFT);
    Vector power = rest * 0.0013264724f + 0.0096715132f;
    power = power * rest + 0.055507337f;
    power = power * rest + 0.24022242f;
    power = power * rest + 0.69314698f;
    power = power * rest + 1.0f;
    return power * (Vector)((Bits)shifted << 23);
}
"""

DOUBLE_POWERS = """\
// 2 ** x for x up to 1023, in every lane; 0 below -1022.5. The series is exact for x in +-0.5.
// Adding SHIFT rounds x to a whole number, which then stands, 1023 added, in the lowest bits:
// shifted to the exponent's place they are a power of two.
static inline Vector powers_of_two(Vector x) {
    typedef uint64_t Bits __attribute__((vector_size(VECTOR_BYTES)));
    const double SHIFT = 6755399441055744.0 + 1023.0;
    x = x < -1023.0 ? spread(-1023.0) : x;  // NaN stays
    const Vector shifted = x + SHIFT, rest = x - (shifted - SHIFT);
    Vector power = rest * 1.3691488853904128e-12 + 2.5678435993488202e-11;
    power = power * rest + 4.4455382718708115e-10;
    power = power * rest + 7.0549116208011233e-09;
    power = power * rest + 1.0178086009239699e-07;
    power = power * rest + 1.3215486790144309e-06;
    power = power * rest + 1.5252733804059841e-05;
    power = power * rest + 0.00015403530393381608;
    power = power * rest + 0.0013333558146428443;
    power = power * rest + 0.0096181291076284769;
    power = power * rest + 0.055504108664821583;
    power = power * rest + 0.24022650695910072;
    power = power * rest + 0.69314718055994529;
    power = power * rest + 1.0;
    return power * (Vector)((Bits)shifted << 52);
}
"""


def prelude_text(plan: KernelPlan) -> str:
    """Headers, types and vectors for the dtypes of a plan."""
    accumulator = TYPES[plan.accumulator]
    dtypes = {plan.request.dtype, *plan.request.tensor_dtypes}
    parts = [
        HEADERS,
        f"typedef {accumulator} A;  // of scores and sums",
        VECTORS,
        SAME,
        *([BFLOAT16] if "bfloat16" in dtypes else []),
        *([HALF] if "float16" in dtypes else []),
        f"typedef {TYPES[plan.request.dtype]} T;  // of query, key and value",
        "",
        DOUBLE_POWERS if accumulator == "double" else FLOAT_POWERS,
    ]
    return "\n".join(parts)
