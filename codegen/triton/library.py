"""The helper functions that generated Triton code carries along where it uses them, as text."""

from __future__ import annotations

import re

FUNCTIONS = '''\
@triton.jit
def attn_floordiv(x, y):
    """x // y rounded down, and 0 where y is 0."""
    # The rounding of Triton's own `//` differs between scalars and tensors: the remainder tells it.
    safe = tl.where(y == 0, 1, y)
    quotient = x // safe
    rest = x - quotient * safe
    quotient = tl.where((rest != 0) & ((rest < 0) != (safe < 0)), quotient - 1, quotient)
    return tl.where(y == 0, 0, quotient)


@triton.jit
def attn_floormod(x, y):
    """x % y with the sign of y, and 0 where y is 0."""
    return tl.where(y == 0, 0, x - y * attn_floordiv(x, y))


@triton.jit
def attn_divide(x, y):
    """x / y, rounded correctly: `/` may be a little off, and a floor or a test would tell."""
    return tl.div_rn(tl.cast(x, tl.float32), tl.cast(y, tl.float32))


@triton.jit
def attn_root(x):
    """The square root, rounded correctly."""
    return tl.sqrt_rn(tl.cast(x, tl.float32))


@triton.jit
def attn_floordiv_float(x, y):
    """The largest whole number not above x / y."""
    return tl.floor(attn_divide(x, y))


@triton.jit
def attn_floormod_float(x, y):
    """What is left of x when y is taken floor(x / y) times."""
    return x - y * tl.floor(attn_divide(x, y))


@triton.jit
def attn_pow(x, y):
    """x ** y; a negative x has a power for whole y; 0 ** 0 is 1."""
    size = tl.abs(x)
    power = tl.exp2(y * tl.log2(tl.where(size == 0.0, 1.0, size)))
    power = tl.where(size == 0.0, tl.where(y < 0.0, float("inf"), 0.0), power)
    power = tl.where(size == 1.0, 1.0, power)
    half = 0.5 * y
    sign = tl.where(tl.floor(half) == half, 1.0, -1.0)
    sign = tl.where(tl.floor(y) == y, sign, float("nan"))
    power = tl.where(x < 0.0, sign * power, power)
    return tl.where(y == 0.0, 1.0, power)


@triton.jit
def attn_not(x):
    """True for false, false for true."""
    return x == 0


@triton.jit
def attn_square(x):
    """x * x."""
    return x * x


@triton.jit
def attn_inverse(x):
    """1 / x for x from 1 on: a division would also be prepared for all other numbers."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def attn_sigmoid(x):
    """1 / (1 + exp(-x))."""
    return attn_inverse(1.0 + tl.exp2(x * -1.4426950408889634))


@triton.jit
def attn_tanh(x):
    """The hyperbolic tangent: from exp far from 0, from its series near 0, where exp cancels."""
    far = 1.0 - 2.0 * attn_inverse(1.0 + tl.exp2(x * 2.8853900817779268))
    x2 = x * x
    series = 1.0 + x2 * (-0.33333334 + x2 * (0.13333334 + x2 * (-0.053968254 + x2 * 0.021869488)))
    return tl.where(x2 < 0.0625, x * series, far)


@triton.jit
def attn_tanh_of_half(x):
    """The hyperbolic tangent, off by 2e-7 at most: near 0 that is no more than what is left of a
    product of halves."""
    return 1.0 - 2.0 * attn_inverse(1.0 + tl.exp2(x * 2.8853900817779268))


@triton.jit
def attn_relu(x):
    """The greater of x and 0; NaN stays."""
    return tl.where(x <= 0.0, 0.0, x)


@triton.jit
def attn_softplus(x):
    """log(1 + exp(x)), with the series of the logarithm where exp is small."""
    small = tl.exp(-tl.abs(x))
    series = small * (1.0 - small * (0.5 - small * 0.33333334))
    return tl.where(x <= 0.0, 0.0, x) + tl.where(small < 0.01, series, tl.log(1.0 + small))


@triton.jit
def attn_saturated(x):
    """A whole float as an int32, cut to the floats that int32 holds; NaN gives the lowest."""
    limit = 2147483520.0
    return tl.where(x == x, tl.minimum(tl.maximum(x, -limit), limit), -limit).to(tl.int32)


@triton.jit
def attn_floor(x):
    """x rounded down, as an int."""
    return attn_saturated(tl.floor(x))


@triton.jit
def attn_ceil(x):
    """x rounded up, as an int."""
    return attn_saturated(tl.ceil(x))


@triton.jit
def attn_round(x):
    """x rounded to the nearest int, halves to the even one."""
    low = tl.floor(x)
    rest = x - low
    odd = low - 2.0 * tl.floor(0.5 * low)
    return attn_saturated(low + tl.where((rest > 0.5) | ((rest == 0.5) & (odd == 1.0)), 1.0, 0.0))


@triton.jit
def attn_trunc(x):
    """x cut towards zero, as an int."""
    return attn_saturated(tl.where(x < 0.0, tl.ceil(x), tl.floor(x)))


@triton.jit
def attn_to_float(x):
    """An int as a float."""
    return tl.cast(x, tl.float32)


@triton.jit
def attn_bool_to_int(x):
    """1 for true, 0 for false."""
    return tl.cast(x, tl.int32)


@triton.jit
def attn_truth(x):
    """A condition as it is; in Triton's interpreter one of scalars becomes a proper truth value."""
    return tl.where(x, True, False)


@triton.jit
def attn_fits(index, extent):
    """Whether an int32 index lies within an axis: below 0 it is a large number without sign."""
    return attn_truth(tl.cast(index, tl.uint32) < tl.cast(extent, tl.uint32))


@triton.jit
def attn_fits_wide(index, extent):
    """Whether an int64 index lies within an axis."""
    return attn_truth((index >= 0) & (index < extent))


@triton.jit
def attn_step(index, stride, wide: tl.constexpr):
    """The offset of an index: in int32 unless the tensor is so large that it needs int64."""
    if wide:
        return tl.cast(index, tl.int64) * stride
    else:
        return tl.cast(index, tl.int32) * tl.cast(stride, tl.int32)


@triton.jit
def attn_clip(position, offset, n):
    """The index of a position, cut to 0 .. n."""
    index = tl.cast(position, tl.int64) - offset
    return tl.minimum(tl.maximum(index, 0), n).to(tl.int32)


@triton.jit
def attn_within(x, first, last):
    """How many of the numbers first .. last - 1 lie below x."""
    return tl.minimum(tl.maximum(x, first), last) - first


@triton.jit
def attn_least_float(x, axis: tl.constexpr):
    """The least along an axis, NaN where it has one."""
    is_none = tl.max(tl.where(x == x, 0, 1), axis)
    return tl.where(is_none > 0, float("nan"), tl.min(tl.where(x == x, x, 0.0), axis))


@triton.jit
def attn_greatest_float(x, axis: tl.constexpr):
    """The greatest along an axis, NaN where it has one."""
    is_none = tl.max(tl.where(x == x, 0, 1), axis)
    return tl.where(is_none > 0, float("nan"), tl.max(tl.where(x == x, x, 0.0), axis))


@triton.jit
def attn_either(x, y):
    """The bits of both."""
    return x | y


@triton.jit
def attn_signature(values):
    """Which values of a vector of int64 occur, as a set of 64 bits.

    A value sets the bit that its digits of six bits, xor-ed, name: equal values the same one, and
    64 values in a row (from a multiple of 64 on) all different ones.
    """
    slot = values ^ (values >> 6)
    slot = slot ^ (slot >> 12)
    slot = slot ^ (slot >> 24)
    slot = slot ^ (slot >> 48)
    return tl.reduce((slot * 0 + 1) << (slot & 63), 0, attn_either)


@triton.jit
def attn_finite_size(x):
    """|x|, and infinity where x is no number."""
    size = tl.abs(x)
    return tl.where(size < float("inf"), size, float("inf"))


@triton.jit
def attn_fixed(x, unit):
    """x in units, rounded to a whole number: sums of such do not depend on their order."""
    scaled = x * unit
    return (scaled + tl.where(scaled < 0.0, -0.5, 0.5)).to(tl.int64)
'''


