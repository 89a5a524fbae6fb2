"""Counts the tiles that generated Triton kernels visit: the text of a module with counters added.

A tile is full for a kernel whose loop over it tests neither the mask nor the end of the axis.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import attndsl
from attndsl.backend import load
from attndsl.ir.program import Program
from attndsl.plan.boxes import attn_box
from attndsl.plan.kernel_plan import Config, Request
from attndsl.plan.planner import plan
from attndsl.runtime import cache

Counts = dict[str, tuple[int, int]]
LOOPS = (
    "forward",
    "decode",
    "decode_part",
    "backward_dq",
    "backward_dots",
    "backward_dkv",
    "backward_tables",
)
KERNEL = re.compile(rf"def ({'|'.join(LOOPS)})\($")
LAUNCH = re.compile(rf" +({'|'.join(LOOPS)})\[\(\w+,\)\]\($")
LOOP = re.compile(r"    for (step|tile|at) in range\(.*\):$")  # at the kernel's own depth


def with_counters(text: str) -> str:
    """The module with a counter in each loop over tiles: VISITS[kernel] is int64 [2], visited and
    full tiles of all programs."""
    lines, kernel = [], ""
    for line in text.splitlines():
        lines.append(line)
        if found := re.match(r"def (\w+)\(", line):
            kernel = found[1] if KERNEL.match(line) else ""
            if kernel:
                lines.append("    visits,")
        elif found := LAUNCH.match(line):
            lines.append(f'VISITS["{found[1]}"],')
        elif kernel and LOOP.match(line):
            lines.append("        tl.atomic_add(visits, 1)")
            if re.search(r"\bfull_", line.split("range", 1)[1]):
                lines.append("        tl.atomic_add(visits + 1, 1)")
    return "\n".join([*lines, "VISITS = {}", ""])


class Counter:
    """The modules with counters that calls have run. Unless `runs_decode`, calls of few queries run
    as all others do."""

    def __init__(self, device: torch.device, runs_decode: bool = False) -> None:
        self.runs_decode = runs_decode
        self.visits = {name: torch.zeros(2, dtype=torch.int64, device=device) for name in LOOPS}
        self.used: set[str] = set()
        self.configs: dict[str, Config] = {}

    def module_of(self, handle: str, program: Program, request: Request) -> ModuleType:
        """Stands for `cache.module_of`."""
        made = plan(program, request)
        if not self.runs_decode:
            made = replace(made, decode=None)
        text = with_counters(load("attndsl.codegen", request.backend).emit(made))
        path = Path(f"counted_{abs(hash((handle, request)))}_{id(self)}.py")
        module = cache.load_module(path, text.encode())
        module.__dict__["VISITS"] = self.visits
        self.used |= {name for name in LOOPS if hasattr(module, name)}
        self.configs |= {
            "forward": made.forward,
            "backward_dkv": made.backward_dkv,
            **dict.fromkeys(("backward_dq", "backward_dots", "backward_tables"), made.backward_dq),
        }
        return module

    @property
    def counts(self) -> Counts:
        found = {name: self.visits[name].tolist() for name in LOOPS if name in self.used}
        return {name: (visited, full) for name, (visited, full) in found.items()}


@contextmanager
def counting(device: torch.device, runs_decode: bool = False) -> Iterator[Counter]:
    """Calls run modules with counters."""
    counter = Counter(device, runs_decode)
    with patch.object(cache, "module_of", counter.module_of):
        yield counter


def run_counted(
    attention: attndsl.Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    backward: bool = True,
    **call: Any,
) -> Counter:
    """Runs a call, with its gradients unless `backward` is false; see `count_visits`."""
    with counting(query.device) as counter:
        query = query.detach().requires_grad_(backward)
        out = attention(query, key, value, **call)
        if backward:
            out.sum().backward()
    if not backward:
        counter.used &= {"forward"}
    return counter


def count_visits(
    attention: attndsl.Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    backward: bool = True,
    **call: Any,
) -> Counts:
    """How many tiles each kernel of a call visits, and how many of them as full ones, over all
    batches and heads. `call` has what a call takes besides."""
    return run_counted(attention, query, key, value, backward, **call).counts


def needed_visits(
    attention: attndsl.Attention,
    counter: Counter,
    query: Tensor,
    key: Tensor,
    grid: tuple[int, ...] = (),
    **call: Any,
) -> Counts:
    """What a kernel has to visit, from the mask of every pair, for the kernels that ran. With a
    grid tiles are boxes of it."""
    sizes = dict(zip("B H Nq D".split(), query.shape, strict=True))
    sizes |= dict(zip(("Hk", "Nk"), key.shape[1:3], strict=True))
    call = {name: given for name, given in call.items() if name != "scale"}
    mask = attention.mask(**sizes, **call)
    mask = mask.expand(sizes["B"], sizes["H"], -1, -1)
    lengths = call.get("k_len")
    if lengths is None:
        lengths = torch.full((sizes["B"],), sizes["Nk"])
    if grid:
        return {
            name: count_boxes(mask, counter.configs[name], name == "backward_dkv", lengths, grid)
            for name in counter.used
        }
    return {
        name: count_tiles(mask, counter.configs[name], name == "backward_dkv", lengths)
        for name in counter.used
    }


def count_tiles(
    mask: Tensor, config: Config, over_queries: bool, lengths: Tensor
) -> tuple[int, int]:
    """Tiles of a mask [B, H, Nq, Nk] with a pair that takes part; those with all, that end within
    the axis over which the kernel loops (`over_queries`, or keys up to lengths [B])."""
    visited = full = 0
    rows, columns = mask.shape[2:]
    for b, length in enumerate(lengths.clamp(0, columns).tolist()):
        for m in range(0, rows, config.block_m):
            for n in range(0, length, config.block_n):
                tile = mask[b, :, m : m + config.block_m, n : min(n + config.block_n, length)]
                visited += int(tile.any(-1).any(-1).sum())
                if m + config.block_m <= rows if over_queries else n + config.block_n <= length:
                    full += int(tile.all(-1).all(-1).sum())
    return visited, full


def count_boxes(
    mask: Tensor, config: Config, over_queries: bool, lengths: Tensor, grid: tuple[int, ...]
) -> tuple[int, int]:
    """The same where tiles are boxes of a grid: visited are those with a pair of a key before its
    sequence's length; full those with all pairs of positions, where the box over which the kernel
    loops lies within the grid and (of keys) before the length."""
    rows, columns = (boxes_of(grid, size) for size in (config.block_m, config.block_n))
    visited = full = 0
    for b, length in enumerate(lengths.clamp(0, math.prod(grid)).tolist()):
        for (own, own_size), (other, other_size) in product(rows, columns):
            tile = mask[b][:, own][:, :, other]
            there = torch.tensor(other) < length
            visited += int(tile[..., there].any(-1).any(-1).sum())
            if len(own) == own_size if over_queries else len(other) == other_size and there.all():
                reached = bool(there.any())
                full += int((tile.all(-1).all(-1) & reached).sum())
    return visited, full


def boxes_of(grid: tuple[int, ...], size: int) -> list[tuple[list[int], int]]:
    """The positions of every box that lie within the grid, and how many a whole box has."""
    box = attn_box(size, grid)
    found: dict[tuple[int, ...], list[int]] = {}
    for position, place in enumerate(product(*map(range, grid))):
        number = tuple(at // extent for at, extent in zip(place, box, strict=True))
        found.setdefault(number, []).append(position)
    return [(positions, math.prod(box)) for positions in found.values()]
