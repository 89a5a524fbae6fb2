"""What a mask costs before attention can run: ours beside FlexAttention's create_block_mask."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attndsl.report.bench.measurement import REPEATS, Report, summary
from attndsl.report.progress import progress

if TYPE_CHECKING:
    from attndsl.runtime.attention import Attention

LENGTHS = (16_384, 65_536)
LONGEST_FOR_PEER = 16_384  # it evaluates all pairs: at 65,536 they take about 45 GB
DOCUMENT = 1024  # tokens on average

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A mask: as a program, as arguments of the program for a length, and as FlexAttention's."""

    name: str
    text: str
    arguments: Callable[[int], dict[str, Any]]
    function: Callable[[dict[str, Any]], MaskFunction]


def documents(length: int) -> dict[str, Any]:
    """Documents of random lengths, one after the other."""
    random = torch.Generator().manual_seed(length)
    cuts = torch.rand(length, generator=random) < 1 / DOCUMENT
    return {"doc": cuts.cumsum(0).view(1, length)}


def side(length: int) -> int:
    return int(length**0.5)


def same_document(given: dict[str, Any]) -> MaskFunction:
    doc: Tensor = given["doc"]

    def kept(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (doc[b, q] == doc[b, k]) & (q >= k)

    return kept


def neighborhood(given: dict[str, Any]) -> MaskFunction:
    width, radius = given["side"], given["radius"]

    def start(x: Tensor) -> Tensor:
        return torch.clamp(x - radius, 0, width - 2 * radius - 1)

    def near(x: Tensor, y: Tensor) -> Tensor:
        return torch.logical_and(y >= start(x), y <= start(x) + 2 * radius)

    def kept(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return near(q // width, k // width) & near(q % width, k % width)

    return kept


CASES = (
    Case(
        "window 512",
        "attention window(window: int):\n    mask 0 <= q - k < window\n",
        lambda length: {"window": 512},
        lambda given: lambda b, h, q, k: (q >= k) & (q - k < given["window"]),
    ),
    Case(
        "documents, causal",
        "attention documents(doc: int[B, N]):\n    mask doc[b, q] == doc[b, k] and k <= q\n",
        documents,
        same_document,
    ),
    Case(
        "prefix, causal",
        "attention prefix(length: int[B]):\n    mask k <= q or k < length[b]\n",
        lambda length: {"length": torch.tensor([length // 4])},
        lambda given: lambda b, h, q, k: (q >= k) | (k < given["length"][b]),
    ),
    Case(
        "neighborhood 13 x 13",
        "from std import neighborhood\n\n"
        "attention near(side: int, radius: int):\n"
        "    grid y = side, x = side\n"
        "    mask neighborhood(q.y, k.y, radius, side) and neighborhood(q.x, k.x, radius, side)\n",
        lambda length: {"side": side(length), "radius": 6},
        neighborhood,
    ),
)


def masks(lengths: tuple[int, ...] = LENGTHS, longest_for_peer: int = LONGEST_FOR_PEER) -> Report:
    """Time to prepare masks on the CPU, and where there is one on the GPU."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rows = []
    with progress(len(devices) * len(CASES) * len(lengths)) as line:
        for device in devices:
            for case in CASES:
                for length in lengths:
                    line.step(f"{case.name} at {length} on {device}")
                    rows.append(_row(case, length, device, longest_for_peer))
    titles = ("mask", "length", "on", "ms", "spread ms", "peak MB", "block mask ms", "times")
    about = f"milliseconds to prepare a mask, anew every time; median of {REPEATS}"
    notes = (
        "ms: all that runs before the first block of scores, on a GPU before the kernels.",
        "block mask: FlexAttention's create_block_mask, eager on the CPU, compiled on a GPU;",
        f"~ is its time at {longest_for_peer:,} times the square of how much longer this is.",
    )
    return Report("masks", about, titles, tuple(rows), notes)


def _row(case: Case, length: int, device: str, longest: int) -> tuple[object, ...]:
    import attndsl

    attention = attndsl.compile(text=case.text, backend="torch" if device == "cpu" else "triton")
    given = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in case.arguments(length).items()
    }
    prepare = preparation(attention, length, device, given)
    prepare()
    before = peak_bytes(device)
    middle, spread = summary([_milliseconds(prepare, device) for _ in range(REPEATS)])
    grown = (peak_bytes(device) - before) / 1e6
    reached = min(length, longest)
    peer = _block_mask(case, reached, device) * (length / reached) ** 2
    shown = f"{'~' if reached < length else ''}{peer:.3g}"
    return (case.name, length, device, middle, spread, grown, shown, peer / middle)


def preparation(
    attention: Attention, length: int, device: str, given: dict[str, Any]
) -> Callable[[], object]:
    """A call that prepares the mask as a forward does, and does nothing else."""
    from attndsl.runtime import cache
    from attndsl.runtime.operators import request_of_call

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    query = torch.zeros(1, 1, length, 16, dtype=dtype, device=device)
    program = attention.program
    tensors = tuple(given[t.name] for t in program.tensors)
    scalars = {s.name: given[s.name] for s in program.scalars}
    inputs = (query, query, query)
    request = request_of_call(
        *(program, attention.settings, *inputs, tensors, {}, (), scalars, (0, 0))
    )
    module = cache.module_of(attention._handle, program, request)
    values = tuple(scalars.values())
    return lambda: module.run_spans(*inputs, 1.0, 0, 0, None, tensors, values)


def _block_mask(case: Case, length: int, device: str) -> float:
    """Milliseconds of create_block_mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    given = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in case.arguments(length).items()
    }
    make = create_block_mask if device == "cpu" else torch.compile(create_block_mask)
    function = case.function(given)

    def call() -> object:
        return make(function, None, None, length, length, device=device)

    call()
    return min(_milliseconds(call, device) for _ in range(1 if device == "cpu" else REPEATS))


def _milliseconds(call: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) * 1e3


def peak_bytes(device: str) -> int:
    """The most memory that the process (or the device) has held so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
