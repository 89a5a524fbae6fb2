"""Writes run_backward of a PyTorch module.

The weights are computed again, block by block, from the scores and `stat`. A block of queries
writes its own rows of the query's gradient and adds to those of its keys and values, one block
after the other: the order of additions, and so every bit, is the same each time.
"""

from __future__ import annotations

from attndsl.ir.nodes import Node, is_const
from attndsl.plan.kernel_plan import KernelPlan, Leaf

from ..host import (
    result_texts,
    times,
    write_arguments,
    write_delta,
    write_gradients,
    write_leaves,
    write_output_backward,
    write_sink_backward,
)
from ..lines import Lines
from ..runs import Distances, is_window
from ..scope import gradient_name, tensor_name, tuple_text
from .block import Block, ranges_text
from .forward import has_spans, in_brackets, write_value
from .routed import RoutedBlock, write_flat
from .spans import ARGUMENTS


def write_backward(lines: Lines, plan: KernelPlan) -> None:
    """The function that returns the gradients of query, key, value and the wanted tensors."""
    lines.add("@torch.no_grad()")
    lines.add("def run_backward(")
    with lines.indented():
        lines.add("grad_out, grad_lse, query, key, value, raw, stat,", f"{ARGUMENTS},")
    lines.add("):")
    with lines.indented():
        lines.add(
            f'"""Gradients of `{plan.program.name}`: query, key, value, then the tensors\'."""'
        )
        write_arguments(lines, plan)
        block = Block(lines, plan, backward_roots(plan, plan.grid is None), pair_nodes(plan))
        block.write_queries()
        block.write_keys()
        if has_spans(plan):
            block.write_call()
        write_begin(lines, plan)
        if has_spans(plan):
            write_loops(block)
        if plan.routed is not None:
            roots = backward_roots(plan, has_runs=False)
            routed = RoutedBlock(lines, plan.routed, roots, pair_nodes(plan))
            routed.write_call()
            write_flat(lines, "queries", "grad_query", "grad_raw")
            write_loops(routed)
        for level in ("row", "column"):
            names = {leaf.node: name for leaf, name in summed_leaves(plan, level)}
            write_leaves(lines, plan, level, names)
        if plan.grid is not None:
            lines.add(*(f"{x} = attn_reordered({x}, order)" for x in ("grad_keys", "grad_values")))
        results = [
            "grad_query.to(query.dtype)",
            "grad_keys.view(key.shape).to(key.dtype)",
            "grad_values.view(value.shape).to(value.dtype)",
            *result_texts(plan),
        ]
        lines.add("return (")
        with lines.indented():
            lines.add(*(f"{text}," for text in results))
        lines.add(")")


def write_loops(block: Block) -> None:
    """The gradients that pass through all pairs of a kind of blocks."""
    with block.parts(), block.blocks():
        write_rows(block)
        with block.chunks():
            write_chunk(block)
        if has_raw_gradient(block.plan):
            block.add_rows("grad_query", "(grad_rows * scale)")
        if has_own_dots(block):
            block.add_rows("grad_query", "grad_dots")


def has_raw_gradient(plan: KernelPlan) -> bool:
    """Whether the weights depend on the raw score at all."""
    return not is_const(plan.raw_partial, 0.0)


def is_pair(leaf: Leaf) -> bool:
    """Whether a leaf's adjoint is needed for every pair: a dot with a key's table row is one."""
    return leaf.level == "pair" or (leaf.node.op == "dot" and leaf.level == "column")


def has_own_dots(block: Block) -> bool:
    """Whether what dots pass to the rows of a block is summed by itself first: rows that lie apart
    are no view of the query's gradient."""
    return not block.has_runs and any(
        leaf.node.op == "dot" and is_pair(leaf) and not is_const(leaf.partial, 0.0)
        for leaf in block.plan.leaves
    )


def summed_leaves(plan: KernelPlan, level: str) -> list[tuple[Leaf, str]]:
    """Leaves whose adjoint is summed over keys ("row") or queries ("column"); names of the sums."""
    found = [leaf for leaf in plan.leaves if leaf.level == level and not is_pair(leaf)]
    return [(leaf, f"adjoint_{level}_{at}") for at, leaf in enumerate(found)]


