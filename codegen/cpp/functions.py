"""C++ functions of the IR's operations: a source carries those that it calls.

Those for float are without branches, so that a loop over columns becomes vectors; what is rare or
never computed pair by pair is left to the C library, as everything for double is.
"""

from __future__ import annotations

import re

COMMON = """\
// x // y rounded down, and 0 where y is 0. -1 stands apart: the least int has no quotient by it.
template <class X> static inline X attn_floordiv(X x, X y) {
    const X safe = (y == 0) | (y == -1) ? 1 : y, quotient = x / safe, rest = x - quotient * safe;
    const X found = quotient - ((rest != 0) & ((rest < 0) != (safe < 0)));
    return y == 0 ? 0 : y == -1 ? -x : found;
}

// x % y with the sign of y, and 0 where y is 0.
template <class X> static inline X attn_floormod(X x, X y) {
    const X safe = (y == 0) | (y == -1) ? 1 : y, rest = x % safe;
    return y == 0 ? 0 : rest + ((rest != 0) & ((rest < 0) != (safe < 0)) ? safe : 0);
}

template <class X> static inline X attn_abs(X x) { return x < 0 ? -x : x; }

static inline A attn_abs(A x) { return A_NAME(fabs)(x); }

// The less of two; NaN wins.
template <class X> static inline X attn_min(X x, X y) { return (x < y) | (x != x) ? x : y; }

// The greater of two; NaN wins.
template <class X> static inline X attn_max(X x, X y) { return (x > y) | (x != x) ? x : y; }

// The largest whole number not above x / y.
static inline A attn_floordiv_float(A x, A y) { return A_NAME(floor)(x / y); }

// What is left of x when y is taken floor(x / y) times.
static inline A attn_floormod_float(A x, A y) { return x - y * A_NAME(floor)(x / y); }

// A whole float as an int, cut to the floats that 32 bits hold; NaN gives the lowest.
static inline int32_t attn_saturated(A x) {
    const A limit = 2147483520, high = x >= -limit ? x : -limit;
    return (int32_t)(high <= limit ? high : limit);
}

static inline int32_t attn_floor(A x) { return attn_saturated(A_NAME(floor)(x)); }

static inline int32_t attn_ceil(A x) { return attn_saturated(A_NAME(ceil)(x)); }

// To the nearest whole number, halves to the even one.
static inline int32_t attn_round(A x) { return attn_saturated(A_NAME(rint)(x)); }

static inline int32_t attn_trunc(A x) { return attn_saturated(A_NAME(trunc)(x)); }

static inline A attn_to_float(int64_t x) { return (A)x; }

static inline A attn_to_float(int32_t x) { return (A)x; }

static inline int32_t attn_bool_to_int(bool x) { return x; }

static inline A attn_pow(A x, A y) { return A_NAME(pow)(x, y); }

static inline A attn_square(A x) { return x * x; }

static inline A attn_log(A x) { return A_NAME(log)(x); }

static inline A attn_log2(A x) { return A_NAME(log2)(x); }

static inline A attn_sqrt(A x) { return A_NAME(sqrt)(x); }

static inline A attn_rsqrt(A x) { return 1 / A_NAME(sqrt)(x); }

static inline A attn_sin(A x) { return A_NAME(sin)(x); }

static inline A attn_cos(A x) { return A_NAME(cos)(x); }

static inline A attn_erf(A x) { return A_NAME(erf)(x); }

static inline A attn_sigmoid(A x) { return 1 / (1 + attn_exp(-x)); }

// The greater of x and 0; NaN stays.
static inline A attn_relu(A x) { return x <= 0 ? 0 : x; }

static inline A attn_softplus(A x) { return attn_relu(x) + A_NAME(log1p)(attn_exp(-attn_abs(x))); }
"""

DOUBLE = """\
static inline double attn_exp(double x) { return exp(x); }

static inline double attn_exp2(double x) { return exp2(x); }

static inline double attn_tanh(double x) { return tanh(x); }
"""

FLOAT = """\
// x times 2 ** n for n of -300 .. 300, in two steps: each factor is a power that float holds.
static inline float attn_scaled(float x, int32_t n) {
    const int32_t half = n >> 1;
    return x * same_bits<float>((uint32_t)(half + 127) << 23) *
           same_bits<float>((uint32_t)(n - half + 127) << 23);
}

// 2 ** x: a polynomial of what rounding leaves, which is within 2e-9 of it. SHIFT rounds.
static inline float attn_exp2(float x) {
    const float SHIFT = 12582912.0f, low = x < -160.0f ? -160.0f : x;
    const float held = low > 130.0f ? 130.0f : low, shifted = held + SHIFT;
    const float rest = held - (shifted - SHIFT);
    float power = rest * 0.00015353361f + 0.0013398875f;
    power = power * rest + 0.0096184374f;
    power = power * rest + 0.055503325f;
    power = power * rest + 0.24022648f;
    power = power * rest + 0.69314720f;
    power = power * rest + 1.0f;
    const int32_t whole = same_bits<int32_t>(shifted) - same_bits<int32_t>(SHIFT);
    return x == x ? attn_scaled(power, whole) : x;
}

// e ** x, likewise; the logarithm of 2 is taken off in two parts, the first of few digits.
static inline float attn_exp(float x) {
    const float SHIFT = 12582912.0f, low = x < -110.0f ? -110.0f : x;
    const float held = low > 90.0f ? 90.0f : low, shifted = held * 1.44269504f + SHIFT;
    const float count = shifted - SHIFT;
    const float rest = (held - count * 0.693359375f) - count * -2.12194440e-4f;
    float power = rest * 0.0013843653f + 0.0083741558f;
    power = power * rest + 0.041668002f;
    power = power * rest + 0.16666431f;
    power = power * rest + 0.49999994f;
    power = power * rest + 1.0f;
    power = power * rest + 1.0f;
    const int32_t whole = same_bits<int32_t>(shifted) - same_bits<int32_t>(SHIFT);
    return x == x ? attn_scaled(power, whole) : x;
}

// From exp far from 0, from a polynomial near 0, where exp cancels.
static inline float attn_tanh(float x) {
    const float size = attn_abs(x), square = x * x;
    const float held = size > 10.0f ? 10.0f : size;
    const float far = 1.0f - 2.0f / (attn_exp(2.0f * held) + 1.0f);
    float near = square * -0.0057049744f + 0.020639075f;
    near = near * square - 0.053739711f;
    near = near * square + 0.13331442f;
    near = near * square - 0.33333282f;
    near = near * square * size + size;
    const float found = size < 0.625f ? near : far;
    return x < 0 ? -found : x == x ? found : x;
}
"""

NAME = re.compile(r"\battn_[a-z0-9_]+")


def functions_text(body: str, accumulator: str) -> str:
    """The functions that a body calls, directly or through others, in a fixed order: a function
    stands behind those that it calls."""
    is_float = accumulator == "float32"
    own = FLOAT if is_float else DOUBLE
    first, second = COMMON.split("static inline A attn_sigmoid")
    whole = first + own + "\nstatic inline A attn_sigmoid" + second
    whole = re.sub(r"A_NAME\((\w+)\)", r"\1f" if is_float else r"\1", whole)
    texts = [text.strip("\n") for text in whole.split("\n\n")]
    functions = [(re.findall(r"(attn_\w+)\(", text)[0], text) for text in texts]
    needed: set[str] = set()
    new = set(NAME.findall(body))
    while new:
        needed |= new
        bodies = [text for name, text in functions if name in new]
        new = {name for text in bodies for name in NAME.findall(text)} - needed
    return "\n\n".join(text for name, text in functions if name in needed)
