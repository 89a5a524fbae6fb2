"""Decisions of the planner: derivatives, levels, the shape of heads; the same plan twice."""

from dataclasses import replace

import pytest

import attndsl
from attndsl.analysis.grids import is_boxable
from attndsl.ir.nodes import SCORE, TRUE, Node, constant, index, make, scalar
from attndsl.ir.program import Routed
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


def routed_plan_of(columns: Node, **request: object) -> KernelPlan:
    """A plan of a window, and of lists of blocks of earlier keys."""
    text = "attention f(near: int[B, H, Nq, T], n: int = 64):\n    mask 0 <= q - k < n\n"
    q, k = index("q"), index("k")
    earlier = make("le", k, make("sub", q, scalar("n", "int")))
    routed = Routed("near", columns, earlier, False)
    program = replace(attndsl.compile(text=text).program, routed=routed)
    return plan(program, Request(tensor_dtypes=("int32",), **request))  # type: ignore[arg-type]


def test_lists_of_blocks_have_a_plan_of_their_own() -> None:
    found = routed_plan_of(constant(64))
    inner = found.routed
    assert inner is not None and inner.gathered is found.program.routed
    assert inner.gathered is not None and inner.program.mask is inner.gathered.mask
    assert inner.program.routed is None and inner.routed is None and found.gathered is None
    assert (inner.value, inner.raw_partial, inner.leaves) == (
        found.value,
        found.raw_partial,
        found.leaves,
    )
    text = dump(found)
    assert "routed by near per head\nattndsl-plan 1\n" in text
    assert text.endswith(dump(inner))


def test_a_mask_that_follows_from_the_lists_is_left_out() -> None:
    found = routed_plan_of(constant(64))
    routed = found.program.routed
    assert routed is not None and found.routed is not None
    assert found.routed.program.mask is routed.mask
    known = replace(found.program, routed=replace(routed, where=routed.mask))
    again = plan(known, found.request).routed
    assert again is not None and again.program.mask is TRUE
    assert again.tile.possible is again.tile.certain is TRUE


@pytest.mark.parametrize(
    ("columns", "widths"), [(8, [16, 16, 64]), (48, [64, 32, 64]), (512, [64, 32, 64])]
)
def test_tiles_are_as_wide_as_blocks(columns: int, widths: list[int]) -> None:
    call = {"backend": "triton", "target": "sm_90", "dtype": "bfloat16", "head_dim": 64}
    inner = routed_plan_of(constant(columns), **call).routed
    assert inner is not None
    sizes = (inner.forward, inner.backward_dq, inner.backward_dkv)
    assert [config.block_n for config in sizes] == widths
    unknown = routed_plan_of(scalar("n", "int"), **call).routed
    assert unknown is not None and unknown.backward_dkv.block_n == 64


def test_tiles_of_lists_are_no_boxes() -> None:
    text = (
        "attention f(near: int[B, H, Nq, T], w: int = 8):\n    grid y = Nq // w, x = w\n"
        "    mask abs(q.y - k.y) <= 1\n"
    )
    program = attndsl.compile(text=text).program
    routed = Routed("near", constant(64), TRUE, False)
    assert is_boxable(program) and not is_boxable(replace(program, routed=routed))
