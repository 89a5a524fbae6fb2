"""The bench command: runs suites, prints tables, writes figures and pictures."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from attndsl.diagnostics import ArgumentError
from attndsl.report.bench.cases import PEERS, Wish
from attndsl.report.bench.comparison import Comparison
from attndsl.report.bench.measurement import Outcome
from attndsl.report.bench.plot import check_name, write
from attndsl.report.bench.suites import SUITES, check, device_here, listing

__all__ = ["Wishes", "bench", "listing"]
FEWEST = 16  # tokens


@dataclass(frozen=True)
class Wishes:
    """suites  names; none: all
    given   options by name, those that a user gave alone
    json    a file for every figure; "-": print them instead of tables
    plot    a file for a picture
    """

    suites: Sequence[str] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    json: str | None = None
    plot: str | None = None


def bench(wishes: Wishes) -> bool:
    """Whether all suites passed. Raises ArgumentError before anything runs where it can."""
    if wishes.plot is not None:
        check_name(wishes.plot)
    for name, file in (("json", wishes.json), ("plot", wishes.plot)):
        if file not in (None, "-") and not Path(file).absolute().parent.is_dir():
            raise ArgumentError(f"{name}: there is no folder for {file}")
    wish, given = wish_of(wishes.given), frozenset(wishes.given)
    found: list[Outcome] = []
    for run in [check(name, wish, given) for name in wishes.suites or SUITES]:
        with stoppable():
            found.append(run())
        if wishes.json != "-":
            print(("\n" if len(found) > 1 else "") + found[-1].text, flush=True)
        if isinstance(found[-1], Comparison) and found[-1].is_stopped:
            break
    if wishes.json is not None:
        text = json.dumps([outcome.record for outcome in found], indent=2)
        if wishes.json == "-":
            print(text)
        else:
            Path(wishes.json).write_text(text + "\n", encoding="utf-8")
    if wishes.plot is not None:
        write(wishes.plot, [outcome for outcome in found if isinstance(outcome, Comparison)])
    return all(outcome.passed for outcome in found)


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM, as `timeout` and schedulers of jobs send it, stops a suite as Ctrl-C does: it prints
    and writes what it has."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def wish_of(given: Mapping[str, Any]) -> Wish:
    lengths, dtypes = given.get("lengths"), given.get("dtype")
    if lengths and min(lengths) < FEWEST:
        raise ArgumentError(
            f"lengths: at least {FEWEST} tokens; of fewer, gradients are all rounding"
        )
    return Wish(
        device=given.get("device") or device_here(),
        lengths=tuple(lengths) if lengths else None,
        dtypes=tuple(dtypes) if dtypes else None,
        masks=tuple(given.get("only", ())),
        peers=tuple(given.get("peers", PEERS)),
        ours=tuple(given["ours"]) if "ours" in given else None,
        is_quick=bool(given.get("quick")),
    )
