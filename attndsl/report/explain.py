"""What will run for given sizes, and why, for a person."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attndsl.analysis.grids import coordinated
from attndsl.analysis.warnings import warnings_of
from attndsl.diagnostics import ArgumentError, Diagnostic
from attndsl.ir.nodes import SCORE, Node, find, is_const
from attndsl.ir.program import Program, Scalar
from attndsl.plan.kernel_plan import KernelPlan
from attndsl.report.choices.call import Shown, routed_part, shown_call
from attndsl.report.choices.text import Routing, attending_lines, choosing_lines, select_lines
from attndsl.report.decode import decode_lines, plan_of_few, shared_visits
from attndsl.report.kernels import has_tables, kernel_lines
from attndsl.report.requests import request_for, target_here
from attndsl.report.table import figure, share
from attndsl.report.tiles.boxes import box_example
from attndsl.report.tiles.cost import preparation_lines
from attndsl.report.tiles.formulas import formula
from attndsl.report.tiles.orders import order_lines, plan_of_call
from attndsl.report.tiles.ranges import box_lines, loss_lines, proof_lines, range_lines
from attndsl.report.tiles.visits import MOST_ERROR, UNKNOWN, Visits, table_of_tiles, visits_of
from attndsl.report.tuning.stored import with_stored_sizes
from attndsl.runtime.arguments import check_input
from attndsl.runtime.dims import write_type
from attndsl.runtime.order import Order
from attndsl.runtime.segments import reach_of
from attndsl.runtime.settings import DEFAULTS, Settings
from attndsl.runtime.views import View

if TYPE_CHECKING:
    from attndsl.runtime.attention import Attention

Section = tuple[str, list[str]]  # title and lines
USUAL_WIDTH = 64  # of a head, where nothing says it
UNTOLD = "the tiles depend on what is chosen: give query= and key= to have them counted"
LONGEST_LINE = 120  # characters
LONGEST_TEXT = 400
LABEL = re.compile(r" *(?P<name>\S+ {2,})?")  # what stands before a line's text

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
    query: object = None,
    key: object = None,
    **parameters: object,
) -> str:
    """What a call of these sizes runs: `attn.explain(...)`. Takes what `attn.mask` takes; D is 64
    unless it is given. With query and key, what a program's selects choose is counted.

    The plan is that of the GPU at hand (sm_90 where there is none) in bfloat16, or of the CPU for
    `backend="torch"`. Raises ArgumentError.
    """
    if D is None and query is None and not gives_width(attention.program, parameters):
        D = USUAL_WIDTH
    sizes = {"Nq": Nq, "Nk": Nk, "B": B, "H": H, "Hk": Hk, "D": D}
    given = (sizes, q_offset, k_offset, k_len, parameters)
    shown = shown_call(attention.program, *given, inputs_of(query, key))
    target, width = target_here(attention), shown.seen.sizes["D"]
    dtype = "float32" if target == "cpu" else "bfloat16"
    return describe(shown, target, dtype, width, width, attention.settings)


def inputs_of(query: object, key: object) -> tuple[Tensor, Tensor] | None:
    """Both, or neither."""
    if query is None and key is None:
        return None
    if query is None or key is None:
        raise ArgumentError(f"{'query' if query is None else 'key'}: give query= and key=, or none")
    return check_input("query", query, "[B, H, Nq, D]"), check_input("key", key, "[B, Hk, Nk, D]")


def gives_width(program: Program, given: Mapping[str, object]) -> bool:
    """Whether a tensor that is given has D as a dimension."""
    dims = (dim for tensor in program.tensors if tensor.name in given for dim in tensor.dims)
    return any(dim.op == "size" and dim.name == "D" for dim in dims)


@torch.no_grad()
def describe(
    shown: Shown,
    target: str,
    dtype: str,
    width: int,
    value_width: int,
    settings: Settings = DEFAULTS,
) -> str:
    """The whole report for the sizes and parameters of a call."""
    program, seen, routing = shown
    request = request_for(program, target, dtype, width, value_width)
    request = replace(request, deterministic=settings.deterministic)
    plan, order = plan_of_call(program, request, seen)
    plan, about_sizes = with_stored_sizes(plan, settings, (seen.sizes["Nq"], seen.sizes["Nk"]))
    source = program if routing is None else routing.program
    sections = [("", program_lines(source))]
    added: KernelPlan | None = None
    if routing is not None:
        sections.append(("choosing", choosing_lines(routing, seen)))
        if routing.form == "lists":
            added = routed_part(shown, request)
            sections.append(("attending to what was chosen", attending_lines(routing, added)))
        elif not routing.has_tiles:
            sections.append(("attending to what was chosen", [UNTOLD]))
    if has_tiles(shown):
        sections += mask_sections(plan, seen, order, routing)
    sections += [
        (
            f"kernels for {request.target}, {request.dtype}",
            [*kernel_lines(plan, added), *decode_lines(plan, seen), *about_sizes],
        ),
        ("gradients", gradient_lines(plan)),
        ("warnings", warning_lines(warnings_of(source))),
    ]
    parts = []
    for title, lines in sections:
        if lines:
            head = [wrapped(title)] if title else []
            rows = [wrapped(f"  {line}" if title else line) for line in lines]
            parts.append("\n".join(head + rows))
    return "\n\n".join(parts)


def has_tiles(shown: Shown) -> bool:
    """Whether there is a mask beside what is chosen, and its tiles can be told."""
    routing = shown.routing
    if routing is None:
        return True
    if routing.form == "lists":
        return not is_const(shown.program.mask, False)
    return routing.has_tiles


def mask_sections(
    plan: KernelPlan, seen: View, order: Order, routing: Routing | None
) -> list[Section]:
    """How the tiles of a mask are found, and how many there are."""
    found = shared_visits(plan, seen, list(visits_of(plan_of_few(plan, seen), seen)))
    source = plan.program if routing is None else routing.program
    keys = () if plan.grid or routing is not None else plan.keys
    about = "" if routing is None else about_mask(routing)
    return [
        ("the mask beside what is chosen", beside_lines(plan, routing)),
        needed_section(plan, seen),
        ("proved", proof_lines(source, keys)),
        ("order", order_lines(plan, seen, order)),
        ("how tiles are found", strategy_lines(plan, seen, found[0].tests)),
        (f"tiles {call_text(source, seen)}{about}", tile_lines(plan, seen, found)),
        ("what costs a better answer", cost_lines(plan, found)),
    ]


def beside_lines(plan: KernelPlan, routing: Routing | None) -> list[str]:
    """The mask without what lists add, of which the next sections are."""
    if routing is None or routing.form != "lists":
        return []
    return [cut(formula(plan.program.mask)), "the next sections are about it alone"]


def about_mask(routing: Routing) -> str:
    """What the tiles are those of, where that is not the whole mask of the call."""
    if routing.form == "lists":
        return ", beside what is chosen"
    return "" if routing.is_known else ", at most: if every candidate were chosen"


def needed_section(plan: KernelPlan, seen: View) -> tuple[str, list[str]]:
    """What a tile of one axis needs of the other."""
    if plan.grid is None:
        title = "needed by a tile of queries q_lo .. q_hi, of keys k_lo .. k_hi"
        return title, range_lines(plan, seen)
    ends = [f"{axis}_lo .. {axis}_hi" for axis in plan.grid.axes]
    queries, keys = (
        ", ".join(f"{p}_{end.replace(' .. ', f' .. {p}_')}" for end in ends) for p in "qk"
    )
    return f"boxes of queries {queries} and of keys {keys}", box_lines(plan, seen)


def wrapped(line: str) -> str:
    """A long line on several, indented to where its text begins."""
    if len(line) <= LONGEST_LINE:
        return line
    label = LABEL.match(line)
    assert label is not None
    indent = " " * (label.end() if label["name"] else label.end() + 2)
    rows = textwrap.wrap(
        line, LONGEST_LINE, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(rows)


def warning_lines(warnings: Iterable[Diagnostic]) -> list[str]:
    return list(dict.fromkeys(f"line {w.line}: {w.message}" for w in warnings))


# -- the program ----------------------------------------------------------------------------


def program_lines(program: Program) -> list[str]:
    rows = [signature(program)]
    if program.doc:
        rows.append(program.doc.strip().splitlines()[0])
    rows += ["", *select_lines(program)]
    if not is_const(program.mask, True):
        rows.append(f"mask     {cut(formula(in_coordinates(program)))}")
    if program.score is not SCORE:
        rows.append(f"score    {cut(formula(program.score))}")
    rows.append(f"weights  {weights_text(program)}")
    if program.output is not None:
        rows.append(f"output   {formula(program.output)}")
    return rows


def in_coordinates(program: Program) -> Node:
    """The mask, with coordinates of the grid by their names."""
    return program.mask if program.grid is None else coordinated(program.grid, program.mask)


def cut(text: str) -> str:
    """The beginning of a text that fills a page."""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} …"


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


def weights_text(program: Program) -> str:
    weights = program.weights
    if weights.form == "softmax":
        return "softmax" if weights.sink is None else f"softmax(sink = {formula(weights.sink)})"
    assert weights.value is not None
    text = formula(weights.value)
    return f"normalize({text})" if weights.form == "normalize" else text


# -- the call -------------------------------------------------------------------------------


def call_text(program: Program, seen: View) -> str:
    """The sizes and scalars of a call."""
    shown = [f"{name} = {seen.sizes[name]}" for name in ("B", "H", "Hk", "Nq", "Nk", "D")]
    for name, offset in (("q_offset", seen.q_offset), ("k_offset", seen.k_offset)):
        if isinstance(offset, torch.Tensor) or offset:
            shown.append(f"{name} = {'int[B]' if isinstance(offset, torch.Tensor) else offset}")
    if seen.k_len is not None:
        shown.append("k_len = int[B]")
    shown += [
        f"{s.name} = {seen.scalars[s.name]}" for s in program.scalars if s.name in seen.scalars
    ]
    return "for " + ", ".join(shown)


def tile_lines(plan: KernelPlan, seen: View, found: list[Visits]) -> list[str]:
    """Tiles visited, needed and in all for each kernel, and the work in them."""
    work = [f"{visits.kernel}: {work_text(plan, visits)}" for visits in found]
    return [
        *table_of_tiles(found).splitlines(),
        *notes(found),
        *example_lines(plan, seen, found[0]),
        *work,
    ]


def notes(found: list[Visits]) -> list[str]:
    """How figures were found that were not counted, and how far off they may be."""
    if all(v.is_counted and v.are_needed_known and v.are_pairs_known for v in found):
        return []
    errors = [e for v in found for e in (v.visited_error, v.needed_error, v.pairs_error)]
    told = [error for error in errors if error <= MOST_ERROR]
    off = f"most likely within {100 * max(told, default=0):.1g} %"
    how = "of the tiles that are not full, some were looked at pair by pair"
    if not all(v.is_counted for v in found):
        how = "from some rows of tiles, drawn at random"
    lines = [f"~ is an estimate, {off}: {how}"]
    if len(told) < len(errors):
        lines.append(f"{UNKNOWN}: an estimate may be further off than {100 * MOST_ERROR:.0f} %")
    return lines


def example_lines(plan: KernelPlan, seen: View, forward: Visits) -> list[str]:
    """What the middle tile of queries reaches in numbers, for the first batch and head."""
    if plan.grid is not None:
        return box_example(plan, seen, forward.block)
    block, rows = forward.block[0], seen.sizes["Nq"]
    if (
        not rows
        or isinstance(seen.q_offset, torch.Tensor)
        or isinstance(seen.k_offset, torch.Tensor)
    ):
        return []
    begin = -(-rows // block) // 2 * block
    end = min(begin + block, rows) - 1
    ends = [torch.tensor([row + seen.q_offset], device=seen.device) for row in (begin, end)]
    nought = torch.zeros_like(ends[0])
    reach = reach_of(plan.keys, seen, ends[0], ends[1], (nought, nought))
    columns = torch.tensor(seen.sizes["Nk"], device=seen.device)
    reach = reach.moved(torch.tensor(seen.k_offset, device=seen.device), columns)
    outer, full = (
        [
            f"{lo} .. {hi - 1}"
            for lo, hi in zip(x.lo[:, 0].tolist(), x.hi[:, 0].tolist(), strict=True)
            if lo < hi
        ]
        for x in (reach.outer, reach.full)
    )
    shown = " and ".join(outer) or "none"
    whole = f" (in full {' and '.join(full)})" if full else ""
    what = "reach" if plan.strategy == "ranges" else "reach at most"
    return [f"for example rows {begin} .. {end} {what} columns {shown}{whole}"]


def work_text(plan: KernelPlan, visits: Visits) -> str:
    """Pairs computed and needed, and floating-point operations of the matrix products."""
    width, value_width = plan.request.head_dim, plan.request.value_dim
    products = {
        "forward": width + value_width,
        "decode": width + value_width,
        "backward": 3 * width + 2 * value_width,
        "backward_fused": 3 * width + 2 * value_width,
        "backward_dq": 2 * width + value_width,
        "backward_dkv": 2 * width + 2 * value_width,
    }[visits.kernel]
    pairs, taking = visits.computed_pairs, visits.needed_pairs
    sign, taken = ("" if known else "~" for known in (visits.is_counted, visits.are_pairs_known))
    part = f"{taken}{figure(taking, 'pairs')} ({share(taking, pairs)}) take part"
    if visits.pairs_error > MOST_ERROR:
        part = f"those that take part were {UNKNOWN}"
    elif visits.visited_error > MOST_ERROR:
        part = f"{taken}{figure(taking, 'pairs')} take part"
    if visits.visited_error > MOST_ERROR:
        return f"pairs computed were {UNKNOWN}, {part}"
    work = figure(2 * products * pairs, "FLOP")
    return f"{sign}{figure(pairs, 'pairs')} computed, {part}, {sign}{work}"


# -- how tiles are found ------------------------------------------------------------------------


def strategy_lines(plan: KernelPlan, seen: View, tests: int) -> list[str]:
    """The strategy, why, and what is prepared; tests as in `preparation_lines`."""
    if is_const(plan.program.mask, True):
        return ["there is no mask: every tile is visited, and nothing is prepared"]
    if plan.strategy == "ranges":
        where = "in the kernels" if plan.request.backend == "triton" else "per block of queries"
        return [f"ranges: the formulas above are computed {where}; nothing is prepared"]
    what = [f"`{formula(node)}`" for node in dict.fromkeys(data_of(plan))]
    reason = "the ranges are not all that is known of a tile"
    if plan.grid is not None:
        reason = "the positions of a box are no range"
    if what:
        is_many = len(what) > 1
        reason = f"{', '.join(what)} {'are' if is_many else 'is'} data, summarised per block"
    tiles = "tiles inside the ranges" if plan.grid is None else "boxes"
    how = f"{tiles} are classified and listed on the device, by another kernel"
    if plan.request.backend == "torch":
        how = f"{tiles} are classified, wide ones first"
    return [f"lists: {reason};", how, *preparation_lines(plan, seen, tests)]


def data_of(plan: KernelPlan) -> list[Node]:
    """The lookups that the summaries read."""
    return [
        node
        for summary in plan.summaries
        for node in find(summary.node, "lookup")
        if node.varies & {"q", "k"}
    ]


def cost_lines(plan: KernelPlan, found: list[Visits]) -> list[str]:
    """What of the mask keeps ranges from being tight, by line, and what is visited in vain."""
    rows = loss_lines(plan)
    if not rows and plan.grid is None:
        return []
    wasted = [
        f"{visits.kernel} {visits.visited / visits.needed:.3g}"
        for visits in found
        if visits.needed and visits.visited > visits.needed and is_told(visits)
    ]
    if wasted:
        rows.append(f"tiles visited for each that is needed: {', '.join(wasted)}")
    elif rows and all(visits.are_needed_known for visits in found):
        rows.append("here it costs nothing: every tile that is visited is needed")
    return rows


def is_told(visits: Visits) -> bool:
    """Whether what is visited in vain is more than what the estimates may be off."""
    wasted = visits.visited / visits.needed - 1
    return wasted > visits.needed_error and visits.visited_error <= MOST_ERROR


# -- kernels and gradients ------------------------------------------------------------------


def gradient_lines(plan: KernelPlan) -> list[str]:
    rows = ["query, key and value without atomics: the same bits every time"]
    if plan.backward_fused is not None:
        rows = [
            "query by atomic additions, in any order: the last bits may differ between runs",
            "key and value without atomics: the same bits every time",
        ]
    elif not plan.request.deterministic and plan.request.backend == "triton":
        rows.append(f"in separate kernels though any order would do: {plan.separate_because}")
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
