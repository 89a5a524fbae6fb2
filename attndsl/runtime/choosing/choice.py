"""Choosing: the tensors that a call's selects become, from its queries and keys.

Ranks are held for some blocks of queries at a time, and computed where `where` may hold alone; on a
GPU, where one kernel can choose (`fused.py`), they are not held at all.
Nothing waits for the device, and no shape depends on what is chosen, except in `public_list`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from attndsl.analysis.facts import Segment
from attndsl.analysis.ranges import solve_keys
from attndsl.diagnostics import ArgumentError
from attndsl.ir.nodes import TRUE, Node, index, substitute
from attndsl.ir.program import Select
from attndsl.runtime.arguments import describe
from attndsl.runtime.choosing.blocks import Axis
from attndsl.runtime.choosing.fused import Fused
from attndsl.runtime.choosing.keep import (
    NONE,
    best_columns,
    kept_first,
    kept_mass,
    kept_top,
    keys_of,
)
from attndsl.runtime.choosing.numbers import (
    block_sizes,
    is_number,
    list_room,
    most_kept,
    number_of,
)
from attndsl.runtime.choosing.ranks import Evaluation, Inputs

MOST_RANKS = 1 << 25  # held at once: about 1 GB, with what is made of them
MOST_RANKS_CPU = 1 << 19  # there they should stay in a cache
LEAST_RANKS = 1 << 21  # of which a device takes as long for an operation as to launch it
MOST_LISTED = 1 << 22  # entries of lists that are looked at, at once
MOST_SUMMED = 1 << 26  # entries of tables that are summed at once


@dataclass(frozen=True)
class Choosing:
    """One select in one call."""

    select: Select
    inputs: Inputs
    rows: Axis
    columns: Axis

    @staticmethod
    def of(select: Select, inputs: Inputs) -> Choosing:
        """Raises ArgumentError for blocks without a position and lists that do not fit."""
        sizes, device = inputs.sizes, inputs.device
        m, n = block_sizes(select, sizes, inputs.scalars)
        rows = Axis.cut(sizes["Nq"], m, inputs.q_offset, None, device)
        columns = Axis.cut(sizes["Nk"], n, inputs.k_offset, inputs.k_len, device)
        if select.keep == "given":
            check_given(select, inputs.tensors[select.given], rows.count)
        return Choosing(select, inputs, rows, columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Batches, and heads that choose."""
        return self.inputs.sizes["B"], self.inputs.sizes["Hk" if self.select.per_group else "H"]

    @property
    def most_kept(self) -> int | None:
        """n of `keep top n`; None where it is no number for the whole call."""
        return most_kept(self.select, self.inputs.sizes, self.inputs.scalars)

    @property
    def list_room(self) -> int | None:
        """The most blocks that `keep top` keeps of any row; None where nothing bounds it."""
        return list_room(self.select, self.inputs.sizes, self.inputs.scalars)

    @property
    def is_empty(self) -> bool:
        return 0 in (*self.shape, self.rows.count, self.columns.count)


def check_given(select: Select, given: Tensor, rows: int) -> None:
    if given.shape[2] != rows:
        raise ArgumentError(
            f"{select.given}: `{select.name}` has {rows} blocks of queries in this call, one row "
            f"for each is expected; got {describe(given)}, which has {given.shape[2]}"
        )


def list_width(choosing: Choosing) -> int:
    """How many entries a row of lists has, at least 1."""
    if choosing.select.keep == "given":
        entries = choosing.inputs.tensors[choosing.select.given].shape[3]
    else:
        most, entries = choosing.list_room, choosing.columns.count
        if most is not None:
            entries = torch.sym_min(most, entries)  # type: ignore[no-untyped-call]
    width: int = torch.sym_max(1, entries)  # type: ignore[no-untyped-call]
    return width


# The two forms


