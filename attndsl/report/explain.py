"""What will run for given sizes, and why, for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from attndsl.analysis.facts import EVERYTHING_HIGH, EVERYTHING_LOW
from attndsl.ir.nodes import SCORE, Node, constant, find, is_const, make
from attndsl.ir.program import Program, Scalar
from attndsl.plan.kernel_plan import Config, KernelPlan, Request, Segment
from attndsl.plan.planner import plan as make_plan
from attndsl.report.formulas import formula
from attndsl.report.requests import request_for, target_here
from attndsl.report.table import figure, table
from attndsl.report.visits import Visits, ranges_of, table_of_tiles, visits_of
from attndsl.runtime import views
from attndsl.runtime.arguments import slots_of
from attndsl.runtime.dims import write_type
from attndsl.runtime.views import View

if TYPE_CHECKING:
    from attndsl.runtime.attention import Attention

USUAL_WIDTH = 64  # of a head, where nothing says it
LONGEST_FORMULA = 160  # characters

# Where the gradient of a learned tensor is summed, by how the indices of its lookup vary.
LEVELS = {
    "row": "summed over the keys of each query with the gradient of query",
    "column": "summed over the queries of each key with those of key and value",
    "pair": "summed over the pairs that read an element, in the same order every time",
}
IN_TABLES = "by backward_tables, in whole numbers: the order of the pairs does not matter"


def explain(
    attention: Attention,
    /,
    *,
    Nq: object = None,
    Nk: object = None,
    B: object = None,
    H: object = None,
    Hk: object = None,
    D: object = None,
    q_offset: object = 0,
    k_offset: object = 0,
    k_len: object = None,
    **parameters: object,
) -> str:
    """What a call of these sizes runs: `attn.explain(...)`. Takes what `attn.mask` takes; D is 64
    unless it is given.

    The plan is that of the GPU at hand (sm_90 where there is none) in bfloat16, or of the CPU for
    `backend="torch"`. Raises ArgumentError.
    """
    if D is None and not gives_width(attention.program, parameters):
        D = USUAL_WIDTH
    sizes = {"Nq": Nq, "Nk": Nk, "B": B, "H": H, "Hk": Hk, "D": D}
    slots = slots_of(attention.program)
    seen = views.view(attention.program, slots, sizes, q_offset, k_offset, k_len, parameters)
    target, width = target_here(attention), seen.sizes["D"]
    dtype = "float32" if target == "cpu" else "bfloat16"
    request = request_for(attention.program, target, dtype, width, width)
    return describe(attention.program, seen, request)


def gives_width(program: Program, given: Mapping[str, object]) -> bool:
    """Whether a tensor that is given has D as a dimension."""
    dims = (dim for tensor in program.tensors if tensor.name in given for dim in tensor.dims)
    return any(dim.op == "size" and dim.name == "D" for dim in dims)


def describe(program: Program, seen: View, request: Request) -> str:
    """The whole report for the sizes and parameters of a view."""
    from attndsl.analysis.warnings import warnings_of

    plan = make_plan(program, request)
    sections = [
        ("", program_lines(plan)),
        ("ranges, of a tile of queries q_lo .. q_hi or of keys k_lo .. k_hi", range_lines(plan)),
        (f"tiles {call_text(program, seen)}", tile_lines(plan, seen)),
        (f"kernels for {request.target}, {request.dtype}", kernel_lines(plan)),
        ("gradients", gradient_lines(plan)),
        ("not known before it runs", list(unknowns(plan))),
        ("warnings", [f"line {w.line}: {w.message}" for w in warnings_of(program)]),
    ]
    parts = []
    for title, lines in sections:
        if lines:
            head = [title] if title else []
            parts.append("\n".join(head + [f"  {line}" if title else line for line in lines]))
    return "\n\n".join(parts)


# -- the program ----------------------------------------------------------------------------


def program_lines(plan: KernelPlan) -> list[str]:
    program = plan.program
    rows = [signature(program)]
    if program.doc:
        rows.append(program.doc.strip().splitlines()[0])
    rows.append("")
    if not is_const(program.mask, True):
        rows.append(f"mask     {formula(program.mask)}")
        rows.append(f"         {varies_text(program.mask)}")
    if program.score is not SCORE:
        rows.append(f"score    {formula(program.score)}")
    rows.append(f"weights  {weights_text(program)}")
    if program.output is not None:
        rows.append(f"output   {formula(program.output)}")
    return rows


def signature(program: Program) -> str:
    """`name(window: int = 4096, bias: float[H])`, with consts as they were fixed."""
    shown = []
    for parameter in program.parameters:
        if isinstance(parameter, Scalar):
            default = "" if parameter.default is None else f" = {parameter.default}"
            shown.append(f"{parameter.name}: {parameter.kind}{default}")
        else:
            shown.append(f"{parameter.name}: {write_type(parameter)}")
    shown += [f"{name}: const = {value}" for name, value in program.consts]
    return f"{program.name}({', '.join(shown)})"


def varies_text(mask: Node) -> str:
    names = [name for name in ("b", "h") if name in mask.varies]
    if not names:
        return "the same for every batch and head"
    what = " and ".join({"b": "batch", "h": "head"}[name] for name in names)
    return f"differs by {what}"


def weights_text(program: Program) -> str:
    weights = program.weights
    if weights.form == "softmax":
        return "softmax" if weights.sink is None else f"softmax(sink = {formula(weights.sink)})"
    assert weights.value is not None
    text = formula(weights.value)
    return f"normalize({text})" if weights.form == "normalize" else text


# -- ranges ---------------------------------------------------------------------------------


def range_lines(plan: KernelPlan) -> list[str]:
    """The segments as formulas in the user's names; those that fill a page are only named."""
    rows = []
    for what, segments, tile in (("keys", plan.keys, "q"), ("queries", plan.queries, "k")):
        names = {"lo": f"{tile}_lo", "hi": f"{tile}_hi"}
        if not segments:
            rows.append(f"{what:<8} none: the mask is never true")
        for segment in segments:
            rows += end_lines(what, segment.lo, segment.hi, names)
            if not never_full(segment):
                rows += end_lines("   full", segment.full_lo, segment.full_hi, names)
    return rows


