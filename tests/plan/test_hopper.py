"""The measured table of Hopper: which row a program has, and that kernels may have it."""

from __future__ import annotations

from dataclasses import replace

import pytest

import attndsl
from attndsl.ir.program import Program
from attndsl.plan.budget import KERNELS
from attndsl.plan.candidates import may_be
from attndsl.plan.hopper import TABLE, Kind, kind_of, measured
from attndsl.plan.kernel_plan import Config, Request
from attndsl.plan.planner import peeled_sizes, table_sizes, tiles_of, value_of
from attndsl.report.requests import request_for

WINDOW = "    mask 0 <= q - k < window\n"
BODIES: dict[str, tuple[str, Kind | None]] = {
    "": ("    mask true\n", "bare"),
    "n: int": ("    mask k <= q or k < n\n", "bare"),
    "slope: float[H]": ("    mask k <= q\n    score score - slope[h] * (q - k)\n", "plain"),
    "cap: float": ("    mask k <= q\n    score cap * tanh(score / cap)\n", "long"),
    "window: int": (WINDOW, "band"),
    "window: int, bias: float[Nk]": (WINDOW + "    score score + bias[k]\n", "band"),
    "window: int, cap: float": (WINDOW + "    score cap * tanh(score / cap)\n", "long"),
    "window: int, m: int": ("    mask 0 <= q - k < window or k < m\n", None),
    "doc: int[B, N]": ("    mask doc[b, q] == doc[b, k]\n", None),
    "bias: float[Nq, Nk]": ("    score score + bias[q, k]\n", None),
    "p: float": ("    score abs(score) ** p\n", None),
}


def program_of(parameters: str) -> Program:
    text = f"attention f({parameters}):\n{BODIES[parameters][0]}"
    return attndsl.compile(text=text).program


def row_of(program: Program, request: Request) -> tuple[Config, ...] | None:
    tiles = tiles_of(program, request)
    return measured(request, value_of(program), program.mask, tiles.strategy, tiles.keys)


@pytest.mark.parametrize("parameters", BODIES)
def test_the_row_of_a_program(parameters: str) -> None:
    program, wanted = program_of(parameters), BODIES[parameters][1]
    request = request_for(program, "sm_90", "bfloat16", 64, 64)
    row = row_of(program, request)
    if wanted is None:
        assert row is None and table_sizes(program, request) == peeled_sizes(program, request)
        return
    assert kind_of(value_of(program), program.mask, tiles_of(program, request).keys) == wanted
    assert row == TABLE[wanted][0][1]
    sizes = table_sizes(program, request)
    assert (sizes.forward, sizes.backward_dq, sizes.backward_dkv) == row


@pytest.mark.parametrize("kind", TABLE)
def test_kernels_may_have_what_was_measured(kind: Kind) -> None:
    program = next(program_of(p) for p, (_, wanted) in BODIES.items() if wanted == kind)
    for limit, row in TABLE[kind]:
        for dtype in ("bfloat16", "float16"):
            request = request_for(program, "sm_90", dtype, limit, limit)
            assert all(may_be(program, request, *pair) for pair in zip(KERNELS, row, strict=True))


def test_other_calls_have_other_tables() -> None:
    program = program_of("slope: float[H]")
    usual = request_for(program, "sm_90", "bfloat16", 128, 128)
    assert table_sizes(program, usual).forward.shape == "described"
    others = (
        {"aligned": False},
        {"unit_stride": False},
        {"target": "sm_80"},
        {"target": "sm_100"},
        {"dtype": "float32"},
        {"head_dim": 256},
    )
    for other in others:
        sizes = table_sizes(program, replace(usual, **other))  # type: ignore[arg-type]
        assert {getattr(sizes, kernel).shape for kernel in KERNELS} == {"peeled"}
