"""The comparison that `attndsl run` makes: it accepts what is right and notices what is not."""

from __future__ import annotations

import pytest
import torch

import attndsl
from attndsl.report import trial
from attndsl.report.arguments import Sizes, random_parameters
from attndsl.report.trial import compare, row_blocks, run

SIZES = Sizes(batch=2, heads=4, kv_heads=2, nq=37, nk=53, head_dim=16, value_dim=8, q_offset=16)
TEXT = """
attention a(bias: float[H, span], doc: int[B, N], gate: float[Nq, width], window: int = 20):
    mask   doc[b, q] <= doc[b, k] + 1 and q - k < window
    score  score + bias[h, q - k + 40]
    output out * gate[q - 16, d]
"""


def test_run_agrees():
    outcome = run(attndsl.compile(text=TEXT, backend="torch"), SIZES, {"span": 99}, device="cpu")
    assert outcome.passed, outcome.text
    assert {r.name for r in outcome.results} >= {"out", "lse", "grad bias", "grad gate"}
    assert "agrees" in outcome.text


def test_run_notices_a_wrong_result(monkeypatch):
    attention = attndsl.compile(text=TEXT, backend="torch")
    right = type(attention).reference

    def wrong(self, query, key, value, **given):
        return right(self, query, key * 1.01, value, **given)

    monkeypatch.setattr(type(attention), "__call__", wrong)
    outcome = run(attention, SIZES, {"span": 99}, device="cpu")
    assert not outcome.passed
    assert "WRONG" in outcome.text and "DOES NOT AGREE" in outcome.text


def test_a_sample_of_rows_gives_the_gradients_of_these_rows(monkeypatch):
    monkeypatch.setattr(trial, "BLOCK_PAIRS", 5 * 2 * 4 * SIZES.nk)
    monkeypatch.setattr(trial, "ALL_PAIRS", 15 * 2 * 4 * SIZES.nk)
    attention = attndsl.compile(text=TEXT, backend="torch")
    blocks, rows = row_blocks(attention.program, SIZES)
    assert [block.start for block in blocks] == [0, 15, 35] and len(rows) == 12
    outcome = run(attention, SIZES, {"span": 99}, device="cpu")
    assert outcome.passed, outcome.text
    assert outcome.rows_compared == 12


def test_nothing_passes_that_is_not_a_number():
    reference = {"out": torch.ones(1, 1, 2, 2)}
    got = {"out": torch.tensor([[[[1.0, 1.0], [1.0, float("nan")]]]])}
    (result,) = compare(got, reference, 1.0, torch.arange(2))
    assert not result.passed


def test_equal_infinities_agree_and_others_do_not():
    lse = torch.tensor([[[0.5, -torch.inf]]])
    rows = torch.arange(2)
    expected = {"lse": lse.double()}
    assert compare({"lse": lse}, expected, 1e-6, rows)[0].passed
    (result,) = compare({"lse": torch.full_like(lse, 0.5)}, expected, 1e-6, rows)
    assert not result.passed


def test_random_parameters_have_the_declared_shapes():
    program = attndsl.compile(text=TEXT).program
    drawn = random_parameters(program, SIZES, {"span": 7})
    assert drawn["bias"].shape == (4, 7)
    assert drawn["doc"].shape == (2, 53) and drawn["doc"].dtype == torch.int64
    assert drawn["gate"].shape == (37, 8)
    assert drawn["window"] == 20
    again = random_parameters(program, SIZES, {"span": 7})
    assert torch.equal(drawn["bias"], again["bias"])
    with pytest.raises(attndsl.ArgumentError, match="did you mean `window`"):
        random_parameters(program, SIZES, {"windw": 7})
    with pytest.raises(attndsl.ArgumentError, match="no scalar or dimension `doc`"):
        random_parameters(program, SIZES, {"doc": 7})