def lists_of(choosing: Choosing) -> Tensor:
    """int32 [B, H or Hk, Ni, T]: of every block of queries the numbers of the chosen blocks, the
    first of the call being 0, rising, with -1 behind. For `keep top` and `given`."""
    lists = empty_lists(choosing)
    width = lists.shape[3]
    if choosing.is_empty:
        return lists
    evaluation = Evaluation(choosing.inputs, choosing.rows, choosing.columns)
    if choosing.select.keep == "given":
        for rows in pieces(choosing, width):
            numbers = given_numbers(choosing, evaluation, rows)
            lists[:, :, rows, : numbers.shape[-1]] = numbers.to(torch.int32)
        return lists
    fused = fused_lists(choosing, evaluation)
    if fused is not None:
        return fused
    beyond = choosing.columns.count
    for rows, columns in rectangles(choosing):
        keys = keys_of(*ranked(choosing, evaluation, rows, columns), columns.start)
        count = choosing.most_kept
        if count is None:
            keys = keys.masked_fill(~kept_by_row(choosing, evaluation, keys, rows), NONE)
            count = width
        found = best_columns(keys, count, beyond)
        found = found.masked_fill_(found == beyond, -1).flatten(1, 2)
        lists[:, :, rows, : found.shape[-1]] = found.to(torch.int32)
    return lists


def tables_of(choosing: Choosing) -> tuple[Tensor, Tensor]:
    """What is chosen, bool [B, H or Hk, Ni, Nj], and its sums over rectangles, int32 [B, H or Hk,
    Ni + 1, Nj + 1]. Raises ArgumentError where sums may not fit."""
    tall, wide = choosing.rows.count, choosing.columns.count
    if tall * wide >= 2**31:
        raise ArgumentError(
            f"`{choosing.select.name}` has {tall} blocks of queries by {wide} of keys in this "
            "call; a table holds fewer than 2**31 pairs of blocks: choose larger blocks"
        )
    device = choosing.inputs.device
    table = torch.zeros((*choosing.shape, tall, wide), dtype=torch.bool, device=device)
    if choosing.is_empty:
        return table, sums_of(table)
    evaluation = Evaluation(choosing.inputs, choosing.rows, choosing.columns)
    if choosing.select.keep == "given":
        for rows in pieces(choosing, list_width(choosing) + wide):
            numbers = given_numbers(choosing, evaluation, rows)
            table[:, :, rows] = marked(numbers, wide)
    elif (lists := fused_lists(choosing, evaluation)) is not None:
        for rows in pieces(choosing, lists.shape[3] + wide):
            table[:, :, rows] = marked(lists[:, :, rows].to(torch.int64), wide)
    else:
        for rows, columns in rectangles(choosing):
            kept = kept_blocks(choosing, evaluation, rows, columns)
            table[:, :, rows, columns] = kept.flatten(1, 2)
    return table, sums_of(table)


