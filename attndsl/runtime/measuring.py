"""Which sizes of kernels are fastest for a call: candidates are run on its own arguments.

Every candidate's result is compared with that of the table's sizes before it is timed. Then all are
timed in turns, the slower half leaves, and the rest is timed again for twice as many calls, until
two are left; the table's sizes stay to the end. What is timed is the whole forward or backward, for
lists of tiles and sums of parts depend on the sizes too; all but one kernel stays as it is.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.plan.candidates import candidates
from attndsl.plan.kernel_plan import Config, Request, Sizes
from attndsl.plan.planner import plan, table_sizes
from attndsl.runtime import cache, targets, tuned
from attndsl.runtime.clock import DeviceClock
from attndsl.runtime.tuned import Bucket, Function, Kernel, Place, Winner

FIRST_CALLS = 3  # of every candidate; twice as many in each further round
GAIN = 0.02  # of the table's time that a winner has to save: less is noise
# ||candidate - table's|| / ||table's||: sums are taken in another order, nothing else differs.
TOLERANCES = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}
NOTHING = 1e-3  # a result whose root mean square is below this is compared as if it were this large

Timer = Callable[[Callable[[], object]], float]  # a call -> milliseconds that it took


@dataclass(frozen=True)
class Measured:
    """What became of a candidate; None stands for separate kernels instead of backward_fused.

    milliseconds  the median of its calls, None where it was not timed
    calls         how many were timed
    refusal       why it was not, or ""
    """

    config: Config | None
    milliseconds: float | None = None
    calls: int = 0
    refusal: str = ""


@dataclass(frozen=True)
class Contest:
    """The candidates of one kernel for one call: the table's first, then the fastest first."""

    kernel: Kernel
    lengths: tuple[int, int]
    results: tuple[Measured, ...]

    @property
    def table(self) -> Measured:
        return self.results[0]

    @property
    def best(self) -> Measured:
        """The fastest, unless it saves next to nothing over the table's."""
        timed = [result for result in self.results if result.milliseconds is not None]
        first = min(timed, key=milliseconds_of)
        return (
            first
            if milliseconds_of(first) < (1 - GAIN) * milliseconds_of(self.table)
            else self.table
        )

    @property
    def winner(self) -> Winner:
        return Winner(self.best.config, milliseconds_of(self.best), milliseconds_of(self.table))


def milliseconds_of(result: Measured) -> float:
    assert result.milliseconds is not None
    return result.milliseconds


@dataclass(eq=False)
class Session:
    """How measuring goes on in this process.

    timer     times a call; the device's own clock unless given
    again     whether to measure what is stored already
    step      told what is done next: a kernel, a configuration, what is done with it
    finished  told each contest, and the file that keeps its winner
    """

    timer: Timer | None = None
    again: bool = False
    step: Callable[[Kernel, Config | None, str], None] = lambda kernel, config, what: None
    finished: Callable[[Place, Contest, Path], None] = lambda place, contest, path: None


# One measurement at a time: two would slow each other. A backward runs in a thread of torch's own,
# so what a session sets is of the process, not of a context.
LOCK = threading.RLock()
SESSIONS = [Session()]
# What is known to be measured, so that a call does not look it up again.
DONE: set[tuple[str, Request, str, Bucket, Function]] = set()
cache.ON_FORGET.append(DONE.clear)


@contextmanager
def session(given: Session) -> Iterator[Session]:
    """Measures in this way until it ends."""
    SESSIONS.append(given)
    try:
        yield given
    finally:
        SESSIONS.remove(given)


