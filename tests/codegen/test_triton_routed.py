"""Lists of blocks in the Triton generator, in Triton's interpreter, against the oracle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl
from attndsl.ir.nodes import Node, constant
from attndsl.ir.program import Program, Routed
from attndsl.runtime.operators import forward, register
from tests.oracle.compare import cast, difference, differentiate, is_softmax, oracle_function

OWN = "k <= q and k // 8 == q // 8"
PAST = "k // 8 < q // 8"
REST = "k <= q and not (k // 8 == q // 8)"


@dataclass
class Case:
    """A call: sizes (batch, heads, key heads, Nq, Nk, D, Dv), and the program's parts.

    base, rest  the masks of the base and of what lists add; they are never both true
    where       what is known of all that lists hold
    columns     keys of a block, by default of 8
    slots       entries of a list; about a third of them are none
    body        what follows the mask
    """

    base: str = OWN
    rest: str = REST
    where: str = "true"
    body: str = ""
    sizes: tuple[int, ...] = (1, 2, 1, 33, 33, 16, 16)
    columns: int = 8
    slots: int = 3
    per_group: bool = False
    parameters: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    q_offset: Any = 0
    k_offset: Any = 0
    k_len: Tensor | None = None
    lists: Tensor | None = None
    dtype: torch.dtype = torch.float32
    tolerance: float = 2e-3


def floats(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, key_heads, rows, columns, width, value_width = case.sizes
    return (
        floats(batch, heads, rows, width, seed=3),
        floats(batch, key_heads, columns, width, seed=4),
        floats(batch, key_heads, columns, value_width, seed=5),
    )


def starts_of(case: Case, offset: Any) -> Tensor:
    """The first position of each sequence."""
    return torch.zeros(case.sizes[0], dtype=torch.int64) + offset


def block_count(case: Case) -> int:
    """One more than there can be, so that lists also name a block without keys."""
    return case.sizes[4] // case.columns + 2


def lists_of(case: Case) -> Tensor:
    """Random lists: none twice, in any order, none anywhere."""
    if case.lists is not None:
        return case.lists
    batch, heads, key_heads, rows, *_ = case.sizes
    count = max(block_count(case), case.slots)
    shape = (batch, key_heads if case.per_group else heads, rows, count)
    numbers = floats(*shape, seed=6).argsort(-1)[..., : case.slots]
    is_none = (floats(*numbers.shape, seed=7) > 0.4) | (numbers >= block_count(case))
    return torch.where(is_none, -1, numbers).int()


def listed(case: Case, lists: Tensor) -> Tensor:
    """Whether the list of a row holds the block of a column: bool [B, H, Nq, Nk]."""
    _, heads, _, _, length, _, _ = case.sizes
    shift = starts_of(case, case.k_offset) % case.columns
    block = (torch.arange(length) + shift[:, None]) // case.columns
    found = (lists[..., None, :] == block[:, None, None, :, None]).any(-1)
    return found.repeat_interleave(heads // found.shape[1], 1)


def mask_of(case: Case, text: str) -> Node:
    program = attndsl.compile(text=f"attention f({case.parameters}):\n    mask {text}\n").program
    return program.mask


def program_of(case: Case) -> Program:
    heads = "Hk" if case.per_group else "H"
    parameters = ", ".join(
        part for part in (case.parameters, f"near: int[B, {heads}, Nq, T]") if part
    )
    text = f"attention f({parameters}):\n    mask {case.base}\n{case.body}"
    rest, where = mask_of(case, case.rest), mask_of(case, case.where)
    routed = Routed("near", constant(case.columns), rest, case.per_group, where)
    return replace(attndsl.compile(text=text).program, routed=routed)


def oracle_of(case: Case) -> Any:
    parts = (case.parameters, "listed: bool[B, H, Nq, Nk]", "first_q: int[B]", "first_k: int[B]")
    text = (
        f"attention f({', '.join(part for part in parts if part)}):\n"
        f"    mask ({case.base}) or (({case.rest}) and "
        f"listed[b, h, q - first_q[b], k - first_k[b]])\n{case.body}"
    )
    call = {"q_offset": case.q_offset, "k_offset": case.k_offset, "k_len": case.k_len}
    return oracle_function(text, "<text>", None, {k: v for k, v in call.items() if v is not None})


def check(case: Case) -> None:
    query, key, value = inputs_of(case)
    lists, program = lists_of(case), program_of(case)
    handle = register(program)
    wants_lse = is_softmax(case.body)
    offsets = [None if type(x) is int else x for x in (case.q_offset, case.k_offset)]

    def compiled(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Any:
        tensors = [given.get(t.name, lists) for t in program.tensors]
        out, _, stat = forward(
            query,
            key,
            value,
            tensors,
            [given[s.name] for s in program.scalars if s.kind != "float"],
            [given[s.name] for s in program.scalars if s.kind == "float"],
            query.shape[3] ** -0.5,
            case.q_offset if offsets[0] is None else 0,
            case.k_offset if offsets[1] is None else 0,
            *offsets,
            case.k_len,
            None,
            handle,
            "triton",
        )
        return out, stat if wants_lse else None

    given = {"query": query, "key": key, "value": value, **case.arguments}
    given = {n: cast(cast(x, case.dtype), torch.float64) for n, x in given.items()}
    got = differentiate(compiled, {n: cast(x, case.dtype) for n, x in given.items()}, wants_lse)
    oracle = oracle_of(case)
    fixed = {
        "listed": listed(case, lists),
        "first_q": starts_of(case, case.q_offset),
        "first_k": starts_of(case, case.k_offset),
    }
    want = differentiate(lambda **inputs: oracle(**inputs, **fixed), given, wants_lse)
    wrong = difference(got, want, case.tolerance, 0.1)
    assert not wrong, wrong


BATCHED = (3, 2, 1, 17, 33, 16, 16)
CASES = {
    "plain": Case(),
    "proved": Case(where=PAST),
    "no base": Case("false", "true"),
}


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients(name: str) -> None:
    check(CASES[name])
