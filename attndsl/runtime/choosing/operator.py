"""The torch operator attndsl::choose: the tensors that the selects of a call become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.ir.program import Program, Routed
from attndsl.reference import Number
from attndsl.runtime.arguments import check_call, check_values, unpack
from attndsl.runtime.choosing.choice import Choosing, list_width, lists_of, public_list, tables_of
from attndsl.runtime.choosing.covered import drop_covered
from attndsl.runtime.choosing.ranks import Inputs
from attndsl.runtime.operators import no_autocast, program_of, read_numbers
from attndsl.transform.route import used_selects


@torch.library.custom_op("attndsl::choose", mutates_args=())
def choose(
    query: Tensor,
    key: Tensor,
    tensors: Sequence[Tensor],
    ints: Sequence[int],
    floats: Sequence[float],
    q_offset: int,
    k_offset: int,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    k_len: Tensor | None,
    numbers: Tensor | None,
    program: str,
    form: str,
    routed: str,
    q_shifted: bool,
    k_shifted: bool,
) -> list[Tensor]:
    """The tensors that routing adds to a program, in its order: see `transform/route.py`.

    program  the text of the program with its selects; ints, floats and numbers as in `forward`
    form     "lists" or "table"
    routed   of form "lists" the text of the program with lists: blocks that add no pair to its
             mask are left out. "": all are listed
    q_shifted, k_shifted   of form "table" whether `route` was told that the offset may not be 0
    """
    loaded = program_of(program)
    scalars = unpack(loaded, ints, read_numbers(0.0, floats, numbers)[1])
    offsets = (
        q_offset if q_offsets is None else q_offsets,
        k_offset if k_offsets is None else k_offsets,
    )
    inputs = inputs_of(loaded, query, key, tensors, scalars, *offsets, k_len)
    given = {"q_offset": q_offsets, "k_offset": k_offsets, "k_len": k_len}
    check_values(inputs.sizes, inputs.scalars, 1.0, given)
    found: list[Tensor] = []
    with torch.no_grad(), no_autocast(query):
        for choosing in choosings(loaded, inputs):
            if form == "table":
                found += tables_added(choosing, shifted_names(q_shifted, k_shifted))
            else:
                found.append(lists_added(choosing, program_of(routed).routed if routed else None))
    return found


@choose.register_fake
def _(
    query: Tensor,
    key: Tensor,
    tensors: Sequence[Tensor],
    ints: Sequence[int],
    floats: Sequence[float],
    q_offset: int,
    k_offset: int,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    k_len: Tensor | None,
    numbers: Tensor | None,
    program: str,
    form: str,
    routed: str,
    q_shifted: bool,
    k_shifted: bool,
) -> list[Tensor]:
    loaded = program_of(program)
    # No shape depends on a float: where the graph computes them, any will do.
    scalars = unpack(loaded, ints, [0.0] * len(loaded.scalars) if numbers is not None else floats)
    offsets = (
        q_offset if q_offsets is None else q_offsets,
        k_offset if k_offsets is None else k_offsets,
    )
    inputs = inputs_of(loaded, query, key, tensors, scalars, *offsets, k_len)
    found: list[Tensor] = []
    for choosing in choosings(loaded, inputs):
        tall, wide = choosing.rows.count, choosing.columns.count
        if form == "table":
            extents, sums = (tall, wide), (tall + 1, wide + 1)
            found.append(query.new_empty((*choosing.shape, *extents), dtype=torch.bool))
            found.append(query.new_empty((*choosing.shape, *sums), dtype=torch.int32))
            for _ in shifted_names(q_shifted, k_shifted):
                found.append(query.new_empty(query.shape[:1], dtype=torch.int32))
        else:
            shape = (*choosing.shape, tall, list_width(choosing))
            found.append(query.new_empty(shape, dtype=torch.int32))
    return found


def inputs_of(
    program: Program,
    query: Tensor,
    key: Tensor,
    tensors: Sequence[Tensor],
    scalars: Mapping[str, Number],
    q_offset: int | Tensor,
    k_offset: int | Tensor,
    k_len: Tensor | None,
) -> Inputs:
    """The call for choosing, its sizes checked; gradients do not pass. Raises ArgumentError."""
    offsets = {"q_offset": q_offset, "k_offset": k_offset, "k_len": k_len}
    given = {name: x if isinstance(x, Tensor) else None for name, x in offsets.items()}
    sizes = check_call(program, query, key, key, tensors, scalars, given)
    named = {t.name: x.detach() for t, x in zip(program.tensors, tensors, strict=True)}
    place = (q_offset, k_offset, k_len)
    return Inputs(query.detach(), key.detach(), *place, sizes, scalars, named)


def shifted_names(q_shifted: bool, k_shifted: bool) -> tuple[str, ...]:
    shifted = (("q_offset", q_shifted), ("k_offset", k_shifted))
    return tuple(name for name, is_shifted in shifted if is_shifted)


def lists_added(choosing: Choosing, routed: Routed | None) -> Tensor:
    """The lists of a select in form "lists", without blocks that add no pair to the mask beside
    them; all that are chosen where `routed` is None."""
    lists = lists_of(choosing)
    if routed is not None:
        drop_covered(lists, routed, choosing)
    return lists


def tables_added(choosing: Choosing, shifted: Sequence[str]) -> list[Tensor]:
    """The tensors of a select in form "table": table, sums, and int32 [B] the index of the first
    block of each axis that `shifted` names the offset of."""
    batches, device = choosing.inputs.sizes["B"], choosing.inputs.device
    firsts: list[Tensor] = []
    for offset, axis in (("q_offset", choosing.rows), ("k_offset", choosing.columns)):
        if offset not in shifted:
            continue
        if isinstance(axis.first, Tensor):
            firsts.append(axis.first.to(torch.int32))
        else:
            firsts.append(torch.full((batches,), axis.first, dtype=torch.int32, device=device))
    return [*tables_of(choosing), *firsts]


def choosings(program: Program, inputs: Inputs) -> list[Choosing]:
    """The selects that the mask names, each with the call."""
    return [Choosing.of(select, inputs) for select in used_selects(program)]


@torch.no_grad()
def chosen_blocks(program: Program, inputs: Inputs) -> Tensor | dict[str, Tensor]:
    """What the selects of a program choose, as `given` takes it; by name where there are several.

    See `choice.public_list`. Raises ArgumentError.
    """
    if not program.selects:
        raise ArgumentError(f"{program.name} has no select")
    given = {"q_offset": inputs.q_offset, "k_offset": inputs.k_offset, "k_len": inputs.k_len}
    tensors = {name: x if isinstance(x, Tensor) else None for name, x in given.items()}
    check_values(inputs.sizes, inputs.scalars, 1.0, tensors)
    with no_autocast(inputs.query):
        found = {s.name: public_list(Choosing.of(s, inputs)) for s in program.selects}
    return found if len(found) > 1 else found[program.selects[0].name]