def value_partials(plan: KernelPlan) -> list[Node]:
    """The nodes of a pair that the backward needs after the weight itself."""
    nodes = [plan.raw_partial, *(leaf.partial for leaf in plan.leaves)]
    if plan.form != "softmax" and may_drop_by_score(plan):
        nodes.append(plan.logit)
    return nodes


def may_drop_by_score(plan: KernelPlan) -> bool:
    """Whether pairs with a logit of -inf need to be cleared. A softmax gives them the weight 0, and
    so the adjoint 0, which only a partial that is not finite could spoil."""
    partials = [plan.raw_partial, *(leaf.partial for leaf in plan.leaves)]
    finite = all(node.op == "const" for node in partials)
    return plan.may_be_masked_by_score and not (plan.form == "softmax" and finite)


def backward_roots(plan: KernelPlan, has_runs: bool) -> list[Node]:
    """What the pairs of a chunk are computed from, besides the mask."""
    return [plan.value, *value_partials(plan), *gathered_indices(plan, has_runs)]


def pair_nodes(plan: KernelPlan) -> list[Node]:
    """The lookups and dots that receive gradients pair by pair."""
    return [leaf.node for leaf in plan.leaves if is_pair(leaf)]


def gathered_indices(plan: KernelPlan, has_runs: bool) -> list[Node]:
    """The indices of leaves whose adjoints are scattered pair by pair."""
    distances = Distances(has_runs)
    return [
        arg
        for leaf in plan.leaves
        if is_pair(leaf)
        and not (has_runs and is_window(leaf.node))
        and not distances.has_distance_index(leaf.node)
        for arg in leaf.node.args
    ]


def write_begin(lines: Lines, plan: KernelPlan) -> None:
    """Accumulators, and everything that belongs to whole rows."""
    like = "dtype=ACCUMULATOR, device=query.device"
    lines.add(
        f"grad_query = torch.zeros(query.shape, {like})",
        "grad_query_parts = grad_query.view(size_B, size_Hk, size_G, size_Nq, size_D)",
        "grad_keys = torch.zeros_like(keys)",
        "grad_values = torch.zeros_like(values)",
    )
    write_gradients(lines, plan)
    write_output_backward(lines, plan)
    lines.add("grad_raw_parts = grad_raw.unflatten(1, (size_Hk, size_G))")
    if plan.form != "elementwise":
        write_delta(lines, plan)
        shape = "(size_B, size_Hk, size_G, size_Nq)"
        lines.add(f"delta_parts = delta.view{shape}", f"stat_parts = stat.view{shape}")
    write_sink_backward(lines, plan)
    for level, extent in (("row", "size_Nq"), ("column", "size_Nk")):
        for _, name in summed_leaves(plan, level):
            lines.add(
                f"{name} = torch.zeros(size_B, size_H, {extent}, {like})",
                f"{name}_parts = {name}.view(size_B, size_Hk, size_G, {extent})",
            )


def write_rows(block: Block) -> None:
    """What a block of queries needs besides its scores."""
    lines, plan = block.lines, block.plan
    lines.add(f"grad_block = {block.packed_rows('grad_raw')}")
    if has_raw_gradient(plan):
        lines.add("grad_rows = torch.zeros_like(packed)")
    if has_own_dots(block):
        lines.add("grad_dots = torch.zeros_like(query_block)")
    if plan.form != "elementwise":
        lines.add(
            "delta_block = delta_parts[here].flatten(2).flatten(0, 1)[..., None]",
            "stat_block = stat_parts[here][..., None]",
        )
    if plan.form == "softmax":
        # A row without keys: exp(logit - inf) is 0.
        lines.add('stat_block = stat_block.masked_fill(stat_block == float("-inf"), float("inf"))')
    elif plan.form == "normalize":
        lines.add("share = torch.where(stat_block == 0, 0.0, 1 / stat_block)")


