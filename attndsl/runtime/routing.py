"""What a call of a program with selects runs: its choices, and the program that reads them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

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


@functools.lru_cache(maxsize=256)
def routed(handle: str, form: Form, shifted: tuple[str, ...]) -> Routed:
    """The program that reads the choices of a program, given by its text: see `transform.route`."""
    program = route.route(operators.program_of(handle), form, shifted)
    return Routed(program, operators.register(program))


class Readers(NamedTuple):
    """What the choices of a program are kept as, and the text of the program that reads them, by
    the offsets that may not be 0 (form "table")."""

    form: Form
    handles: Mapping[tuple[str, ...], str]


@functools.lru_cache(maxsize=256)
def readers_of(handle: str) -> Readers:
    """The readers of a program, given by its text. They are made before a call: torch.compile
    traces calls, and cannot trace what makes nodes."""
    form = route.form_of(operators.program_of(handle))
    shifts = [()] if form == "lists" else [(), *((name,) for name in OFFSETS), OFFSETS]
    return Readers(form, {shifted: routed(handle, form, shifted).handle for shifted in shifts})


def shifted_offsets(q_offset: int | Tensor, k_offset: int | Tensor) -> tuple[str, ...]:
    """Which offsets may not be 0: an int that is 0 when a call is made, or traced, is so always."""
    offsets = zip(OFFSETS, (q_offset, k_offset), strict=True)
    return tuple(name for name, given in offsets if isinstance(given, Tensor) or given != 0)


def choose(
    readers: Readers,
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

    `readers` are those of `handle`; the rest is what the operator attndsl::forward takes.
    """
    shifted = shifted_offsets(
        q_offset if q_offsets is None else q_offsets, k_offset if k_offsets is None else k_offsets
    )
    form = readers.form
    reader = readers.handles[shifted if form == "table" else ()]
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
