"""The kernel that makes all gradients at once: its results, and where the plan takes it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import attndsl
from attndsl.backend import load
from attndsl.plan.configs import work_of
from attndsl.plan.kernel_plan import Config, KernelPlan, Request, Sizes
from attndsl.plan.planner import plan, table_sizes
from attndsl.report.compiled.compile import CompiledKernel
from attndsl.report.requests import request_for
from tests.codegen.compilers import EXAMPLES, Compilers, job_of
from tests.codegen.compilers import plan_of as example_plan
from tests.codegen.test_torch import compiled
from tests.codegen.test_triton import CASES, CAUSAL, PLAIN, SINK, Case, floats, inputs_of
from tests.oracle.compare import cast, difference, differentiate, is_softmax, oracle_function
from tests.oracle.examples import FOLDER, NAMES, example_inputs
from tests.oracle.examples import Sizes as ExampleSizes

GENERATOR: Any = load("attndsl.codegen", "triton")
ODD = ExampleSizes(batch=1, heads=3, key_heads=1, length=50, width=20, value_width=12)

# Calls whose gradients the fused kernel makes. The others of `CASES` are for the sweep.
FUSED = [
    "width 72, values 40",
    "negative offset",
    "empty rows",
    "no key for any row",
    "offsets of each sequence",
    "lengths of each sequence",
    "negative scale",
    "alibi",
    "normalize",
    "elementwise",
    "gate",
    "scores of -inf",
    "tables of tables",
    "float16",
]
SEPARATE = {
    "relative": "`bias` is looked up pair by pair",
    "dense": "`bias` is looked up pair by pair",
    "dot": "`rel` is looked up pair by pair",
    "only scores of -inf": "no gradient reaches queries through the score",
}
# Examples that differ in form, strategy or order; the others are for the sweep.
FEW = ("alibi", "block_diffusion", "gated", "neighborhood_2d", "packed_documents", "sigmoid")

BIASED = "attention biased(bias: float[Nk]):\n    score score + bias[k]\n"
LISTED = (
    "attention listed(bias: float[Nk], kind: int[Nk]):\n"
    "    mask kind[q] == kind[k]\n    score score + bias[k]\n"
)
ROW_DOT = (
    "attention own(own: float[M, D], top: float[H, D]):\n    mask k <= q\n"
    "    score score + dot(query, own[q % 3])\n    output out * sigmoid(dot(query, top[h]))\n"
)


def check(
    text: str,
    given: dict[str, Any],
    call: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    tolerance: float = 2e-3,
    consts: dict[str, Any] | None = None,
) -> None:
    """Results and gradients of a call of one program by the fused kernel against the oracle."""
    consts, wants_lse = consts or {}, is_softmax(text)
    attention = attndsl.compile(text=text, backend="triton", deterministic=False, **consts)
    if plan_of(text, "interpreter", 16).backward_fused is None:
        pytest.skip("the kernels of this program are separate")

    def function(**given: Any) -> Any:
        result = attention(**given, **call, return_lse=wants_lse)
        return result if wants_lse else (result, None)

    # Every dtype starts from numbers that it can hold.
    given = {n: cast(cast(x, dtype), torch.float64) for n, x in given.items()}
    got = differentiate(function, {n: cast(x, dtype) for n, x in given.items()}, wants_lse)
    oracle = oracle_function(text, "<text>", None, call)
    want = differentiate(lambda **x: oracle(**x, **consts), given, wants_lse)
    wrong = difference(got, want, tolerance, 0.1)
    assert not wrong, wrong


def check_case(case: Case) -> None:
    query, key, value = inputs_of(case)
    given = {"query": query, "key": key, "value": value, **case.parameters}
    check(case.text, given, case.call, case.dtype, case.tolerance)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.parametrize(
    "name", [n if n in FUSED else pytest.param(n, marks=pytest.mark.sweep) for n in CASES]
)
def test_results_and_gradients(name: str) -> None:
    check_case(CASES[name])


@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (4, 2), (4, 1)])
def test_groups(heads: int, key_heads: int) -> None:
    sizes = (2, heads, key_heads, 35, 50, 20, 12)
    check_case(Case(SINK, sizes, {"sink": floats(heads)}, {"q_offset": 15}))


@pytest.mark.parametrize(("rows", "columns"), [(0, 17), (1, 33), (33, 0), (16, 32), (17, 31)])
def test_lengths(rows: int, columns: int) -> None:
    check_case(Case(CAUSAL, (1, 2, 1, rows, columns, 16, 16), call={"q_offset": columns - rows}))


def test_dots_of_rows_and_of_the_epilogue() -> None:
    given = {"own": floats(3, 16), "top": floats(2, 16)}
    check_case(Case(ROW_DOT, (1, 2, 1, 33, 17, 16, 16), given))


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("text", [BIASED, LISTED], ids=["ranges", "lists"])
def test_columns_beyond_the_last_key_add_nothing_to_rows(text: str) -> None:
    """They have no bias, so their weights overflow beside those of keys that have one of -500."""
    case = Case(text, (1, 2, 1, 33, 37, 16, 16), {"bias": floats(37) - 500})
    if text == LISTED:
        case.parameters["kind"] = torch.zeros(37, dtype=torch.int64)
    check_case(case)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_columns_beyond_the_length_of_a_sequence_add_nothing_to_rows() -> None:
    bias = torch.where(torch.arange(40) < 21, floats(40), 500 + floats(40))
    call = {"k_len": torch.tensor([21, 7])}
    check_case(Case(BIASED, (2, 2, 1, 20, 40, 16, 16), {"bias": bias}, call))


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.sweep) for n in NAMES]
)
def test_examples(name: str) -> None:
    query, key, value, inputs = example_inputs(name, ODD)
    given = {"query": query, "key": key, "value": value, **inputs.arguments}
    text = (FOLDER / f"{name}.attn").read_text(encoding="utf-8")
    check(text, given, inputs.call, consts=inputs.consts)


def plan_of(text: str, target: str, width: int, **changes: Any) -> KernelPlan:
    program = compiled(text)
    request = request_for(program, target, "bfloat16", width, width)
    return plan(program, replace(request, **{"deterministic": False, **changes}))


def test_the_cases_above_are_fused() -> None:
    texts = [CASES[name].text for name in FUSED] + [BIASED, LISTED, ROW_DOT, SINK]
    texts += [(FOLDER / f"{name}.attn").read_text(encoding="utf-8") for name in FEW]
    assert all(plan_of(text, "interpreter", 16).backward_fused for text in texts)


@pytest.mark.parametrize("name", SEPARATE)
def test_why_kernels_are_separate(name: str) -> None:
    found = plan_of(CASES[name].text, "sm_90", 64)
    assert (found.backward_fused, found.separate_because) == (None, SEPARATE[name])


def test_why_the_table_has_no_fused_kernel() -> None:
    assert Request().deterministic
    for target, deterministic, reason in (
        ("sm_90", True, "run to run"),
        ("sm_90", False, "faster where both were measured"),
        ("gfx942", False, "has not been tried"),
    ):
        found = plan_of(CAUSAL, target, 64, deterministic=deterministic)
        assert found.backward_fused is None and reason in found.separate_because


def test_measured_sizes_decide() -> None:
    config = Config(32, 64, 4, 2)
    three = Sizes(config, config, config)
    assert plan_of(CAUSAL, "sm_90", 64, sizes=three).backward_fused is None
    four = replace(three, backward_fused=Config(64, 64, 4, 2))
    assert plan_of(CAUSAL, "sm_90", 64, sizes=four).backward_fused == four.backward_fused


@pytest.mark.parametrize("text", [PLAIN, LISTED], ids=["ranges", "lists"])
def test_one_kernel_takes_the_place_of_two(text: str) -> None:
    fused = in_one_kernel(plan_of(text, "sm_90", 64))
    names = [kernel.name for kernel in GENERATOR.kernels(fused)]
    assert "backward_fused" in names and not {"backward_dq", "backward_dkv"} & set(names)
    host = GENERATOR.emit(fused).split("def run_backward(")[1]
    assert "classify_rows[" not in host  # nothing in it owns rows
    assert GENERATOR.emit(fused) == GENERATOR.emit(fused)


def test_products_and_additions_on_hopper(compilers: Compilers) -> None:
    """No product by the older instructions, and every addition is one of 16 bytes."""
    plans = [in_one_kernel(plan_of(CAUSAL, "sm_90", width)) for width in (64, 128)]
    for kernel in fused_kernels(compilers, plans):
        assert kernel.spill_bytes == 0 and kernel.mma == 0 and kernel.wgmma > 0
        additions = re.findall(r"relaxed\.add\.(\S+)", kernel.text("ptx"))
        assert set(additions) == {"v4.f32"}


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_no_kernel_spills_on_hopper(path: Path, dtype: str, compilers: Compilers) -> None:
    plans = [in_one_kernel(example_plan(path, "sm_90", width, dtype)) for width in (64, 96, 128)]
    if plans[0].program.grid is not None:
        boxes = [example_plan(path, "sm_90", width, dtype, "boxes") for width in (64, 128)]
        plans += map(in_one_kernel, boxes)
    for kernel in fused_kernels(compilers, plans):
        assert kernel.spill_bytes == 0 and kernel.wgmma > 0, kernel.resources()


def in_one_kernel(found: KernelPlan) -> KernelPlan:
    """The plan with one kernel for all gradients where there may be one, in tiles whose sums fit
    into registers: wide heads leave none for long masks, lookups and boxes."""
    width, request = found.request.head_dim, replace(found.request, deterministic=False)
    is_long = work_of(found.value, found.program.mask) in ("tables", "dots")
    if width > 64 and (is_long or request.order == "boxes"):
        return found
    config = Config(32 if width <= 96 else 16, 128, 8, 2)
    sizes = replace(table_sizes(found.program, request), backward_fused=config)
    return plan(found.program, replace(request, sizes=sizes))


def fused_kernels(compilers: Compilers, plans: list[KernelPlan]) -> list[CompiledKernel]:
    """The fused kernels of those plans that have one, compiled."""
    jobs = [job_of(p, {"backward_fused"}) for p in plans if p.backward_fused is not None]
    return [kernels[0] for kernels in compilers.compile_jobs(jobs)] if jobs else []
