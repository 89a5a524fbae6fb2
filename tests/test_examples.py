"""Every example in both generators: forward, lse and all gradients against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attndsl
from tests.oracle.attention import Oracle
from tests.oracle.compare import cast, difference, differentiate, is_softmax, oracle_function
from tests.oracle.examples import FOLDER, MAKERS, NAMES, Sizes, example_inputs
from tests.oracle.parsing import parse_text

SMALL = Sizes(batch=2, heads=4, key_heads=2, length=36, width=16, value_width=16)
ODD = Sizes(batch=1, heads=3, key_heads=1, length=50, width=20, value_width=12)
TINY = Sizes(batch=1, heads=2, key_heads=1, length=20, width=16, value_width=16)

ENGINES = [
    pytest.param("torch", torch.float64, SMALL, 1e-6, id="torch-float64"),
    pytest.param("torch", torch.float64, ODD, 1e-6, id="torch-float64-odd"),
    pytest.param("torch", torch.float32, SMALL, 1e-3, id="torch-float32"),
    pytest.param("triton", torch.float32, TINY, 2e-3, id="triton-float32"),
]


def check(name: str, backend: str, dtype: torch.dtype, sizes: Sizes, tolerance: float) -> None:
    path = FOLDER / f"{name}.attn"
    text = path.read_text(encoding="utf-8")
    query, key, value, inputs = example_inputs(name, sizes)
    wants_lse = is_softmax(text)
    attention = attndsl.compile(path, backend=backend, **inputs.consts)

    def compiled(**given: Any) -> Any:
        result = attention(**given, **inputs.call, return_lse=wants_lse)
        return result if wants_lse else (result, None)

    given = {"query": query, "key": key, "value": value, **inputs.arguments}
    got = differentiate(compiled, {n: cast(x, dtype) for n, x in given.items()}, wants_lse)
    oracle = oracle_function(text, str(path), None, inputs.call)
    want = differentiate(lambda **x: oracle(**x, **inputs.consts), given, wants_lse)
    wrong = difference(got, want, tolerance, 1e-3 if dtype == torch.float64 else 0.1)
    assert not wrong, wrong


@pytest.mark.parametrize(("backend", "dtype", "sizes", "tolerance"), ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_example_agrees_with_oracle(
    name: str, backend: str, dtype: torch.dtype, sizes: Sizes, tolerance: float
) -> None:
    check(name, backend, dtype, sizes, tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_mask_and_reference_agree_with_oracle(name: str) -> None:
    path = FOLDER / f"{name}.attn"
    query, key, value, inputs = example_inputs(name, ODD)
    attention = attndsl.compile(path, **inputs.consts)
    file = parse_text(path.read_text(encoding="utf-8"), str(path))
    arguments = {**inputs.arguments, **inputs.consts}
    oracle = Oracle(file, None, query, key, value, arguments=arguments, **inputs.call)
    want = oracle.mask()
    sizes = {"B": query.shape[0], "H": query.shape[1], "Hk": key.shape[1], "D": query.shape[3]}
    sizes |= {"Nq": query.shape[2], "Nk": key.shape[2]}
    seen = {"query": query, "key": key} if attention.program.selects else sizes
    got = attention.mask(**seen, **inputs.arguments)
    assert torch.equal(got.expand(want.shape), want)
    out = attention.reference(query, key, value, **inputs.call, **inputs.arguments)
    assert torch.allclose(out, oracle.run()[0], atol=1e-9)


def test_every_example_has_inputs_a_source_and_a_docstring() -> None:
    assert set(NAMES) == set(MAKERS)
    for name in NAMES:
        text = (FOLDER / f"{name}.attn").read_text(encoding="utf-8")
        doc = text.split('"""')[1]
        assert "et al." in doc or "Team" in doc or "OpenAI" in doc or "arXiv" in doc, (
            f"{name} names no source"
        )
        assert any(year in doc for year in map(str, range(2017, 2027))), f"{name} has no year"