def write_chunk(block: Block) -> None:
    """The gradients that pass through one chunk of pairs."""
    lines, plan = block.lines, block.plan
    partials = value_partials(plan)
    texts = write_value(block, *partials, *gathered_indices(plan, block.has_runs))
    lines.add("dropped = []")
    if may_drop_by_score(plan):
        logit = "weight" if plan.form == "softmax" else in_brackets(texts[len(partials) - 1])
        lines.add(f'dropped.append((0, end - first, {logit} == float("-inf")))')
    if plan.form == "softmax":
        # torch.exp is slow on many CPUs, exp2 on none.
        lines.add("weight.sub_(stat_block).mul_(math.log2(math.e)).exp2_()")
    elif plan.form == "normalize":
        lines.add("weight.mul_(share)")
    if block.has_mask:
        with lines.block("for lo, hi in masked:"):
            mask = block.write_mask(lambda kept: f"~{in_brackets(kept)}")
            lines.add(f"dropped.append((lo - first, hi - first, {mask}))")
    lines.add("weight = attn_clear(weight, dropped).reshape(shape)")
    lines.add(
        "grad_values[n0:n1, first:end] += torch.bmm(weight.transpose(1, 2), grad_block)",
        "adjoint = attn_products(grad_block, values[n0:n1, first:end].transpose(1, 2))",
    )
    if plan.form == "softmax":
        lines.add("adjoint.sub_(delta_block).mul_(weight)")
    elif plan.form == "normalize":
        lines.add("adjoint.sub_(delta_block).view(score.shape).mul_(share)")
    lines.add("adjoint = adjoint.view(score.shape)")
    if plan.form != "softmax":  # there the weight has cleared it
        lines.add("attn_clear(adjoint, dropped)")
    write_raw_gradient(block)
    for leaf in plan.leaves:
        write_leaf(block, leaf)


def adjoint_text(block: Block, partial: Node) -> str:
    """adjoint * partial, 0 where the pair takes no part."""
    if is_const(partial, 1.0):
        return "adjoint"
    return f"attn_clear({times('adjoint', block.pair, partial)}, dropped)"


def write_raw_gradient(block: Block) -> None:
    """What the raw scores of a chunk pass to queries and keys."""
    lines, plan = block.lines, block.plan
    if not has_raw_gradient(plan):
        return
    lines.origin(plan.program, plan.raw_partial)
    lines.add(
        f"by_score = {adjoint_text(block, plan.raw_partial)}.reshape(shape)",
        "grad_rows += attn_products(by_score, keys[n0:n1, first:end])",
        "grad_keys[n0:n1, first:end] += torch.bmm(by_score.transpose(1, 2), packed)",
    )


def write_leaf(block: Block, leaf: Leaf) -> None:
    """What a leaf of the weight receives from a chunk."""
    lines, plan, node = block.lines, block.plan, leaf.node
    if is_const(leaf.partial, 0.0):
        return
    lines.origin(plan.program, node)
    text = adjoint_text(block, leaf.partial)
    row = "start:stop" if block.has_runs else "rows"
    column = "order[first:end]" if block.has_boxes else "first:end"
    for level, place, axis in (("row", row, -1), ("column", column, -2)):
        for other, name in summed_leaves(plan, level):
            if other is leaf:
                target = f"{name}_parts[b0:b1, j0:j1, g0:g1, {place}]"
                lines.add(f"{target} += {text}.sum({axis})")
    if not is_pair(leaf):
        return
    wanted = node.name in plan.request.grads
    gradient = gradient_name(node.name) if wanted else "None"
    if block.is_window(node):
        ranges = ranges_text(node, "k_range")
        lines.add(f"attn_window_add({gradient}, {text}, {ranges})")
        return
    by_distance = block.is_distance_leaf(node)
    if by_distance:
        indices = block.distance_indices(node)
    else:
        indices = tuple_text(tuple(block.pair.text(arg) for arg in node.args))
    if node.op == "dot":
        function = "attn_dot_diagonals_backward" if by_distance else "attn_dot_pair_backward"
        grad_rows = "grad_dots" if has_own_dots(block) else "grad_query_parts[here]"
        lines.add(
            f"{function}({grad_rows}, {gradient}, {text}, "
            f"query_block, {tensor_name(node.name)}, {indices})"
        )
    elif by_distance:
        sums = f"attn_by_distance({text}).sum(-2, keepdim=True)"
        lines.add(f"attn_scatter({gradient}, {sums}, {indices})")
    else:
        lines.add(f"attn_scatter({gradient}, {text}, {indices})")