# A pattern has a letter for each axis that is indexed: how its index varies and is tested.
#   u  with the program alone; always within the axis
#   v  with rows, int32; always within the axis
#   p  with the program alone; where tiles are classified, with the tile of a vector too
#   n  with rows or columns, int32
#   w  with rows or columns, int64
PATTERN_LETTERS = "uvpnw"


def test_text(pattern: str) -> str:
    """The test that the indices of a pattern lie within their axes, "" where it needs none."""
    names = {"p": "attn_fits_wide", "n": "attn_fits", "w": "attn_fits_wide"}
    tests = [f"{names[c]}(i{a}, d{a})" for a, c in enumerate(pattern) if c not in "uv"]
    return " & ".join(tests)


def offset_texts(pattern: str, strides: list[str]) -> tuple[str, str]:
    """The offset of an element: what the program alone gives, int64, and the rest."""
    outer = [f"tl.cast(i{a}, tl.int64) * {strides[a]}" for a, c in enumerate(pattern) if c in "up"]
    inner = [f"attn_step(i{a}, {strides[a]}, wide)" for a, c in enumerate(pattern) if c not in "up"]
    return " + ".join(outer), " + ".join(inner)


def signature(pattern: str, axes: int) -> str:
    """Parameters of a helper: extents, strides, the flag, indices."""
    extents = [f"d{a}" for a in range(axes)]
    strides = [f"s{a}" for a in range(axes - 1)]
    indices = [f"i{a}" for a in range(len(pattern))]
    return ", ".join(["tensor", *extents, *strides, "wide: tl.constexpr", *indices])


