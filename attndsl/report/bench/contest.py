"""One case: every implementation checked, then timed in turns."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

import attndsl
from attndsl.report.bench.cases import Case
from attndsl.report.bench.clocks import Clock, clock_of
from attndsl.report.bench.dense import Expected, expect, relative
from attndsl.report.bench.implementations import OURS, Implementation, Maker, Refused
from attndsl.report.bench.inputs import Inputs, draw, refuse_constant
from attndsl.report.bench.masks import PROGRAMS
from attndsl.report.bench.measurement import summary
from attndsl.report.bench.pairs import count_pairs
from attndsl.report.bench.peers import PEER_ERRORS
from attndsl.report.bench.results import Entry, Figure, Note
from attndsl.report.progress import Progress
from attndsl.report.trial import TOLERANCES
from attndsl.runtime.clock import Time

BUDGET = 2e3  # milliseconds that the turns of a case take together, about
ROUNDS = (5, 100)  # of turns: at least, at most
QUICK_ROUNDS = (3, 15)
PREPARATIONS = 3  # that are timed


@dataclass
class Runner:
    """An implementation that may be timed. `prepared` is for all inputs; unused where every call
    prepares its own."""

    made: Implementation
    entry: Entry
    prepared: object
    times: dict[str, list[Time]] = field(default_factory=dict)


class Contest:
    """One case on one device; raises ArgumentError where its inputs cannot be drawn."""

    def __init__(self, case: Case, device: str, is_quick: bool, clock: Clock | None = None) -> None:
        self.case, self.device = case, device
        self.rounds = QUICK_ROUNDS if is_quick else ROUNDS
        self.clock = clock_of(device) if clock is None else clock
        self.copies = draw(case, device)
        for inputs in self.copies:
            refuse_constant(inputs)
        program = attndsl.compile(text=PROGRAMS, name=case.mask.program).program
        self.pairs = count_pairs(program, case.mask, case.shape, self.copies[0].given, device)
        self.notes: list[Note] = []

    def run(self, makers: Sequence[tuple[str, Maker]], line: Progress) -> list[Entry]:
        """The entries, in the order of the makers; what is missing is among the notes."""
        torch.compiler.reset()  # after eight recompilations it would go on without compiling
        case = self.case
        expected = expect(self.copies[0], case.mask, case.shape, case.backward)
        runners = []
        for name, make in makers:
            line.step(f"{case.text}: {name}")
            runner = self.admit(name, make, expected)
            if runner is not None:
                runners.append(runner)
        line.step(f"{case.text}: timing")
        runners = [runner for runner in self.agreeing(runners) if self.warm_up(runner)]
        for number in range(self.turns(runners)):
            for runner in runners:
                self.turn(runner, self.copies[number % len(self.copies)])
        for runner in runners:
            self.finish(runner)
        return [runner.entry for runner in runners]

    # -- admission -----------------------------------------------------------------------------

    def admit(self, name: str, make: Maker, expected: Expected) -> Runner | None:
        """Makes it, calls it for the first time and compares; a note where it cannot be timed."""
        inputs = self.copies[0]
        is_ours = name.startswith(OURS)
        said: list[warnings.WarningMessage] = []
        begin = time.perf_counter()
        try:
            with said_by_peer(said) if not is_ours else nullcontext():
                made = make(self.case, self.device)
                prepared = None if made.prepare is None else made.prepare(inputs)
                found = self.results(made, prepared, inputs, expected.rows)
        except Refused as refusal:
            self.note(name, str(refusal))
            return None
        except PEER_ERRORS as failure:
            self.note(name, " ".join([first_line(failure), *reasons(said)]), is_ours)
            return None
        taken = time.perf_counter() - begin
        wanted = (expected.out, *expected.gradients)[: len(found)]
        errors = [relative(got, want) for got, want in zip(found, wanted, strict=True)]
        fine = [error <= TOLERANCES[self.case.dtype] for error in errors]  # false for NaN
        if not all(fine):
            parts = ("result", "grad query", "grad key", "grad value", *self.case.mask.learned)
            worst = fine.index(False)
            reason = f"{parts[worst]} differs from the dense one by {errors[worst]:.2g} of its size"
            self.note(name, reason, is_wrong=True)
            return None
        if self.case.backward and not made.has_backward:
            self.note(f"{name}, backward", "it has none on a CPU")
        entry = Entry(self.case, name, self.device, self.pairs, taken, errors[0])
        return Runner(made, entry, prepared)

    def results(
        self, made: Implementation, prepared: object, inputs: Inputs, rows: Tensor
    ) -> list[Tensor]:
        """The result on some rows, and the gradients where only these have one."""
        has_backward = self.case.backward and made.has_backward
        with torch.set_grad_enabled(has_backward):
            out = made.attend(inputs, prepared)
        found = [out.detach()[:, :, rows]]
        if has_backward:
            chosen = torch.zeros_like(inputs.grad_out)
            chosen[:, :, rows] = inputs.grad_out[:, :, rows]
            found += torch.autograd.grad(out, inputs.roots, chosen)
        self.clock.wait()
        return found

    def agreeing(self, runners: list[Runner]) -> list[Runner]:
        """Those whose whole result is that of the first."""
        if not runners:
            return []
        first = runners[0]
        whole = self.forward(first, self.copies[0])().detach()
        found = [first]
        for runner in runners[1:]:
            error = relative(self.forward(runner, self.copies[0])().detach(), whole.float())
            if error <= 2 * TOLERANCES[self.case.dtype]:
                found.append(runner)
            else:
                reason = f"differs from {first.entry.name} by {error:.2g} of its size"
                self.note(runner.entry.name, reason, is_wrong=True)
        return found

    def note(self, name: str, reason: str, is_wrong: bool = False) -> None:
        self.notes.append(Note(self.case, name, reason, is_wrong))

    # -- timing --------------------------------------------------------------------------------

    def forward(self, runner: Runner, inputs: Inputs) -> Callable[[], Tensor]:
        """A call as it is timed: with its mask where every step has another, and on a GPU as in
        training where gradients are wanted, so that one compilation serves both passes."""
        made = runner.made
        is_training = self.case.backward and made.has_backward and self.device != "cpu"

        def call() -> Tensor:
            with torch.set_grad_enabled(is_training):
                return made.attend(inputs, self.prepared(runner, inputs))

        return call

    def prepared(self, runner: Runner, inputs: Inputs) -> object:
        """Made anew where every step has a mask of its own."""
        prepare = runner.made.prepare
        return prepare(inputs) if self.case.has_steps and prepare else runner.prepared

    def turn(self, runner: Runner, inputs: Inputs) -> None:
        """One forward, and one backward where there is one."""
        outs: list[Tensor] = []
        call = self.forward(runner, inputs)
        self.time(runner, "forward", lambda: outs.append(call()))
        if not (self.case.backward and runner.made.has_backward):
            return
        out = outs.pop()
        if not out.requires_grad:
            with torch.enable_grad():
                out = runner.made.attend(inputs, self.prepared(runner, inputs))
        gradients = lambda: torch.autograd.grad(out, inputs.roots, inputs.grad_out)  # noqa: E731
        self.time(runner, "backward", gradients)

    def time(self, runner: Runner, name: str, call: Callable[[], object]) -> None:
        times = runner.times.setdefault(name, [])
        host = times[-1].host if times else 0.0
        times.append(self.clock.time(call, host))

    def warm_up(self, runner: Runner) -> bool:
        """Whether it runs: turns that do not count but say how long one takes, and its memory."""
        try:
            self.turn(runner, self.copies[0])
            self.turn(runner, self.copies[-1])
            runner.entry.peak_bytes = self.clock.grown(lambda: self.step(runner))
        except PEER_ERRORS as error:
            self.note(runner.entry.name, first_line(error), runner.entry.name.startswith(OURS))
            return False
        runner.times = {name: times[-1:] for name, times in runner.times.items()}
        return True

    def step(self, runner: Runner) -> object:
        inputs = self.copies[0]
        if not (self.case.backward and runner.made.has_backward):
            return self.forward(runner, inputs)()
        with torch.enable_grad():
            out = runner.made.attend(inputs, self.prepared(runner, inputs))
        return out, torch.autograd.grad(out, inputs.roots, inputs.grad_out)

    def turns(self, runners: list[Runner]) -> int:
        """As many as take about the budget."""
        taken = sum(time.work for r in runners for times in r.times.values() for time in times)
        least, most = self.rounds
        return max(least, min(most, int(BUDGET / max(taken, 1e-3))))

    def finish(self, runner: Runner) -> None:
        """Figures of the turns; the last one before them does not count."""
        for name, times in runner.times.items():
            counted = times[1:]
            ms, spread = summary([time.work for time in counted])
            is_apart = torch.device(self.device).type != "cpu"
            host = median(time.host for time in counted) if is_apart else None
            runner.entry.passes[name] = Figure(ms, spread, host)
        prepare = runner.made.prepare
        if prepare is not None:
            inputs = self.copies[-1]
            times = [self.clock.time(lambda: prepare(inputs)) for _ in range(PREPARATIONS)]
            runner.entry.prepare_ms = median(time.work for time in times)


@contextmanager
def said_by_peer(said: list[warnings.WarningMessage]) -> Iterator[None]:
    """Keeps warnings instead of showing them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            said += caught


def reasons(said: Sequence[warnings.WarningMessage]) -> Iterator[str]:
    """Why a backend of SDPA refuses, which it says in warnings; not that others were not asked."""
    for warning in said:
        if warning.category is not UserWarning:
            continue
        text = str(warning.message).partition("(Triggered")[0].strip()
        if text and not text.endswith("because:") and "runtime disabled" not in text:
            yield text


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line that says something."""
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
