"""Writes run_forward of a PyTorch module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from attndsl.ir.nodes import SCORE, Node, is_const
from attndsl.plan.kernel_plan import KernelPlan

from ..host import write_arguments, write_output, write_sink
from ..lines import Lines
from ..scope import tensor_name
from .block import Block, is_calm, is_fresh
from .routed import RoutedBlock, write_flat
from .routed_rows import FewRowsBlock
from .spans import ARGUMENTS


def write_forward(lines: Lines, plan: KernelPlan) -> None:
    """The function that returns (out, raw, stat)."""
    lines.add("@torch.no_grad()")
    with lines.block(f"def run_forward(query, key, value, {ARGUMENTS}):"):
        lines.add(f'"""(out, raw, stat) of `{plan.program.name}`."""')
        write_arguments(lines, plan)
        scale = "(scale * math.log2(math.e))" if has_binary_logits(plan) else "scale"
        block = Block(lines, plan, value_roots(plan), scale=scale)
        block.write_queries()
        if has_spans(plan):
            block.write_keys()
            block.write_call()
        write_results_begin(lines, plan)
        if has_spans(plan):
            with write_blocks(block):
                write_block_end(block)
        if plan.routed is not None:
            write_routed(lines, plan, scale)
        write_sink(lines, plan)
        write_output(lines, plan)
        raw = "raw.to(query.dtype)" if plan.program.output else "raw.new_empty(0)"
        lines.add(f"return out.to(query.dtype), {raw}, stat")


def has_spans(plan: KernelPlan) -> bool:
    """Whether pairs can take part that no list names."""
    return plan.routed is None or not is_const(plan.program.mask, False)


@contextmanager
def write_blocks(block: Block) -> Iterator[None]:
    """The loops over blocks of queries: yields where `found` is what a block's pairs add up to."""
    with block.parts(), block.blocks():
        names = {"softmax": "found = most = sums", "normalize": "found = stat_found"}
        block.lines.add(f"{names.get(block.plan.form, 'found')} = None")
        with block.chunks():
            write_chunk(block)
        yield


def has_binary_logits(plan: KernelPlan) -> bool:
    """Whether scores are scaled so that a weight is 2 ** logit: where the logit is the score."""
    return plan.form == "softmax" and plan.value is SCORE


def value_roots(plan: KernelPlan) -> list[Node]:
    """What the pairs of a chunk are computed from, besides the mask."""
    if plan.form != "softmax" and plan.may_be_masked_by_score:
        return [plan.value, plan.logit]
    return [plan.value]


def write_results_begin(lines: Lines, plan: KernelPlan) -> None:
    """raw and stat as they are for rows without a key."""
    dtype = "dtype=ACCUMULATOR, device=query.device"
    lines.add(f"raw = torch.zeros(size_B, size_H, size_Nq, size_Dv, {dtype})")
    if plan.form == "elementwise":
        lines.add(f"stat = torch.zeros(0, {dtype})")
    else:
        empty = 'float("-inf")' if plan.form == "softmax" else "0.0"
        lines.add(f"stat = torch.full((size_B, size_H, size_Nq), {empty}, {dtype})")
    lines.add("raw_parts = raw.view(size_B, size_Hk, size_G, size_Nq, size_Dv)")
    if plan.form != "elementwise":
        lines.add("stat_parts = stat.view(size_B, size_Hk, size_G, size_Nq)")


def write_value(block: Block, *more: Node) -> list[str]:
    """Sets `weight`, a tensor of its own, to the plan's value; returns the texts of more nodes.

    Where the value is the raw score, `weight` is `score` itself, unless more nodes need that.
    """
    lines, value = block.lines, block.plan.value
    lines.origin(block.plan.program, value)
    texts = block.pair.write(lines, value, *more)
    text = texts[0]
    if value is SCORE:
        text = "score.clone()" if any("score" in n.varies for n in more) else "score"
    elif not is_fresh(value, block.pair):
        text = f"attn_full({text}, score)"
    lines.add(f"weight = {text}")
    return [
        f"attn_tensor({text})" if block.is_plain(node) else text
        for node, text in zip(more, texts[1:], strict=True)
    ]


