"""Compile an example, run it forward and backward at 4096 tokens, check it, show its kernel."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

import attndsl
from attndsl.report.arguments import Sizes
from attndsl.report.trial import run

PROGRAM = Path(__file__).with_name("gemma2_local.attn")
WINDOW = 1024
LENGTH = 4096
KERNEL_LINES = 60  # of the generated kernel


def title(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m\n" if sys.stdout.isatty() else f"\n== {text}\n", flush=True)


def main() -> int:
    """Returns 0 where the results agree with the reference."""
    title(f"the program: examples/{PROGRAM.name}")
    print(PROGRAM.read_text(encoding="utf-8").strip())

    title("compiled")
    begin = time.perf_counter()
    attention = attndsl.compile(PROGRAM)
    print(f"{attention!r}\nin {1e3 * (time.perf_counter() - begin):.0f} ms")

    title(f"forward and backward at {LENGTH} tokens, window {WINDOW}, beside the reference")
    sizes = Sizes(batch=1, heads=4, kv_heads=2, nq=LENGTH, nk=LENGTH, head_dim=64, value_dim=64)
    outcome = run(attention, sizes, {"window": WINDOW}, device="cpu")
    print(outcome.text)

    title("what runs, and what is skipped")
    print(attention.explain(Nq=LENGTH, Nk=LENGTH, B=1, H=4, Hk=2, D=64, window=WINDOW))

    title("the Triton kernel that was generated for a Hopper GPU: its head")
    lines = attention.source("forward", head_dim=64).splitlines()
    start = lines.index("def forward(")
    print("\n".join(line for line in lines[:start] if line.startswith("#")))
    print("...")
    print("\n".join(lines[start : start + KERNEL_LINES]))
    print(f"...\n\nall of its {len(lines)} lines: attndsl emit examples/{PROGRAM.name}")
    return 0 if outcome.passed else 1


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main())
