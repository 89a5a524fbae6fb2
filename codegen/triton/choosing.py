"""The kernel that keeps the best blocks of keys of each block of queries, ranks never stored.

Its text is the same for all programs: what a program ranks by comes as vectors, where it may choose
as a range of columns for each row.
"""

from __future__ import annotations

from attndsl.backend import KernelSpec

from .arguments import ALIGNMENT, BYTES, POINTER_TYPES

BLOCK_I = 32  # rows of a tile
BLOCK_J = 64  # its columns, as many as a program keeps at most
BLOCK_D = 16  # of their vectors at once: this product is no matrix instruction, and needs registers
NUM_WARPS = 4
LEAST_KEPT = 2  # 2**2; fewer are kept as so many

STRIDES = (
    *(f"x_stride_{axis}" for axis in "bkgi"),
    *(f"y_stride_{axis}" for axis in "bkgj"),
    "range_stride_b",
    *(f"lists_stride_{axis}" for axis in "bhi"),
)
NUMBERS = ("tiles", "heads", "group", "members", "rows", "count", "width")

HEADER = f"""\
# Keeps the best columns of each row, by ranks that are products of vectors; written by attndsl.

import contextlib

import torch
import triton
import triton.language as tl

BLOCK_I, BLOCK_J, BLOCK_D = {BLOCK_I}, {BLOCK_J}, {BLOCK_D}
NUM_WARPS = {NUM_WARPS}
LEAST_KEPT = {LEAST_KEPT}
NONE = tl.constexpr(-(2**63))  # the key of what is no candidate: below every other
LOW = tl.constexpr(2**31 - 1)  # the lower half of a key is LOW - column, or LOW ^ column
"""