def measure_call(
    place: Place, lengths: tuple[int, int], function: Function, arguments: tuple[Any, ...]
) -> None:
    """Measures and stores the sizes of a function's kernels, unless that was done for lengths like
    these. Raises ArgumentError where nothing can be measured."""
    current = SESSIONS[-1]
    if place.request.backend != "triton":
        raise ArgumentError(
            'tune: "max" measures Triton kernels on a GPU, and these tensors are on '
            f'{place.device.type}; use tune="auto", or tensors on a GPU'
        )
    bucket = tuned.bucket_of(lengths)
    done = (place.handle, place.request, targets.name_of(place.device), bucket, function)
    if done in DONE and not current.again:
        return
    with LOCK:
        known = tuned.entry_of(place).get(bucket, {})
        missing = [
            k for k in kernels_of(place, function, lengths) if current.again or k not in known
        ]
        runs = Runs(place, function, arguments)
        timer = current.timer or (device_timer(place.device) if missing else None)
        for kernel in missing:
            assert timer is not None
            contest = contest_of(lengths, kernel, runs, timer)
            path = tuned.remember(place, bucket, {kernel: contest.winner})
            current.finished(place, contest, path)
        DONE.add(done)


def kernels_of(place: Place, function: Function, lengths: tuple[int, int]) -> list[Kernel]:
    """The kernels of a function whose sizes are measured, one after the other; none where few
    queries have kernels of their own."""
    if function == "run_forward":
        return [] if tuned.has_few_queries(place, lengths, function) else ["forward"]
    fused: tuple[Config, ...] = ()
    if not place.request.deterministic:
        fused = candidates(place.program, place.request, "backward_fused")
    if not fused:
        return ["backward_dq", "backward_dkv"]
    sizes = replace(table_sizes(place.program, place.request), backward_fused=fused[0])
    made = plan(place.program, replace(place.request, sizes=sizes))
    more: list[Kernel] = [] if made.backward_fused is None else ["backward_fused"]
    return ["backward_dq", "backward_dkv", *more]


def device_timer(device: torch.device) -> Timer:
    """The clock of a GPU; ArgumentError where there is none, or none that may be read now."""
    if device.type != "cuda" or targets.is_interpreting():
        where = "Triton's interpreter" if targets.is_interpreting() else device.type
        raise ArgumentError(
            f'tune: "max" measures on a GPU, and this call runs in {where}; use tune="auto"'
        )
    if torch.cuda.is_current_stream_capturing():
        raise ArgumentError(
            'tune: "max" has not measured this call yet, and nothing is measured while a CUDA '
            "graph is captured; make the call once before"
        )
    clock = DeviceClock(str(device))
    host = 0.0  # milliseconds that the host took for the last call

    def timed(call: Callable[[], object]) -> float:
        nonlocal host
        with torch.cuda.device(device):
            taken = clock.time(call, host)
        host = taken.host
        return taken.work

    return timed


class Runs:
    """A function of the generated modules of a place, on the arguments of a call."""

    def __init__(self, place: Place, function: Function, arguments: tuple[Any, ...]) -> None:
        self.place, self.function, self.arguments = place, function, arguments
        self.table = table_sizes(place.program, place.request)

    def call(self, sizes: Sizes) -> Callable[[], Sequence[Tensor]]:
        """The function with these sizes."""
        module = cache.module_of(self.place.handle, self.place.program, self.request(sizes))
        run = getattr(module, self.function)
        return lambda: cast(Sequence[Tensor], run(*self.arguments))

    def release(self, sizes: Sizes) -> None:
        """Drops the module with these sizes."""
        cache.release(self.place.handle, self.request(sizes))

    def request(self, sizes: Sizes) -> Request:
        request = self.place.request
        return request if sizes == self.table else replace(request, sizes=sizes)


