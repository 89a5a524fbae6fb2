"""The torch operator attndsl::choose: the tensors that the selects of a call become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from attndsl.diagnostics import ArgumentError
from attndsl.ir.program import Program
from attndsl.reference import Number
from attndsl.runtime.arguments import check_call, check_values, unpack
from attndsl.runtime.choice import Choosing, list_width, lists_of, public_list, tables_of
from attndsl.runtime.choice_covered import drop_covered
from attndsl.runtime.choice_ranks import Inputs
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
) -> list[Tensor]:
    """What the selects choose that the mask names, in the order of the program.

    program  the text of the program with its selects; ints, floats and numbers as in `forward`
    form     "lists": [NAME], "table": [NAME, NAME_sums] for each select, see `transform/route.py`
    routed   the text of the program with lists, or "": blocks that add no pair are left out
    """
    loaded, inputs = inputs_of(
        query,
        key,
        tensors,
        ints,
        floats,
        q_offset,
        k_offset,
        q_offsets,
        k_offsets,
        k_len,
        numbers,
        program,
    )
    given = {"q_offset": q_offsets, "k_offset": k_offsets, "k_len": k_len}
    check_values(inputs.sizes, inputs.scalars, 1.0, given)
    found: list[Tensor] = []
    with torch.no_grad(), no_autocast(query):
        for choosing in choosings(loaded, inputs):
            if form == "table":
                found += tables_of(choosing)
                continue
            lists = lists_of(choosing)
            lists_added = program_of(routed).routed if routed else None
            if lists_added is not None:
                drop_covered(lists, lists_added, choosing)
            found.append(lists)
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
) -> list[Tensor]:
    loaded, inputs = inputs_of(
        query,
        key,
        tensors,
        ints,
        floats,
        q_offset,
        k_offset,
        q_offsets,
        k_offsets,
        k_len,
        numbers,
        program,
    )
    found: list[Tensor] = []
    for choosing in choosings(loaded, inputs):
        tall, wide = choosing.rows.count, choosing.columns.count
        if form == "table":
            extents, sums = (tall, wide), (tall + 1, wide + 1)
            found.append(query.new_empty((*choosing.shape, *extents), dtype=torch.bool))
            found.append(query.new_empty((*choosing.shape, *sums), dtype=torch.int32))
        else:
            shape = (*choosing.shape, tall, list_width(choosing))
            found.append(query.new_empty(shape, dtype=torch.int32))
    return found


def inputs_of(
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
) -> tuple[Program, Inputs]:
    """The program and the checked call. While a graph is traced that computes its floats they are
    0: no shape depends on a float."""
    loaded = program_of(program)
    if numbers is None:
        scalars = unpack(loaded, ints, floats)
    elif isinstance(numbers, FakeTensor):
        scalars = unpack(loaded, ints, [0.0] * len(loaded.scalars))
    else:
        scalars = unpack(loaded, ints, read_numbers(0.0, floats, numbers)[1])
    return loaded, checked_inputs(
        loaded,
        query,
        key,
        list(tensors),
        scalars,
        q_offset if q_offsets is None else q_offsets,
        k_offset if k_offsets is None else k_offsets,
        k_len,
    )


def checked_inputs(
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