KERNEL = '''\
# Rows are sorted as [rows, 2, 2, ...], by comparing along one axis at a time.


@triton.jit
def is_second(RANK: tl.constexpr, AXIS: tl.constexpr):
    """False and True along one axis."""
    return tl.reshape(tl.arange(0, 2), [1] * AXIS + [2] + [1] * (RANK - AXIS - 1)) == 1


@triton.jit
def compared(x, falls, AXIS: tl.constexpr):
    """The smaller of each two along an axis first; the greater where it falls."""
    other = tl.sum(x, AXIS, keep_dims=True) - x  # exact, as ints wrap around
    return tl.where((x > other) != (is_second(len(x.shape), AXIS) != falls), other, x)


@triton.jit
def merged(x, falls, STEPS: tl.constexpr):
    """Runs along the last STEPS axes, each first rising and then falling or turned, sorted; `falls`
    tells of each run whether it falls."""
    for step in tl.static_range(STEPS):
        x = compared(x, falls, len(x.shape) - STEPS + step)
    return x


@triton.jit
def greatest(x, STEPS: tl.constexpr, KEPT: tl.constexpr, FALLS: tl.constexpr):
    """Of rows of STEPS axes the greatest, as many as KEPT axes have, sorted."""
    for step in tl.static_range(1, KEPT + 1):
        if step < STEPS:
            x = merged(x, is_second(STEPS + 1, STEPS - step), step)
        else:
            x = merged(x, FALLS, step)
    for left in tl.static_range(STEPS - 1, KEPT - 1, -1):
        # Of a rising and a falling run the greater of each two are the best of both.
        x = tl.max(x, left + 1 - KEPT)
        if left > KEPT:
            x = merged(x, is_second(left + 1, left - KEPT), KEPT)
        else:
            x = merged(x, FALLS, KEPT)
    return x


@triton.jit(
    do_not_specialize=[
        "lows",
        "highs",
        "lists",
        "x_stride_b",
        "x_stride_k",
        "x_stride_g",
        "x_stride_i",
        "y_stride_b",
        "y_stride_k",
        "y_stride_g",
        "y_stride_j",
        "range_stride_b",
        "lists_stride_b",
        "lists_stride_h",
        "lists_stride_i",
        "tiles",
        "heads",
        "group",
        "members",
        "rows",
        "count",
        "width",
    ]
)
def best_columns(
    x,
    y,
    lows,
    highs,
    lists,
    x_stride_b: tl.int64,
    x_stride_k: tl.int64,
    x_stride_g: tl.int64,
    x_stride_i: tl.int64,
    y_stride_b: tl.int64,
    y_stride_k: tl.int64,
    y_stride_g: tl.int64,
    y_stride_j: tl.int64,
    range_stride_b: tl.int64,
    lists_stride_b: tl.int64,
    lists_stride_h: tl.int64,
    lists_stride_i: tl.int64,
    tiles: tl.int32,
    heads: tl.int32,
    group: tl.int32,
    members: tl.int32,
    rows: tl.int32,
    count: tl.int32,
    width: tl.int32,
    X_UNIT: tl.constexpr,
    Y_UNIT: tl.constexpr,
    WIDTH_D: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    TOP: tl.constexpr = 2**KEPT
    STEPS: tl.constexpr = 6
    tl.static_assert(BLOCK_J == 2**STEPS and TOP <= BLOCK_J)
    # One tile of the rows of one list. The last rows tend to have most candidates: they go first.
    tile = tiles - 1 - tl.program_id(0) % tiles
    place = tl.program_id(0) // tiles
    batch = (place // heads).to(tl.int64)
    head = place % heads
    key_head = (head * members // group).to(tl.int64)
    first_member = head * members % group
    i = tile * BLOCK_I + tl.arange(0, BLOCK_I)
    exists = i < rows
    low = tl.load(lows + batch * range_stride_b + i, mask=exists, other=0)
    high = tl.load(highs + batch * range_stride_b + i, mask=exists, other=0)
    has_candidates = low < high
    first = tl.min(tl.where(has_candidates, low, LOW), 0)
    end = tl.max(tl.where(has_candidates, high, 0), 0)

    # Strides are in units of 16 bytes where everything is aligned to that.
    x_rows = x + (batch * x_stride_b + key_head * x_stride_k) * X_UNIT
    x_rows += first_member * x_stride_g * X_UNIT
    y_columns = y + (batch * y_stride_b + key_head * y_stride_k) * Y_UNIT
    y_columns += first_member * y_stride_g * Y_UNIT
    x_at = i.to(tl.int64)[:, None] * x_stride_i * X_UNIT
    d = tl.arange(0, BLOCK_D)
    best = tl.full([BLOCK_I] + [2] * KEPT, NONE, tl.int64)  # rising keys
    for start in range(first, end, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        y_at = j.to(tl.int64)[None, :] * y_stride_j * Y_UNIT
        ranks = tl.zeros((BLOCK_I, BLOCK_J), tl.float32)
        for member in range(members):
            x_member = x_rows + member * x_stride_g * X_UNIT
            y_member = y_columns + member * y_stride_g * Y_UNIT
            products = tl.zeros((BLOCK_I, BLOCK_J), tl.float32)
            for chunk in range(0, WIDTH_D, BLOCK_D):
                x_mask = exists[:, None]
                y_mask = (j < end)[None, :]
                if WIDTH_D % BLOCK_D != 0:
                    x_mask = x_mask & (chunk + d < WIDTH_D)[None, :]
                    y_mask = y_mask & (chunk + d < WIDTH_D)[:, None]
                x_part = tl.load(x_member + x_at + (chunk + d)[None, :], mask=x_mask, other=0.0)
                y_part = tl.load(y_member + y_at + (chunk + d)[:, None], mask=y_mask, other=0.0)
                x_part, y_part = x_part.to(tl.float32), y_part.to(tl.float32)
                products = tl.dot(x_part, y_part, products, input_precision="ieee")
            ranks += products
        # -0.0 becomes 0.0; as ints, floats below 0 fall where they should rise.
        bits = tl.where(ranks == 0.0, 0.0, ranks).to(tl.int32, bitcast=True)
        bits = bits ^ ((bits >> 31) & LOW)
        keys = (bits.to(tl.int64) << 32) + (j ^ LOW).to(tl.int64)[None, :]
        is_candidate = (j[None, :] >= low[:, None]) & (j[None, :] < high[:, None])
        keys = tl.where(is_candidate & (ranks == ranks), keys, NONE)
        least = tl.min(tl.reshape(best, [BLOCK_I, TOP]), 1)
        if tl.max((tl.max(keys, 1) > least).to(tl.int32), 0) != 0:
            found = greatest(tl.reshape(keys, [BLOCK_I] + [2] * STEPS), STEPS, KEPT, True)
            best = merged(tl.maximum(best, found), False, KEPT)

    best = tl.reshape(best, [BLOCK_I, TOP])
    slots = tl.arange(0, TOP)[None, :]
    is_kept = (slots >= TOP - count) & (best != NONE)
    found = tl.where(is_kept, (best & LOW).to(tl.int32) ^ LOW, LOW)
    found = greatest(tl.reshape(found, [BLOCK_I] + [2] * KEPT), KEPT, KEPT, False)
    found = tl.reshape(found, [BLOCK_I, TOP])
    found = tl.where(found == LOW, -1, found)
    place_of_rows = lists + batch * lists_stride_b + head.to(tl.int64) * lists_stride_h
    at = i.to(tl.int64)[:, None] * lists_stride_i + slots
    tl.store(place_of_rows + at, found, mask=exists[:, None] & (slots < width))


def unit_of(tensor):
    """How many elements fill 16 bytes, where the address and all strides are multiples; else 1."""
    unit = 16 // tensor.element_size()
    is_aligned = tensor.data_ptr() % 16 == 0 and all(s % unit == 0 for s in tensor.stride()[:4])
    return unit if is_aligned else 1


def run(x, y, lows, highs, lists, count, per_group):
    """Writes the numbers of the `count` best columns of each row, rising, with -1 behind.

    x [B, Hk, G, I, D] and y [B, Hk, G, J, D]: float16, bfloat16 or float32, last stride 1; the rank
    of a row and a column is the product of their vectors, per group the sum over G. Candidates are
    columns lows .. highs - 1 of each row, int32 [B or 1, I] and contiguous, within 0 .. J.
    lists int32 [B, H or Hk, I, T], last stride 1, T <= count <= BLOCK_J.
    """
    batches, key_heads, group, rows, width_d = x.shape
    members = group if per_group else 1
    heads = key_heads * group // members
    tiles = -(-rows // BLOCK_I)
    x_unit, y_unit = unit_of(x), unit_of(y)
    on_device = torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
    with on_device:
        best_columns[(tiles * heads * batches,)](
            x,
            y,
            lows,
            highs,
            lists,
            *(stride // x_unit for stride in x.stride()[:4]),
            *(stride // y_unit for stride in y.stride()[:4]),
            lows.stride(0) if lows.shape[0] > 1 else 0,
            *lists.stride()[:3],
            tiles,
            heads,
            group,
            members,
            rows,
            count,
            lists.shape[3],
            X_UNIT=x_unit,
            Y_UNIT=y_unit,
            WIDTH_D=width_d,
            KEPT=max(LEAST_KEPT, (count - 1).bit_length()),
            BLOCK_I=BLOCK_I,
            BLOCK_J=BLOCK_J,
            BLOCK_D=BLOCK_D,
            num_warps=NUM_WARPS,
            num_stages=1,
            enable_fp_fusion=True,
        )
'''