def sums_of(table: Tensor) -> Tensor:
    """int32 [B, heads, Ni + 1, Nj + 1]: the true entries of a table [B, heads, Ni, Nj] before every
    row and column."""
    batches, heads, tall, wide = table.shape
    shape = (batches, heads, tall + 1, wide + 1)
    sums = torch.zeros(shape, dtype=torch.int32, device=table.device)
    inner, tables = sums.flatten(0, 1)[:, 1:, 1:], table.flatten(0, 1)
    at_once = max(1, MOST_SUMMED // max(tall * wide, 1))
    for start in range(0, len(tables), at_once):
        part = tables[start : start + at_once].cumsum(2, dtype=torch.int32)
        inner[start : start + at_once] = part.cumsum_(1)
    return sums


def empty_lists(choosing: Choosing) -> Tensor:
    """Lists in which nothing is chosen."""
    shape = (*choosing.shape, choosing.rows.count, list_width(choosing))
    return torch.full(shape, -1, dtype=torch.int32, device=choosing.inputs.device)


def fused_lists(choosing: Choosing, evaluation: Evaluation) -> Tensor | None:
    """What `lists_of` gives where one kernel makes it: forms agree also where rounding decides."""
    fused = Fused.of(choosing.select, evaluation, choosing.most_kept)
    if fused is None:
        return None
    lists = empty_lists(choosing)
    fused.write(lists)
    return lists


def marked(numbers: Tensor, count: int) -> Tensor:
    """Lists of numbers [..., T] as bool [..., count]; negative ones mark nothing."""
    marks = torch.zeros((*numbers.shape[:-1], count + 1), dtype=torch.bool, device=numbers.device)
    return marks.scatter_(-1, torch.where(numbers < 0, count, numbers), True)[..., :count]


# Rectangles of ranks


def pieces(choosing: Choosing, width: int) -> Iterator[slice]:
    """Blocks of queries, as many at a time as have MOST_LISTED entries."""
    count = choosing.rows.count
    step = max(1, MOST_LISTED // (choosing.shape[0] * choosing.inputs.sizes["H"] * max(width, 1)))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def rectangles(choosing: Choosing) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries with the blocks of keys that may be candidates; none that has none."""
    inputs, count = choosing.inputs, choosing.rows.count
    most, least = (MOST_RANKS, LEAST_RANKS)
    if choosing.select.keep != "above" and choosing.most_kept is None:
        most //= 2  # to sort them takes twice the memory
    if inputs.device.type == "cpu":
        most, least = (MOST_RANKS_CPU, 0)
    across = inputs.sizes["B"] * inputs.sizes["H"] * choosing.columns.count
    eighth = -(-count // 8) if count >= 64 else count
    step = max(1, min(most // across, max(eighth, least // across)))
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        columns = candidates_of(choosing, rows)
        if columns.start < columns.stop:
            yield rows, columns


def candidates_of(choosing: Choosing, rows: slice) -> slice:
    """The blocks of keys outside which `where` holds for none of the rows."""
    first_row, first_column = choosing.rows.first, choosing.columns.first
    whole = slice(0, choosing.columns.count)
    if isinstance(first_row, Tensor) or isinstance(first_column, Tensor):
        return whole
    segments = segments_of(choosing.select.where)
    if segments is None:
        return whole
    bounds = {"lo": first_row + rows.start, "hi": first_row + rows.stop - 1}
    sizes, scalars = choosing.inputs.sizes, choosing.inputs.scalars
    low, high = whole.stop, 0
    for segment in segments:
        try:
            lo, hi = (
                number_of(end, sizes, scalars, bounds) - first_column
                for end in (segment.lo, segment.hi)
            )
        except (ArithmeticError, ValueError):
            return whole
        if lo < hi:
            low, high = min(low, max(int(lo), 0)), max(high, min(int(hi), whole.stop))
    return slice(low, max(low, high))


@lru_cache(maxsize=256)
def segments_of(where: Node) -> tuple[Segment, ...] | None:
    """Where the candidates of a run of blocks of queries lie; None where tables decide that."""
    mask = substitute(where, {index("i"): index("q"), index("j"): index("k")})
    segments = solve_keys(mask).segments
    ends = [end for segment in segments for end in (segment.lo, segment.hi)]
    return segments if all(is_number(end) for end in ends) else None


def ranked(
    choosing: Choosing, evaluation: Evaluation, rows: slice, columns: slice
) -> tuple[Tensor, Tensor]:
    """Ranks and which blocks are candidates: float32 and bool [B, Hk, G or 1, I, J]."""
    select = choosing.select
    assert select.rank is not None
    ranks = evaluation.rank(select.rank, select.per_group, rows, columns)
    candidates = ranks == ranks
    candidates &= evaluation.value(select.where, rows, columns, select.per_group)
    candidates &= choosing.columns.exist(columns)[:, None, None, None]
    return ranks, candidates


def kept_blocks(choosing: Choosing, evaluation: Evaluation, rows: slice, columns: slice) -> Tensor:
    """Which blocks of a rectangle are kept: bool [B, Hk, G or 1, I, J]."""
    ranks, candidates = ranked(choosing, evaluation, rows, columns)
    if choosing.select.keep == "above":
        return candidates & (ranks > limits(choosing, evaluation, rows))
    keys = keys_of(ranks, candidates, columns.start)
    if choosing.select.keep == "mass":
        return kept_mass(keys, limits(choosing, evaluation, rows))
    count = choosing.most_kept
    if count is None:
        return kept_by_row(choosing, evaluation, keys, rows)
    return kept_top(keys, count)


def kept_by_row(choosing: Choosing, evaluation: Evaluation, keys: Tensor, rows: slice) -> Tensor:
    """Which keys `keep top` keeps where its number differs."""
    falling = keys.sort(-1, descending=True).values
    return kept_first(keys, falling, limits(choosing, evaluation, rows))


def limits(choosing: Choosing, evaluation: Evaluation, rows: slice) -> Tensor:
    """What `keep` is given: [B, Hk, G, I, 1], dimensions of 1 or none where it does not vary."""
    select = choosing.select
    assert select.limit is not None
    return evaluation.value(select.limit, rows, slice(0, 1), select.per_group)


def given_numbers(choosing: Choosing, evaluation: Evaluation, rows: slice) -> Tensor:
    """What `given` lists, as numbers within the call: int64 [B, H or Hk, I, T], rising, none twice,
    with -1 behind."""
    select, columns = choosing.select, choosing.columns
    given = choosing.inputs.tensors[select.given][:, :, rows].to(torch.int64)
    first = columns.first
    numbers = given - (first.view(-1, 1, 1, 1) if isinstance(first, Tensor) else first)
    valid = (given >= 0) & (numbers >= 0) & (numbers < columns.count)
    numbers = torch.where(valid, numbers, 0)
    low, high = columns.rows(numbers)
    valid &= low < high
    if select.where is not TRUE:
        apart = torch.unflatten(numbers, 1, (choosing.inputs.sizes["Hk"], -1))
        found = evaluation.at_blocks(select.where, rows, apart, select.per_group)
        valid &= found.expand(apart.shape).flatten(1, 2)
    return without_repeats(torch.where(valid, numbers, columns.count), columns.count)


def without_repeats(numbers: Tensor, beyond: int) -> Tensor:
    """Rows of numbers, rising, each once, with -1 behind; `beyond` stands for none."""
    rising = numbers.sort(-1).values
    rising[..., 1:].masked_fill_(rising[..., 1:] == rising[..., :-1], beyond)
    rising = rising.sort(-1).values
    return rising.masked_fill_(rising == beyond, -1)


# What a caller is given


def public_list(choosing: Choosing) -> Tensor:
    """int32 [B, H or Hk, Ni, T]: the absolute indices of the chosen blocks, rising, with -1 behind,
    as `given` takes them. T is what `list_width` says for `given`, and for `keep top` where its
    number has a bound; else the largest count, at least 1, which waits for the device.

    Raises ArgumentError where a chosen block could have an index below 0.
    """
    refuse_negative(choosing)
    first = choosing.columns.first
    if choosing.select.keep == "given" or choosing.list_room is not None:
        numbers = lists_of(choosing)
    else:
        numbers = numbers_of_table(choosing)
    shift = first.view(-1, 1, 1, 1) if isinstance(first, Tensor) else first
    return torch.where(numbers < 0, -1, numbers + shift).to(torch.int32)


def refuse_negative(choosing: Choosing) -> None:
    offset = choosing.inputs.k_offset
    if isinstance(offset, Tensor):
        is_negative = offset.device.type == "cpu" and bool((offset < 0).any())
    else:
        is_negative = offset < 0
    if is_negative:
        raise ArgumentError(
            "k_offset: keys before position 0 lie in blocks of negative indices, which lists "
            "cannot hold; give an offset of 0 or more"
        )


def numbers_of_table(choosing: Choosing) -> Tensor:
    """The same as `lists_of` gives, from a table; the longest row has no -1."""
    table, _ = tables_of(choosing)
    wide = choosing.columns.count
    longest = max(1, int(table.sum(3).max())) if table.numel() else 1
    lists = torch.full((*table.shape[:3], longest), -1, dtype=torch.int32, device=table.device)
    if not table.numel():
        return lists
    columns = torch.arange(wide, dtype=torch.int32, device=table.device)
    for rows in pieces(choosing, wide):
        numbers = torch.where(table[:, :, rows], columns, wide)
        numbers = numbers.topk(longest, -1, largest=False).values
        lists[:, :, rows] = numbers.masked_fill_(numbers == wide, -1)
    return lists
