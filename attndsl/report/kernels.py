"""The kernels of a plan: their tiles, what they go over, what the plan could leave out."""

from __future__ import annotations

from attndsl.plan.kernel_plan import Config, KernelPlan
from attndsl.report.table import table
from attndsl.report.tiles.visits import OWN_KEYS


def kernel_lines(plan: KernelPlan, added: KernelPlan | None) -> list[str]:
    """What each kernel does, with what sizes, and what the plan could leave out; `added` is the
    plan of the pairs that lists add."""
    if plan.request.backend == "torch":
        return [
            "blocks of queries and keys: memory grows with the length, not its square;",
            "counted for PyTorch's blocks: C++ has smaller ones, where there is a compiler for it",
        ]
    kernels = base_kernels(plan) if added is None or plan.keys else []
    if added is not None:
        kernels += gathered_kernels(added)
    rows = [
        [name, f"{config.block_m} x {config.block_n}", config.num_warps, config.num_stages, what]
        for name, config, what in kernels
    ]
    lines = table(["kernel", "tile", "warps", "stages", ""], rows).splitlines()
    if added is not None:
        lines.append("routed_merge joins both results of a query, routed_add_query its gradients")
    if plan.form != "elementwise":
        lines.append("backward_delta runs before the backward kernels, once over the result")
    if plan.strategy == "lists":
        lines.append("classify_rows runs before kernels over keys, classify_columns before others")
    for what, chunks in (("D", plan.query_chunks), ("Dv", plan.value_chunks)):
        if len(chunks) > 1:
            parts = " + ".join(str(chunk.width) for chunk in chunks)
            lines.append(f"{what} is computed in parts of {parts} columns")
    if plan.may_be_masked_by_score:
        lines.append("a score may be -inf: rows are guarded against having no key left")
    return lines


def base_kernels(plan: KernelPlan) -> list[tuple[str, Config, str]]:
    """Kernels that own a tile of rows or of keys: names, sizes, what they go over."""
    by_query = f"a program a tile of queries, {loop_text(plan, 'keys')}"
    by_key = f"a program a tile of keys, {loop_text(plan, 'queries')}"
    kernels = [
        (name, config, by_key if name in OWN_KEYS else by_query) for name, config in plan.configs
    ]
    if has_tables(plan):
        kernels.append(("backward_tables", plan.backward_dq, by_query))
    return kernels


def gathered_kernels(plan: KernelPlan) -> list[tuple[str, Config, str]]:
    """The same for kernels whose tiles hold queries that chose one block."""
    by_query = "a program a tile of queries that chose a block, over its keys"
    by_key = "a program a part of a block, over the queries that chose it"
    return [
        ("routed_forward", plan.forward, by_query),
        ("routed_backward_dq", plan.backward_dq, by_query),
        ("routed_backward_dkv", plan.backward_dkv, by_key),
    ]


def has_tables(plan: KernelPlan) -> bool:
    """Whether a tensor that is looked up pair by pair receives a gradient from a Triton kernel."""
    learned = plan.request.grads
    pairs = [leaf for leaf in plan.leaves if leaf.level == "pair" and leaf.node.name in learned]
    return bool(pairs) and plan.request.backend == "triton"


def loop_text(plan: KernelPlan, what: str) -> str:
    segments = plan.keys if what == "keys" else plan.queries
    if not segments:
        return f"no {what} at all"
    if plan.strategy == "lists":
        return f"over its list of tiles of {what}"
    return f"over its {'range' if len(segments) == 1 else f'{len(segments)} ranges'} of {what}"