TEXT = HEADER + "\n\n" + KERNEL


def kernel_spec(dtype: str, width: int, count: int, aligned: bool = True) -> KernelSpec:
    """How to compile the kernel for rows of a dtype and float32 columns, of vectors `width` long,
    that keeps `count` of them."""
    signature = {"x": POINTER_TYPES[dtype], "y": "*fp32"}
    signature |= dict.fromkeys(("lows", "highs", "lists"), "*i32")
    signature |= dict.fromkeys(STRIDES, "i64") | dict.fromkeys(NUMBERS, "i32")
    constants: dict[str, int | float | bool] = {
        "X_UNIT": ALIGNMENT // BYTES[dtype] if aligned else 1,
        "Y_UNIT": ALIGNMENT // BYTES["float32"] if aligned else 1,
        "WIDTH_D": width,
        "KEPT": max(LEAST_KEPT, (count - 1).bit_length()),
        "BLOCK_I": BLOCK_I,
        "BLOCK_J": BLOCK_J,
        "BLOCK_D": BLOCK_D,
    }
    return KernelSpec(
        name="best_columns",
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constants=constants,
        attributes={"x": ALIGNMENT, "y": ALIGNMENT} if aligned else {},
        num_warps=NUM_WARPS,
        num_stages=1,
        may_fuse=True,
    )
