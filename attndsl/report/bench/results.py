"""What was measured of an implementation on a case, and what could not be."""

from __future__ import annotations

from dataclasses import dataclass, field

from attndsl.report.bench.cases import Case

PASSES = ("forward", "backward")
# Products of matrices of a pair: two forward; backward they count as two and a half times that,
# five, whatever a kernel computes again.
FLOPS = {"forward": 4.0, "backward": 10.0}


@dataclass(frozen=True)
class Figure:
    """Milliseconds of one pass: median and spread (the largest less the smallest) of the work, and
    the median of what the host was busy for; None where that is the work itself."""

    ms: float
    spread_ms: float
    host_ms: float | None


@dataclass
class Entry:
    """One implementation on one case.

    pairs        that take part, of all batches and heads
    first_s      seconds of the first call, backward included: what compiling and building take
    error        of the result, as a part of its size
    prepare_ms   what its mask costs; 0 where it prepares none, or does so inside the forward
    peak_bytes   the most that forward and backward hold beyond their inputs; None: unknown
    """

    case: Case
    name: str
    device: str
    pairs: int
    first_s: float
    error: float
    prepare_ms: float = 0.0
    peak_bytes: int | None = None
    passes: dict[str, Figure] = field(default_factory=dict)

    def tflops(self, name: str) -> float | None:
        """Of the pairs that take part; None for a pass that was not timed."""
        if name not in self.passes:
            return None
        return FLOPS[name] * self.pairs * self.case.shape.width / self.passes[name].ms / 1e9

    @property
    def gb_per_s(self) -> float:
        """Reading the keys and values of every pair's sequence, and query and result."""
        shape = self.case.shape
        keys = self.pairs / (shape.heads * shape.queries) * shape.kv_heads
        rows = shape.batch * shape.heads * shape.queries
        item = {"float32": 4, "float64": 8}.get(self.case.dtype, 2)
        return 2 * (keys + rows) * shape.width * item / self.passes["forward"].ms / 1e6

    @property
    def steepness(self) -> float | None:
        """The time of the backward by that of the forward."""
        forward, backward = self.ms("forward"), self.ms("backward")
        return None if forward is None or backward is None else backward / forward

    def ms(self, name: str) -> float | None:
        """Of "forward", "backward", or "both"."""
        if name != "both":
            return self.passes[name].ms if name in self.passes else None
        if not all(each in self.passes for each in PASSES):
            return None
        return sum(figure.ms for figure in self.passes.values())


@dataclass(frozen=True)
class Note:
    """What was not timed, and why; `is_wrong`: for its result, or for a failure of our own."""

    case: Case
    name: str
    reason: str
    is_wrong: bool = False


def unit_of(device: str) -> tuple[float, str]:
    """What speeds are shown in, and by what TFLOP/s are multiplied for it."""
    return (1e3, "GFLOP/s") if device == "cpu" else (1.0, "TFLOP/s")
