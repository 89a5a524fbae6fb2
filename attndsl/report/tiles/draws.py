"""Samples of many things by their sizes, and how far an estimate from a sample may be off."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def spread(whole: int, count: int) -> Tensor:
    """`count` of the numbers below `whole`, one drawn at random from each of as many parts.

    They come in pairs that mirror each other, so that what rises steadily averages out.
    """
    return (places(count) * (whole / count)).to(torch.int64).clamp(0, whole - 1)


def pieces(values: Tensor, size: int) -> Iterator[Tensor]:
    """A vector in order, so many at a time."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def places(count: int) -> Tensor:
    """A place in each of the intervals [i, i + 1) below `count`, in mirrored pairs: float64."""
    random = torch.Generator().manual_seed(0)
    jitter = torch.rand((count + 1) // 2, generator=random, dtype=torch.float64)
    jitter = torch.cat((jitter, 1 - jitter.flip(0)))[:count]
    return torch.arange(count) + jitter


def drawn(sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` of things that have sizes of 0 or more, in order, and how many each stands for.

    A thing is drawn with a probability that goes with its size; one so large that it would be drawn
    anyway stands for itself alone. Nothing of size 0 is drawn. Draws come one from each of equal
    parts of the sum of the sizes, at random within the part: what repeats is not met in step.
    """
    sizes = sizes.to("cpu", torch.float64)
    is_certain = torch.zeros(len(sizes), dtype=torch.bool)
    while True:
        rest, left = torch.where(is_certain, 0.0, sizes), count - int(is_certain.sum())
        step = float(rest.sum()) / max(left, 1)
        large = (rest >= step) & (rest > 0)
        if left < 1 or not large.any():
            break
        is_certain |= large
    certain = is_certain.nonzero().flatten()
    if not step or left < 1:
        return certain, torch.ones(len(certain), dtype=torch.float64)
    ends = rest.cumsum(0)
    chosen = torch.searchsorted(ends, places(left) * (float(ends[-1]) / left), right=True)
    last = int((rest > 0).nonzero()[-1])  # rounding of the sum may point behind it
    chosen = chosen.clamp(max=last)
    numbers = torch.cat((certain, chosen))
    shares = torch.cat((torch.ones(len(certain), dtype=torch.float64), step / rest[chosen]))
    order = numbers.argsort(stable=True)
    return numbers[order], shares[order]


def standard_error(parts: Tensor) -> float:
    """Of the sum of what draws in order say, each for its own part of the whole: float64 [draws].

    Neighbours are compared, for draws of parts that lie beside each other resemble each other.
    """
    if len(parts) < 2:
        return 0.0
    steps = parts[1:] - parts[:-1]
    return float((steps.square().sum() / (2 * (len(parts) - 1)) * len(parts)).sqrt())