def end_lines(what: str, start: Node, end: Node, names: Mapping[str, str]) -> list[str]:
    """`what from ... to ...`, on two lines; one line where it takes more than a person reads."""
    low, high = unlimited(formula(start, names)), unlimited(formula(less_one(end), names))
    if max(len(low), len(high)) > LONGEST_FORMULA:
        return [f"{what:<8} by cases: `attndsl emit --stage plan` has them; an example is below"]
    low, high = {"-inf": "the first"}.get(low, low), {"inf": "the last"}.get(high, high)
    return [f"{what:<8} from {low}", f"{'':<8} to   {high}"]


def less_one(node: Node) -> Node:
    """An exclusive end as the last position in it: `q_hi` for `q_hi + 1`."""
    if is_const(node):
        return constant(int(node.value) - 1)
    if node.op in ("add", "sub") and is_const(node.args[1]):
        change = int(node.args[1].value) - (1 if node.op == "add" else -1)
        return make(node.op, node.args[0], constant(change)) if change else node.args[0]
    if node.op in ("min", "max"):
        return make(node.op, *(less_one(arg) for arg in node.args))
    if node.op == "where":
        condition, *branches = node.args
        return make("where", condition, *(less_one(branch) for branch in branches))
    return make("sub", node, constant(1))


def unlimited(text: str) -> str:
    """A formula with the analysis' own limits read as what they stand for."""
    for limit in (EVERYTHING_LOW - 1, EVERYTHING_LOW):
        text = text.replace(str(limit), "-inf")
    for limit in (EVERYTHING_HIGH, EVERYTHING_HIGH - 1):
        text = text.replace(str(limit), "inf")
    return text


def never_full(segment: Segment) -> bool:
    """Whether the inner part is empty whatever the tile."""
    if segment.full_lo is segment.full_hi:
        return True
    both = (segment.full_lo, segment.full_hi)
    return all(is_const(end) for end in both) and both[0].value >= both[1].value


# -- the call -------------------------------------------------------------------------------


def call_text(program: Program, seen: View) -> str:
    """The sizes and scalars of a call."""
    shown = [f"{name} = {seen.sizes[name]}" for name in ("B", "H", "Hk", "Nq", "Nk", "D")]
    for name, offset in (("q_offset", seen.q_offset), ("k_offset", seen.k_offset)):
        if isinstance(offset, torch.Tensor) or offset:
            shown.append(f"{name} = {'int[B]' if isinstance(offset, torch.Tensor) else offset}")
    shown += [
        f"{s.name} = {seen.scalars[s.name]}" for s in program.scalars if s.name in seen.scalars
    ]
    return "for " + ", ".join(shown)


def tile_lines(plan: KernelPlan, seen: View) -> list[str]:
    """Tiles visited, needed and in all for each kernel, and the work in them."""
    found = list(visits_of(plan, seen))
    work = [f"{visits.kernel}: {work_text(plan, visits)}" for visits in found]
    return [*table_of_tiles(found).splitlines(), *example_lines(plan, seen), *work]


