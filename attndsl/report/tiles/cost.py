"""What a call prepares before its first product: bytes from its sizes, and a time where it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod

from attndsl.ir.nodes import find
from attndsl.plan.kernel_plan import Config, KernelPlan, Summary
from attndsl.plan.planner import TORCH_BOX
from attndsl.report.table import figure
from attndsl.report.tiles.lists import most_listed
from attndsl.report.tiles.loops import axes_of, summaries_used, varies_by
from attndsl.report.tiles.visits import MOST_SPANS, OWN_KEYS, call_of, torch_module
from attndsl.runtime.blocks import is_slice
from attndsl.runtime.views import View

LENGTHS = {"q": "Nq", "k": "Nk"}
ITEM_BYTES = {"bool": 1, "int": 8, "float": 4}
LONGEST_RUN = 0.1  # seconds after which a measurement is not repeated
MOST_TESTS = 1 << 21  # runs of tiles to classify, about 0.3 s; more of them are not tried


@dataclass(frozen=True)
class Preparation:
    """Bytes that a forward and a backward allocate before their kernels run.

    profiles   values of the mask by position; kernels of Triton keep none
    ordered    positions in the order of the boxes, and those values in that order; likewise
    blocks     their extremes and signatures per block of positions
    lists      lists of tiles
    """

    profiles: int
    ordered: int
    blocks: int
    lists: int


def preparation_of(plan: KernelPlan, seen: View) -> Preparation:
    """What lists need; of "ranges" all are 0."""
    if plan.strategy != "lists":
        return Preparation(0, 0, 0, 0)
    used = summaries_used(plan)
    if plan.request.backend == "torch":
        return Preparation(
            profiles=sum(profile_bytes(summary, seen) for summary in used),
            ordered=ordered_bytes(plan, used, seen, TORCH_BOX),
            blocks=sum(block_bytes(plan, summary, seen, TORCH_BOX) for summary in used),
            lists=0,
        )
    kernels = [(config, name in OWN_KEYS) for name, config in plan.configs]
    shapes = {(config.block_m, config.block_n) for config, _ in kernels}
    return Preparation(
        profiles=0,
        ordered=0,
        blocks=sum(block_bytes(plan, summary, seen, shape) for shape in shapes for summary in used),
        lists=sum(list_bytes(plan, seen, config, by_keys) for config, by_keys in kernels),
    )


def copies_of(summary: Summary, seen: View) -> int:
    """Batches and heads for which a summary has its own values."""
    varies = summary.node.varies
    return (seen.sizes["B"] if "b" in varies else 1) * (seen.sizes["H"] if "h" in varies else 1)


def extent_of(plan: KernelPlan, summary: Summary, seen: View, block: tuple[int, int]) -> int:
    """Blocks of a summary: of rows, of columns, or of both."""
    count = 1
    for axis, tiles in zip("qk", tiles_along(plan, seen, block), strict=True):
        if axis in summary.axes:
            count *= tiles
    return count


def tiles_along(plan: KernelPlan, seen: View, block: tuple[int, int]) -> tuple[int, int]:
    """Tiles of queries and tiles of keys."""
    axes = axes_of(plan, seen, block, by_keys=False)
    return axes.own_tiles, axes.tiles


def profile_bytes(summary: Summary, seen: View) -> int:
    """None where a table is read as it stands."""
    wide = {"bool": "torch.bool", "int": "torch.int64", "float": "torch.float32"}[summary.kind]
    if is_slice(summary.node, seen):
        table = seen.tensors[summary.node.name]
        if len(summary.axes) == 2 or str(table.dtype) == wide:
            return 0
    entries = prod(seen.sizes[size] for axis, size in LENGTHS.items() if axis in summary.axes)
    return copies_of(summary, seen) * entries * ITEM_BYTES[summary.kind]


def ordered_bytes(plan: KernelPlan, used: list[Summary], seen: View, block: tuple[int, int]) -> int:
    """Of the summaries in the order of the boxes, and the numbers by which they are gathered."""
    if plan.grid is None:
        return 0
    total = 0
    numbers: dict[int, int] = {}
    for axis, tiles, size in zip("qk", tiles_along(plan, seen, block), block, strict=True):
        along = [summary for summary in used if summary.axes == (axis,)]
        each = sum(copies_of(summary, seen) * ITEM_BYTES[summary.kind] for summary in along)
        total += tiles * size * each
        numbers |= {size: 8 * tiles * size} if along else {}
    return total + sum(numbers.values())


def block_bytes(plan: KernelPlan, summary: Summary, seen: View, block: tuple[int, int]) -> int:
    facts = (plan.tile.possible, plan.tile.certain)
    names = {node.name for root in facts for node in find(root, "summary")}
    number, each = str(summary.number), 0
    each += ITEM_BYTES[summary.kind] * len({f"{number}_least", f"{number}_greatest"} & names)
    if any(number in name.split("_meets_") for name in names if "_meets_" in name):
        each += 8  # a signature
    return copies_of(summary, seen) * extent_of(plan, summary, seen, block) * each


def list_bytes(plan: KernelPlan, seen: View, config: Config, by_keys: bool) -> int:
    """Numbers of 4 bytes: three counts and the tiles, for every tile of the kernel's axis; and once
    all tiles, with one before and one behind."""
    varies = varies_by(plan, seen)
    rows, columns = tiles_along(plan, seen, (config.block_m, config.block_n))
    own, other = (columns, rows) if by_keys else (rows, columns)
    copies = (seen.sizes["B"] if "b" in varies else 1) * (seen.sizes["H"] if "h" in varies else 1)
    return 4 * (copies * own * (3 + most_listed(copies * own, other)) + other + 2)


def preparation_lines(plan: KernelPlan, seen: View, tests: int) -> list[str]:
    """What is prepared before the kernels run, and how long that takes where it can be tried.

    tests  runs of tiles that have to be classified for a forward
    """
    found = preparation_of(plan, seen)
    parts = (
        ("values by position", found.profiles),
        ("values in the order of boxes", found.ordered),
        ("values by block", found.blocks),
        ("lists", found.lists),
    )
    shown = [", ".join(f"{figure(size, 'B')} of {what}" for what, size in parts if size)]
    seconds = measured(plan, seen, tests)
    if seconds is not None:
        where = "with the PyTorch backend on this machine"
        shown.append(f"{duration(seconds)}, measured {where}")
    elif tests > MOST_TESTS:
        shown.append(f"the time was not tried, for about {figure(tests, 'tests')} of tiles")
    text = "; ".join(part for part in shown if part)
    return [f"before the first product: {text}"] if text else []


def duration(seconds: float) -> str:
    """For a person.

    >>> duration(0.0123456), duration(8.29)
    ('12.3 ms', '8.29 s')
    """
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def measured(plan: KernelPlan, seen: View, tests: int) -> float | None:
    """Seconds that the PyTorch module of the program prepares on this machine; None where the call
    is too long to try."""
    blocks = -(-seen.sizes["Nq"] // TORCH_BOX[0])
    copies = {"b": seen.sizes["B"], "h": seen.sizes["H"]}
    for axis in varies_by(plan, seen):
        blocks *= copies[axis]
    if blocks > MOST_SPANS or tests > MOST_TESTS:
        return None
    module, call = torch_module(plan, seen), call_of(plan, seen)
    times: list[float] = []
    while len(times) < 3 and sum(times) < LONGEST_RUN:
        start = time.perf_counter()
        module.run_spans(*call)
        times.append(time.perf_counter() - start)
    return min(times)
