"""What `import attndsl` adds to `import torch`, and what compile() of an example takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from attndsl.report.bench.measurement import Report, milliseconds, summary
from attndsl.report.progress import progress

IMPORT_TIME = """
import json, sys, time
begin = time.perf_counter()
import torch
middle = time.perf_counter()
import attndsl
print(json.dumps([(middle - begin) * 1e3, (time.perf_counter() - middle) * 1e3]))
"""


def startup(examples: Sequence[Path], processes: int = 5) -> Report:
    """Imports in fresh processes, compilations in this one."""
    import attndsl

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
