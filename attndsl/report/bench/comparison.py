"""What a suite of cases found, as a table, a summary and a record."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

import torch

from attndsl.report.bench.cases import Case, plural
from attndsl.report.bench.implementations import OURS
from attndsl.report.bench.results import PASSES, Entry, Note, unit_of
from attndsl.report.table import figure, table

COSTS = ("host ms", "mask ms", "first s", "peak MB")
SUMMARY = ("mask", "implementation", "cases", *PASSES, "both")
LEGEND = """\
ms, spread: the median, and the largest less the smallest.
times: how long it takes by how long attndsl takes; above 1 attndsl is faster. b/f: its backward by
its forward.
FLOP/s: of the pairs that take part: 4 x pairs x D forward, 10 x pairs x D backward.
host: until a forward is launched. mask: preparing it; where every step has another, the forward
has that in it. first: the first call of both passes, which compiles. peak: what both hold beyond
the inputs."""


@dataclass(frozen=True)
class Comparison:
    """Entries by case in the order in which they ran. `passed`: no result of anyone was wrong, and
    none of ours is missing. `is_stopped`: by the user, before the end."""

    suite: str
    about: str
    entries: tuple[Entry, ...]
    notes: tuple[Note, ...] = ()
    is_stopped: bool = False

    @property
    def passed(self) -> bool:
        return not any(note.is_wrong for note in self.notes)

    @property
    def text(self) -> str:
        """For a person."""
        parts = [f"{self.suite}: {self.about}"]
        if self.entries:
            parts += [body(self.entries), LEGEND]
            rows = list(summary_rows(self.entries))
            if rows:
                parts.append(f"times, mean of cases (least to most)\n{table(SUMMARY, rows, '  ')}")
            steep = [entry.steepness for entry in self.entries if entry.name == OURS]
            if found := [ratio for ratio in steep if ratio is not None]:
                parts.append(f"attndsl, backward by forward: {mean(found)}")
        if self.notes:
            parts.append("not timed\n" + "\n".join(grouped(self.notes)))
        return "\n\n".join(parts)

    @property
    def record(self) -> dict[str, object]:
        """For JSON: a row for each implementation on each case."""
        return {
            "suite": self.suite,
            "about": self.about,
            "passed": self.passed,
            "rows": [record_of(entry) for entry in self.entries],
            "notes": [
                {
                    "case": note.case.text,
                    "implementation": note.name,
                    "reason": note.reason,
                    "wrong": note.is_wrong,
                }
                for note in self.notes
            ],
        }


def machine(device: str) -> str:
    """What it ran on, with the versions that matter."""
    where = f"{platform.machine()}, {plural(torch.get_num_threads(), 'thread')}"
    if device != "cpu":
        where = torch.cuda.get_device_name(device)
    return f"{where}, torch {torch.__version__}, Python {platform.python_version()}"


def by_case(entries: Sequence[Entry]) -> dict[Case, list[Entry]]:
    found: dict[Case, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.case, []).append(entry)
    return found


# -- the table -------------------------------------------------------------------------------------


def body(entries: Sequence[Entry]) -> str:
    """A line for every case, and a row for every implementation below it; columns in which nothing
    stands are left out."""
    factor, unit = unit_of(entries[0].device)
    forward = ("forward ms", "spread", unit, "GB/s", "times")
    titles = ("implementation", *forward, "backward ms", "spread", unit, "times", "b/f", *COSTS)
    rows = [row_of(entry, found, factor) for found in by_case(entries).values() for entry in found]
    used = [i for i in range(len(titles)) if any(row[i] is not None for row in rows)]
    whole = table([titles[i] for i in used], [[row[i] for i in used] for row in rows], "  ")
    head, *lines = whole.splitlines()
    parts, at = [head], 0
    for case, found in by_case(entries).items():
        parts.append(f"{case.text}, {figure(found[0].pairs, 'pairs')}")
        parts += lines[at : at + len(found)]
        at += len(found)
    return "\n".join(parts)


def row_of(entry: Entry, beside: Sequence[Entry], factor: float) -> tuple[object, ...]:
    ours = next((other for other in beside if other.name == OURS), None)
    cells: list[object] = [entry.name]
    for name in PASSES:
        found = entry.passes.get(name)
        cells += [found and found.ms, found and found.spread_ms]
        speed = None if entry.case.is_read else entry.tflops(name)
        cells.append(None if speed is None else factor * speed)
        if name == "forward":
            cells.append(entry.gb_per_s if entry.case.is_read and found else None)
        cells.append(ratio(entry, ours, name))
    cells.append(entry.steepness)
    forward = entry.passes.get("forward")
    host = forward.host_ms if forward else None
    peak = None if entry.peak_bytes is None else entry.peak_bytes / 1e6
    return (*cells, host, entry.prepare_ms, entry.first_s, peak)


def ratio(entry: Entry, ours: Entry | None, name: str) -> float | None:
    """Its time by ours."""
    theirs, own = entry.ms(name), None if ours is None else ours.ms(name)
    return None if theirs is None or own is None else theirs / own


def record_of(entry: Entry) -> dict[str, Any]:
    case, shape = entry.case, entry.case.shape
    found: dict[str, Any] = {
        "mask": case.mask.name,
        "batch": shape.batch,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "queries": shape.queries,
        "keys": shape.keys,
        "head_dim": shape.width,
        "dtype": case.dtype,
        "threads": case.threads,
        "mask_every_step": case.has_steps,
        "pairs": entry.pairs,
        "implementation": entry.name,
        "relative_error": entry.error,
        "first_s": entry.first_s,
        "mask_ms": entry.prepare_ms,
        "peak_bytes": entry.peak_bytes,
        "gb_per_s": entry.gb_per_s if case.is_read else None,
    }
    for name in PASSES:
        figures = entry.passes.get(name)
        found[f"{name}_ms"] = figures and figures.ms
        found[f"{name}_spread_ms"] = figures and figures.spread_ms
        found[f"{name}_host_ms"] = figures and figures.host_ms
        found[f"{name}_tflops"] = entry.tflops(name)
    return found


# -- the summary -----------------------------------------------------------------------------------


def summary_rows(entries: Sequence[Entry]) -> Iterator[tuple[object, ...]]:
    """For every mask and peer the ratios of all its cases, by pass."""
    ratios: dict[tuple[str, str], dict[str, list[float]]] = {}
    for case, found in by_case(entries).items():
        ours = next((entry for entry in found if entry.name == OURS), None)
        for entry in found:
            if entry.name == OURS:
                continue
            of_peer = ratios.setdefault((mask_of(case), entry.name), {})
            for name in (*PASSES, "both"):
                times = ratio(entry, ours, name)
                if times is not None:
                    of_peer.setdefault(name, []).append(times)
    for (mask, peer), by_pass in ratios.items():
        if by_pass:
            means = (mean(by_pass.get(name, [])) for name in (*PASSES, "both"))
            yield (mask, peer, len(by_pass["forward"]), *means)


def mean(times: Sequence[float]) -> str:
    """The geometric mean, and the ends where there are several.

    >>> mean([1.0, 4.0]), mean([]), mean([1.234])
    ('2 (1 to 4)', '-', '1.23')
    """
    if not times:
        return "-"
    middle = f"{geometric_mean(times):.3g}"
    return middle if len(times) == 1 else f"{middle} ({min(times):.3g} to {max(times):.3g})"


def mask_of(case: Case) -> str:
    """The mask, with what else a case has beside a shape."""
    threads = "" if case.threads is None else f", {plural(case.threads, 'thread')}"
    return f"{case.mask.name}, {case.dtype}{threads}"


def grouped(notes: Sequence[Note]) -> Iterator[str]:
    """A line for every reason, with the masks that it holds for."""
    reasons: dict[tuple[str, str], dict[str, int]] = {}
    for note in notes:
        masks = reasons.setdefault((note.name, note.reason), {})
        masks[note.case.mask.name] = masks.get(note.case.mask.name, 0) + 1
    for (name, reason), masks in reasons.items():
        where = ", ".join(f"{m} ({count})" if count > 1 else m for m, count in masks.items())
        yield f"  {name}: {reason}: {where}"