def write_chunk(block: Block) -> None:
    """The weights of a chunk, and what they add to the result of its rows."""
    lines, plan = block.lines, block.plan
    logit = value_roots(plan)[1:]
    for dead in write_value(block, *logit):
        lines.add(f'weight.masked_fill_({in_brackets(dead)} == float("-inf"), 0.0)')
    if block.has_mask:
        calm = plan.form == "softmax" and is_calm(plan.value)
        with lines.block("for lo, hi in masked:"):
            lines.add("open_weight = weight[..., lo - first : hi - first]")
            if calm:
                limit = block.write_mask(lambda kept: f"attn_limit({kept})")
                lines.add(f"torch.minimum(open_weight, {limit}, out=open_weight)")
            else:
                dropped = block.write_mask(lambda kept: f"~{in_brackets(kept)}")
                least = 'float("-inf")' if plan.form == "softmax" else "0.0"
                lines.add(f"open_weight.masked_fill_({dropped}, {least})")
    lines.add("weight = weight.reshape(shape)")
    if plan.form == "softmax":
        unit = "1.0" if has_binary_logits(plan) else "math.log2(math.e)"
        lines.add(f"most, sums, factor = attn_weigh(weight, most, sums, {unit})")
    elif plan.form == "normalize":
        lines.add("more_stat = weight.sum(-1, keepdim=True)")
    lines.add(f"more = attn_products(weight, {block.values_text})")
    with lines.block("if found is None:"):
        lines.add("found = more")
        if plan.form == "normalize":
            lines.add("stat_found = more_stat")
    with lines.block("else:"):
        lines.add("found.mul_(factor).add_(more)" if plan.form == "softmax" else "found += more")
        if plan.form == "normalize":
            lines.add("stat_found += more_stat")


def in_brackets(text: str) -> str:
    """The text as an atom: names, calls and what has brackets already stay."""
    return text if text.isidentifier() or text.startswith("attn_tensor(") else f"({text})"


def write_block_end(block: Block) -> None:
    """Stores a block's rows; where lists add pairs, `normalize` leaves them to be divided."""
    lines, plan = block.lines, block.plan
    if plan.form == "softmax":
        most = "most * math.log(2)" if has_binary_logits(plan) else "most"
        lines.add(
            "share = torch.where(sums == 0, 0.0, 1 / sums).view(*query_block.shape[:4], 1)",
            f"stat_found = {most} + torch.log(sums)",
        )
    elif plan.form == "normalize" and plan.routed is None:
        lines.add("found = torch.where(stat_found == 0, 0.0, found / stat_found)")
    found = "found.view(*query_block.shape[:4], size_Dv)"
    if plan.form == "softmax" and block.has_runs:
        lines.add(f"torch.mul({found}, share, out=raw_parts[here])")
    elif plan.form == "softmax":  # rows that lie apart are no view
        lines.add(f"raw_parts[here] = {found} * share")
    else:
        lines.add(f"raw_parts[here] = {found}")
    if plan.form != "elementwise":
        lines.add("stat_parts[here] = stat_found.view(query_block.shape[:4])")


def write_routed(lines: Lines, plan: KernelPlan, scale: str) -> None:
    """What lists add to raw and stat."""
    assert plan.routed is not None and plan.program.routed is not None
    write_flat(lines, "raw", *(["stat"] if plan.form != "elementwise" else []))
    lists = tensor_name(plan.program.routed.lists)
    with lines.block(f"if size_Nq <= FEW_ROWS and min(size_Nk, {lists}.shape[3]) > 0:"):
        few = FewRowsBlock(lines, plan.routed, value_roots(plan), scale=scale)
        few.write_lists(plan.program.routed)
        few.write_call()
        with write_blocks(few):
            write_tile_end(lines, plan)
    with lines.block("else:"):
        routed = RoutedBlock(lines, plan.routed, value_roots(plan), scale=scale)
        if not has_spans(plan):
            routed.write_keys()
        routed.write_call()
        write_flat(lines, "queries")
        with write_blocks(routed):
            write_tile_end(lines, plan)
    if plan.form == "normalize":
        write_division(lines)


def write_tile_end(lines: Lines, plan: KernelPlan) -> None:
    """Adds what a tile of gathered rows has found to their results."""
    if plan.form == "softmax":
        most = "most * math.log(2)" if has_binary_logits(plan) else "most"
        lines.add(f"attn_merge(raw_rows, stat_rows, places, found, {most}, sums)")
        return
    lines.add("raw_rows.index_add_(0, places, found.view(-1, size_Dv))")
    if plan.form == "normalize":
        lines.add("stat_rows.index_add_(0, places, stat_found.view(-1))")


def write_division(lines: Lines) -> None:
    """Divides the sums of all pairs of a row by its denominator."""
    lines.add("raw = torch.where((stat == 0)[..., None], 0.0, raw / stat[..., None])")
