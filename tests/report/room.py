"""What the lists of a generated module really take."""

from __future__ import annotations

from typing import Any

import torch
from attndsl.codegen.triton.host import LIST_FUNCTIONS


def bytes_of_lists(rows: int, tiles: int) -> int:
    """Bytes of the tensors that a module makes for rows of so many tiles."""
    names: dict[str, Any] = {"torch": torch}
    exec(LIST_FUNCTIONS, names)
    counts, entries, _ = names["attn_lists"](rows, tiles, torch.device("meta"))
    return int(counts.nbytes + entries.nbytes)
