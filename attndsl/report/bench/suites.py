"""The suites by name: what each takes, and what runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from attndsl.diagnostics import ArgumentError, did_you_mean
from attndsl.report.bench import cases
from attndsl.report.bench.cases import Case, Wish
from attndsl.report.bench.measurement import Outcome
from attndsl.report.bench.preparation import masks
from attndsl.report.bench.races import race
from attndsl.report.bench.routing import routing
from attndsl.report.bench.sparsity import sparsity
from attndsl.report.bench.startup import example_files, startup
from attndsl.report.bench.static import HEAD_DIMS, static
from attndsl.report.trial import check_device


@dataclass(frozen=True)
class Suite:
    """about   one line for a list
    run     what runs it
    takes   names of the options that mean something to it, beside --json and --plot
    device  the only one it runs on
    """

    about: str
    run: Callable[[Wish], Outcome]
    takes: frozenset[str] = frozenset()
    device: str | None = None


TAKEN = frozenset({"only", "peers", "ours", "quick", "dtype", "device", "lengths"})


def attention(
    name: str,
    found: Callable[[Wish], Iterator[Case]],
    *,
    has_lengths: bool = True,
    device: str | None = None,
) -> Suite:
    """A suite of cases, beside the peers."""
    about = (found.__doc__ or "").strip()
    takes = TAKEN if has_lengths else TAKEN - {"lengths"}
    return Suite(about, lambda wish: race(name, about, found, wish), takes, device)


def prepared(wish: Wish) -> Outcome:
    lengths = wish.lengths or ((4096,) if wish.is_quick else None)
    return masks() if lengths is None else masks(lengths, longest_for_peer=max(lengths))


def routed(wish: Wish) -> Outcome:
    quick = {"cpu": (4096,), "cuda": (16_384,)}[wish.kind] if wish.is_quick else None
    return routing(wish.lengths or quick, wish.device)


SUITES = {
    "core": attention("core", cases.core),
    "documents": attention("documents", cases.documents),
    "window": attention("window", cases.window),
    "neighborhood": attention("neighborhood", cases.neighborhood, has_lengths=False),
    "decode": attention("decode", cases.decode),
    "cpu": attention("cpu", cases.cpu, device="cpu"),
    "routing": Suite(
        "Programs with selects beside dense causal attention, and what choosing takes.",
        routed,
        frozenset({"lengths", "device", "quick"}),
    ),
    "masks": Suite(
        "Time to prepare masks, beside create_block_mask.",
        prepared,
        frozenset({"lengths", "quick"}),
    ),
    "sparsity": Suite(
        "Tiles visited and needed, for every example without a select.",
        lambda wish: sparsity(example_files()),
        frozenset({"quick"}),
    ),
    "static": Suite(
        "Inner loops of causal attention beside FlexAttention's, compiled for sm_90; needs no GPU.",
        lambda wish: static(HEAD_DIMS[-1:] if wish.is_quick else HEAD_DIMS),
        frozenset({"quick"}),
    ),
    "startup": Suite(
        "Time of `import attndsl` and of `attndsl.compile`.",
        lambda wish: startup(example_files()),
        frozenset({"quick"}),
    ),
}


def check(name: str, wish: Wish, given: frozenset[str] = frozenset()) -> Callable[[], Outcome]:
    """What runs a suite.

    given  the names of the options that a user gave

    Raises ArgumentError for an unknown suite, one that does not take an option, and a device that
    is not there.
    """
    if name not in SUITES:
        hint = did_you_mean(name, SUITES) or f"there are {', '.join(SUITES)}"
        raise ArgumentError(f"suite: unknown {name!r}; {hint}")
    suite = SUITES[name]
    for option in sorted(given - suite.takes):
        takers = [other for other, found in SUITES.items() if option in found.takes]
        raise ArgumentError(f"{name}: takes no --{option}; the suites {', '.join(takers)} do")
    if suite.device is not None:
        if "device" in given and wish.kind != suite.device:
            raise ArgumentError(f"{name}: runs on {suite.device}, not on {wish.device}")
        wish = replace(wish, device=suite.device)
    check_device(wish.device)
    return lambda: suite.run(wish)


def device_here() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def listing() -> str:
    """Every suite with a line about it."""
    width = max(map(len, SUITES))
    return "\n".join(f"{name.ljust(width)}  {suite.about}" for name, suite in SUITES.items())
