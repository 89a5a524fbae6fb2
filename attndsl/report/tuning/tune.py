"""Measures the sizes of a program's kernels on a GPU, on arguments drawn for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import torch

from attndsl.diagnostics import ArgumentError
from attndsl.plan.budget import KERNELS
from attndsl.plan.candidates import candidates
from attndsl.plan.kernel_plan import Config
from attndsl.reference import Number
from attndsl.report.arguments import Sizes
from attndsl.report.progress import Progress, progress
from attndsl.report.requests import request_for
from attndsl.report.table import table
from attndsl.report.trial import Trial, check_device
from attndsl.report.tuning.shown import TITLES, cells, config_text, kernel_program, row_of_table
from attndsl.runtime import targets
from attndsl.runtime.attention import Attention
from attndsl.runtime.measuring import Contest, Measured, Session, Timer, session, steps_of
from attndsl.runtime.tuned import Kernel, Place


@dataclass(frozen=True)
class Tuned:
    """The contests of a program's kernels, and the files that keep their winners."""

    program: str
    device: str
    dtype: str
    sizes: Sizes
    contests: tuple[Contest, ...]
    files: tuple[Path, ...]

    @property
    def passed(self) -> bool:
        """Whether every candidate could be launched, and gave the result of the table's sizes."""
        return not any(result.refusal for c in self.contests for result in c.results)

    @property
    def record(self) -> dict[str, object]:
        """For JSON."""
        return {
            "program": self.program,
            "device": self.device,
            "dtype": self.dtype,
            "sizes": asdict(self.sizes),
            "kernels": [
                {
                    "kernel": contest.kernel,
                    "winner": asdict(contest.winner),
                    "candidates": [asdict(result) for result in contest.results],
                }
                for contest in self.contests
            ],
            "files": [str(path) for path in self.files],
        }

    @property
    def text(self) -> str:
        """For a person."""
        s = self.sizes
        kv = "" if s.heads == s.kv_heads else f" ({s.kv_heads} of keys)"
        lines = [
            f"{self.program}: batch {s.batch}, heads {s.heads}{kv}, {s.nq} queries, {s.nk} keys, "
            f"head dimension {s.head_dim}, {self.dtype} on {self.device}"
        ]
        for contest in self.contests:
            lines += ["", *contest_lines(contest)]
        lines += ["", *(f"stored in {path}" for path in self.files)]
        return "\n".join(lines)

    def rows(self) -> str:
        """The winners as a row of the table of defaults, and where they come from."""
        winners = {contest.kernel: contest.best.config for contest in self.contests}
        s = self.sizes
        widest = max(s.head_dim, s.value_dim)
        source = f"measured: {self.device}, {self.program}, {s.nq} x {s.nk}, {self.dtype}"
        lines = [f"# {source}, {date.today().isoformat()}", row_of_table(widest, winners)]
        if "backward_fused" in winners:
            lines.append(f"# backward_fused: {config_text(winners['backward_fused'])}")
        return "\n".join(lines)


def contest_lines(contest: Contest) -> list[str]:
    """A table of the candidates, the table's sizes and the winner marked."""
    function = "forward" if contest.kernel == "forward" else "backward"
    rows = [[*cells(result.config), *times(contest, result)] for result in contest.results]
    titles = [*TITLES, f"ms of the {function}", "calls", ""]
    found, base = contest.winner.milliseconds, contest.winner.table_milliseconds
    verdict = f"the table's sizes stay: nothing saves more than noise of {base:.4g} ms"
    if contest.best is not contest.table:
        verdict = f"{base:.4g} ms with the table's sizes, {found:.4g} ms with the fastest"
    return [contest.kernel, *table(titles, rows, "  ").splitlines(), f"  {verdict}"]


def times(contest: Contest, result: Measured) -> list[object]:
    marks = [
        *(["of the table"] if result is contest.table else []),
        *(["fastest"] if result is contest.best else []),
        *([result.refusal] if result.refusal else []),
    ]
    return [result.milliseconds, result.calls or None, ", ".join(marks)]


def tune(
    attention: Attention,
    sizes: Sizes,
    given: Mapping[str, Number] | None = None,
    *,
    dtype: str = "bfloat16",
    device: str | None = None,
    seed: int = 0,
    timer: Timer | None = None,
) -> Tuned:
    """Draws arguments, measures every kernel's candidates on them, stores the winners.

    given  parameters of the program; timer  the device's own clock unless given
    Raises ArgumentError where there is no GPU and no timer.
    """
    device = device or "cuda"
    if timer is None:
        check_gpu(device)
    trial = Trial(attention.program, sizes, given or {}, getattr(torch, dtype), device, seed)
    chosen = replace(attention.settings, backend="triton", tune="max")
    measured = Attention(attention.program, chosen)
    contests: list[Contest] = []
    files: list[Path] = []

    def finished(place: Place, contest: Contest, path: Path) -> None:
        contests.append(contest)
        files.append(path)

    with progress(expected_steps(attention, sizes, dtype, device)) as line:
        follow = Follow(line)
        with session(Session(timer, again=True, step=follow.step, finished=finished)):
            trial.gradients(lambda: trial.call(measured), torch.arange(sizes.nq))
    name = targets.name_of(torch.device(device))
    return Tuned(attention.name, name, dtype, sizes, tuple(contests), tuple(dict.fromkeys(files)))


def check_gpu(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(
            "there is no GPU here, and times of anything else say nothing about one; "
            "`attndsl tune FILE --dry-run` lists the candidates with what they take"
        )
    check_device(device)
    if torch.device(device).type != "cuda" or targets.is_interpreting():
        raise ArgumentError(f"device: sizes are measured on a GPU, got {device!r}")


class Follow:
    """Tells a progress line what is measured."""

    def __init__(self, line: Progress) -> None:
        self.line = line

    def step(self, kernel: Kernel, config: Config | None, what: str) -> None:
        tile = "separate kernels"
        if config is not None:
            numbers = f"{config.num_warps} warps, {config.num_stages} stages"
            tile = f"{config.block_m} x {config.block_n}, {numbers}"
        self.line.step(f"{kernel}: {tile}: {what}")


def expected_steps(attention: Attention, sizes: Sizes, dtype: str, device: str) -> int:
    """How many steps a measurement takes, if no candidate is refused; that the table's sizes are
    among the candidates is taken for granted."""
    target = targets.target_of("triton", torch.device(device))
    program = kernel_program(attention)
    request = request_for(program, target, dtype, sizes.head_dim, sizes.value_dim)
    counts = (len(candidates(program, request, kernel)) for kernel in KERNELS)
    return sum(map(steps_of, counts))


__all__ = ["Tuned", "tune"]
