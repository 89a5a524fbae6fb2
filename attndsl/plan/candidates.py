"""Configurations that a kernel may have, and those of them that are worth measuring."""

from __future__ import annotations

from itertools import product
from math import ceil
from typing import get_args

from attndsl.ir.program import Program
from attndsl.plan.backward import FUSED_TARGETS
from attndsl.plan.budget import (
    KERNELS,
    READ_SHARED,
    KernelName,
    loads_of,
    owns_keys,
    shared_bytes,
    shared_limit,
)
from attndsl.plan.chunks import NARROWEST, chunks
from attndsl.plan.kernel_plan import Config, Request, Shape
from attndsl.plan.shapes import may_have_shape

WIDEST = 256  # rows or columns of a tile
WARPS = (1, 2, 4, 8)
MOST_STAGES = 6
# Registers of a thread that sums and tiles of pairs may take: of 255, the rest is for addresses,
# masks and what rows keep. Estimates; a candidate that spills is slow, and loses.
MOST_REGISTERS = 200
LANES = {"nvidia": 32, "amd": 64}  # threads of a warp

# Rows or columns that a tile owns; those that its loop walks; warps; stages.
Grid = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]
HOPPER: Grid = ((64, 128), (16, 32, 64, 128), (4, 8), (2, 3))
NVIDIA: Grid = ((64, 128), (16, 32, 64), (4, 8), (2, 3))
AMD: Grid = ((64, 128), (16, 32, 64), (4, 8), (1, 2))
FLOAT32: Grid = ((32, 64), (16, 32), (4, 8), (1, 2))
DESCRIBED: Grid = ((64, 128), (32, 64, 128), (4, 8), (2, 3))
FUSED: Grid = ((64, 128), (16, 32, 64), (4, 8), (1, 2, 3))
INTERPRETER: dict[str, Grid] = {
    "peeled": ((16, 32), (16, 32), (1,), (1,)),
    "described": ((32,), (16,), (1,), (1,)),
}


def is_legal(program: Program, request: Request) -> bool:
    """Whether kernels with the sizes of a request may be launched on its target."""
    sizes = request.sizes
    if sizes is None:
        return True
    kernels: list[KernelName] = [*KERNELS]
    if sizes.backward_fused is not None:
        kernels.append("backward_fused")
    return all(may_be(program, request, kernel, getattr(sizes, kernel)) for kernel in kernels)


def may_be(program: Program, request: Request, kernel: KernelName, config: Config) -> bool:
    """Whether a kernel with a configuration may be launched: it is well formed, and a block of
    threads has the shared memory for it. Registers are no limit: what has none is spilled."""
    if not is_well_formed(config):
        return False
    if config.shape != "peeled":
        return kernel in KERNELS and may_have_shape(program, request, kernel, config)
    if request.target == "interpreter":
        return True
    return shared_bytes(program, request, kernel, config) <= shared_limit(request.target)


def is_well_formed(config: Config) -> bool:
    """Whether the numbers are such as Triton takes; those of a file may be anything."""
    numbers = (config.block_m, config.block_n, config.num_warps, config.num_stages)
    return (
        all(type(number) is int for number in numbers)
        and all(is_extent(extent) for extent in (config.block_m, config.block_n))
        and config.num_warps in WARPS
        and 1 <= config.num_stages <= MOST_STAGES
        and config.shape in get_args(Shape)
    )


def is_extent(extent: int) -> bool:
    """Whether a side of a tile may be so long.

    >>> [n for n in range(300) if is_extent(n)]
    [16, 32, 64, 128, 256]
    """
    return NARROWEST <= extent <= WIDEST and extent & (extent - 1) == 0


def candidates(program: Program, request: Request, kernel: KernelName) -> tuple[Config, ...]:
    """The configurations to measure, in a fixed order; each may be launched on the target. Whether
    there may be a kernel "backward_fused" is not asked here."""
    grids = {"peeled": grid_of(request), "described": DESCRIBED}
    if kernel == "backward_fused":
        is_known = request.target in FUSED_TARGETS and request.dtype != "float32"
        grids = {"peeled": FUSED} if is_known or request.target == "interpreter" else {}
    if request.target == "interpreter":
        grids = {shape: INTERPRETER[shape] for shape in grids if shape in INTERPRETER}
    found = []
    for shape in get_args(Shape):
        for own, walked, warps, stages in product(*grids.get(shape, ((), (), (), ()))):
            rows, columns = (walked, own) if owns_keys(kernel) else (own, walked)
            config = Config(rows, columns, warps, stages, shape)
            if is_sensible(program, request, kernel, config) and may_be(
                program, request, kernel, config
            ):
                found.append(config)
    return tuple(found)


def grid_of(request: Request) -> Grid:
    """Of the shape "peeled"."""
    if request.dtype == "float32":
        return FLOAT32
    if request.target.startswith("gfx"):
        return AMD
    return HOPPER if request.target in READ_SHARED else NVIDIA


def is_sensible(program: Program, request: Request, kernel: KernelName, config: Config) -> bool:
    """Whether a candidate can be fast: sums stay in registers, and no warp is without rows."""
    if request.target == "interpreter":
        return True
    own = config.block_n if owns_keys(kernel) else config.block_m
    is_wide = max(request.head_dim, request.value_dim) > 128  # sums need the warps
    is_hopper = request.target == "sm_90" and request.dtype != "float32"
    walked = config.block_m if owns_keys(kernel) else config.block_n
    is_short = bool(loads_of(program, request, kernel).per_pair) or is_wide  # of registers
    if walked == NARROWEST and not is_short and kernel != "backward_fused":
        return False  # half of what a matrix instruction could do
    if is_hopper and own < 16 * config.num_warps and not is_wide:
        return False  # two groups of warps would share rows, and pass them by shared memory
    return registers(program, request, kernel, config) <= MOST_REGISTERS


def registers(program: Program, request: Request, kernel: KernelName, config: Config) -> int:
    """About how many registers of a thread its part of the sums, scores and weights takes."""
    width, value_width = (
        sum(chunk.width for chunk in chunks(dim)) for dim in (request.head_dim, request.value_dim)
    )
    of_keys = config.block_n * (width + value_width)
    sums = {
        "forward": config.block_m * value_width,
        "backward_dq": config.block_m * width,
        "backward_dkv": of_keys,
        "backward_fused": of_keys + config.block_m * width,
    }[kernel]
    # Scores; the gradients of weights beside them; what goes to the next product, in half; and
    # what is looked up, with its place.
    for_pair = 1.5 if kernel == "forward" else 2.5
    if loads_of(program, request, kernel).per_pair:
        for_pair += 2
    threads = LANES["amd" if request.target.startswith("gfx") else "nvidia"] * config.num_warps
    return ceil((sums + for_pair * config.block_m * config.block_n) / threads)
