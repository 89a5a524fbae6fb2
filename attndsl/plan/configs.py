"""Sizes of tiles, warps and stages by target, dtype and head dimension; chunks of a head dimension."""

from __future__ import annotations

from attndsl.plan.kernel_plan import Chunk, Config, Request

NARROWEST = 16  # columns: the least that a matrix instruction takes


def chunks(dim: int) -> tuple[Chunk, ...]:
    """A head dimension as powers of two, largest first, none of them narrower than 16 columns.

    Where that saves nothing over one chunk of the next power of two, it is one chunk.

    >>> [(c.start, c.width, c.valid) for c in chunks(96)]
    [(0, 64, 64), (64, 32, 32)]
    >>> [(c.start, c.width, c.valid) for c in chunks(72)]
    [(0, 64, 64), (64, 16, 8)]
    >>> [(c.start, c.width, c.valid) for c in chunks(20)]
    [(0, 32, 20)]
    """
    whole = NARROWEST
    while whole < dim:
        whole *= 2
    parts: list[Chunk] = []
    start = 0
    while start < dim:
        width = NARROWEST
        while width * 2 <= dim - start:
            width *= 2
        parts.append(Chunk(start, width, min(width, dim - start)))
        start += width
    if sum(part.width for part in parts) >= whole:
        return (Chunk(0, whole, dim),)
    return tuple(parts)


def configs(request: Request) -> tuple[Config, Config, Config]:
    """Configurations of forward, backward_dq and backward_dkv.

    `block_m` counts queries and `block_n` keys in all three.
    """
    widest = max(request.head_dim, request.value_dim)
    if request.backend == "torch":
        return TORCH
    if request.target == "interpreter":
        return INTERPRETER
    if request.dtype == "float32":
        table = FLOAT32
    elif request.target == "sm_90":
        table = HOPPER
    elif request.target.startswith("gfx"):
        table = AMD
    else:
        table = DEFAULT
    return next(found for limit, found in table if widest <= limit)


# Blocks of the PyTorch engine are chosen by that engine; these only bound its memory.
TORCH = (Config(256, 256, 1, 1),) * 3

# Small enough that a test of 33 tokens meets several tiles.
INTERPRETER = (Config(32, 16, 1, 1), Config(32, 16, 1, 1), Config(16, 32, 1, 1))

Table = tuple[tuple[int, tuple[Config, Config, Config]], ...]

# (widest head dimension, configurations). No kernel of these spills on its target for plain, masked
# and soft-capped softmax; `python -m tests.codegen.resources` prints the figures.
HOPPER: Table = (
    (64, (Config(128, 128, 8, 3), Config(128, 64, 8, 3), Config(64, 128, 8, 2))),
    (128, (Config(128, 128, 8, 2), Config(128, 64, 8, 2), Config(32, 128, 8, 2))),
    (256, (Config(128, 64, 8, 2), Config(64, 64, 8, 1), Config(64, 64, 8, 1))),
)
DEFAULT: Table = (
    (64, (Config(128, 64, 4, 3), Config(64, 64, 4, 2), Config(64, 64, 4, 2))),
    (128, (Config(128, 64, 8, 2), Config(64, 64, 8, 2), Config(64, 64, 8, 2))),
    (256, (Config(64, 32, 8, 2), Config(64, 32, 8, 1), Config(32, 64, 8, 1))),
)
AMD: Table = (
    (64, (Config(128, 64, 4, 1), Config(64, 64, 4, 1), Config(64, 64, 4, 1))),
    (128, (Config(128, 64, 4, 1), Config(64, 64, 4, 1), Config(64, 64, 4, 1))),
    (256, (Config(64, 32, 4, 1), Config(32, 32, 4, 1), Config(32, 32, 4, 1))),
)
# Float32 products are exact (no TF32): they run on the ordinary units, and small tiles suit them.
FLOAT32: Table = (
    (64, (Config(64, 32, 4, 2), Config(32, 32, 4, 1), Config(32, 32, 4, 1))),
    (128, (Config(32, 32, 4, 1), Config(32, 32, 4, 1), Config(32, 32, 4, 1))),
    (256, (Config(32, 16, 4, 1), Config(16, 16, 4, 1), Config(16, 16, 4, 1))),
)