def load_text(pattern: str, strides: list[str], element: str = "") -> str:
    """The load of an element, 0 where an index lies outside."""
    outer, inner = offset_texts(pattern, strides)
    place = " + ".join(part for part in ("tensor", outer, inner and f"({inner})", element) if part)
    test = test_text(pattern)
    return f"tl.load({place}, mask={test}, other=0)" if test else f"tl.load({place})"


def lookup_function(pattern: str) -> str:
    strides = [*(f"s{a}" for a in range(len(pattern) - 1)), "1"]
    return f'''\
@triton.jit
def attn_lookup_{pattern}({signature(pattern, len(pattern))}):
    """An element, 0 where an index lies outside the tensor."""
    return {load_text(pattern, strides)}
'''


def part_function(pattern: str) -> str:
    strides = [f"s{a}" for a in range(len(pattern))]
    return f'''\
@triton.jit
def attn_part_{pattern}({signature(pattern, len(pattern) + 1)}, element):
    """An element of a vector of the tensor, 0 where an index lies outside."""
    return {load_text(pattern, strides, "element")}.to(tl.float32)
'''


def dot_function(pattern: str) -> str:
    parameters = signature(pattern, len(pattern) + 1)
    arguments = parameters.replace(": tl.constexpr", "")
    return f'''\
@triton.jit
def attn_dot_{pattern}(query_at, query_stride, rows, {parameters}, D: tl.constexpr):
    """dot(query, tensor[...]), one element of the head dimension after the other."""
    part = tl.load(query_at, mask=rows, other=0.0).to(tl.float32)
    total = part * attn_part_{pattern}({arguments}, 0)
    for d in tl.range(1, D, num_stages=1):
        part = tl.load(query_at + d * query_stride, mask=rows, other=0.0).to(tl.float32)
        total += part * attn_part_{pattern}({arguments}, d)
    return total
'''


def add_function(pattern: str) -> str:
    """Adds to a contiguous int64 tensor of the shape of a program's tensor."""
    rank = len(pattern)
    lines = [f"c{rank - 1} = 1"]
    for axis in range(rank - 2, -1, -1):
        lines.append(f"c{axis} = tl.cast(d{axis + 1}, tl.int64) * c{axis + 1}")
    outer, inner = offset_texts(pattern, [f"c{a}" for a in range(rank)])
    place = " + ".join(part for part in ("sums", outer, inner and f"({inner})") if part)
    test = test_text(pattern)
    extents = ", ".join(f"d{a}" for a in range(rank))
    indices = ", ".join(f"i{a}" for a in range(rank))
    body = "\n    ".join(lines)
    return f'''\
@triton.jit
def attn_add_{pattern}(sums, {extents}, wide: tl.constexpr, {indices}, amount, keep):
    """Adds whole numbers to elements; what lies outside the tensor is dropped."""
    {body}
    keep = tl.broadcast_to(attn_truth(keep{" & " + test if test else ""}), amount.shape)
    tl.atomic_add(tl.broadcast_to({place}, amount.shape), amount, mask=keep, sem="relaxed")
'''


def library_text(body: str) -> str:
    """The helpers that the body calls, directly or through others, in a fixed order."""
    texts = [*FUNCTIONS.split("\n\n\n")]
    makers = {
        "lookup": lookup_function,
        "part": part_function,
        "dot": dot_function,
        "add": add_function,
    }
    used = re.findall(rf"\battn_({'|'.join(makers)})_([{PATTERN_LETTERS}]+)\b", body)
    for kind, pattern in sorted(set(used)):
        texts.append(makers[kind](pattern))
        if kind == "dot":
            texts.append(part_function(pattern))
    functions = {re.findall(r"def (\w+)", text)[0]: text.strip("\n") for text in texts}
    needed: set[str] = set()
    new = set(re.findall(r"\battn_\w+", body)) & functions.keys()
    while new:
        needed |= new
        found = {n for name in new for n in re.findall(r"\battn_\w+", functions[name])}
        new = (found & functions.keys()) - needed
    return "\n\n\n".join(text for name, text in functions.items() if name in needed)
