"""Decisions of the planner: derivatives, levels, the shape of heads; the same plan twice."""

import pytest

import attndsl
from attndsl.ir.nodes import SCORE, TRUE, constant, make
from attndsl.plan.kernel_plan import KernelPlan, Request
from attndsl.plan.planner import plan
from attndsl.plan.text import dump


def plan_of(text: str, **request: object) -> KernelPlan:
    return plan(attndsl.compile(text=text).program, Request(**request))  # type: ignore[arg-type]


LEAVES = """
attention f(row: float[H, Nq], column: float[Nk], pair: float[H, R], rel: float[R, D]):
    score score * row[h, q] + column[k] + pair[h, q - k] + dot(query, rel[q - k])
"""


def test_leaves_and_their_levels() -> None:
    found = plan_of(LEAVES, grads=("row", "column", "pair", "rel")).leaves
    assert {leaf.node.name: leaf.level for leaf in found} == {
        "row": "row",
        "column": "column",
        "pair": "pair",
        "rel": "pair",
    }
    partials = {leaf.node.name: leaf.partial for leaf in found}
    assert partials["row"] is SCORE
    assert partials["column"] is partials["rel"] is constant(1.0)


def test_only_wanted_lookups_are_leaves() -> None:
    # A dot stays: the query has a gradient whether its table wants one or not.
    assert [leaf.node.name for leaf in plan_of(LEAVES).leaves] == ["rel"]


def test_weights_are_written_in_the_raw_score() -> None:
    text = "attention f:\n    score score * 2.0\n    weights exp(score)\n"
    found = plan_of(text)
    doubled = make("mul", SCORE, constant(2.0))
    assert found.logit is doubled
    assert found.value is make("exp", doubled)
    assert found.program.mask is TRUE


@pytest.mark.parametrize(
    ("score", "possible"),
    [
        ("score", False),
        ("tanh(score) * 3.0", False),
        ("score if k <= q else -inf", True),
        ("log(score)", True),
        ("score + bias[k]", True),
    ],
)
def test_logits_of_minus_infinity(score: str, possible: bool) -> None:
    text = f"attention f(bias: float[Nk]):\n    score {score}\n"
    assert plan_of(text).may_be_masked_by_score is possible


@pytest.mark.parametrize(
    ("dim", "widths"),
    [
        (64, [64]),
        (96, [64, 32]),
        (192, [128, 64]),
        (80, [64, 16]),
        (72, [64, 16]),
        (8, [16]),
        (256, [256]),
    ],
)
def test_head_dimensions_are_split(dim: int, widths: list[int]) -> None:
    text = "attention f:\n    mask k <= q\n"
    chunks = plan_of(text, backend="triton", target="sm_90", head_dim=dim).query_chunks
    assert [chunk.width for chunk in chunks] == widths
    assert sum(chunk.valid for chunk in chunks) == dim
    assert [chunk.start for chunk in chunks] == [sum(widths[:i]) for i in range(len(widths))]


def test_the_same_plan_has_the_same_text() -> None:
    request = {"grads": ("row", "pair"), "head_dim": 96}
    assert dump(plan_of(LEAVES, **request)) == dump(plan_of(LEAVES, **request))
