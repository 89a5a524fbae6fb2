"""Time and memory of calls: of the device's own clock on a GPU, of the machine's on a CPU."""

from __future__ import annotations

import ctypes
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

FILLED = 1 << 28  # bytes that are written before a timed call: far more than a cache of any GPU
MOST_FILLS = 400  # before one call, about 30 ms of an H200
RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # of Linux

Call = Callable[[], object]


class Time(NamedTuple):
    """Milliseconds: of the work, and of the host until it has handed the work over."""

    work: float
    host: float


class Clock(Protocol):
    def time(self, call: Call, host: float = 0.0) -> Time:
        """One call, that keeps the host busy for about so many milliseconds."""
        ...

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        ...

    def grown(self, call: Call) -> int | None:
        """The most bytes that a call holds beyond those held before; None where unknown."""
        ...


class HostClock:
    """A machine's clock, for work that is done when the call returns."""

    def time(self, call: Call, host: float = 0.0) -> Time:
        begin = time.perf_counter()
        call()
        taken = (time.perf_counter() - begin) * 1e3
        return Time(taken, taken)

    def wait(self) -> None:
        pass

    def grown(self, call: Call) -> int | None:
        """From the process's peak, which Linux lets a process set back."""
        if not (RESET.exists() and STATUS.exists()):
            return None
        trim()
        RESET.write_text("5")
        before = resident("VmRSS")
        call()
        return max(0, resident("VmHWM") - before)


def trim() -> None:
    """Gives back what the C library holds of freed memory, or it would be used without a trace."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # of glibc
        library.malloc_trim(0)


def resident(name: str) -> int:
    """Bytes of the process that are in memory, VmRSS, or were at most, VmHWM."""
    found = re.search(rf"^{name}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


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


def clock_of(device: str) -> Clock:
    return HostClock() if device == "cpu" else DeviceClock(device)
