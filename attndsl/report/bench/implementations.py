"""What is measured: a call by name, and what it prepares; ours, and dense PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import attndsl
from attndsl.report.bench import dense
from attndsl.report.bench.cases import Case
from attndsl.report.bench.inputs import Inputs
from attndsl.report.bench.masks import PROGRAMS
from attndsl.report.bench.pairs import arguments_of
from attndsl.runtime.attention import Attention
from attndsl.runtime.engines import has_compiler

OURS = "attndsl"
# Scores of all heads that a dense implementation may hold: in float32 8 GB, and 256 MB of a CPU.
MOST_SCORES = {"cpu": 1 << 26, "cuda": 1 << 31}


class Refused(Exception):
    """A reason why an implementation is not timed on a case."""


@dataclass(frozen=True)
class Implementation:
    """One way to compute attention on one case.

    name      in tables
    attend    [B, H, Nq, D] of inputs and what was prepared for them
    prepare   what a mask costs before: a block mask, a dense mask; None: nothing
    has_backward   whether gradients can be taken
    """

    name: str
    attend: Callable[[Inputs, object], Tensor]
    prepare: Callable[[Inputs], object] | None = None
    has_backward: bool = True


# By the name that a user gives: the name in tables, and what is chosen for compile().
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "table": (f"{OURS}, table", {"tune": "off"}),
    "tuned": (f"{OURS}, tuned", {"tune": "max"}),
    "fast": (f"{OURS}, not deterministic", {"deterministic": False}),
    "torch": (f"{OURS}, PyTorch", {"backend": "torch"}),
}

# A name, and what makes the implementation for a case and a device; it may raise Refused, or any of
# PEER_ERRORS, later than the first call too.
Maker = Callable[[Case, str], Implementation]


def ours(
    case: Case, device: str, variants: tuple[str, ...] | None = None
) -> Iterator[tuple[str, Maker]]:
    """attndsl as it comes, which takes sizes that `attndsl tune` has stored; and beside it
    variants of VARIANTS, those that the device has unless given."""
    yield OURS, functools.partial(variant, name=OURS, choice={})
    if variants is None:  # on a CPU without a compiler the default is PyTorch itself
        variants = ("torch",) if device == "cpu" and has_compiler() else ()
    for name in variants:
        shown, choice = VARIANTS[name]
        yield shown, functools.partial(variant, name=shown, choice=choice)


def variant(case: Case, device: str, name: str, choice: dict[str, Any]) -> Implementation:
    attention = attndsl.compile(text=PROGRAMS, name=case.mask.program, **choice)
    return compiled(case, name, attention)


def compiled(case: Case, name: str, attention: Attention) -> Implementation:
    def attend(inputs: Inputs, prepared: object) -> Tensor:
        given = arguments_of(attention.program, inputs.given)
        out = attention(inputs.query, inputs.key, inputs.value, **given)
        assert isinstance(out, Tensor)
        return out

    return Implementation(name, attend)


def dense_pytorch(case: Case, device: str) -> Implementation:
    """Operations of PyTorch on all pairs, one after the other."""
    refuse_dense(case, device)
    return Implementation("PyTorch, dense", lambda inputs, _: dense.attend(inputs, case.mask))


def refuse_dense(case: Case, device: str) -> None:
    """Raises Refused where all pairs take too much memory."""
    shape = case.shape
    scores = shape.batch * shape.heads * shape.queries * shape.keys
    most = MOST_SCORES[device.partition(":")[0]]
    if scores > most:
        raise Refused(f"dense: more than {most >> 20} M scores")
