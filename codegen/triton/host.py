"""The host functions of a generated Triton module: they allocate with torch and launch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from attndsl.ir.nodes import SCORE
from attndsl.plan.kernel_plan import Config, KernelPlan

from .. import host
from ..lines import Lines
from ..summaries import used_summaries
from .backward import adds_to_query_on_host, keeps_query_wide, table_leaves, table_names
from .boxes import has_box_arguments
from .decode_host import write_decode
from .descriptors import pads_rows
from .kernel import Kernel
from .lists import list_count, list_names, uses_lists
from .routed import is_whole, routed_plan
from .routed_host import write_routed_backward, write_routed_forward, write_routed_tables
from .summarise import block_names, summarise_name, write_allocation

FORWARD_ARGUMENTS = "query, key, value, scale, q_offset, k_offset, k_len, tensors, scalars"

FUNCTIONS = '''\
def attn_unit_stride(tensor):
    """The tensor, or a copy, with neighbours along the last axis side by side."""
    return tensor if tensor.dim() == 0 or tensor.stride(-1) == 1 else tensor.contiguous()


def attn_packed(tensor, dtype):
    """The tensor, or a copy, contiguous, in the dtype, at an address that is a multiple of 16."""
    tensor = tensor.to(dtype).contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def attn_is_wide(tensor, axes):
    """Whether offsets along these axes need more than 32 bits."""
    packed = [math.prod(tensor.shape[a + 1 :]) for a in range(tensor.dim())]
    strides = [max(pair) for pair in zip(packed, tensor.stride())]
    return sum((tensor.shape[a] - 1) * strides[a] for a in axes) >= 2**31


def attn_together(heads, sharing, size):
    """How many heads have programs at the same time: those whose tensors, `size` bytes for each
    `sharing` of them, a GPU's second cache holds (50 MB on an H200, 40 MB on an A100)."""
    return max(min(2**25 // max(size, 1) * sharing, heads), sharing)


def attn_device(tensor):
    """The context in which a launch goes to the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
'''

SIGN_FUNCTIONS = '''\
def attn_negated(tensor):
    """-tensor, with rows at multiples of 16 bytes."""
    width = -(-tensor.shape[-1] // 8) * 8
    room = tensor.new_empty((*tensor.shape[:-1], width))[..., : tensor.shape[-1]]
    return torch.neg(tensor, out=room)
'''

DESCRIPTOR_FUNCTIONS = '''\
def attn_separate(tensor):
    """The tensor, or a copy, whose rows share no memory: a descriptor may expect that."""
    is_apart = tensor.stride(2) >= tensor.shape[3]
    return tensor if is_apart else tensor.clone(memory_format=torch.contiguous_format)


@contextlib.contextmanager
def attn_scratch(tensor):
    """Within it, kernels that make descriptors get memory for them from torch."""

    def allocate(size, alignment, stream):
        return torch.empty(size, dtype=torch.uint8, device=tensor.device)

    token = triton.runtime._allocation._allocator.set(allocate)
    try:
        yield
    finally:
        triton.runtime._allocation._allocator.reset(token)
'''

TABLE_FUNCTIONS = '''\
def attn_unit(largest, count):
    """The power of two by which `count` numbers up to `largest` may be multiplied and summed in an
    int64."""
    room = 61 - (count - 1).bit_length()
    exponent = torch.frexp(torch.where(torch.isfinite(largest), largest, 1.0)).exponent
    return torch.ldexp(torch.ones_like(largest), (room - exponent).clamp(-126, 126))


def attn_from_units(sums, unit, largest):
    """What sums of whole numbers stand for; NaN everywhere where a summand was not finite."""
    values = (sums.double() / unit.double()).to(ACCUMULATOR)
    return torch.where(torch.isfinite(largest), values, float("nan"))
'''


LIST_FUNCTIONS = '''\
MOST_LISTED = 1024  # tiles in a row: memory grows with the length, not with its square


def attn_lists(rows, tiles, device):
    """Room for rows of tiles: counts [rows, 3], entries, and how many a row may have; both int32.

    The rows are followed by the numbers of all tiles, for rows that need more; one entry stands
    before and one behind. Their number fits an int32.
    """
    most = min(tiles, MOST_LISTED, (2**31 - 3 - tiles) // max(rows, 1))
    counts = torch.empty((rows, 3), dtype=torch.int32, device=device)
    entries = torch.empty(rows * most + tiles + 2, dtype=torch.int32, device=device)
    if tiles > most:
        torch.arange(tiles, out=entries[rows * most + 1 : -1])
    return counts, entries, most
'''


def write_forward(lines: Lines, plan: KernelPlan, kernels: dict[str, Kernel]) -> None:
    """`run_forward`."""
    forward = kernels.get("forward")
    is_routed = routed_plan(plan) is not None
    has_output = plan.program.output is not None
    with lines.block(f"def run_forward({FORWARD_ARGUMENTS}):"):
        lines.add('"""out, the result before the epilogue, and the statistics of the rows."""')
        write_inputs(lines, plan)
        if takes_sign(plan):
            with lines.block("if scale < 0.0:"):
                lines.add("query, scale = attn_negated(query), -scale")
        if uses_descriptors(plan, "forward"):
            write_separate(lines)
        write_boxes(lines, plan, plan.forward)
        shape = "size_B, size_H, size_Nq"
        lines.add(f"out = query.new_empty(({shape}, size_Dv))")
        lines.add("raw = torch.empty_like(out)" if has_output else "raw = query.new_empty(0)")
        stat = "0" if plan.form == "elementwise" else f"({shape})"
        lines.add(f"stat = query.new_empty({stat}, dtype=ACCUMULATOR)")
        if is_routed and forward is not None:
            lines.add(f"base_out = query.new_empty(({shape}, size_Dv), dtype=ACCUMULATOR)")
            lines.add("base_stat = torch.empty_like(stat)")
        if plan.decode is not None:
            with lines.block(f"if size_Nq <= {plan.decode.widest.block_m}:"):
                write_decode(lines, plan, kernels, partial(_write_few_lists, lines, plan, kernels))
                lines.add("return out, raw, stat")
        if forward is not None:
            if uses_lists(plan):
                write_lists(lines, plan, kernels, forward)
            write_launch(lines, forward, *grid_of_rows(forward))
        if is_routed:
            write_routed_forward(lines, plan, kernels)
        lines.add("return out, raw, stat")


def _write_few_lists(lines: Lines, plan: KernelPlan, kernels: dict[str, Kernel]) -> None:
    """The lists of calls of few queries: all of these are one tile."""
    if uses_lists(plan):
        write_lists(lines, plan, kernels, kernels["decode"])


def write_inputs(lines: Lines, plan: KernelPlan) -> None:
    """Sizes and parameters by their names, tensors as the kernels take them."""
    host.write_arguments(lines, plan)
    for tensor in plan.program.tensors:
        lines.add(f"t_{tensor.name} = attn_unit_stride(t_{tensor.name})")
    for name in plan.request.per_batch:
        lines.add(f"{name} = {name}.contiguous()")


def takes_sign(plan: KernelPlan) -> bool:
    """Whether the forward wants a scale that is not negative: it compares what it has not scaled
    yet."""
    return plan.form == "softmax" and plan.value is SCORE


def uses_descriptors(plan: KernelPlan, *names: str) -> bool:
    """Whether one of these kernels reads by descriptors."""
    return any(getattr(plan, name).shape != "peeled" for name in names)


def write_separate(lines: Lines) -> None:
    """Makes the rows of query, key and value fit for descriptors."""
    for name in ("query", "key", "value"):
        lines.add(f"{name} = attn_separate({name})")


def write_boxes(lines: Lines, plan: KernelPlan, *configs: Config) -> None:
    """Sets `grid`, and of each number n of elements that the kernels' tiles have on a side box_<n>,
    the extents of its boxes, and boxes_<n>, how many there are. Only where tiles are boxes."""
    if plan.grid is None:
        return
    host.write_grid(lines, plan)
    for size in sorted({size for c in configs for size in (c.block_m, c.block_n)}):
        lines.add(
            f"box_{size} = attn_box({size}, grid)",
            f"boxes_{size} = math.prod(attn_counts(grid, box_{size}))",
        )


def count_text(plan: KernelPlan, length: str, block: int) -> str:
    """The number of tiles of so many elements along an axis."""
    return f"-(-{length} // {block})" if plan.grid is None else f"boxes_{block}"


def grid_of_rows(kernel: Kernel) -> tuple[str, str]:
    tiles = count_text(kernel.plan, "size_Nq", kernel.arguments.config.block_m)
    return f"{tiles} * size_H * size_B", "programs"


def grid_of_columns(kernel: Kernel) -> tuple[str, str]:
    tiles = count_text(kernel.plan, "size_Nk", kernel.arguments.config.block_n)
    return f"{tiles} * size_H * size_B", "programs"


def write_launch(
    lines: Lines, kernel: Kernel, count: str, name: str, tiles: Config | None = None
) -> None:
    """A launch, left out where it has no programs; for tiles as in `tiles`, if that is given."""
    if count != name:
        lines.add(f"{name} = {count}")
    config = kernel.arguments.config
    if tiles is not None:
        config = replace(config, block_m=tiles.block_m, block_n=tiles.block_n)
    if has_box_arguments(kernel.plan, kernel.arguments):
        lines.add(f"row_box, column_box = box_{config.block_m}, box_{config.block_n}")
    scratch = ", attn_scratch(query)" if config.shape != "peeled" else ""
    with lines.block(f"if {name} > 0:"), lines.block(f"with attn_device(query){scratch}:"):
        kernel.arguments.write_launch(lines, name, config)


def write_lists(lines: Lines, plan: KernelPlan, kernels: dict[str, Kernel], user: Kernel) -> None:
    """The lists of tiles of a kernel (and of those with the same tiles); `release_lists` frees
    them."""
    sizes = user.arguments.config
    tiles = {
        "q": count_text(plan, "size_Nq", sizes.block_m),
        "k": count_text(plan, "size_Nk", sizes.block_n),
    }
    lines.comment(f"The tiles of {user.arguments.name}.")
    for summary in used_summaries(plan):
        count = write_allocation(lines, plan, summary, [tiles[axis] for axis in summary.axes])
        write_launch(lines, kernels[summarise_name(summary)], count, "programs", sizes)
    counts, lists, most = list_names(user.columns_first)
    own, other = ("k", "q") if user.columns_first else ("q", "k")
    lines.add(
        f"programs = {tiles[own]}{list_count(plan)}",
        f"{counts}, {lists}, {most} = attn_lists(programs, {tiles[other]}, query.device)",
    )
    classify = kernels["classify_columns" if user.columns_first else "classify_rows"]
    write_launch(lines, classify, "programs", "programs", sizes)


def release_lists(lines: Lines, plan: KernelPlan, user: Kernel) -> None:
    """Frees what `write_lists` has made, once the last launch that reads it is under way."""
    counts, lists, _ = list_names(user.columns_first)
    lines.add(f"del {', '.join([*block_names(plan), counts, lists])}")


def write_backward(lines: Lines, plan: KernelPlan, kernels: dict[str, Kernel]) -> None:
    """`run_backward`."""
    delta = kernels.get("backward_delta")
    arguments = "grad_out, grad_lse, query, key, value, raw, stat, "
    arguments += FORWARD_ARGUMENTS.removeprefix("query, key, value, ")
    with lines.block(f"def run_backward({arguments}):"):
        lines.add('"""Gradients of query, key, value and of the tensors that receive one."""')
        write_inputs(lines, plan)
        own = {name: config for name, config in plan.configs if name != "forward"}
        if uses_descriptors(plan, *own):
            write_separate(lines)
        write_boxes(lines, plan, *own.values())
        host.write_gradients(lines, plan)
        if adds_to_query_on_host(plan):
            lines.add("grad_query_host = torch.zeros_like(query, dtype=ACCUMULATOR)")
            lines.add("grad_query = grad_query_host")
        _write_incoming(lines, plan)
        if delta is not None:
            _write_delta(lines, delta)
        host.write_sink_backward(lines, plan)
        if plan.backward_fused is not None:
            _write_fused(lines, plan, kernels)
        else:
            _write_separate(lines, plan, kernels)
        _add_groups(lines, plan)
        _write_leaves(lines, plan, kernels)
        results = ", ".join(["grad_query", "grad_key", "grad_value", *host.result_texts(plan)])
        lines.add(f"return {results}")


def _write_separate(lines: Lines, plan: KernelPlan, kernels: dict[str, Kernel]) -> None:
    """What tiles of queries have from kernels of their own, and what tiles of keys have."""
    dq = kernels["backward_dq"]
    is_routed = routed_plan(plan) is not None
    if is_routed:
        _write_columns(lines, plan, kernels, "backward_dkv")
    if uses_lists(plan):
        write_lists(lines, plan, kernels, dq)
    _write_query(lines, plan, dq)
    if "backward_dots" in kernels:
        lines.add("dots = torch.empty_like(grad_query)")
        write_launch(lines, kernels["backward_dots"], *grid_of_rows(dq))
        lines.add("grad_query += dots")
    if is_routed:
        write_routed_backward(lines, plan, kernels)
    if "backward_tables" in kernels:
        _write_tables(lines, plan, kernels)
    if uses_lists(plan):
        release_lists(lines, plan, dq)
    if not is_routed:
        _write_columns(lines, plan, kernels, "backward_dkv")


def _write_fused(lines: Lines, plan: KernelPlan, kernels: dict[str, Kernel]) -> None:
    """All gradients from the kernel that owns tiles of keys; the scale of those of queries."""
    shape = "size_B, size_H, size_Nq"
    lines.comment("Tiles of keys add to these in any order.")
    lines.add(f"query_sums = query.new_zeros(({shape}, size_D), dtype=ACCUMULATOR)")
    for name in _adjoint_names(kernels["backward_fused"], "row"):
        lines.add(f"{name} = query.new_zeros(({shape}), dtype=ACCUMULATOR)")
    _write_columns(lines, plan, kernels, "backward_fused")
    if adds_to_query_on_host(plan):
        lines.add("grad_query.add_(query_sums, alpha=scale)")
    elif plan.request.dtype == "float32":
        lines.add("grad_query = query_sums.mul_(scale)")
    else:
        lines.add(
            "grad_query = torch.empty_like(query_sums, dtype=query.dtype)",
            "torch.mul(query_sums, scale, out=grad_query)",
        )
    lines.add("del query_sums")


def _adjoint_names(kernel: Kernel, level: str) -> list[str]:
    """The kernel's sums of adjoints of leaves of a level."""
    names = (argument.name for argument in kernel.arguments.arguments)
    return [name for name in names if name.startswith(f"{level}_adjoint_")]


def _write_incoming(lines: Lines, plan: KernelPlan) -> None:
    """grad_raw, as the kernels take it, through the epilogue."""
    if plan.program.output is None:
        lines.add("grad_raw = attn_packed(grad_out, query.dtype)")
    else:
        lines.add("raw = raw.to(ACCUMULATOR)")
        host.write_output_backward(lines, plan)
        lines.add("grad_raw = attn_packed(grad_raw.expand(raw.shape), query.dtype)")
    if plan.form != "elementwise":
        lines.add("raw = attn_packed(raw, query.dtype)")


def _write_delta(lines: Lines, delta: Kernel) -> None:
    room = "torch.empty_like(stat)"
    if pads_rows(delta.plan):
        room = "stat.new_empty((size_B, size_H, -(-size_Nq // 4) * 4))[..., :size_Nq]"
    lines.add(
        "stat = attn_packed(stat, ACCUMULATOR)",
        f"delta = {room}",
        f"base = {room}",
    )
    if delta.arguments.has("grad_lse"):
        lines.comment("Without a gradient of lse no row reads it.")
        lines.add(
            "lse_rows = 0 if grad_lse is None else stat.numel()",
            "grad_lse = stat if grad_lse is None else attn_packed(grad_lse, ACCUMULATOR)",
        )
    block = delta.arguments.config.block_m
    write_launch(lines, delta, f"-(-size_B * size_H * size_Nq // {block})", "programs")


def _write_query(lines: Lines, plan: KernelPlan, dq: Kernel) -> None:
    on_host = adds_to_query_on_host(plan)
    dtype = ", dtype=ACCUMULATOR" if keeps_query_wide(plan) else ""
    lines.add(f"grad_query = query.new_empty((size_B, size_H, size_Nq, size_D){dtype})")
    for adjoint in _adjoint_names(dq, "row"):
        shape = "(size_B, size_H, size_Nq)"
        lines.add(f"{adjoint} = query.new_empty({shape}, dtype=ACCUMULATOR)")
    count, name = grid_of_rows(dq)
    for argument in dq.arguments.arguments:
        if argument.name.startswith("largest_"):
            lines.add(f"{argument.name} = query.new_zeros(max({count}, 1), dtype=ACCUMULATOR)")
    write_launch(lines, dq, count, name)
    if on_host:
        lines.add("grad_query += grad_query_host")


def _write_columns(lines: Lines, plan: KernelPlan, kernels: dict[str, Kernel], name: str) -> None:
    """What tiles of keys have from the kernel of this name, and their lists."""
    kernel = kernels[name]
    if uses_lists(plan):
        write_lists(lines, plan, kernels, kernel)
    _write_key_value(lines, plan, kernel)
    if uses_lists(plan):
        release_lists(lines, plan, kernel)


def _write_key_value(lines: Lines, plan: KernelPlan, kernel: Kernel) -> None:
    lines.comment(
        "One sum per query head; those of a group are added afterwards, in a fixed order."
    )
    narrow = "query.dtype if size_H == size_Hk else ACCUMULATOR"
    lines.add(
        f"partial_dtype = {narrow if is_whole(plan) else 'ACCUMULATOR'}",
        "grad_key = key.new_empty((size_B, size_H, size_Nk, size_D), dtype=partial_dtype)",
        "grad_value = value.new_empty((size_B, size_H, size_Nk, size_Dv), dtype=partial_dtype)",
    )
    for adjoint in _adjoint_names(kernel, "column"):
        lines.add(f"{adjoint} = query.new_empty((size_B, size_H, size_Nk), dtype=ACCUMULATOR)")
    write_launch(lines, kernel, *grid_of_columns(kernel))


def _add_groups(lines: Lines, plan: KernelPlan) -> None:
    """Gradients of keys and values from those of each query head."""
    with lines.block("if size_H != size_Hk:"):
        for name in ("key", "value"):
            lines.add(
                f"grad_{name} = grad_{name}.unflatten(1, (size_Hk, size_G)).sum(2).to(query.dtype)"
            )
    if not is_whole(plan):
        with lines.block("else:"):
            lines.add("grad_key, grad_value = grad_key.to(key.dtype), grad_value.to(key.dtype)")


def _write_leaves(lines: Lines, plan: KernelPlan, kernels: dict[str, Kernel]) -> None:
    """The gradients of tensors from the sums of their leaves' adjoints."""
    is_fused = plan.backward_fused is not None
    owners = ("row", "backward_dq"), ("column", "backward_dkv")
    for level, owner in owners:
        summed = _adjoint_names(kernels["backward_fused" if is_fused else owner], level)
        names = {f"{level}_adjoint_{number}": leaf for number, leaf in enumerate(plan.leaves)}
        adjoints = {leaf.node: name for name, leaf in names.items() if name in summed}
        if adjoints:
            host.write_leaves(lines, plan, level, adjoints)
    if keeps_query_wide(plan):
        lines.add("grad_query = grad_query.to(query.dtype)")


def _write_tables(lines: Lines, plan: KernelPlan, kernels: dict[str, Kernel]) -> None:
    tables, leaves = kernels["backward_tables"], table_leaves(plan)
    for name in table_names(plan):
        own = [item for item in leaves if item.leaf.node.name == name]
        parts = []
        for item in own:
            part = f"largest_{item.number}"
            if item.leaf.node.op == "dot":
                part = f"{part} * query.abs().amax()"
            parts.append(part)
        lines.add(
            f"largest = torch.cat([{', '.join(parts)}]).amax()"
            if len(parts) > 1
            else f"largest = ({parts[0]}).amax()"
        )
        lines.add(
            f"largest_{name} = largest",
            f"unit_{name} = attn_unit(largest, "
            f"max({len(own)} * size_B * size_H * size_Nq * size_Nk, 1))",
            f"sums_{name} = torch.zeros(t_{name}.shape, dtype=torch.int64, device=query.device)",
        )
    write_launch(lines, tables, *grid_of_rows(tables))
    if routed_plan(plan) is not None:
        write_routed_tables(lines, kernels)
    for name in table_names(plan):
        lines.add(f"grad_t_{name} += attn_from_units(sums_{name}, unit_{name}, largest_{name})")
