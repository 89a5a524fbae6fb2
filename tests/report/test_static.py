"""FlexAttention's templates, rendered without a GPU; our inner loops beside theirs."""

from __future__ import annotations

import ast

import pytest

pytest.importorskip("triton")
pytest.importorskip("jinja2")

from attndsl.report.bench.static import TITLES, Counted, kind_of, static, theirs
from attndsl.report.compiled import peer
from attndsl.report.compiled.compile import Job


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("render", [peer.flex_forward, peer.flex_backward])
def test_templates_are_rendered_whole(render, head_dim) -> None:
    job: Job = render(head_dim)
    (spec,) = job.kernels
    functions = [node for node in ast.parse(job.source).body if isinstance(node, ast.FunctionDef)]
    kernel = next(function for function in functions if function.name == spec.name)
    assert [argument.arg for argument in kernel.args.args] == list(spec.signature)
    assert "<" not in job.source.splitlines()[5]  # nothing is left to be filled in
    assert "(m) >= (n)" in job.source


def test_kinds_of_instructions() -> None:
    names = ("MUFU.EX2", "MUFU.RCP", "FFMA.FTZ", "LDSM.16.M88.4", "SELECT", "HGMMA.64x128x16.F32")
    assert [kind_of(name) for name in names] == ["ex2", None, "float", "shared", None, "wgmma"]


def test_backward_of_the_peer_has_two_full_loops() -> None:
    found: dict[str, Counted] = {counted.name: counted for counted in theirs(64)}
    assert list(found) == ["forward", "backward_dq", "backward_dkv"]
    dq, dkv = found["backward_dq"], found["backward_dkv"]
    assert dq.kernel is dkv.kernel
    # Both have tiles of 64 x 128; one multiplies them three times, the other four.
    assert 4 * dq.loop.multiply_adds == 3 * dkv.loop.multiply_adds
    for counted in found.values():
        assert len(counted.row) == len(TITLES)
        pairs = counted.loop.size / counted.per_pair  # of a thread: each takes one exponential
        assert pairs <= counted.row[TITLES.index("ex2")] <= pairs + 4
        assert 5 < counted.per_pair < 30


@pytest.mark.sweep
def test_suite() -> None:
    report = static()
    rows = [dict(zip(report.titles, row, strict=True)) for row in report.rows]
    for head_dim in (64, 128):
        for kernel in ("forward", "backward_dq", "backward_dkv"):
            both = [r for r in rows if (r["D"], r["kernel"]) == (head_dim, kernel)]
            whose = [str(row["whose"]).partition(",")[0] for row in both]
            assert whose == ["attndsl", "FlexAttention"]