def contest_of(lengths: tuple[int, int], kernel: Kernel, runs: Runs, timer: Timer) -> Contest:
    """The contest of one kernel, all others with the sizes that are known to be fast."""
    place = runs.place
    sizes = tuned.sized(place, lengths).sizes or runs.table
    others: list[Config | None] = [*candidates(place.program, place.request, kernel)]
    if kernel == "backward_fused":
        others.append(None)
    else:
        sizes = replace(sizes, backward_fused=None)  # beside which it would not run
    table: Config | None = getattr(runs.table, kernel)
    expected = runs.call(tuned.with_kernel(sizes, kernel, table))()
    refused: list[Measured] = []
    calls: dict[Config | None, Callable[[], object]] = {}
    for config in dict.fromkeys((table, *others)):
        SESSIONS[-1].step(kernel, config, "compiled and checked")
        call = runs.call(tuned.with_kernel(sizes, kernel, config))
        refusal = refusal_of(call, expected, TOLERANCES[place.request.dtype])
        if refusal and config != table:
            refused.append(Measured(config, refusal=refusal))
            warn_of(kernel, config, refusal)
        else:
            calls[config] = call
    timed = halved(calls, table, lambda config, call: timed_call(kernel, config, call, timer))
    rest = sorted(timed[1:], key=milliseconds_of)
    found = Contest(kernel, lengths, (timed[0], *rest, *refused))
    for result in found.results:
        if result.config not in (table, found.best.config):
            runs.release(tuned.with_kernel(sizes, kernel, result.config))
    return found


def warn_of(kernel: Kernel, config: Config | None, refusal: str) -> None:
    warnings.warn(
        f"attndsl: {kernel} of {config} {refusal}; it is left out. This is a fault of attndsl or "
        "Triton",
        RuntimeWarning,
        stacklevel=2,
    )


def timed_call(
    kernel: Kernel, config: Config | None, call: Callable[[], object], timer: Timer
) -> float:
    SESSIONS[-1].step(kernel, config, "timed")
    return timer(call)


def halved(
    calls: dict[Config | None, Callable[[], object]],
    table: Config | None,
    time: Callable[[Config | None, Callable[[], object]], float],
) -> list[Measured]:
    """All configurations with their times, the table's first; the slower half of those left is
    timed no further."""
    times: dict[Config | None, list[float]] = {config: [] for config in calls}
    left = list(calls)
    for size, count in rounds_of(len(calls)):
        left = sorted(left, key=lambda config: median(times[config] or [0.0]))[:size]
        if table not in left:
            left[-1] = table
        for _ in range(count):
            for config in left:
                times[config].append(time(config, calls[config]))
    found = [Measured(config, median(times[config]), len(times[config])) for config in calls]
    return sorted(found, key=lambda result: result.config != table)


def rounds_of(count: int) -> list[tuple[int, int]]:
    """How many configurations each round has, and how often it times each of them.

    >>> rounds_of(9)
    [(9, 3), (5, 6), (3, 12), (2, 24)]
    """
    rounds = [(count, FIRST_CALLS)]
    while rounds[-1][0] > 2:
        size, calls = rounds[-1]
        rounds.append(((size + 1) // 2, 2 * calls))
    return rounds


def steps_of(count: int) -> int:
    """How often `Session.step` is told something for a kernel with so many configurations."""
    return count + sum(size * calls for size, calls in rounds_of(count))


def refusal_of(
    call: Callable[[], Sequence[Tensor]], expected: Sequence[Tensor], tolerance: float
) -> str:
    """Why a candidate may not be timed: it does not compile or launch, or computes something else;
    "" where it may. A fault of the device itself is raised."""
    from triton import TritonError

    try:
        found = call()
    except TritonError as error:
        return f"does not launch ({type(error).__name__}: {first_line(error)})"
    except RuntimeError as error:  # of Triton's passes; its own classes are no base of it
        if isinstance(error, (torch.AcceleratorError, torch.OutOfMemoryError)):
            raise
        return f"does not compile ({first_line(error)})"
    pairs = zip(found, expected, strict=True)
    return "" if all(agrees(a, b, tolerance) for a, b in pairs) else "gives another result"


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def agrees(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether two results are equal but for rounding; also where they are not finite."""
    if not found.numel():
        return found.shape == expected.shape
    same = (found == expected) | (torch.isnan(found) & torch.isnan(expected))
    difference = torch.where(same, 0.0, (found - expected).float())
    size = torch.where(torch.isfinite(expected), expected, 0.0).float().norm()
    size = size.clamp(min=NOTHING * expected.numel() ** 0.5)
    return bool(difference.norm() <= tolerance * size)


__all__ = ["Contest", "Measured", "Session", "Timer", "measure_call", "session"]
