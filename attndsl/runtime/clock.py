"""Time and memory of calls by a GPU's own clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

FILLED = 1 << 28  # bytes that are written before a timed call: far more than a cache of any GPU
MOST_FILLS = 400  # before one call, about 30 ms of an H200

Call = Callable[[], object]


class Time(NamedTuple):
    """Milliseconds: of the work, and of the host until it has handed the work over."""

    work: float
    host: float


@dataclass
class DeviceClock:
    """CUDA events around a call.

    Before each call large buffers are written: that empties the L2 cache, and keeps the device busy
    until the host has launched what is timed, so that the time is the device's alone. A call that
    waits for the device itself is timed with that wait.
    """

    device: str

    def __post_init__(self) -> None:
        self.buffer = torch.empty(FILLED, dtype=torch.uint8, device=self.device)
        self.fill_ms = 0.1  # until it is known
        self.fill_ms = min(self.time(self.buffer.zero_).work for _ in range(4))

    def time(self, call: Call, host: float = 0.0) -> Time:
        fills = 1 + math.ceil(1.5 * host / self.fill_ms)
        for _ in range(min(fills, MOST_FILLS)):
            self.buffer.zero_()
        first: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        last: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        first.record()
        begin = time.perf_counter()
        call()
        busy = (time.perf_counter() - begin) * 1e3
        last.record()
        last.synchronize()
        return Time(first.elapsed_time(last), busy)

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def grown(self, call: Call) -> int | None:
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        kept = call()
        self.wait()
        del kept
        return torch.cuda.max_memory_allocated(self.device) - before
