"""How tight the tiles of masks are: visited beside needed, for examples and for common masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attndsl.ir.program import Program
from attndsl.report.arguments import Sizes, random_parameters
from attndsl.report.bench.measurement import Report
from attndsl.report.progress import progress
from attndsl.report.requests import request_for
from attndsl.report.table import About
from attndsl.report.tiles.orders import plan_of_call
from attndsl.report.tiles.visits import Visits, visits_of
from attndsl.runtime.arguments import slots_of
from attndsl.runtime.dims import compute_dim
from attndsl.runtime.views import view

if TYPE_CHECKING:
    from attndsl.runtime.attention import Attention

LENGTH = 4096
MOST_PAIRS = 1 << 27  # that are looked at for a mask, about 3 s
TITLES = (
    "mask",
    "length",
    "order",
    "tiles by",
    "in all",
    "visited",
    "needed",
    "times",
    "full",
    "lost",
)
TARGET, DTYPE, WIDTH = "sm_90", "bfloat16", 64


@dataclass(frozen=True)
class Case:
    """A program, and parameters that are not drawn at random."""

    name: str
    attention: Attention
    parameters: dict[str, Any] = field(default_factory=dict)
    length: int = LENGTH


MASKS = {
    "two-sided window": "mask abs(q - k) <= 256",
    "bottom right": "mask k <= q + Nk - Nq",
    "block diagonal of 100": "mask q // 100 == k // 100",
    "strips of 64": "mask abs(q // 64 - k // 64) <= 2",
    "1-D neighborhood of 257": (
        "let first = max(min(q - 128, Nk - 257), 0)\n    mask first <= k < first + 257"
    ),
    "global + window": "mask k < 64 or q < 64 or abs(q - k) <= 256",
    "window with a hole": "mask 64 <= abs(q - k) <= 512",
    "disc of 16 in 128 x 128": (
        "grid y = 128, x = 128\n    mask (q.y - k.y) ** 2 + (q.x - k.x) ** 2 <= 16 * 16"
    ),
    "shifted windows of 16 in 128 x 128": (
        "grid y = 128, x = 128\n"
        "    mask (q.y - 8) // 16 == (k.y - 8) // 16 and (q.x - 8) // 16 == (k.x - 8) // 16"
    ),
    "neighborhood of 33 in 128 x 128": (
        "grid y = 128, x = 128\n    mask abs(q.y - k.y) <= 16 and abs(q.x - k.x) <= 16"
    ),
}
IMAGE = 128 * 128


def sparsity(files: Sequence[Path] = ()) -> Report:
    """Tiles of the forward kernel for sm_90, for programs with one attention and common masks."""
    found = list(cases(files))
    rows = []
    with progress(len(found)) as line:
        for case in found:
            line.step(case.name)
            rows.append(row_of(case))
    about = "tiles of the forward kernel (sm_90, bfloat16, D 64) for one batch and two heads"
    notes = (
        "order: a tile is a run of positions (linear), or a box of the grid.",
        "times: visited tiles by needed ones. full: visited tiles, known to keep all pairs.",
        "lost: parts of the mask that the closed form leaves open. ~: estimated from a sample.",
        "Programs with selects are left out: `attndsl bench routing` measures these.",
    )
    return Report("sparsity", about, TITLES, tuple(rows), notes)


def cases(files: Sequence[Path]) -> Iterator[Case]:
    import attndsl

    for path in files:
        attention = attndsl.compile(path)
        if attention.program.selects:
            continue  # its tiles are those of a choice, not of a mask alone
        yield Case(path.stem, attention, length=length_of(attention.program))
    for name, body in MASKS.items():
        length = IMAGE if "grid" in body else LENGTH
        yield Case(name, attndsl.compile(text=f"attention mask():\n    {body}\n"), length=length)
    for name, ids in (("sorted documents", sorted_ids()), ("unsorted documents", shuffled_ids())):
        text = "attention packed(doc: int[B, N]):\n    mask doc[b, q] == doc[b, k]\n"
        yield Case(name, attndsl.compile(text=text), {"doc": ids})


def sorted_ids() -> Tensor:
    """Documents of random lengths, about 16 of them, numbered in order."""
    random = torch.Generator().manual_seed(0)
    return (torch.rand(LENGTH, generator=random) < 16 / LENGTH).cumsum(0).view(1, LENGTH)


def shuffled_ids() -> Tensor:
    """The same documents, numbered at random."""
    ids = sorted_ids()
    numbers = torch.randperm(int(ids.max()) + 1, generator=torch.Generator().manual_seed(1))
    return numbers[ids]


def length_of(program: Program) -> int:
    """The size of the program's grid by its defaults; LENGTH where it has none."""
    if program.grid is None:
        return LENGTH
    scalars = {s.name: s.default for s in program.scalars if s.default is not None}
    return prod(compute_dim(extent, {}, scalars) for extent in program.grid.extents)


def row_of(case: Case) -> tuple[object, ...]:
    program = case.attention.program
    sizes = Sizes(nq=case.length, nk=case.length, head_dim=WIDTH, value_dim=WIDTH)
    parameters = {**random_parameters(program, sizes), **case.parameters}
    # What the mask does not read may be large, and changes nothing.
    seen = view(program, slots_of(program), sizes.named | {"G": None}, 0, 0, None, parameters)
    plan, order = plan_of_call(program, request_for(program, TARGET, DTYPE, WIDTH, WIDTH), seen)
    forward = next(iter(visits_of(plan, seen, MOST_PAIRS)))
    lost = len(plan.losses)
    return (case.name, case.length, order.name, plan.strategy, *figures(forward), lost)


def figures(found: Visits) -> tuple[object, ...]:
    counted = int if found.is_counted else About
    needed = int if found.are_needed_known else About
    times = found.visited / found.needed if found.needed else None
    return (
        found.total,
        counted(found.visited),
        needed(found.needed),
        times,
        counted(found.full),
    )
