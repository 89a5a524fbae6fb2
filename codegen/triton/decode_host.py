"""The host's part of calls of few queries: into how many parts keys are split, and the launches."""

from __future__ import annotations

from collections.abc import Callable

from attndsl.ir.nodes import Node
from attndsl.plan.kernel_plan import Config, Decode, KernelPlan

from ..lines import Lines
from ..scope import PLAIN_LEAVES, Plainness, scope_printer
from .kernel import Kernel
from .ranges import Part, reached_parts

LEAVES = PLAIN_LEAVES | {"bound"}
SIZED = ("tile_rows", "warps", "stages")  # of a tile, as the host chooses it
BOUNDS = {("bound", "lo"): "q_first", ("bound", "hi"): "q_last"}

FUNCTIONS = '''\
def attn_processors(tensor):
    """Multiprocessors of the device of a tensor; few where there is no GPU, for kernels that are
    interpreted."""
    if not tensor.is_cuda:
        return 3
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count
'''


def write_decode(
    lines: Lines, plan: KernelPlan, kernels: dict[str, Kernel], write_lists: Callable[[], None]
) -> None:
    """Sets `out`, `raw` and `stat` of a call of few queries; `write_lists` makes lists of tiles,
    where kernels read them. How many programs there are follows from shapes and scalars, never
    from what a tensor holds: nothing waits for the device."""
    decode = plan.decode
    assert decode is not None
    _write_tiles(lines, decode)
    if decode.windows is not None:
        _write_windows(lines, decode, decode.windows, kernels["windows"])
    write_lists()
    _write_splits(lines, plan, decode)
    with lines.block("if splits == 1:"):
        _launch(lines, kernels["decode"], "tiles", SIZED)
    with lines.block("else:"):
        part = kernels["decode_part"]
        shape = "size_B, size_H, splits, size_Nq"
        lines.add(f"entry_out = query.new_empty(({shape}, size_Dv), dtype=ACCUMULATOR)")
        if part.arguments.has("stat"):
            lines.add(f"entry_stat = query.new_empty(({shape}), dtype=ACCUMULATOR)")
        _launch(lines, part, "tiles * splits", SIZED)
        _launch(lines, kernels["decode_merge"], "size_B * size_H * size_Nq")


def _write_windows(lines: Lines, decode: Decode, tile: Config, windows: Kernel) -> None:
    """Many sequences of one tile each, of which at least a quarter is there for a head."""
    sizes = f"size_Nq, size_Nk, tile_rows, {tile.block_m}, {tile.block_n}"
    with lines.block(f"if attn_are_windows({sizes}) and size_B * size_H > places:"):
        lines.add("together = attn_sequences(size_B, size_H, places)")
        _launch(lines, windows, "-(-size_B // together) * size_H")
        lines.add("return out, raw, stat")


def _write_tiles(lines: Lines, decode: Decode) -> None:
    """Sets `tile_rows`, `warps` and `stages` of a tile, `tiles`, how many there are, and
    `places`, how many the device holds at once."""
    rows, heads = "size_Nq", "size_H"
    if decode.packs_heads:
        rows, heads = "size_Nq * size_G", "size_Hk"
    *narrow, widest = [(t.block_m, t.num_warps, t.num_stages) for t in decode.tiles]
    choice = "".join(f"{sizes} if rows <= {sizes[0]} else " for sizes in narrow)
    lines.add(
        f"rows = {rows}",
        f"tile_rows, warps, stages = {choice}{widest}",
        f"tiles = -(-rows // tile_rows) * {heads} * size_B",
        f"places = {decode.resident} * attn_processors(query)",
    )


def _write_splits(lines: Lines, plan: KernelPlan, decode: Decode) -> None:
    """Sets `splits`, into how many parts keys are split."""
    reach = "size_Nk"
    if decode.knows_reach:
        reach = "reach"
        _write_reach(lines, plan, reached_parts(plan.keys))
    lines.add(f"splits = attn_splits(tiles, {reach}, {decode.widest.block_n}, places)")


def _write_reach(lines: Lines, plan: KernelPlan, parts: list[Part]) -> None:
    """Sets `reach`, to how many keys the segments lead: a guess where offsets are tensors."""
    tensors = plan.request.per_batch
    lines.add(f"k_first = {'0' if 'k_offset' in tensors else 'k_offset'}")
    if {"q_offset", "k_offset"} & set(tensors):
        lines.comment("As if the last query were as far as the last key.")
        lines.add("q_first = k_first + size_Nk - size_Nq")
    else:
        lines.add("q_first = q_offset")
    lines.add("q_last = q_first + size_Nq - 1")
    printer = scope_printer(plan, BOUNDS, _no_dot, Plainness(LEAVES), prefix="reach_")
    texts = printer.write(lines, *(end for part in parts for end in part))
    ranges = [f"({lo}, {hi})" for lo, hi in zip(texts[::2], texts[1::2], strict=True)]
    lines.add(f"reach = attn_keys_reached([{', '.join(ranges)}], k_first, size_Nk)")


def _no_dot(node: Node, args: tuple[str, ...]) -> str:
    raise AssertionError("no segment has a dot")


def _launch(
    lines: Lines, kernel: Kernel, count: str, sizes: tuple[str, str, str] = ("", "", "")
) -> None:
    """A launch; `sizes` are the texts of rows, warps and stages that the host chooses."""
    rows, warps, stages = sizes
    lines.add(f"launched = {count}")
    with lines.block("if launched > 0:"), lines.block("with attn_device(query):"):
        kernel.arguments.write_launch(lines, "launched", None, rows, "", warps, stages)
