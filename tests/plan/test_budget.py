"""Shared memory: the bound against what Triton's compiler reports; tables and candidates fit every
card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

import attndsl
from attndsl.ir.program import Program
from attndsl.plan.budget import KERNELS, KernelName, shared_bytes, shared_limit
from attndsl.plan.candidates import candidates, is_legal
from attndsl.plan.configs import Work, configs
from attndsl.plan.kernel_plan import Config, Request
from attndsl.plan.planner import peeled_sizes, table_sizes
from attndsl.report.compiled.compile import compile_jobs
from attndsl.report.requests import request_for
from attndsl.report.tuning.dry import job
from attndsl.transform.route import form_of, route

EXAMPLES = sorted(Path("examples").glob("*.attn"))
CARDS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950", "sm_75")
DTYPES = ("bfloat16", "float16", "float32")
COMPILED = ("sm_80", "sm_90", "sm_100", "gfx942")


@cache
def program_of(name: str) -> Program:
    program = attndsl.compile(f"examples/{name}.attn").program
    return route(program, form_of(program)) if program.selects else program


def requests(name: str) -> Iterator[Request]:
    for target in CARDS:
        for dtype in DTYPES:
            for width in (16, 64, 80, 96, 128, 192, 256):
                yield request_for(program_of(name), target, dtype, width, width)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_tables_sizes_fit_every_card(path: Path) -> None:
    program = program_of(path.stem)
    for request in requests(path.stem):
        sizes = table_sizes(program, request)
        assert is_legal(program, replace(request, sizes=sizes)), (request.target, sizes)


def test_the_table_is_written_for_its_own_cards() -> None:
    """sm_90 and sm_80 have its sizes as they stand: nothing was taken away to make them fit."""
    for path in EXAMPLES:
        program = program_of(path.stem)
        for target in ("sm_90", "sm_80"):
            for width in (64, 128, 256):
                request = request_for(program, target, "bfloat16", width, width)
                written = [configs(request, work) for work in get_args(Work)]
                assert peeled_sizes(program, request) in written, (path, request)


@pytest.mark.parametrize("name", ["causal", "t5", "packed_documents", "music_transformer", "moba"])
def test_candidates_fit_and_are_many(name: str) -> None:
    program = program_of(name)
    for request in requests(name):
        for kernel in KERNELS:
            found = candidates(program, request, kernel)
            assert len(set(found)) == len(found) <= 41
            sizes = table_sizes(program, request)
            for config in found:
                tried = replace(request, sizes=replace(sizes, **{kernel: config}))
                assert is_legal(program, tried), (request, kernel, config)
    usual = request_for(program, "sm_90", "bfloat16", 64, 64)
    assert min(len(candidates(program, usual, kernel)) for kernel in KERNELS) >= 6


def test_kernels_are_described_where_they_may_be() -> None:
    """Those of the table for descriptors where a request allows them, else peeled ones."""
    program = program_of("causal")
    request = request_for(program, "sm_90", "bfloat16", 64, 64)
    found = table_sizes(program, request)
    assert {getattr(found, kernel).shape for kernel in KERNELS} == {"described"}
    wide = request_for(program, "sm_90", "bfloat16", 256, 256)
    exact = request_for(program, "sm_90", "float32", 64, 64)
    others = (replace(request, aligned=False), replace(request, target="sm_80"), wide, exact)
    for other in others:
        assert table_sizes(program, other).forward.shape == "peeled"
    pairs = program_of("t5")
    looked_up = table_sizes(pairs, request_for(pairs, "sm_90", "bfloat16", 64, 64))
    assert looked_up.forward.shape == "peeled"


def test_a_larger_tile_needs_no_less() -> None:
    program = program_of("t5")
    for request in requests("t5"):
        for kernel in KERNELS:
            base = Config(32, 32, 4, 2)
            larger = (replace(base, block_m=64), replace(base, block_n=64))
            for config in (*larger, replace(base, num_stages=3)):
                small, large = (shared_bytes(program, request, kernel, c) for c in (base, config))
                assert small <= large


def test_cards_that_are_not_known_have_the_least() -> None:
    assert shared_limit("sm_999") == shared_limit("sm_86") < shared_limit("sm_80")
    assert shared_limit("gfx1100") == shared_limit("gfx942") == 64 * 1024


Case = tuple[str, str, int, str, KernelName, Config]  # example, target, width, dtype, ...


def check_bounds(cases: list[Case]) -> None:
    """Compiles the kernels that have these sizes, all in one process, and compares."""
    jobs = []
    for name, target, width, dtype, kernel, config in cases:
        program = program_of(name)
        request = request_for(program, target, dtype, width, width)
        sizes = replace(table_sizes(program, request), **{kernel: config})
        jobs.append(job(program, replace(request, sizes=sizes), kernel))
    for case, compiled in zip(cases, compile_jobs(jobs), strict=True):
        name, target, width, dtype, kernel, config = case
        request = request_for(program_of(name), target, dtype, width, width)
        bound = shared_limit(target)
        if config.shape == "peeled":
            bound = shared_bytes(program_of(name), request, kernel, config)
        assert compiled
        for one in compiled:
            assert one.shared_bytes <= bound <= shared_limit(target), (case, one.name, bound)


# Each has been near its bound: the tightest of a target, and what tables add.
SAMPLE: list[Case] = [
    ("packed_documents", "sm_90", 64, "bfloat16", "forward", Config(128, 64, 8, 3)),
    ("causal", "sm_90", 64, "bfloat16", "backward_dkv", Config(64, 64, 4, 3)),
    ("t5", "sm_80", 64, "bfloat16", "backward_dq", Config(64, 32, 8, 1)),
    ("pair_bias", "gfx942", 64, "bfloat16", "forward", Config(128, 32, 4, 1)),
    ("causal", "sm_100", 64, "bfloat16", "forward", Config(64, 64, 4, 3)),
]


def test_the_bound_holds() -> None:
    pytest.importorskip("triton")
    check_bounds(SAMPLE)


@pytest.mark.sweep
@pytest.mark.parametrize("target", COMPILED)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_bound_holds_for_candidates(path: Path, target: str) -> None:
    """The first, the last and one of the middle, of every kernel; and the table's."""
    pytest.importorskip("triton")
    program = program_of(path.stem)
    cases: list[Case] = []
    for width, dtype in ((64, "bfloat16"), (128, "bfloat16"), (64, "float32")):
        request = request_for(program, target, dtype, width, width)
        for kernel in KERNELS:
            found = candidates(program, request, kernel)
            some = {found[i] for i in (0, len(found) // 2, -1)} if found else set()
            chosen = sorted({*some, getattr(table_sizes(program, request), kernel)}, key=repr)
            cases += [(path.stem, target, width, dtype, kernel, config) for config in chosen]
    check_bounds(cases)
