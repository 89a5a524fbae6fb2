"""`attndsl tune`: contests with a clock of the test's own, dry runs, and what both print."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import attndsl
from attndsl.cli import main
from attndsl.plan import backward, candidates
from attndsl.plan.budget import KERNELS
from attndsl.plan.kernel_plan import Config, Request
from attndsl.plan.planner import plan
from attndsl.report.arguments import Sizes
from attndsl.report.requests import request_for
from attndsl.report.tuning.dry import DryRun, Static
from attndsl.report.tuning.stored import with_stored_sizes
from attndsl.report.tuning.tune import Tuned, tune
from attndsl.runtime import cache, measuring, targets, tuned
from attndsl.runtime.measuring import Contest, Measured
from attndsl.runtime.settings import Settings
from attndsl.runtime.tuned import Place, Winner

pytest.importorskip("triton")

TEXT = """
attention near(window: int = 9):
    mask 0 <= q - k < window
"""
SIZES = Sizes(1, 2, 1, 20, 20, 16, 16)
FEW = {"peeled": ((16,), (16, 32), (1,), (1,))}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ATTNDSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(candidates, "INTERPRETER", FEW)
    cache.forget()
    yield
    cache.forget()


def timer(call: Callable[[], object]) -> float:
    """All take as long, so the table's sizes stay."""
    return 1.0


def tuned_on_cpu(**settings: Any) -> Tuned:
    attention = attndsl.compile(text=TEXT, backend="triton", **settings)
    return tune(attention, SIZES, dtype="float32", device="cpu", timer=timer)


def test_every_kernel_has_a_contest() -> None:
    found = tuned_on_cpu()
    assert [contest.kernel for contest in found.contests] == list(KERNELS)
    assert found.passed and all(path.is_file() for path in found.files)
    for contest in found.contests:
        assert contest.best is contest.table and len(contest.results) > 2
        assert not any(result.refusal for result in contest.results)
    assert found.text.startswith(
        "near: batch 1, heads 2 (1 of keys), 20 queries, 20 keys, head dim"
    )
    assert "backward_dkv\n  tile " in found.text and "of the table, fastest" in found.text
    assert f"stored in {found.files[0]}" in found.text
    json.dumps(found.record)


def test_without_determinism_the_fused_kernel_has_one() -> None:
    found = tuned_on_cpu(deterministic=False)
    assert [contest.kernel for contest in found.contests] == [*KERNELS, "backward_fused"]
    fused = found.contests[-1]
    assert any(result.config is None for result in fused.results)
    assert fused.table.config is not None
    assert "separate" in found.text and found.passed


def test_winners_are_written_as_a_row_of_the_table() -> None:
    table, best = Config(64, 32, 4, 3), Config(128, 64, 8, 2, "described")
    results = (Measured(table, 2.0, 24), Measured(best, 1.0, 24))
    contests = tuple(Contest(kernel, (4096, 4096), results) for kernel in KERNELS)
    found = Tuned("near", "NVIDIA H200", "bfloat16", SIZES, contests, ())
    comment, row = found.rows().splitlines()
    assert comment.startswith("# measured: NVIDIA H200, near, 20 x 20, bfloat16, 2")
    config = 'Config(128, 64, 8, 2, "described")'
    assert row == f"(16, Sizes({config}, {config}, {config})),"


def test_a_refused_candidate_shows_and_is_a_failure() -> None:
    results = (Measured(Config(64, 32), 2.0, 24), Measured(Config(64, 64), refusal="explodes"))
    found = Tuned("near", "X", "bfloat16", SIZES, (Contest("forward", (1, 1), results),), ())
    assert not found.passed
    assert "explodes" in found.text


