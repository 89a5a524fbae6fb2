"""Measures attndsl against its peers; checks that they agree before it times them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from attndsl.report.measurement import REPEATS, Report, milliseconds, summary
from attndsl.report.preparation import masks
from attndsl.report.progress import progress

AGREES = 1e-4  # largest difference, of float32 results of about 1
WINDOW = """
attention window_causal(window: int = 512):
    mask 0 <= q - k < window
"""


# -- cpu ------------------------------------------------------------------------------------


def cpu(length: int = 4096, heads: int = 8, width: int = 64, window: int = 512) -> Report:
    """A causal window: ours, compiled FlexAttention, and SDPA with a dense mask."""
    import attndsl

    random = torch.Generator().manual_seed(0)
    shape = (1, heads, length, width)
    query, key, value = (torch.randn(shape, generator=random) for _ in range(3))
    attention = attndsl.compile(text=WINDOW, backend="torch")
    flex, flex_mask_ms = flex_attention(length, window)
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    dense = (distance >= 0) & (distance < window)

    def ours() -> Tensor:
        out = attention(query, key, value, window=window)
        assert isinstance(out, Tensor)
        return out

    def sdpa() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=dense)

    calls: dict[str, Callable[[], Tensor]] = {
        "attndsl": ours,
        "FlexAttention, compiled": lambda: flex(query, key, value),
        "SDPA, dense mask": sdpa,
    }
    notes = [f"create_block_mask took {flex_mask_ms:.0f} ms before FlexAttention could run"]
    differences: dict[str, float] = {}
    times: dict[str, list[float]] = {}
    with progress(len(calls) + REPEATS) as line, torch.no_grad():
        expected = sdpa()
        for name, call in calls.items():
            line.step(f"{name}: checking")
            differences[name] = float((call() - expected).abs().max())
        agreeing = {name: call for name, call in calls.items() if differences[name] < AGREES}
        for _ in range(REPEATS):  # in turns, so that what else the machine does falls on all alike
            line.step("timing")
            for name, call in agreeing.items():
                times.setdefault(name, []).extend(milliseconds(call, 1))
    for name in calls.keys() - agreeing.keys():
        notes.append(f"{name} differs by {differences[name]:.2g}: not timed")
    first = summary(next(iter(times.values())))[0]
    rows = []
    for name, found in times.items():
        middle, spread = summary(found)
        rows.append((name, middle, spread, middle / first, differences[name]))
    titles = ("forward", "median ms", "spread ms", "ratio", "largest difference")
    about = (
        f"causal window of {window} at length {length}, {heads} heads of {width}, float32, "
        f"{torch.get_num_threads()} threads; median of {REPEATS}"
    )
    passed = agreeing.keys() == calls.keys()
    return Report("cpu", about, titles, tuple(rows), tuple(notes), passed)


def flex_attention(length: int, window: int) -> tuple[Callable[..., Tensor], float]:
    """Compiled FlexAttention over a causal window, and the time that its block mask took."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def kept(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q - k < window)

    begin = time.perf_counter()
    block_mask = create_block_mask(kept, None, None, length, length, device="cpu")
    took = (time.perf_counter() - begin) * 1e3
    compiled = torch.compile(flex_attention)

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = compiled(query, key, value, block_mask=block_mask)
        return out

    return call, took


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
    beside = Path(__file__).resolve().parents[2] / "examples"
    return sorted(beside.glob("*.attn"))


SUITES: dict[str, Callable[[], Report]] = {"cpu": cpu, "masks": masks, "startup": startup}


def measure(suite: str) -> Report:
    """Runs a suite."""
    return SUITES[suite]()
