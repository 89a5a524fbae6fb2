"""The host's part of lists of blocks: their entries sorted by block, and launches over them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from attndsl.ir.nodes import is_const
from attndsl.plan.configs import NARROWEST, least_columns
from attndsl.plan.kernel_plan import Config, KernelPlan

from .. import host
from ..lines import Lines
from ..scope import tensor_name
from .kernel import Kernel
from .routed import routed_plan
from .routed_merge import few_name

FEW_WARPS = 4
PARTS = "routed_parts"  # parts of lists that are needed again, with their entries sorted

FUNCTIONS = '''\
ROUTED_BYTES = 2**30  # of what one launch computes for all entries of lists
MOST_PROGRAMS = 2**31 - 1  # of one launch
FEW_MERGED = 2**13  # rows of all heads: tiles of more of them keep a device busy


def attn_block_count(offset, length, columns):
    """Blocks of so many columns that can have a key; where the offset is a tensor, the most."""
    shift = columns - 1 if torch.is_tensor(offset) else offset % columns
    return -(-(shift + length) // columns)


def attn_width(columns, narrowest, widest):
    """The width of tiles for blocks of so many columns: a power of two, no more than they need."""
    return max(min(1 << (columns - 1).bit_length(), widest), narrowest)


def attn_list_parts(lists, width, programs):
    """Parts of lists [which, rows, slots] whose entries, `width` floats each, fit ROUTED_BYTES:
    the first list and the first row of each part, and the part. A list of a part may take as many
    programs."""
    count, rows, slots = lists.shape
    room = ROUTED_BYTES // (4 * width)
    at_once = min(max(room // max(slots, 1), 1), rows)
    together = max(min(room // max(slots * rows, 1), MOST_PROGRAMS // max(programs, 1)), 1)
    for which in range(0, count, together):
        for row in range(0, rows, at_once):
            yield which, row, lists[which : which + together, row : row + at_once]


def attn_sorted_entries(part, blocks):
    """Of lists [which, rows, slots]: the block of each entry [which, entries], `blocks` for none;
    the entries in the order of their blocks, and where each block begins in it
    [which, blocks + 1]. All int32."""
    numbers = part.flatten(1)
    numbers = torch.where((numbers >= 0) & (numbers < blocks), numbers, blocks).int()
    # Fewer bits take fewer passes.
    dtype = torch.int16 if blocks < 2**15 else torch.int32
    found, order = numbers.to(dtype).sort(dim=1, stable=True)
    edges = torch.arange(blocks + 1, dtype=dtype, device=part.device)
    edges = edges.expand(len(part), -1).contiguous()
    starts = torch.searchsorted(found.contiguous(), edges, out_int32=True)
    return numbers.contiguous(), order.int(), starts.contiguous()


def attn_entry_tiles(starts, entries, size):
    """Tiles of up to `size` entries of one block: int32 [which, tiles, 3], their block, their first
    entry and the one after their last. There are as many as any lists need; those behind the last
    one have no entry."""
    blocks = starts.shape[1] - 1
    counts = -(-starts.diff(dim=1) // size)
    ends = counts.cumsum(1)
    tiles = min(entries, entries // size + min(blocks, entries)) if blocks else 0
    tile = torch.arange(tiles, device=starts.device).expand(len(starts), -1).contiguous()
    block = torch.searchsorted(ends, tile, right=True)
    is_there = block < blocks
    block = block.clamp(max=blocks - 1)
    first = starts.gather(1, block) + (tile - (ends - counts).gather(1, block)) * size
    last = torch.minimum(first + size, starts.gather(1, block + 1))
    first = torch.where(is_there, first, 0)
    return torch.stack([block, first, torch.where(is_there, last, 0)], 2).int()
'''


def write_lists_of_blocks(lines: Lines, plan: KernelPlan) -> None:
    """Sets `lists`, one after the other; `sharing`, the heads that have the same list; and
    `packed`, how many of them share a tile; `block_columns` and `n_blocks`."""
    routed, gathered = plan.program.routed, plan.routed
    assert routed is not None and gathered is not None
    scope = host.HostScope(plan, "row")
    (columns,) = scope.printer.write(lines, routed.columns)
    lines.add(
        f"lists = {tensor_name(routed.lists)}.flatten(0, 1)",
        f"sharing = {'size_G' if routed.per_group else '1'}",
        f"packed = {'sharing' if gathered.packs_heads else '1'}",
        "slots = lists.shape[2]",
        f"block_columns = min(max(int({columns}), 1), 2**30)",
        "n_blocks = attn_block_count(k_offset, size_Nk, block_columns)",
    )


def write_tile_size(lines: Lines, routed: KernelPlan, config: Config) -> None:
    """Sets `tile_rows` and `warps`: a tile is small where blocks have few rows; and `tile_columns`:
    it is as wide as a block, if that is not too wide."""
    few, warps = min(NARROWEST, config.block_m), min(FEW_WARPS, config.num_warps)
    lines.add(
        f"is_sparse = size_Nq * packed * min(slots, n_blocks) <= {NARROWEST} * n_blocks",
        f"tile_rows, warps = ({few}, {warps}) if is_sparse "
        f"else ({config.block_m}, {config.num_warps})",
        f"tile_columns = {width_text(routed, config, NARROWEST)}",
    )


def width_text(routed: KernelPlan, config: Config, narrowest: int) -> str:
    """The text of how wide tiles are; a number where the size of a block is known before."""
    assert routed.gathered is not None
    if is_const(routed.gathered.columns) or config.block_n <= narrowest:
        return str(config.block_n)
    return f"attn_width(block_columns, {narrowest}, {config.block_n})"


@contextmanager
def each_part(lines: Lines, width: str, programs: str, keeps: bool = False) -> Iterator[None]:
    """A loop over parts of the lists; `width` is the text of how many floats an entry has,
    `programs` that of how many programs a head may take. `keeps`: `each_kept_part` comes after."""
    parts = f"attn_list_parts(lists, sharing * ({width}), sharing * ({programs}))"
    if keeps:
        lines.add(f"{PARTS} = []")
    with lines.block(f"for first_list, first_row, part in {parts}:"):
        lines.add("entry_blocks, entry_order, block_starts = attn_sorted_entries(part, n_blocks)")
        if keeps:
            kept = "first_list, first_row, part, entry_blocks, entry_order, block_starts"
            lines.add(f"{PARTS}.append(({kept}))")
        _write_part(lines)
        yield


@contextmanager
def each_kept_part(lines: Lines) -> Iterator[None]:
    """The same loop once more, without the sorting."""
    kept = "first_list, first_row, part, entry_blocks, entry_order, block_starts"
    with lines.block(f"for {kept} in {PARTS}:"):
        _write_part(lines)
        yield
    lines.add(f"del {PARTS}")


def _write_part(lines: Lines) -> None:
    """Sizes of a part, and its tiles; heads that share a tile have an entry each."""
    lines.add(
        "entries, n_rows = entry_order.shape[1], part.shape[1]",
        "first_head, n_heads = first_list * sharing, len(part) * sharing",
        "block_starts = block_starts * packed",
        "entry_tiles = attn_entry_tiles(block_starts, entries * packed, tile_rows)",
        "n_tiles = entry_tiles.shape[1]",
    )


def launch(
    lines: Lines, kernel: Kernel, count: str, sizes: tuple[str, str, str] = ("", "", "")
) -> None:
    """A launch for all heads of a part, which those that share tiles take together; `sizes` are
    the texts of the rows and columns of a tile and of the warps that the host chooses."""
    lines.add(f"programs = n_heads // packed * {count}")
    rows, columns, warps = sizes
    with lines.block("if programs > 0:"), lines.block("with attn_device(query):"):
        kernel.arguments.write_launch(lines, "programs", None, rows, columns, warps)


SIZED = ("tile_rows", "tile_columns", "warps")


def launch_slots(lines: Lines, kernels: dict[str, Kernel], name: str) -> None:
    """The launch of a kernel that owns rows, by how many there are."""
    for header, is_spread in (("if n_heads * n_rows <= FEW_MERGED:", True), ("else:", False)):
        kernel = kernels[few_name(name, is_spread)]
        with lines.block(header):
            lines.add(f"programs = n_heads * -(-n_rows // {kernel.arguments.config.block_m})")
            with lines.block("if programs > 0:"), lines.block("with attn_device(query):"):
                kernel.arguments.write_launch(lines, "programs")


def write_routed_forward(lines: Lines, plan: KernelPlan, kernels: dict[str, Kernel]) -> None:
    """Attends what lists name and merges it with the base."""
    routed = routed_plan(plan)
    assert routed is not None
    write_lists_of_blocks(lines, plan)
    write_tile_size(lines, routed, routed.forward)
    with each_part(lines, "size_Dv + 1", "size_Nq * slots"):
        lines.add(f"entry_out = {made('(n_heads, entries, size_Dv)')}")
        if plan.form != "elementwise":
            lines.add(f"entry_stat = {made('(n_heads, entries)')}")
        launch(lines, kernels["routed_forward"], "n_tiles", SIZED)
        launch_slots(lines, kernels, "routed_merge")


def write_routed_backward(lines: Lines, plan: KernelPlan, kernels: dict[str, Kernel]) -> None:
    """Adds what lists name to the gradients of all other pairs."""
    routed = routed_plan(plan)
    assert routed is not None
    dq, dkv = kernels["routed_backward_dq"], kernels["routed_backward_dkv"]
    rows = numbers_of(dq, "row_adjoint_")
    tables = numbers_of(dq, "largest_")
    write_lists_of_blocks(lines, plan)
    write_tile_size(lines, routed, routed.backward_dq)
    lines.add(
        f"own_columns = {width_text(routed, routed.backward_dkv, least_columns(plan.request))}",
        "n_parts = -(-min(block_columns, size_Nk) // own_columns)",
    )
    width, programs = f"size_D + {len(rows)}", "max(n_blocks * n_parts, size_Nq * slots)"
    with each_part(lines, width, programs, "routed_backward_tables" in kernels):
        lines.add(f"entry_grad_query = {made('(n_heads, entries, size_D)')}")
        for number in rows:
            zeros = made("(n_heads, entries)", "zeros")
            lines.add(f"entry_row_adjoint_{number} = {zeros}")
        for number in tables:
            zeros = made("max(n_heads * n_tiles, 1)", "zeros")
            lines.add(f"entry_largest_{number} = {zeros}")
        launch(lines, dq, "n_tiles", SIZED)
        launch_slots(lines, kernels, "routed_add_query")
        for number in rows:
            lines.add(
                f"row_adjoint_{number}.flatten(0, 1)"
                "[first_head : first_head + n_heads, first_row : first_row + n_rows] += "
                f"entry_row_adjoint_{number}.view(n_heads, n_rows, slots).sum(2)"
            )
        for number in tables:
            lines.add(
                f"largest_{number} = torch.maximum(largest_{number}, entry_largest_{number}.amax())"
            )
        if "routed_backward_dots" in kernels:
            launch(lines, kernels["routed_backward_dots"], "n_tiles", SIZED)
            launch_slots(lines, kernels, "routed_add_query")
        launch(lines, dkv, "n_blocks * n_parts", ("", "own_columns", ""))


def write_routed_tables(lines: Lines, kernels: dict[str, Kernel]) -> None:
    """Adds to the sums of tensors that are looked up pair by pair."""
    with each_kept_part(lines):
        launch(lines, kernels["routed_backward_tables"], "n_tiles", SIZED)


def numbers_of(kernel: Kernel, prefix: str) -> list[str]:
    """The numbers of the leaves for which a kernel has a buffer."""
    names = [argument.name for argument in kernel.arguments.arguments]
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def made(shape: str, how: str = "empty") -> str:
    return f"query.new_{how}({shape}, dtype=ACCUMULATOR)"
