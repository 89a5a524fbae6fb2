"""The examples that choose blocks: both generators against the reference, where choosing is hard.

Group sizes, short last blocks, fewer candidates than asked for, none at all, and ties everywhere.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl
from tests.oracle.compare import difference, differentiate, is_softmax
from tests.oracle.examples import FOLDER, NAMES, Sizes, example_inputs

ROUTING = tuple(name for name in NAMES if attndsl.compile(FOLDER / f"{name}.attn").program.selects)
MANY = 1000  # more than there are candidates
ENGINES = [("torch", 43), ("triton", 27)]  # and a length that no block divides


RANKED = ("importance", "gate", "landmark", "summary")  # what ranks are made of, besides keys
NONE = {"n": 0, "budget": 0, "threshold": 2.0, "mass": 0.0, "blocks": -1}
ALL = {"n": MANY, "budget": MANY, "threshold": -1.0, "mass": 2.0}


def compare(
    name: str, backend: str, sizes: Sizes, more: dict[str, Any] | None = None, is_tied: bool = False
) -> Tensor:
    """Which pairs take part. Raises where a generator differs from the reference in a value or a
    gradient. `more`: other numbers for parameters; a tensor is filled with them."""
    path = FOLDER / f"{name}.attn"
    query, key, value, inputs = example_inputs(name, sizes)
    consts, arguments = dict(inputs.consts), dict(inputs.arguments)
    for parameter, number in (more or {}).items():
        if parameter in consts:
            consts[parameter] = number
        elif parameter in arguments:
            old = arguments[parameter]
            arguments[parameter] = old.fill_(number) if isinstance(old, Tensor) else number
    if is_tied:
        key = key[:, :, :1].expand_as(key)
        arguments |= {n: torch.ones_like(x) for n, x in arguments.items() if n in RANKED}
    arguments = {n: x.float() if is_float(x) else x for n, x in arguments.items()}
    given = {"query": query.float(), "key": key.float(), "value": value.float(), **arguments}
    attention = attndsl.compile(path, backend=backend, **consts)
    wants_lse = is_softmax(path.read_text(encoding="utf-8"))

    def results(function: Any) -> Any:
        def call(**tensors: Any) -> Any:
            found = function(**tensors, **inputs.call, return_lse=wants_lse)
            return found if wants_lse else (found, None)

        return differentiate(call, given, wants_lse)

    wrong = difference(results(attention), results(attention.reference), 2e-4, 1e-2)
    assert not wrong, wrong
    return attention.mask(query=given["query"], key=given["key"], **arguments)


def is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@pytest.mark.parametrize("group", [1, 2, 3, 8])
@pytest.mark.parametrize(("backend", "length"), ENGINES)
@pytest.mark.parametrize("name", ROUTING)
def test_groups_and_short_last_blocks(name: str, backend: str, length: int, group: int) -> None:
    batch, heads = (2, 2) if backend == "torch" else (1, 1)
    assert compare(name, backend, Sizes(batch, heads * group, heads, length, 16, 16)).any()


@pytest.mark.parametrize(("backend", "length"), ENGINES)
@pytest.mark.parametrize("name", ROUTING)
def test_ties_everywhere(name: str, backend: str, length: int) -> None:
    compare(name, backend, Sizes(1, 2, 1, length, 16, 16), is_tied=True)


@pytest.mark.parametrize(("backend", "length"), ENGINES)
@pytest.mark.parametrize("name", ROUTING)
def test_none_and_more_than_there_are(name: str, backend: str, length: int) -> None:
    sizes = Sizes(1, 2, 1, length, 16, 16)
    none, usual = (compare(name, backend, sizes, more) for more in (NONE, None))
    assert none.sum() < usual.sum() or not usual.any()
    if name != "listed":
        assert usual.sum() < compare(name, backend, sizes, ALL).sum()


@pytest.mark.parametrize(("backend", "length"), ENGINES)
@pytest.mark.parametrize("name", [name for name in ROUTING if name not in ("sparge", "listed")])
def test_no_candidate(name: str, backend: str, length: int) -> None:
    """One block holds the whole sequence: where only blocks before it can be chosen, none is."""
    large = dict.fromkeys(("block", "page", "chunk", "region"), MANY)
    compare(name, backend, Sizes(1, 2, 1, length, 16, 16), large)
