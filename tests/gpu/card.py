"""Everything that only a card can say, in a few minutes of it: tests, compute-sanitizer, benches.

    python tests/gpu/card.py -o FOLDER [--minutes 9] [--processes 12] [bench options ...]

Compilers take most of the time of a test or a bench on a GPU, and need none. So benches run first
all at once, for the caches of Triton and Inductor alone, beside the tests; then again, one after
the other, with nothing beside them. FOLDER gets a log for each command, and the figures of the
benches as JSON. A bench that has no time left prints what it has. Options behind `--` go to every
bench: `-- --lengths 16k`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
COMPILING = 0.4  # of the time, at most
# Suites with the masks that are measured by one command each, the most wanted first.
BENCHES = (
    ("core", "causal"),
    ("core", "ALiBi"),
    ("core", "soft"),
    ("core", "window"),
    ("core", "documents"),
    ("core", "prefix"),
    ("core", "no mask"),
    ("window", "window"),
    ("documents", "documents"),
    ("decode", "decode"),
)
TESTS = "test_example_on_gpu or test_replayed or test_windows or (same_bits and d64)"
CHECKED = {
    "memcheck": "bfloat16 and 64 and (causal or t5 or packed or alibi or gpt_oss or moba)",
    "racecheck": "bfloat16 and 64 and (causal or packed or alibi)",
}
PYTEST = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu")


@dataclass
class Runner:
    """Commands with a log each."""

    folder: Path
    began: float = field(default_factory=time.monotonic)

    def start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": paths()}
        log = (self.folder / f"{name}.txt").open("wb")
        print(f"{time.monotonic() - self.began:4.0f} s  {name}", flush=True)
        return subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment
        )

    def finish(self, processes: dict[str, subprocess.Popen[bytes]], deadline: float) -> None:
        """Waits for all; what runs at the deadline is asked to end, then killed."""
        for name, process in processes.items():
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                print(f"        {name}: stopped", flush=True)
            else:
                print(f"        {name}: exit status {process.returncode}", flush=True)


def paths() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def bench_command(suite: str, mask: str, options: Sequence[str], json: Path | None) -> list[str]:
    command = [sys.executable, "-m", "attndsl", "bench", suite, "--quick", "--only", mask]
    return [*command, *options, *([] if json is None else ["--json", str(json)])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=9.0, help="in all (default 9)")
    parser.add_argument("--processes", type=int, default=12, help="that test (default 12)")
    options, rest = parser.parse_known_args()
    if not torch.cuda.is_available():
        print("skipped: there is no CUDA GPU here, or torch is built without CUDA")
        return 0
    rest = [option for option in rest if option != "--"]
    options.output.mkdir(parents=True, exist_ok=True)
    runner = Runner(options.output.resolve())
    end = runner.began + 60 * options.minutes
    half = runner.began + COMPILING * 60 * options.minutes
    beside = {
        "tests": [sys.executable, *PYTEST, "-n", str(options.processes), "-k", TESTS],
        **{
            tool: ["compute-sanitizer", "--tool", tool, "--kernel-regex", "kns=ward"]
            + ["--error-exitcode", "9", sys.executable, *PYTEST, "-k", chosen]
            for tool, chosen in CHECKED.items()
            if shutil.which("compute-sanitizer")
        },
    }
    for number, (suite, mask) in enumerate(BENCHES):
        beside[f"compiling_{number}_{suite}"] = bench_command(suite, mask, rest, None)
    runner.finish({name: runner.start(name, command) for name, command in beside.items()}, half)
    for number, (suite, mask) in enumerate(BENCHES):
        name = f"{number}_{suite}_{mask.lower().replace(' ', '_')}"
        command = bench_command(suite, mask, rest, runner.folder / f"{name}.json")
        share = time.monotonic() + (end - time.monotonic()) / (len(BENCHES) - number) * 2
        runner.finish({name: runner.start(name, command)}, min(share, end - 12))
    return 0


if __name__ == "__main__":
    sys.exit(main())
