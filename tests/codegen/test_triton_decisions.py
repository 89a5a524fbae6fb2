"""What floats decide, they decide alike in every kernel: exact quotients, nothing fused."""

import pytest

import attndsl
from attndsl.backend import load
from attndsl.plan.kernel_plan import KernelPlan
from attndsl.plan.planner import plan
from attndsl.report.requests import request_for


def plan_of(body: str) -> KernelPlan:
    text = f"attention f(t: float[R], a: float = 0.1):\n    {body}\n"
    program = attndsl.compile(text=text).program
    return plan(program, request_for(program, "sm_90", "bfloat16", 64, 64))


@pytest.mark.parametrize(
    ("body", "may_fuse"),
    [
        ("score score * a + 1.0", True),
        ("mask k <= q", True),
        ("score score if score > a else a", True),  # the score is the same in every kernel
        ("mask float(q) * a - float(k) * a < 1.0", False),
        ("score score + t[floor(float(q - k) * a)]", False),
        ("mask sqrt(float(q - k)) <= a", False),
    ],
)
def test_fusion(body: str, may_fuse: bool) -> None:
    made = plan_of(body)
    generator = load("attndsl.codegen", "triton")
    assert made.may_fuse is may_fuse
    assert all(kernel.may_fuse is may_fuse for kernel in generator.kernels(made))
    assert f"enable_fp_fusion={not may_fuse}" not in generator.emit(made)


@pytest.mark.parametrize(
    ("body", "exact"),
    [
        ("score score / a", False),
        ("mask float(q) / float(k + 1) < a", True),
        ("score score + t[int(float(q) / a) + k]", True),
        ("mask sqrt(float(q * q + k * k)) <= a", True),
        ("score sqrt(abs(score))", False),
    ],
)
def test_quotients_and_roots_that_decide(body: str, exact: bool) -> None:
    text = load("attndsl.codegen", "triton").emit(plan_of(body))
    assert ("attn_divide(" in text or "attn_root(" in text) is exact
