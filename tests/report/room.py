"""What the lists of a generated module really take, and sizes of tiles for plans of tests."""

from __future__ import annotations

from typing import Any

import torch
from attndsl.codegen.triton.host import LIST_FUNCTIONS

from attndsl.plan.kernel_plan import Config, Sizes

Tile = tuple[int, int]  # queries and keys


def sizes_of(forward: Tile, dq: Tile, dkv: Tile) -> Sizes:
    """Sizes of kernels that have these tiles."""
    return Sizes(*(Config(*tile, 8, 2) for tile in (forward, dq, dkv)))


def bytes_of_lists(rows: int, tiles: int) -> int:
    """Bytes of the tensors that a module makes for rows of so many tiles."""
    names: dict[str, Any] = {"torch": torch}
    exec(LIST_FUNCTIONS, names)
    counts, entries, _ = names["attn_lists"](rows, tiles, torch.device("meta"))
    return int(counts.nbytes + entries.nbytes)
