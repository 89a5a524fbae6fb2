"""Run every example on a CUDA GPU against the float64 reference, and print a Markdown table.

    python tests/gpu/run.py [-o table.md] [--length 1024] [name ...]

One row per example, dtype and head dimension: the largest error of the result, of lse and of the
worst gradient, each relative to the largest value of what it is compared with; times of the forward
and of forward and backward together. Exits with 1 where an error passes its tolerance, with 0 and a
reason where there is no GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import attndsl  # noqa: E402
from tests.oracle.compare import Results, cast, differentiate, is_softmax  # noqa: E402
from tests.oracle.examples import FOLDER, NAMES, Sizes, example_inputs  # noqa: E402

# Largest error that passes, relative to the largest value of what is compared.
TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 4e-2}
HEADER = (
    "| example | dtype | d | out | lse | worst gradient | of | forward | forward + backward |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |"
)


@dataclass(frozen=True)
class Row:
    """What one configuration gave; times in milliseconds, the median of several calls."""

    example: str
    dtype: torch.dtype
    width: int
    errors: dict[str, float]
    forward_ms: float
    both_ms: float

    @property
    def passed(self) -> bool:
        return all(error <= TOLERANCES[self.dtype] for error in self.errors.values())

    def __str__(self) -> str:
        grads = {n: e for n, e in self.errors.items() if n.startswith("grad ")}
        worst = max(grads, key=lambda name: grads[name])
        lse = f"{self.errors['lse']:.1e}" if "lse" in self.errors else "-"
        cells = [
            self.example + ("" if self.passed else " **WRONG**"),
            {torch.float16: "fp16", torch.bfloat16: "bf16"}[self.dtype],
            str(self.width),
            f"{self.errors['out']:.1e}",
            lse,
            f"{grads[worst]:.1e}",
            worst.removeprefix("grad "),
            f"{self.forward_ms:.3f} ms",
            f"{self.both_ms:.3f} ms",
        ]
        return f"| {' | '.join(cells)} |"


def check(name: str, dtype: torch.dtype, sizes: Sizes) -> Row:
    """Run one example as compiled and, on the same device in float64, as its reference."""
    path = FOLDER / f"{name}.attn"
    query, key, value, inputs = example_inputs(name, sizes)
    # What is rounded once, before either computation, is no error of the kernel.
    rounded = {n: cast(x, dtype) for n, x in (("query", query), ("key", key), ("value", value))}
    rounded |= {n: cast(x, torch.float32) for n, x in inputs.arguments.items()}
    given = {n: x.cuda() if isinstance(x, Tensor) else x for n, x in rounded.items()}
    exact = {n: cast(x, torch.float64) for n, x in given.items()}
    wants_lse = is_softmax(path.read_text(encoding="utf-8"))
    attention = attndsl.compile(path, backend="triton", **inputs.consts)

    def adapt(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            result = function(**arguments, **inputs.call, return_lse=wants_lse)
            return result if wants_lse else (result, None)

        return call

    got = differentiate(adapt(attention), given, wants_lse)
    want = differentiate(adapt(attention.reference), exact, wants_lse)

    def forward() -> None:
        with torch.no_grad():
            attention(**given, **inputs.call)

    def both() -> None:
        differentiate(adapt(attention), given, False)

    return Row(name, dtype, sizes.width, errors(got, want), time(forward), time(both))


def errors(got: Results, want: Results) -> dict[str, float]:
    """Largest error of each result, relative to its largest value; inf for NaN or a wrong -inf."""
    found = {}
    for name, expected in want.items():
        result, expected = got[name].double(), expected.double()
        infinite = torch.isinf(expected)
        if torch.isnan(result).any() or not torch.equal(infinite, torch.isinf(result)):
            found[name] = float("inf")
            continue
        gap = torch.where(infinite, torch.zeros_like(result), result - expected).abs()
        largest = torch.where(infinite, torch.zeros_like(expected), expected).abs()
        scale = max(float(largest.max()) if largest.numel() else 0.0, 1e-2)
        found[name] = float(gap.max()) / scale if gap.numel() else 0.0
    return found


def time(function: Callable[[], None], calls: int = 10) -> float:
    """Median time of a call in milliseconds, by the device's own clock, after a warm-up."""
    function()
    spans = []
    for _ in range(calls):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        spans.append(start.elapsed_time(end))
    return statistics.median(spans)


def rows(names: list[str], length: int) -> Iterator[Row]:
    for name in names:
        for dtype in TOLERANCES:
            for width in (64, 128):
                yield check(name, dtype, Sizes(2, 4, 2, length, width, width))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help="examples; all unless given")
    parser.add_argument("--length", type=int, default=1000, help="tokens (default 1000)")
    parser.add_argument("-o", "--output", type=Path, help="write the table here as well")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: there is no CUDA GPU here, or torch is built without CUDA")
        return 0
    title = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch 2, 4 heads over 2"
    lines = [f"{title}, about {options.length} tokens", "", HEADER]
    print("\n".join(lines), flush=True)
    failed = 0
    for row in rows(options.names or list(NAMES), options.length):
        failed += not row.passed
        lines.append(str(row))
        print(row, flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{failed} wrong" if failed else "all within tolerance")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
