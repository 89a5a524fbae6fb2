"""KernelPlan -> the text of a PyTorch module that runs by itself."""

from __future__ import annotations

from attndsl.plan import boxes as numbers
from attndsl.plan.kernel_plan import KernelPlan

from .. import library as shared
from ..blocked import tile_of, write_header
from ..lines import Lines
from ..scope import library_text
from . import box_library, library, routed_library, span_library
from .backward import write_backward
from .boxes import write_box_spans
from .forward import write_forward
from .routed import write_routes
from .spans import write_spans

# Elements of a block of scores that is worked on at once: 4 MiB of float32, near a CPU's L2 cache.
ROOM = 1 << 20
LEAST_COLUMNS = 128  # however many rows there are
MOST_MASKS = 8  # a window has a few; each is no larger than a block of scores
# Rows that one tile gathers, those of all heads together: more are not faster, and matrix products
# are prepared for every number of them.
MOST_GATHERED = 2048
FEW_ROWS = 8  # up to which each row gathers the keys that it lists: tiles would be all but empty
COLUMNS = 1024  # of that block, where there are enough rows to fill it


def emit(plan: KernelPlan) -> str:
    """The module's text; the same plan gives the same text."""
    body = Lines()
    if plan.grid is None:
        write_spans(body, plan)
    else:
        write_box_spans(body, plan)
    if plan.routed is not None:
        body.blank(2)
        write_routes(body, plan)
    body.blank(2)
    write_forward(body, plan)
    body.blank(2)
    write_backward(body, plan)
    text = body.text()
    lines = Lines()
    write_header(lines, plan, "in blocks, PyTorch", "torch only")
    functions = library_text(
        text, shared, numbers, span_library, box_library, routed_library, library
    )
    lines.add("from __future__ import annotations", "", "import math")
    if "Callable[" in functions:
        lines.add("from collections.abc import Callable")
    lines.add("", "import torch", "")
    lines.add(f"ACCUMULATOR = torch.{plan.accumulator}")
    rows, width = tile_of(plan)
    lines.add(f"ROWS = {rows}  # queries of a block")
    lines.add(f"ROOM = {ROOM}  # scores that are held at once")
    lines.add(f"COLUMNS = {COLUMNS}  # keys of a block, where there are many queries")
    lines.add(f"LEAST_COLUMNS = {LEAST_COLUMNS}  # keys of a block at the least")
    if plan.routed is not None:
        lines.add(f"MOST_GATHERED = {MOST_GATHERED}  # rows of a tile that list a block, by head")
        lines.add(f"FEW_ROWS = {FEW_ROWS}  # that gather what they list, each for itself")
    if "MOST_MASKS" in text:
        lines.add(f"MOST_MASKS = {MOST_MASKS}  # of blocks, kept for other blocks")
    if "WIDTH" in text:
        lines.add(f"WIDTH = {width}  # keys of a tile that is looked at by itself")
    lines.blank(2)
    lines.add(functions)
    lines.blank(2)
    lines.add(text.rstrip("\n"))
    return lines.text()
