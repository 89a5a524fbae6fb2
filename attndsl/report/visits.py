"""How many tiles each kernel visits, and how many it would have to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import KernelPlan
from attndsl.reference import evaluate
from attndsl.report.table import share, table
from attndsl.runtime import views
from attndsl.runtime.views import View

MOST_PAIRS = 1 << 26  # of a mask that is enumerated to count the tiles that are really needed


@dataclass(frozen=True)
class Visits:
    """Tiles of one kernel, of all batches and heads.

    visited    tiles that its loops run over
    full       those of them that are proved to keep every pair: their mask is not evaluated
    needed     tiles with a pair that takes part; None where the mask is too large to enumerate
    total      all tiles
    """

    kernel: str
    block: tuple[int, int]
    visited: int
    full: int
    needed: int | None
    total: int

    @property
    def computed_pairs(self) -> int:
        """Pairs that the matrix products compute."""
        return self.visited * self.block[0] * self.block[1]


@dataclass(frozen=True)
class Range:
    """What a loop makes of one segment, for every tile of the other axis: [B or 1, H or 1, tiles].

    lo, hi, full_lo, full_hi   rows of the axis that is looped over
    first, last, full_first, full_last   tiles of it; those of an earlier range are left out
    """

    lo: Tensor
    hi: Tensor
    full_lo: Tensor
    full_hi: Tensor
    first: Tensor
    last: Tensor
    full_first: Tensor
    full_last: Tensor


def visits_of(plan: KernelPlan, seen: View) -> Iterator[Visits]:
    """The visits of forward, backward_dq and backward_dkv for the sizes of a view."""
    needed = needed_counter(plan.program, seen)
    for kernel, config in (
        ("forward", plan.forward),
        ("backward_dq", plan.backward_dq),
        ("backward_dkv", plan.backward_dkv),
    ):
        block = (config.block_m, config.block_n)
        ranges = ranges_of(plan, seen, block, by_keys=kernel == "backward_dkv")
        rows, columns = (-(-seen.sizes[n] // b) for n, b in zip(("Nq", "Nk"), block, strict=True))
        yield Visits(
            kernel,
            block,
            visited=sum(int((r.last - r.first).sum()) * repeats(r.last, seen) for r in ranges),
            full=sum(
                int((r.full_last - r.full_first).sum()) * repeats(r.last, seen) for r in ranges
            ),
            needed=needed(block),
            total=rows * columns * seen.sizes["B"] * seen.sizes["H"],
        )


def repeats(value: Tensor, seen: View) -> int:
    """How many batches and heads each entry of [B or 1, H or 1, ...] stands for."""
    return (seen.sizes["B"] // max(value.shape[0], 1)) * (seen.sizes["H"] // max(value.shape[1], 1))


def ranges_of(
    plan: KernelPlan, seen: View, block: tuple[int, int], *, by_keys: bool
) -> list[Range]:
    """The ranges of keys of every tile of queries (`by_keys`: of queries of every tile of keys), as
    the kernels compute them."""
    outer, inner = ("Nk", "Nq") if by_keys else ("Nq", "Nk")
    outer_block, inner_block = (block[1], block[0]) if by_keys else block
    offsets = {"Nq": seen.q_offset, "Nk": seen.k_offset}
    keys = torch.tensor([[[seen.sizes["Nk"]]]], device=seen.device)
    if seen.k_len is not None:
        keys = torch.clamp(seen.k_len.to(torch.int64), 0, seen.sizes["Nk"])[:, None, None]
    start, end = (
        x[None, None] for x in views.tile_ends(seen.sizes[outer], outer_block, seen.device)
    )
    if by_keys:
        end = torch.minimum(end, keys - 1)
    values = seen.values
    shift = views.shift(offsets[outer], seen.device)[:, None]
    values.leaves["b"] = torch.arange(seen.sizes["B"], device=seen.device)[:, None, None]
    values.leaves["h"] = torch.arange(seen.sizes["H"], device=seen.device)[:, None]
    values.leaves["lo"], values.leaves["hi"] = start + shift, end + shift
    length = torch.tensor(seen.sizes["Nq"], device=seen.device) if by_keys else keys
    inner_shift = views.shift(offsets[inner], seen.device)[:, None]
    ends = []
    for segment in plan.queries if by_keys else plan.keys:
        found = [
            torch.minimum(torch.clamp(evaluate(node, values) - inner_shift, min=0), length)
            for node in (segment.lo, segment.hi, segment.full_lo, segment.full_hi)
        ]
        if by_keys:  # keys beyond k_len meet no query
            found[1] = torch.where(start < keys, found[1], 0)
        nought = (sum(found, start=start) + end) * 0  # of the shape of them all
        ends.append([one + nought for one in found])
    return list(numbered(ends, inner_block))


def numbered(ends: list[list[Tensor]], block: int) -> Iterator[Range]:
    """Segments (lo, hi, full_lo, full_hi), ordered by where they begin, as ranges of tiles of
    which none overlaps another."""
    if not ends:
        return
    nought = sum((group[0] * 0 for group in ends), start=torch.tensor(0))
    stacked = [torch.stack([group[at] + nought for group in ends]) for at in range(4)]
    order = stacked[0].argsort(dim=0, stable=True)
    lo, hi, full_lo, full_hi = (part.gather(0, order) for part in stacked)
    covered = torch.zeros_like(lo[0])
    for at in range(len(ends)):
        first = torch.maximum(lo[at] // block, covered)
        last = torch.where(lo[at] < hi[at], -(-hi[at] // block), 0)
        last = torch.maximum(last, first)
        full_first = torch.clamp(-(-full_lo[at] // block), first, last)
        full_last = torch.minimum(torch.maximum(full_hi[at] // block, full_first), last)
        covered = last
        yield Range(lo[at], hi[at], full_lo[at], full_hi[at], first, last, full_first, full_last)


def needed_counter(program: Program, seen: View) -> Callable[[tuple[int, int]], int | None]:
    """A function from a block to the number of tiles with a pair that takes part."""
    pairs = seen.sizes["Nq"] * seen.sizes["Nk"]
    for index, size in (("b", "B"), ("h", "H")):
        pairs *= seen.sizes[size] if index in program.mask.varies else 1
    if pairs > MOST_PAIRS:
        return lambda block: None
    mask = views.mask_pairs(program, seen)

    def count(block: tuple[int, int]) -> int:
        batch, heads, queries, keys = mask.shape
        rows, columns = -(-queries // block[0]), -(-keys // block[1])
        padded = mask.new_zeros((batch, heads, rows * block[0], columns * block[1]))
        padded[:, :, :queries, :keys] = mask
        parts = padded.view(batch, heads, rows, block[0], columns, block[1])
        return int(parts.any(5).any(3).sum()) * repeats(mask, seen)

    return count


def table_of_tiles(found: list[Visits]) -> str:
    """The visits of several kernels as a table."""
    rows = [
        [
            visits.kernel,
            f"{visits.block[0]} x {visits.block[1]}",
            visits.total,
            share(visits.total - visits.visited, visits.total),
            visits.visited,
            visits.full,
            visits.needed,
        ]
        for visits in found
    ]
    titles = ["kernel", "tile", "in all", "skipped", "visited", "of these full", "needed"]
    return table(titles, rows)
