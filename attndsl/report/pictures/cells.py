"""cells_of: what each cell of a mask's picture shows, from tiles, and from pairs where few."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.ir.program import Program
from attndsl.report.arguments import Number, Parameter, Sizes, random_parameters
from attndsl.report.choices.call import pictured_call
from attndsl.runtime.arguments import slots_of
from attndsl.runtime.tiles import classify_tiles, facts_of
from attndsl.runtime.views import (
    EMPTY,
    FULL,
    PARTIAL,
    View,
    mask_pairs,
    needed_by_mask,
    view,
)
from attndsl.transform.route import used_selects

if TYPE_CHECKING:
    from attndsl.runtime.attention import Attention

# What a cell shows, in this order: of a partial tile whether its pairs are masked, mixed or kept.
NOTHING, MASKED, MIXED, KEPT, ALL = range(5)
MOST_TILES = 1 << 22  # of a size that the user asked for; beyond, a tile is as large as a cell
MOST_PANELS = 12
USUAL_BLOCK = 128

Inputs = tuple[Tensor, Tensor]  # query [B, H, Nq, D] and key [B, Hk, Nk, D]


@dataclass(frozen=True)
class Wish:
    """How a mask is drawn: rows and columns of a tile, which head alone, ASCII only."""

    block: int | None = None
    head: int | None = None
    plain: bool = False


@dataclass(frozen=True)
class Panel:
    """One picture: a batch and head, or all of them. shades  int8 [rows, columns], see above."""

    title: str
    shades: Tensor


@dataclass(frozen=True)
class Cells:
    """Pictures of a mask, one for each batch and head that differ, MOST_PANELS at most.

    cell     queries and keys of a cell
    block    queries and keys of a tile
    tiles    how many are empty, partial and full, of all batches and heads that are not left out
    hidden   panels that are left out
    """

    panels: tuple[Panel, ...]
    cell: tuple[int, int]
    block: tuple[int, int]
    tiles: tuple[int, int, int]
    hidden: int


def parameters_of(
    attention: Attention, sizes: Sizes, given: Mapping[str, Number], seed: int
) -> dict[str, Parameter]:
    """What the mask and its selects read: as given, else a default or something random."""
    program = attention.program
    needed = needed_by_mask(program, {})
    return random_parameters(program, sizes, given, seed=seed, only=needed)


def call_of(
    program: Program,
    sizes: Sizes,
    parameters: Mapping[str, Parameter],
    inputs: Inputs | None = None,
    seed: int = 0,
) -> tuple[Program, View]:
    """What a picture is of: a program without selects, and a call of it. What they choose is in
    tables: from query and key, random ones unless they are given. Raises ArgumentError."""
    named = {name: extent for name, extent in sizes.named.items() if name != "G"}
    offsets = (sizes.q_offset, sizes.k_offset)
    seen = view(program, slots_of(program), named, *offsets, None, parameters)
    if not used_selects(program):
        return replace(program, selects=()), seen
    chooser = inputs or random_inputs(sizes, seed)
    return pictured_call(program, replace(seen, device=chooser[0].device), chooser)


def random_inputs(sizes: Sizes, seed: int) -> Inputs:
    """Query and key, normal."""
    random = torch.Generator().manual_seed(seed + 1)
    shapes = (sizes.heads, sizes.nq), (sizes.kv_heads, sizes.nk)
    query, key = (
        torch.randn((sizes.batch, *shape, sizes.head_dim), generator=random) for shape in shapes
    )
    return query, key


def tiles_of(program: Program, seen: View, block: tuple[int, int]) -> Tensor:
    """What `attn.tiles` says, whatever parameters are called."""
    return classify_tiles(facts_of(program, seen.is_aligned), seen, block)


def cells_of(
    attention: Attention,
    sizes: Sizes,
    parameters: Mapping[str, Parameter],
    wish: Wish,
    pixels: tuple[int, int],
    inputs: Inputs | None = None,
    seed: int = 0,
) -> Cells:
    """The cells of pictures that are at most pixels = (high, wide).

    inputs, seed  as in `call_of`

    Nothing of the size of the mask is computed where that is larger than the picture. Raises
    ArgumentError.
    """
    program, seen = call_of(attention.program, sizes, parameters, inputs, seed)
    lengths = (sizes.nq, sizes.nk)
    least = [max(1, -(-n // most)) for n, most in zip(lengths, pixels, strict=True)]
    block = wish.block or usual_block(max(lengths))
    if -(-sizes.nq // block) * -(-sizes.nk // block) > MOST_TILES:
        block = 0  # a tile is a cell
    cell = (fitting(least[0], block), fitting(least[1], block))
    extent = (max(block, cell[0]), max(block, cell[1])) if block else cell
    tiles = chosen_head(tiles_of(program, seen, extent), sizes, wish)
    if cell == (1, 1):
        fine = chosen_head(mask_pairs(program, seen), sizes, wish).to(torch.int8) * FULL
    elif cell == extent:
        fine = tiles
    else:
        fine = chosen_head(tiles_of(program, seen, cell), sizes, wish)
    counts = [int((tiles == kind).sum()) for kind in (EMPTY, PARTIAL, FULL)]
    batches, heads = max(tiles.shape[0], fine.shape[0]), max(tiles.shape[1], fine.shape[1])
    fine = fine.expand(batches, heads, *fine.shape[2:])
    tiles = tiles.expand(batches, heads, *tiles.shape[2:])
    ratio = (extent[0] // cell[0], extent[1] // cell[1])
    panels = []
    for number in range(min(batches * heads, MOST_PANELS)):
        b, h = divmod(number, heads)
        names = [f"batch {b}"] * (batches > 1) + [f"head {h}"] * (heads > 1)
        names += [f"head {wish.head}"] * (wish.head is not None)
        panels.append(Panel(", ".join(names), shades_of(tiles[b, h], fine[b, h], ratio)))
    hidden = max(0, batches * heads - MOST_PANELS)
    return Cells(tuple(panels), cell, extent, (counts[0], counts[1], counts[2]), hidden)


def usual_block(length: int) -> int:
    """Tiles of 128, smaller where that leaves fewer than eight in a row."""
    block = USUAL_BLOCK
    while block > 1 and length < 8 * block:
        block //= 2
    return block


def fitting(least: int, block: int) -> int:
    """The least size of a cell that is at least `least` and divides a tile, or holds whole ones."""
    if block == 0 or least == 1:
        return least
    if least > block:
        return -(-least // block) * block
    return next(size for size in range(least, block + 1) if block % size == 0)


def chosen_head(values: Tensor, sizes: Sizes, wish: Wish) -> Tensor:
    """[B or 1, H or 1, rows, columns] of the head that was asked for."""
    if wish.head is None:
        return values
    if wish.head >= sizes.heads:
        raise ArgumentError(f"head: there is no head {wish.head} of {sizes.heads}")
    return values[:, wish.head : wish.head + 1] if values.shape[1] > 1 else values


def shades_of(tiles: Tensor, fine: Tensor, ratio: tuple[int, int]) -> Tensor:
    """What the cells show, from tiles and from what they are by themselves."""
    rows, columns = fine.shape
    wide = tiles.repeat_interleave(ratio[0], 0).repeat_interleave(ratio[1], 1)[:rows, :columns]
    inside = fine + MASKED  # masked, mixed, kept
    shades = torch.where(wide == FULL, ALL, torch.where(wide == EMPTY, NOTHING, inside))
    return shades.to(torch.int8)


def how_many(attention: Attention, sizes: Sizes, wish: Wish) -> int:
    """How many batches and heads the mask differs in."""
    varies = attention.program.mask.varies
    heads = sizes.heads if "h" in varies and wish.head is None else 1
    return heads * (sizes.batch if "b" in varies else 1)