def test_a_later_call_uses_the_winner(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = attndsl.compile(text=TEXT, backend="triton")
    wanted = Config(16, 32, 1, 1)
    quick: list[Callable[[], object]] = []
    inner = measuring.Runs.call

    def call(self: Any, sizes: Any) -> Callable[[], object]:
        made: Callable[[], object] = inner(self, sizes)
        if sizes.forward == wanted:
            quick.append(made)
        return made

    monkeypatch.setattr(measuring.Runs, "call", call)
    found = tune(
        attention,
        SIZES,
        dtype="float32",
        device="cpu",
        timer=lambda call: 1.0 if call in quick else 2.0,
    )
    assert found.contests[0].best.config == wanted
    seen: list[Request] = []
    module_of = cache.module_of
    monkeypatch.setattr(cache, "module_of", lambda *a: (seen.append(a[2]), module_of(*a))[1])
    x = [torch.randn(1, 2, 20, 16) for _ in range(3)]
    attention(*x)
    assert seen[-1].sizes is not None and seen[-1].sizes.forward == wanted


# -- the command ---------------------------------------------------------------------------------


def command(*words: str) -> int:
    return main(["tune", "examples/causal.attn", *words])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 1
    assert "there is no GPU here" in capsys.readouterr().err
    assert command("--device", "cpu") == 1
    assert "sizes are measured on a GPU, got 'cpu'" in capsys.readouterr().err


def test_options_of_a_dry_run_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--target", "sm_90") == 1
    assert "--target is an option of --dry-run" in capsys.readouterr().err


def test_a_dry_run_compiles_the_candidates(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "HOPPER", ((64,), (32,), (4,), (2,)))
    monkeypatch.setattr(candidates, "DESCRIBED", ((), (), (), ()))
    assert command("--dry-run", "--kernel", "forward", "--head-dim", "64", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    table, candidate = record["candidates"]
    assert table["is_table"] and not candidate["is_table"]
    assert candidate["config"]["block_m"] == 64 and candidate["registers"] > 16
    assert 0 < candidate["shared_bytes"] <= 64 * 1024 and not candidate["dropped"]


def test_a_dry_run_says_what_is_dropped() -> None:
    found = (
        Static("forward", Config(128, 128, 8, 2), True, 230, 8, 0, 98304),
        Static("forward", Config(128, 128, 4, 2), False, 255, 48, 12, 98304),
    )
    text = DryRun("near", "sm_90", "bfloat16", found).text
    assert "a block may have 227 KB" in text
    assert "dropped: it spills" in text and "1 of 2 spill registers in every tile" in text
    assert "96.0" in text and "backward" not in text


# -- explain -------------------------------------------------------------------------------------


def explained(**settings: Any) -> str:
    return attndsl.compile(text=TEXT, **settings).explain(Nq=64, Nk=64, D=16)


def test_explain_says_where_sizes_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 'sizes are those of the table, for tune="off"' in explained(tune="off")
    assert "sizes" not in explained(backend="torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "a GPU has those that `attndsl tune` stores for it" in explained()


def test_stored_sizes_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(targets, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(targets, "name_of", lambda device: "NVIDIA H200")
    attention = attndsl.compile(text=TEXT)
    request = request_for(attention.program, "sm_90", "bfloat16", 16, 16)
    made, lengths = plan(attention.program, request), (64, 64)
    found, (line,) = with_stored_sizes(made, Settings(), lengths)
    assert found is made and line.endswith("has stored none that are faster on NVIDIA H200")
    place = Place(attention._handle, attention.program, request, torch.device("cuda", 0))
    tuned.remember(place, lengths, {"forward": Winner(Config(64, 32, 4, 2), 1.0, 2.0)})
    found, (line,) = with_stored_sizes(made, Settings(), lengths)
    assert line == "sizes of forward are as measured on NVIDIA H200"
    assert found.forward == Config(64, 32, 4, 2) and found.backward_dq == made.backward_dq
    assert with_stored_sizes(made, Settings(tune="off"), lengths)[0] is made
    older = plan(attention.program, replace(request, target="sm_80"))
    assert with_stored_sizes(older, Settings(), lengths)[0] is older


def test_explain_says_what_determinism_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "atomics: the same bits" in explained()
    text = explained(deterministic=False)
    assert "though any order would do: they are faster where both" in " ".join(text.split())
    learned = "attention f(bias: float[Nq, Nk]):\n    score score + bias[q, k]\n"
    attention = attndsl.compile(text=learned, deterministic=False)
    text = attention.explain(Nq=64, Nk=64, D=16)
    assert "though any order would do: `bias` is looked up pair by pair" in " ".join(text.split())
    monkeypatch.setattr(backward, "config_of", lambda request: Config(32, 64, 4, 2))
    text = explained(deterministic=False)
    assert "backward_fused" in text and "backward_dq" not in text
    assert "query by atomic additions, in any order" in text