def example_lines(plan: KernelPlan, seen: View) -> list[str]:
    """The ranges of the middle tile of queries in numbers, for the first batch and head."""
    block = (plan.forward.block_m, plan.forward.block_n)
    ranges = ranges_of(plan, seen, block, by_keys=False)
    if not ranges or not seen.sizes["Nq"] or isinstance(seen.q_offset, torch.Tensor):
        return []
    tile = ranges[0].lo.shape[2] // 2
    begin = tile * block[0]
    end = min(begin + block[0], seen.sizes["Nq"]) - 1
    parts = []
    for part in ranges:
        low, high = (int(x[0, 0, tile]) for x in (part.lo, part.hi))
        full_low, full_high = (int(x[0, 0, tile]) for x in (part.full_lo, part.full_hi))
        if low < high:
            full = f" ({full_low} .. {full_high - 1} in full)" if full_low < full_high else ""
            parts.append(f"{low} .. {high - 1}{full}")
    return [f"for example rows {begin} .. {end} visit columns {' and '.join(parts) or 'none'}"]


def work_text(plan: KernelPlan, visits: Visits) -> str:
    """Pairs computed and floating-point operations of the matrix products."""
    width, value_width = plan.request.head_dim, plan.request.value_dim
    products = {
        "forward": width + value_width,
        "backward_dq": 2 * width + value_width,
        "backward_dkv": 2 * width + 2 * value_width,
    }[visits.kernel]
    pairs = visits.computed_pairs
    return f"{figure(pairs, 'pairs')} computed, {figure(2 * products * pairs, 'FLOP')}"


# -- kernels and gradients ------------------------------------------------------------------


def kernel_lines(plan: KernelPlan) -> list[str]:
    """What each kernel does, with what sizes, and what the plan could leave out."""
    if plan.request.backend == "torch":
        return [
            "PyTorch, in blocks of queries and keys: memory grows with the length, not its square"
        ]
    by_query = f"a program a tile of queries, {loop_text(plan.keys, 'keys')}"
    by_key = f"a program a tile of keys, {loop_text(plan.queries, 'queries')}"
    kernels: list[tuple[str, Config, str]] = [("forward", plan.forward, by_query)]
    kernels.append(("backward_dq", plan.backward_dq, by_query))
    kernels.append(("backward_dkv", plan.backward_dkv, by_key))
    if has_tables(plan):
        kernels.append(("backward_tables", plan.backward_dq, by_query))
    rows = [
        [name, f"{config.block_m} x {config.block_n}", config.num_warps, config.num_stages, what]
        for name, config, what in kernels
    ]
    lines = table(["kernel", "tile", "warps", "stages", ""], rows).splitlines()
    if plan.form != "elementwise":
        lines.append("backward_delta runs before the backward kernels, once over the result")
    for what, chunks in (("D", plan.query_chunks), ("Dv", plan.value_chunks)):
        if len(chunks) > 1:
            parts = " + ".join(str(chunk.width) for chunk in chunks)
            lines.append(f"{what} is computed in parts of {parts} columns")
    if plan.may_be_masked_by_score:
        lines.append("a score may be -inf: rows are guarded against having no key left")
    return lines


def has_tables(plan: KernelPlan) -> bool:
    """Whether a tensor that is looked up pair by pair receives a gradient from a Triton kernel."""
    learned = plan.request.grads
    pairs = [leaf for leaf in plan.leaves if leaf.level == "pair" and leaf.node.name in learned]
    return bool(pairs) and plan.request.backend == "triton"


def loop_text(segments: tuple[Segment, ...], what: str) -> str:
    if not segments:
        return f"no {what} at all"
    if len(segments) == 1:
        return f"one loop over its range of {what}"
    return f"{len(segments)} ranges of {what}"


def gradient_lines(plan: KernelPlan) -> list[str]:
    rows = ["query, key and value without atomics: the same bits every time"]
    where: dict[str, list[str]] = {}
    levels = LEVELS | {"pair": IN_TABLES} if has_tables(plan) else LEVELS
    for leaf in plan.leaves:
        where.setdefault(leaf.node.name, []).append(levels[leaf.level])
    for leaf in plan.sink_partials:
        where.setdefault(leaf.node.name, []).append("summed over the queries, through the sink")
    for leaf in plan.output_partials:
        where.setdefault(leaf.node.name, []).append("through the epilogue, before the kernels")
    for name, ways in where.items():
        if name in plan.request.grads:
            rows.append(f"{name:<17} {'; '.join(dict.fromkeys(ways))}")
    return rows


# -- what is not known ----------------------------------------------------------------------


def unknowns(plan: KernelPlan) -> Iterator[str]:
    """What of the mask depends on data, by line, and what that costs."""
    program = plan.program
    for lookup in find(program.mask, "lookup", "chosen"):
        if not lookup.varies & {"q", "k"}:
            continue
        yield f"{line_of(program, lookup)}`{formula(lookup)}` is data: {consequence(plan)}"


def consequence(plan: KernelPlan) -> str:
    if all(never_full(segment) for segment in plan.keys):
        return "every tile in the ranges evaluates the mask"
    return "tiles that are not full without it evaluate the mask"


def line_of(program: Program, node: Node) -> str:
    spans = program.origins.get(node, ())
    if not spans:
        return ""
    return f"line {spans[0].source.position(spans[0].start)[0]}: "
