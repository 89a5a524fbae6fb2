"""A call of a program with selects as one without: what its reports are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.ir.nodes import TRUE
from attndsl.ir.program import Program, Scalar
from attndsl.plan.kernel_plan import KernelPlan, Request
from attndsl.plan.planner import plan as make_plan
from attndsl.reference import evaluate
from attndsl.report.choices import Choice, choice_of, runs_of, tensors_missing
from attndsl.report.routing import Routing
from attndsl.runtime.arguments import slots_of
from attndsl.runtime.dims import bind_dims
from attndsl.runtime.views import View, view
from attndsl.transform.route import form_of, route, used_selects

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
    query: Tensor | None = None,
    key: Tensor | None = None,
) -> Shown:
    """The call that a report is about. Takes what `attn.mask` takes; raises ArgumentError."""
    if query is not None and key is not None:
        sizes = with_inputs(sizes, query, key)
    call = (sizes, q_offset, k_offset, k_len, parameters)
    if not program.selects:
        return Shown(program, view(program, slots_of(program), *call), None)
    form = form_of(program)
    routed = route(program, form, per_batch_of(q_offset, k_offset))
    # What the whole mask reads has to be given, whether or not it is left without what is chosen.
    seen = view(replace(program, selects=()), slots_of(program), *call)
    choices = tuple(choice_of(select, seen) for select in used_selects(program))
    routing = Routing(program, form, choices)
    if form == "lists":
        plain = replace(routed, parameters=program.parameters, routed=None)
        return Shown(plain, seen, routing)
    everything = with_candidates(routed, program, choices, seen)
    if everything is None:
        return Shown(routed, seen, replace(routing, has_tiles=False))
    return Shown(routed, everything, routing)


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
    routed = route(shown.routing.program, "lists", shown.seen.per_batch)
    dtypes = (*request.tensor_dtypes, "int32")
    request = replace(request, tensor_dtypes=dtypes, per_batch=shown.seen.per_batch)
    plan = make_plan(routed, request).routed
    assert plan is not None
    return plan


def per_batch_of(q_offset: object, k_offset: object) -> list[str]:
    """Which offsets are tensors."""
    offsets = {"q_offset": q_offset, "k_offset": k_offset}
    return [name for name, offset in offsets.items() if isinstance(offset, Tensor)]


def with_candidates(
    routed: Program, program: Program, choices: Sequence[Choice], seen: View
) -> View | None:
    """The view with tables in which every candidate is chosen, so that tiles are at most those of
    a choice; None where that would be too large, or where candidates are not known."""
    tensors, scalars = dict(seen.tensors), dict(seen.scalars)
    added = routed.parameters[len(program.parameters) :]
    for number, choice in enumerate(choices):
        table, sums, *firsts = added[4 * number : 4 * number + 4]
        found = candidates_of(choice, seen)
        if found is None:
            return None
        tensors[table.name], tensors[sums.name] = found, rectangles(found)
        runs = list(runs_of(choice.rows, choice.columns, seen))
        for parameter, numbers in zip(firsts, zip(*runs, strict=True), strict=True):
            first = [run.first for run in numbers]
            if isinstance(parameter, Scalar):
                scalars[parameter.name] = first[0]
            else:
                tensors[parameter.name] = torch.tensor(first, device=seen.device)
    sizes = bind_dims(routed, {n: t.shape for n, t in tensors.items()}, seen.sizes, scalars)
    return replace(seen, tensors=tensors, scalars=scalars, sizes=sizes)


def candidates_of(choice: Choice, seen: View) -> Tensor | None:
    """bool [B, H or Hk, Ni, Nj] of blocks of the call; None where it is too large or not known."""
    batches, heads = seen.sizes["B"], choice.lists // max(1, seen.sizes["B"])
    shape = (batches, heads, choice.queries, choice.keys)
    where = TRUE if tensors_missing(choice.select.where, seen) else choice.select.where
    if prod(shape) > MOST_ENTRIES:
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
