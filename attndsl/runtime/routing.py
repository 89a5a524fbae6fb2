"""What a call of a program with selects runs: its choices, and the program that reads them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attndsl.ir.program import Program
from attndsl.runtime import operators
from attndsl.runtime.choosing.operator import (
    choose as operator,  # an exported graph needs it registered
)
from attndsl.transform import route
from attndsl.transform.route import Form

OFFSETS = ("q_offset", "k_offset")


class Routed(NamedTuple):
    """A program without selects, and its text."""

    program: Program
    handle: str


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def form_of(handle: str) -> Form:
    """What the choices of a program, given by its text, are kept as."""
    return _form_of(handle)


@functools.lru_cache(maxsize=256)
def _form_of(handle: str) -> Form:
    return route.form_of(operators.program_of(handle))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def reader_of(handle: str, form: Form, shifted: tuple[str, ...]) -> str:
    """The text of what `routed` gives. A traced graph has it, not how it is found: torch.compile
    looks through caches, and cannot trace what makes nodes."""
    return routed(handle, form, shifted).handle


@functools.lru_cache(maxsize=256)
def routed(handle: str, form: Form, shifted: tuple[str, ...]) -> Routed:
    """The program that reads the choices of a program, given by its text: see `transform.route`."""
    program = route.route(operators.program_of(handle), form, shifted)
    return Routed(program, operators.register(program))


def shifted_offsets(q_offset: int | Tensor, k_offset: int | Tensor) -> tuple[str, ...]:
    """Which offsets may not be 0: an int that is 0 when a call is made, or traced, is so always."""
    offsets = zip(OFFSETS, (q_offset, k_offset), strict=True)
    return tuple(name for name, given in offsets if isinstance(given, Tensor) or given != 0)


def choose(
    handle: str,
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
) -> tuple[str, list[Tensor]]:
    """The text of the program that reads the choices of a call, and all its tensors.

    Takes what the operator attndsl::forward takes.
    """
    shifted = shifted_offsets(
        q_offset if q_offsets is None else q_offsets, k_offset if k_offsets is None else k_offsets
    )
    form = form_of(handle)
    reader = reader_of(handle, form, shifted if form == "table" else ())
    made = operator(
        query.detach(),
        key.detach(),
        [tensor.detach() for tensor in tensors],
        ints,
        floats,
        q_offset,
        k_offset,
        q_offsets,
        k_offsets,
        k_len,
        numbers,
        handle,
        form,
        reader if form == "lists" else "",
        "q_offset" in shifted,
        "k_offset" in shifted,
    )
    return reader, [*tensors, *made]
