"""A head dimension as parts whose widths are powers of two."""

from __future__ import annotations

from attndsl.plan.kernel_plan import Chunk

NARROWEST = 16  # rows or columns: the least that a matrix instruction takes


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
