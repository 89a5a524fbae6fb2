"""A new length, value or content never compiles again: Triton's key of a launch does not change.

The key is computed as a launch would, for a GPU that need not be here, in another process: here
Triton may have been imported as an interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = "tests.codegen.specialization"


def test_launches_share_one_key() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-m", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(line.split() for line in done.stdout.splitlines())
    assert counts and set(counts.values()) == {"1"}, counts
    assert {
        "summarise_0",
        "classify_rows",
        "classify_columns",
        "forward",
        "backward_dkv",
        "backward_tables",
    } <= set(counts)
