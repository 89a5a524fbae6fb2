"""A call of a program with selects as one without: what its reports are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.ir.nodes import chosen
from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import KernelPlan, Request
from attndsl.plan.planner import plan as make_plan
from attndsl.reference import evaluate
from attndsl.report.choices.counts import Choice, choice_of, runs_of, tensors_missing
from attndsl.report.choices.text import Routing
from attndsl.runtime.arguments import input_sizes, slots_of
from attndsl.runtime.choosing.blocks import block_count, first_block
from attndsl.runtime.choosing.choice import sums_of
from attndsl.runtime.choosing.numbers import block_sizes
from attndsl.runtime.choosing.operator import choosings, lists_added
from attndsl.runtime.choosing.ranks import Inputs
from attndsl.runtime.dims import bind_dims
from attndsl.runtime.routed_views import known_sizes, with_tables
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
    slots = slots_of(program)
    if inputs is not None:
        known = input_sizes(*inputs, inputs[1])
        sizes = dict(sizes) | known_sizes(sizes, known)
    # Without query and key nothing is chosen, and what ranks read may be left out.
    reader = program if inputs is not None else replace(program, selects=())
    seen = view(reader, slots, sizes, q_offset, k_offset, k_len, parameters)
    if inputs is not None:
        seen = replace(seen, device=inputs[0].device)
    selects = used_selects(program)
    if not selects:
        return Shown(replace(program, selects=()), seen, None)
    form = form_of(program)
    routing = Routing(program, form, tuple(choice_of(select, seen) for select in selects))
    if form == "lists":
        routed = route(program, form)
        lists = None if inputs is None else added_lists(program, routed, seen, inputs)
        plain = replace(routed, parameters=program.parameters, routed=None)
        return Shown(plain, seen, replace(routing, lists=lists))
    if inputs is not None:
        return Shown(*with_tables(program, seen, *inputs), replace(routing, is_known=True))
    routed, most = with_candidates(program, routing.choices, seen)
    return Shown(routed, most or seen, replace(routing, has_tiles=most is not None))


def pictured_call(
    program: Program, seen: View, inputs: tuple[Tensor, Tensor]
) -> tuple[Program, View]:
    """The program and the call with what query and key choose in tables, whatever else is best."""
    for select in used_selects(program):
        m, n = block_sizes(select, seen.sizes, seen.scalars)
        tall = block_count(seen.sizes["Nq"], m, seen.q_offset)
        wide = block_count(seen.sizes["Nk"], n, seen.k_offset)
        if seen.sizes["B"] * seen.sizes["H"] * tall * wide > MOST_PICTURED:
            raise ArgumentError(
                f"`{select.name}` chooses among {tall:,} x {wide:,} blocks: too many to draw"
            )
    return with_tables(program, seen, *inputs)


def added_lists(
    program: Program, routed: Program, seen: View, inputs: tuple[Tensor, Tensor]
) -> Tensor:
    """The lists of a call, without blocks that add nothing."""
    assert routed.routed is not None
    query, key = (tensor.detach() for tensor in inputs)
    offsets = (seen.q_offset, seen.k_offset, seen.k_len)
    given = (seen.sizes, seen.scalars, seen.tensors)
    (choosing,) = choosings(program, Inputs(query, key, *offsets, *given))
    return lists_added(choosing, routed.routed)


def routed_part(shown: Shown, request: Request) -> KernelPlan:
    """The plan of the pairs that lists add."""
    assert shown.routing is not None
    routed = route(shown.routing.program, "lists")
    dtypes = (*request.tensor_dtypes, "int32")
    request = replace(request, tensor_dtypes=dtypes, per_batch=shown.seen.per_batch)
    plan = make_plan(routed, request).routed
    assert plan is not None
    return plan


def with_candidates(
    program: Program, choices: Sequence[Choice], seen: View
) -> tuple[Program, View | None]:
    """The program with tables, and the view with tables in which every candidate is chosen, so that
    tiles are at most those of a choice; None where that is too large, or not so."""
    routed = route(program, "table", seen.shifted)
    tensors, added = dict(seen.tensors), iter(routed.parameters[len(program.parameters) :])
    for choice in choices:
        table = None
        if is_positive(program.mask, chosen(choice.select.name)):  # else fewer may be more
            table = candidates_of(choice, seen)
        if table is None:
            return routed, None
        made = [table, sums_of(table)]
        firsts = {
            "q_offset": first_block(seen.q_offset, choice.rows),
            "k_offset": first_block(seen.k_offset, choice.columns),
        }
        for name in seen.shifted:
            first = torch.as_tensor(firsts[name], device=seen.device)
            made.append(first.expand(seen.sizes["B"]))
        tensors |= {next(added).name: tensor for tensor in made}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    sizes = bind_dims(routed, shapes, seen.sizes, seen.scalars)
    return routed, replace(seen, tensors=tensors, sizes=sizes)


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
