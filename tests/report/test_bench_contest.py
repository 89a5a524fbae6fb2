"""How implementations are admitted to a race: what is wrong, fails or is constant is not timed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attndsl.cli import main
from attndsl.diagnostics import ArgumentError
from attndsl.report.bench import dense, inputs, races
from attndsl.report.bench.cases import Case, Wish
from attndsl.report.bench.clocks import HostClock, clock_of
from attndsl.report.bench.comparison import Comparison, mean
from attndsl.report.bench.contest import Contest
from attndsl.report.bench.implementations import Implementation, Maker, Refused, ours
from attndsl.report.bench.inputs import Inputs, draw, refuse_constant
from attndsl.report.bench.masks import ALIBI, CAUSAL, NONE, PACKED, RAGGED, SOFTCAP, sinks_of
from attndsl.report.bench.peers import peers
from attndsl.report.bench.results import Entry, Figure, Note
from attndsl.report.bench.shapes import Shape
from attndsl.report.progress import Progress
from attndsl.runtime import clock as device_clock
from attndsl.runtime.clock import Call, Time

SMALL = Case(CAUSAL, Shape(1, 4, 2, 40, 40, 16), "float32")
Attend = Callable[[Inputs, object], Tensor]


def maker(attend: Attend) -> Maker:
    return lambda case, device: Implementation("peer", attend)


def race(case: Case, *others: tuple[str, Maker]) -> tuple[list[Entry], list[Note]]:
    contest = Contest(case, "cpu", True)
    entries = contest.run([*ours(case, "cpu", ()), *others], Progress(99))
    return entries, contest.notes


def right(given: Inputs, prepared: object) -> Tensor:
    return dense.attend(given, CAUSAL)


def anything(given: Inputs, prepared: object) -> Tensor:
    return dense.attend(given, NONE)


def wrong(given: Inputs, prepared: object) -> Tensor:
    return right(given, prepared) * 1.01


def wrong_where_it_is_not_looked_at(given: Inputs, prepared: object) -> Tensor:
    out = right(given, prepared)
    rows = set(dense.some_rows(replace(SMALL.shape, queries=200, keys=200)).tolist())
    other = next(row for row in range(200) if row not in rows)
    return torch.where(torch.arange(200)[:, None] == other, 5.0, out)


def wrong_gradient(given: Inputs, prepared: object) -> Tensor:
    detached = replace(given, value=given.value.detach() + 0 * given.value)
    return right(detached, prepared)


def nothing(given: Inputs, prepared: object) -> Tensor:
    return right(given, prepared) * float("nan")


def failing(given: Inputs, prepared: object) -> Tensor:
    raise RuntimeError("\nno kernel for this\nand a long trace")


def warning(given: Inputs, prepared: object) -> Tensor:
    warnings.warn("Flash kernel not used because:", stacklevel=1)
    warnings.warn("It has no mask. (Triggered internally at sdp_utils.cpp:1.)", stacklevel=1)
    warnings.warn("Other kernels have been runtime disabled.", stacklevel=1)
    raise RuntimeError("No available kernel.")


def refusing(case: Case, device: str) -> Implementation:
    raise Refused("it has no such thing")


def test_what_agrees_is_timed() -> None:
    entries, notes = race(SMALL, ("peer", maker(right)))
    assert [entry.name for entry in entries] == ["attndsl", "peer"] and not notes
    for entry in entries:
        assert set(entry.passes) == {"forward", "backward"}
        assert all(figure.ms > 0 for figure in entry.passes.values())


@pytest.mark.parametrize("attend", [wrong, wrong_gradient, nothing])
def test_what_is_wrong_is_not_timed(attend: Attend) -> None:
    entries, notes = race(SMALL, ("peer", maker(attend)))
    assert [entry.name for entry in entries] == ["attndsl"]
    (note,) = notes
    part = "grad value" if attend is wrong_gradient else "result"
    assert note.is_wrong and note.reason.startswith(f"{part} differs from the dense one")


def test_rows_that_are_not_looked_at_are_compared_with_each_other() -> None:
    case = replace(SMALL, shape=replace(SMALL.shape, queries=200, keys=200), backward=False)
    entries, (note,) = race(case, ("peer", maker(wrong_where_it_is_not_looked_at)))
    assert [entry.name for entry in entries] == ["attndsl"]
    assert note.is_wrong and note.reason.startswith("differs from attndsl by")


def test_what_fails_or_refuses_is_said() -> None:
    entries, notes = race(
        SMALL, ("peer", maker(failing)), ("other", refusing), ("sdpa", maker(warning))
    )
    assert [entry.name for entry in entries] == ["attndsl"]
    assert [(note.name, note.reason) for note in notes] == [
        ("peer", "RuntimeError: no kernel for this"),
        ("other", "it has no such thing"),
        ("sdpa", "RuntimeError: No available kernel. It has no mask."),
    ]
    found = Comparison("core", "about", tuple(entries), tuple(notes))
    assert found.passed and "  peer: RuntimeError: no kernel for this: causal" in found.text


def test_a_failure_of_our_own_is_one_of_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        races, "makers", lambda case, wish: [("attndsl", maker(failing)), ("peer", maker(right))]
    )
    found = races.race("core", "about", lambda wish: iter([SMALL]), Wish("cpu", is_quick=True))
    assert not found.passed and [entry.name for entry in found.entries] == ["peer"]
    assert found.entries[0].passes and "attndsl: RuntimeError: no kernel" in found.text


def test_what_was_measured_before_a_stop_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(given: Inputs, prepared: object) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        races,
        "makers",
        lambda case, wish: [("attndsl", maker(stop if case.mask.name == "causal" else anything))],
    )
    assert main(["bench", "core", "decode", "--device", "cpu", "--quick", "--lengths", "40"]) == 1
    out = capsys.readouterr().out
    assert "no mask: batch 1" in out and "causal: batch 1" not in out and "ALiBi" not in out
    assert "everything: stopped here" in out and "decode" not in out


@pytest.mark.parametrize("name", ["query", "key", "value", "grad_out"])
def test_constants_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (given,) = draw(SMALL, "cpu")
    refuse_constant(given)
    for value in (0.0, 1.0):
        constant = replace(given, **{name: torch.full_like(getattr(given, name), value)})
        monkeypatch.setattr(inputs, "one", lambda *_, constant=constant: constant)
        with pytest.raises(ArgumentError, match=f"{name}: all entries are equal"):
            Contest(SMALL, "cpu", True)


# -- peers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [NONE, CAUSAL, ALIBI, PACKED, SOFTCAP, sinks_of(8), RAGGED])
def test_peers_say_what_they_cannot_do(mask: object) -> None:
    """SDPA and dense PyTorch: whatever they accept is right, and what they refuse is said."""
    queries = 1 if mask is RAGGED else 40
    shape = Shape(3, 4, 2, queries, 40, 16)
    case = Case(mask, shape, "float64", backward=mask is not RAGGED)  # type: ignore[arg-type]
    chosen = list(peers(case, "cpu", ("sdpa", "dense")))
    entries, notes = race(case, *chosen)
    assert not any(note.is_wrong for note in notes)
    timed = {entry.name for entry in entries} - {"attndsl"}
    cannot = case.mask is SOFTCAP or case.mask.sink is not None
    assert timed == {"PyTorch, dense", *(() if cannot else ("SDPA, flash", "SDPA, math"))}
    assert {note.name for note in notes} == {name for name, _ in chosen} - timed


def test_flex_attention_compiled() -> None:
    """The one compilation of FlexAttention here, with a mask and a score."""
    case = replace(SMALL, mask=ALIBI)
    entries, notes = race(case, *peers(case, "cpu", ("flex",)))
    assert [entry.name for entry in entries] == ["attndsl", "FlexAttention"], notes
    assert set(entries[1].passes) == {"forward"} and entries[1].prepare_ms > 0
    assert [(note.name, note.reason) for note in notes] == [
        ("FlexAttention, backward", "it has none on a CPU")
    ]


def test_each_step_prepares_its_own_mask() -> None:
    prepared: list[int] = []

    def prepare(given: Inputs) -> Tensor:
        prepared.append(hash(tuple(given.given["doc"].flatten().tolist())))
        return torch.ones(())

    def attend(given: Inputs, mask: object) -> Tensor:
        return dense.attend(given, PACKED)

    case = Case(PACKED, Shape(1, 2, 2, 50, 50, 16), "float32", has_steps=True, backward=False)
    made = ("peer", lambda case, device: Implementation("peer", attend, prepare))
    entries, notes = race(case, made)
    assert len(entries) == 2 and not notes
    assert len(set(prepared)) == inputs.STEPS and len(prepared) > 2 * inputs.STEPS
    prepared.clear()
    race(replace(case, has_steps=False), made)
    assert len(set(prepared)) == 1 and len(prepared) == 4  # once for all calls, and three timed


# -- clocks ---------------------------------------------------------------------------------


class Steps:
    """A clock whose times are given."""

    def __init__(self, times: list[float]) -> None:
        self.times = times

    def time(self, call: Call, host: float = 0.0) -> Time:
        call()
        return Time(self.times.pop(0), host + 1)

    def wait(self) -> None:
        pass

    def grown(self, call: Call) -> int:
        return 77


def test_turns_that_warm_up_do_not_count() -> None:
    case = replace(SMALL, backward=False)
    clock = Steps([1000.0, 1500.0, 3.0, 1.0, 2.0])
    contest = Contest(case, "cpu", True, clock)
    (entry,) = contest.run(list(ours(case, "cpu", ())), Progress(9))
    assert contest.rounds[0] == 3  # as many as there are: two turns take more than the budget
    assert entry.passes == {"forward": Figure(2.0, 2.0, None)}
    assert entry.peak_bytes == 77 and not clock.times


class Event:
    """Stands for an event of CUDA: half a millisecond passes between any two."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, last: Event) -> float:
        return 0.5


def test_a_device_is_kept_busy_while_the_host_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(device_clock, "FILLED", 1024)
    clock = device_clock.DeviceClock("cpu")
    assert clock.fill_ms == 0.5
    filled: list[int] = []
    buffer = type("Buffer", (), {"zero_": lambda _: filled.append(1)})
    monkeypatch.setattr(clock, "buffer", buffer())
    assert clock.time(lambda: None, host=3.0).work == 0.5
    assert len(filled) == 10  # 5 ms of writing for 3 ms of the host
    clock.time(lambda: None, host=1e6)
    assert len(filled) == 10 + device_clock.MOST_FILLS


def test_memory_of_a_call() -> None:
    clock = clock_of("cpu")
    assert isinstance(clock, HostClock)
    grown = clock.grown(lambda: torch.ones(1 << 24).sum())  # 64 MiB
    assert grown is None or (1 << 25) < grown < (1 << 28)
    assert clock.time(lambda: None).work >= 0


def test_the_mean_of_ratios() -> None:
    assert mean([0.5, 2.0]) == "1 (0.5 to 2)"
