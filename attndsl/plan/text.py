"""The text form of a plan, for `attndsl emit --stage plan` and the header of a generated file."""

from __future__ import annotations

from attndsl.ir.nodes import Node, topological
from attndsl.ir.text import describe
from attndsl.plan.kernel_plan import Chunk, Config, Decode, KernelPlan, Leaf, Segment


def dump(plan: KernelPlan) -> str:
    """The plan as text: the request, the nodes, then one line for each decision."""
    request = plan.request
    numbers: dict[Node, str] = {}
    rows = [
        "attndsl-plan 1",
        f"program {plan.program.name}",
        f"request backend={request.backend} target={request.target} dtype={request.dtype} "
        f"D={request.head_dim} Dv={request.value_dim} grads={','.join(request.grads) or '-'} "
        f"per_batch={','.join(request.per_batch) or '-'} order={request.order}",
    ]
    for node in topological(*roots(plan)):
        numbers[node] = f"%{len(numbers)}"
        rows.append(f"{numbers[node]} = {describe(node, numbers)}")
    rows += [
        f"weights {plan.form}",
        f"mask {numbers[plan.program.mask]} varies={words(plan.mask_varies)}",
        f"value {numbers[plan.value]} by score {numbers[plan.raw_partial]}",
        f"logit {numbers[plan.logit]} may_be_masked={plan.may_be_masked_by_score}",
    ]
    if plan.shift is not None:
        value, by_rows = numbers[plan.shift.value], numbers[plan.shift.rows]
        rows.append(f"shift {value} of pairs {by_rows} of rows")
    for what, leaves in named_leaves(plan):
        rows += [
            f"{what} {numbers[leaf.node]} partial {numbers[leaf.partial]} level {leaf.level}"
            for leaf in leaves
        ]
    if plan.output_by_out is not None:
        rows.append(f"output_by_out {numbers[plan.output_by_out]}")
    for what, segments in (("keys", plan.keys), ("queries", plan.queries)):
        rows += [
            f"{what} [{numbers[s.lo]}, {numbers[s.hi]}) full [{numbers[s.full_lo]}, "
            f"{numbers[s.full_hi]})"
            for s in segments
        ]
    rows += [
        f"{what} span [{numbers[span.lo]}, {numbers[span.hi]})"
        for what, span in (("key", plan.key_span), ("query", plan.query_span))
        if span is not None
    ]
    rows.append(f"tile possible {numbers[plan.tile.possible]} certain {numbers[plan.tile.certain]}")
    rows += [
        f"summary {s.number} {numbers[s.node]} over {','.join(s.axes)}"
        + (" with signature" if s.has_signature else "")
        for s in plan.summaries
    ]
    rows.append(f"strategy {plan.strategy}")
    rows += [f"loss {numbers[loss.node]} {loss.reason}" for loss in plan.losses]
    rows.append(f"query chunks {chunk_text(plan.query_chunks)}")
    rows.append(f"value chunks {chunk_text(plan.value_chunks)}")
    rows += [f"{what} {config_text(config)}" for what, config in plan.configs]
    if plan.separate_because:
        rows.append(f"separate because {plan.separate_because}")
    rows += decode_rows(plan.decode)
    text = "\n".join([*rows, ""])
    routed = plan.program.routed
    if plan.routed is None or routed is None:
        return text
    per = "group" if routed.per_group else "head"
    shared = ", heads share tiles" if plan.routed.packs_heads else ""
    return f"{text}routed by {routed.lists} per {per}{shared}\n{dump(plan.routed)}"


def decode_rows(decode: Decode | None) -> list[str]:
    """How calls of few queries run."""
    if decode is None:
        return []
    rows = [f"decode {config_text(tile)}" for tile in decode.tiles]
    rows.append(
        f"decode resident {decode.resident} packs_heads={decode.packs_heads} "
        f"knows_reach={decode.knows_reach}"
    )
    if decode.windows is not None:
        rows.append(f"windows {config_text(decode.windows)}")
    return rows


def roots(plan: KernelPlan) -> list[Node]:
    """Every node that the plan names, in a fixed order."""
    found = [plan.program.mask, plan.value, plan.raw_partial, plan.logit]
    if plan.shift is not None:
        found += [plan.shift.value, plan.shift.rows]
    for _, leaves in named_leaves(plan):
        for leaf in leaves:
            found += [leaf.node, leaf.partial]
    if plan.output_by_out is not None:
        found.append(plan.output_by_out)
    for segment in (*plan.keys, *plan.queries):
        found += ends(segment)
    for span in (plan.key_span, plan.query_span):
        found += [span.lo, span.hi] if span is not None else []
    found += [summary.node for summary in plan.summaries]
    found += [loss.node for loss in plan.losses]
    return [*found, plan.tile.possible, plan.tile.certain]


def ends(segment: Segment) -> list[Node]:
    return [segment.lo, segment.hi, segment.full_lo, segment.full_hi]


def named_leaves(plan: KernelPlan) -> tuple[tuple[str, tuple[Leaf, ...]], ...]:
    return (
        ("leaf", plan.leaves),
        ("sink leaf", plan.sink_partials),
        ("output leaf", plan.output_partials),
    )


def words(names: frozenset[str]) -> str:
    return ",".join(sorted(names)) or "-"


def chunk_text(chunks: tuple[Chunk, ...]) -> str:
    return " ".join(f"{c.start}+{c.width}({c.valid})" for c in chunks)


def config_text(config: Config) -> str:
    return (
        f"tile {config.block_m}x{config.block_n} warps {config.num_warps} "
        f"stages {config.num_stages}" + (f" {config.shape}" if config.shape != "peeled" else "")
    )
