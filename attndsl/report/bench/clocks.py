"""Time and memory of calls: of the device's own clock on a GPU, of the machine's on a CPU."""

from __future__ import annotations

import ctypes
import re
import time
from pathlib import Path
from typing import Protocol

from attndsl.runtime.clock import Call, DeviceClock, Time

RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # of Linux


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


def clock_of(device: str) -> Clock:
    return HostClock() if device == "cpu" else DeviceClock(device)
