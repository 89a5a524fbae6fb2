"""What a mask with selects is evaluated on: a call with the tables that queries and keys choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.ir.program import Program
from attndsl.runtime.arguments import Slot, check_input, input_sizes
from attndsl.runtime.choosing.operator import choosings, tables_added
from attndsl.runtime.choosing.ranks import Inputs
from attndsl.runtime.dims import bind_dims
from attndsl.runtime.operators import no_autocast
from attndsl.runtime.views import View, view
from attndsl.transform.route import route, used_selects


def routed_view(
    program: Program,
    slots: tuple[Slot, ...],
    sizes: Mapping[str, object],
    q_offset: object,
    k_offset: object,
    k_len: object,
    parameters: Mapping[str, object],
    query: object = None,
    key: object = None,
) -> tuple[Program, View]:
    """The program with what its selects choose in tables, and the call, tables included.

    query [B, H, Nq, D] and key [B, Hk, Nk, D] give the sizes too. They may be left out where the
    mask names no select. Takes what `views.view` takes besides; raises ArgumentError.
    """
    chosen = used_selects(program)
    if chosen and (query is None or key is None):
        raise ArgumentError(
            f"query, key: the mask of `{program.name}` depends on what `{chosen[0].name}` chooses; "
            "give query= and key="
        )
    if query is None and key is None:
        seen = view(program, slots, sizes, q_offset, k_offset, k_len, parameters)
        return replace(program, selects=()), seen
    vectors = (
        check_input("query", query, "[B, H, Nq, D]"),
        check_input("key", key, "[B, Hk, Nk, D]"),
    )
    known = input_sizes(*vectors, vectors[1])
    sizes = dict(sizes) | known_sizes(sizes, known)
    seen = view(program, slots, sizes, q_offset, k_offset, k_len, parameters)
    device = vectors[0].device
    for name, given in (seen.batch_ints | dict(seen.tensors)).items():
        if given.device != device:
            raise ArgumentError(f"{name}: expected query's device {device}, got {given.device}")
    return with_tables(program, replace(seen, device=device), *vectors)


def known_sizes(given: Mapping[str, object], known: Mapping[str, int]) -> dict[str, int]:
    """The sizes of query and key that a call may name; ArgumentError where it says otherwise."""
    found = {name: size for name, size in known.items() if name in given}
    for name, size in found.items():
        if given[name] is not None and given[name] != size:
            raise ArgumentError(f"{name}: {given[name]!r} is given, but query and key have {size}")
    return found


@torch.no_grad()
def with_tables(program: Program, seen: View, query: Tensor, key: Tensor) -> tuple[Program, View]:
    """The program without selects, and the call with the tensors that it has more."""
    shifted = seen.shifted
    routed = route(program, "table", shifted)
    offsets = (seen.q_offset, seen.k_offset, seen.k_len)
    known = (seen.sizes, seen.scalars, seen.tensors)
    inputs = Inputs(query.detach(), key.detach(), *offsets, *known)
    made: list[Tensor] = []
    with no_autocast(query):
        for choosing in choosings(program, inputs):
            made += tables_added(choosing, shifted)
    names = [t.name for t in routed.parameters[len(program.parameters) :]]
    tensors = dict(seen.tensors) | dict(zip(names, made, strict=True))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    sizes = bind_dims(routed, shapes, seen.sizes, seen.scalars)
    return routed, replace(seen, tensors=tensors, sizes=sizes)
