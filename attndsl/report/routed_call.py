"""A call of a program with selects as one without: what its reports are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.ir.nodes import chosen, topological
from attndsl.ir.program import Program, Scalar, Select
from attndsl.plan.kernel_plan import KernelPlan, Request
from attndsl.plan.planner import plan as make_plan
from attndsl.reference import evaluate
from attndsl.report.choices import Choice, choice_of, runs_of, tensors_missing
from attndsl.report.routing import Routing
from attndsl.runtime.arguments import slots_of
from attndsl.runtime.choice import Choosing, lists_of, tables_of
from attndsl.runtime.choice_blocks import first_block
from attndsl.runtime.choice_covered import drop_covered
from attndsl.runtime.choice_ranks import Inputs
from attndsl.runtime.dims import bind_dims
from attndsl.runtime.views import View, view
from attndsl.transform.route import form_of, is_positive, route, used_selects

MOST_PICTURED = 1 << 28  # entries of a table that is drawn
MOST_ENTRIES = 1 << 26  # of a table that holds every candidate


class Shown(NamedTuple):
    """program  without selects: of form "lists" the mask without what is chosen
    seen      the call, with the tensors that the program has more than the user's
    routing   the selects; None where there are none
    """

    program: Program
    seen: View
    routing: Routing | None


def shown_call(
    program: Program,
    sizes: Mapping[str, object],
    q_offset: object,
    k_offset: object,
    k_len: object,
    parameters: Mapping[str, object],
    inputs: tuple[Tensor, Tensor] | None = None,
) -> Shown:
    """The call that a report is about. Takes what `attn.mask` takes, and query and key where what
    they choose is to be told; raises ArgumentError."""
    if inputs is not None:
        sizes = with_inputs(sizes, *inputs)
    call = (sizes, q_offset, k_offset, k_len, parameters)
    if not program.selects:
        return Shown(program, view(program, slots_of(program), *call), None)
    form = form_of(program)
    routed = route(program, form, shifted_in(q_offset, k_offset))
    # What the whole mask reads has to be given, whether or not it is left without what is chosen.
    seen = view(replace(program, selects=()), slots_of(program), *call)
    selects = used_selects(program)
    routing = Routing(program, form, tuple(choice_of(select, seen) for select in selects))
    choosing = [] if inputs is None else [choosing_of(s, program, seen, inputs) for s in selects]
    if form == "lists":
        plain = replace(routed, parameters=program.parameters, routed=None)
        lists = added_lists(routed, choosing[0]) if choosing else None
        return Shown(plain, seen, replace(routing, lists=lists))
    if choosing:
        seen = with_tables(routed, program, [Table.chosen(choice) for choice in choosing], seen)
        return Shown(routed, seen, replace(routing, is_known=True))
    tables = [Table.candidates(choice, seen) for choice in routing.choices]
    if not all(is_positive(program.mask, chosen(select.name)) for select in selects):
        tables.append(None)  # fewer blocks may be more pairs
    if any(table is None for table in tables):
        return Shown(routed, seen, replace(routing, has_tiles=False))
    found = [table for table in tables if table is not None]
    return Shown(routed, with_tables(routed, program, found, seen), routing)


def pictured_call(program: Program, seen: View, inputs: tuple[Tensor, Tensor]) -> Shown:
    """The call with what queries and keys choose in tables, whatever else is best."""
    routed = route(program, "table", shifted_in(seen.q_offset, seen.k_offset))
    tables = []
    for select in used_selects(program):
        choosing = choosing_of(select, program, seen, inputs)
        if prod((*choosing.shape, choosing.rows.count, choosing.columns.count)) > MOST_PICTURED:
            raise ArgumentError(
                f"`{select.name}` chooses among {choosing.rows.count:,} x "
                f"{choosing.columns.count:,} blocks here: too many to draw"
            )
        tables.append(Table.chosen(choosing))
    return Shown(routed, with_tables(routed, program, tables, seen), None)


def added_lists(routed: Program, choosing: Choosing) -> Tensor:
    """The lists of a call, without blocks that add nothing."""
    assert routed.routed is not None
    lists = lists_of(choosing)
    drop_covered(lists, routed.routed, choosing)
    return lists


def choosing_of(
    select: Select, program: Program, seen: View, inputs: tuple[Tensor, Tensor]
) -> Choosing:
    """A select with queries and keys; ArgumentError for parameters that are missing."""
    for parameter in program.parameters:
        known = seen.scalars if isinstance(parameter, Scalar) else seen.tensors
        if parameter.name not in known and parameter.name in names_read(select):
            raise ArgumentError(f"missing {parameter.name}, which `{select.name}` reads")
    query, key = (tensor.detach() for tensor in inputs)
    offsets = (seen.q_offset, seen.k_offset, seen.k_len)
    given = (seen.sizes, seen.scalars, seen.tensors)
    return Choosing.of(select, Inputs(query, key, *offsets, *given))


def names_read(select: Select) -> set[str]:
    """The parameters that a select reads."""
    nodes = (select.rows, select.columns, select.rank, select.where, select.limit)
    reads = topological(*(node for node in nodes if node is not None))
    names = {node.name for node in reads if node.op in ("lookup", "scalar")}
    return names | ({select.given} if select.given else set())


@dataclass(frozen=True)
class Table:
    """table bool [B, H or Hk, Ni, Nj], and the indices of its first blocks: ints, or int [B]."""

    table: Tensor
    sums: Tensor
    firsts: tuple[int | Tensor, int | Tensor]

    @staticmethod
    def chosen(choosing: Choosing) -> Table:
        table, sums = tables_of(choosing)
        return Table(table, sums, (choosing.rows.first, choosing.columns.first))

    @staticmethod
    def candidates(choice: Choice, seen: View) -> Table | None:
        """Every candidate, so that tiles are at most those of a choice; None where that is too
        large."""
        table = candidates_of(choice, seen)
        if table is None:
            return None
        firsts = (
            first_block(seen.q_offset, choice.rows),
            first_block(seen.k_offset, choice.columns),
        )
        return Table(table, rectangles(table), firsts)


def with_tables(routed: Program, program: Program, tables: Sequence[Table], seen: View) -> View:
    """The view with the tensors that routing adds to a program."""
    tensors, batches = dict(seen.tensors), seen.sizes["B"]
    added = iter(routed.parameters[len(program.parameters) :])
    shifted = shifted_in(seen.q_offset, seen.k_offset)
    for table in tables:
        made = [table.table, table.sums]
        for name, first in zip(("q_offset", "k_offset"), table.firsts, strict=True):
            if name in shifted:
                made.append(torch.as_tensor(first, device=seen.device).expand(batches))
        tensors |= {next(added).name: tensor for tensor in made}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    sizes = bind_dims(routed, shapes, seen.sizes, seen.scalars)
    return replace(seen, tensors=tensors, sizes=sizes)


def with_inputs(sizes: Mapping[str, object], query: Tensor, key: Tensor) -> dict[str, object]:
    """The sizes that query and key have; ArgumentError where one that is given is another."""
    names = ("B", "H", "Nq", "D")
    found: dict[str, object] = dict(zip(names, query.shape, strict=True))
    found |= {"Hk": key.shape[1], "Nk": key.shape[2]}
    for name, size in sizes.items():
        if size is not None and size != found[name]:
            raise ArgumentError(f"{name}: {size!r} is given, but query and key have {found[name]}")
    return found


def routed_part(shown: Shown, request: Request) -> KernelPlan:
    """The plan of the pairs that lists add."""
    assert shown.routing is not None
    routed = route(shown.routing.program, "lists")
    dtypes = (*request.tensor_dtypes, "int32")
    request = replace(request, tensor_dtypes=dtypes, per_batch=shown.seen.per_batch)
    plan = make_plan(routed, request).routed
    assert plan is not None
    return plan


def shifted_in(q_offset: object, k_offset: object) -> list[str]:
    """The offsets that may not be 0."""
    offsets = {"q_offset": q_offset, "k_offset": k_offset}
    return [n for n, offset in offsets.items() if isinstance(offset, Tensor) or offset != 0]


def candidates_of(choice: Choice, seen: View) -> Tensor | None:
    """bool [B, H or Hk, Ni, Nj] of blocks of the call; None where it is too large or not known."""
    batches, heads = seen.sizes["B"], choice.lists // max(1, seen.sizes["B"])
    shape = (batches, heads, choice.queries, choice.keys)
    where = choice.select.where
    if prod(shape) > MOST_ENTRIES or tensors_missing(where, seen):
        return None
    table = torch.zeros(shape, dtype=torch.bool, device=seen.device)
    runs = list(runs_of(choice.rows, choice.columns, seen))
    groups = seen.sizes["G"] if choice.select.per_group else 1
    for batch in range(batches):
        i, j = runs[batch % len(runs)]
        values = seen.values
        values.leaves |= {
            "b": torch.tensor(batch, device=seen.device),
            "h": torch.arange(heads, device=seen.device)[:, None, None] * groups,
            "i": torch.arange(i.first, i.first + i.count, device=seen.device)[:, None],
            "j": torch.arange(j.first, j.first + j.count, device=seen.device),
        }
        table[batch, :, : i.count, : j.count] = evaluate(where, values)
    return table


def rectangles(table: Tensor) -> Tensor:
    """int32 [B, heads, Ni + 1, Nj + 1]: the true entries before every row and column."""
    batches, heads, rows, columns = table.shape
    sums = torch.zeros(
        (batches, heads, rows + 1, columns + 1), dtype=torch.int32, device=table.device
    )
    sums[:, :, 1:, 1:] = table.to(torch.int32).cumsum(2).cumsum(3)
    return sums
