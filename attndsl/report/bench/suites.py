"""Measures attndsl against its peers; checks that they agree before it times them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from attndsl.diagnostics import ArgumentError
from attndsl.report.bench.cpu import cpu
from attndsl.report.bench.measurement import Report, milliseconds, summary
from attndsl.report.bench.preparation import masks
from attndsl.report.bench.routing import routing
from attndsl.report.bench.sparsity import sparsity
from attndsl.report.progress import progress

# -- startup --------------------------------------------------------------------------------

IMPORT_TIME = """
import json, sys, time
begin = time.perf_counter()
import torch
middle = time.perf_counter()
import attndsl
print(json.dumps([(middle - begin) * 1e3, (time.perf_counter() - middle) * 1e3]))
"""


def startup(processes: int = 5) -> Report:
    """What `import attndsl` adds to `import torch`, and compile() of every example."""
    import attndsl

    examples = example_files()
    rows: list[tuple[object, ...]] = []
    with progress(processes + len(examples)) as line:
        added = []
        for _ in range(processes):
            line.step("import in a fresh process")
            done = subprocess.run(
                [sys.executable, "-c", IMPORT_TIME], capture_output=True, text=True, check=True
            )
            added.append(json.loads(done.stdout)[1])
        rows.append(("import attndsl, after torch", *summary(added)))
        for path in examples:
            line.step(path.name)
            times = milliseconds(lambda path=path: attndsl.compile(path), 3)  # type: ignore[misc]
            rows.append((f"compile {path.name}", *summary(times)))
    about = "milliseconds to import, and to compile an example in a warm process"
    notes = () if examples else ("no examples here: run it in a checkout of the project",)
    return Report("startup", about, ("what", "median ms", "spread ms"), tuple(rows), notes)


def example_files() -> list[Path]:
    """The examples of a checkout; an installed package has none."""
    beside = Path(__file__).resolve().parents[3] / "examples"
    return sorted(beside.glob("*.attn"))


SUITES: dict[str, Callable[[], Report]] = {
    "cpu": cpu,
    "masks": masks,
    "routing": routing,
    "sparsity": lambda: sparsity(example_files()),
    "startup": startup,
}


def measure(suite: str, lengths: Sequence[int] | None = None, device: str | None = None) -> Report:
    """Runs a suite. Raises ArgumentError for lengths or a device where the suite has its own."""
    if lengths is None and device is None:
        return SUITES[suite]()
    if suite != "routing":
        raise ArgumentError(f"{suite}: only the suite `routing` takes --lengths and --device")
    return routing(lengths, device)
