"""Every definition of the standard library against plain Python or torch."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from attndsl.semantics.modules import standard_library

from .evaluate import evaluate
from .programs import program

N = 12
PAIRS = list(itertools.product(range(N), repeat=2))

# text of the mask -> the predicate in Python
MASKS: dict[str, Callable[[int, int], bool]] = {
    "causal": lambda q, k: k <= q,
    "bottom_right_causal": lambda q, k: k <= q + (N + 5) - N,
    "sliding_window(4)": lambda q, k: k in range(q - 3, q + 1),
    "local(2, 3)": lambda q, k: k in range(q - 2, q + 4),
    "prefix(5)": lambda q, k: k < 5,
    "prefix_lm(5)": lambda q, k: k < 5 or k <= q,
    "document(q // 3, k // 3)": lambda q, k: q // 3 == k // 3,
    "streaming(2, 3)": lambda q, k: k <= q and (k in (0, 1) or k > q - 3),
    "sink_tokens(2)": lambda q, k: k in (0, 1),
    "global_tokens(2)": lambda q, k: q in (0, 1) or k in (0, 1),
    "dilated(3)": lambda q, k: abs(q - k) in (0, 3, 6, 9),
    "strided(3)": lambda q, k: k <= q and (k > q - 3 or q - k in (3, 6, 9)),
    "fixed(4, 1)": lambda q, k: k <= q and (k // 4 == q // 4 or k in (3, 7, 11)),
    "block_diagonal(5)": lambda q, k: q // 5 == k // 5,
    "chunked(5)": lambda q, k: q // 5 == k // 5 and k <= q,
    "block_causal(5)": lambda q, k: k < 5 * (q // 5 + 1),
    "axial(q // 4, k // 4, q % 4, k % 4)": lambda q, k: q // 4 == k // 4 or q % 4 == k % 4,
    "disc(q // 4 - k // 4, q % 4 - k % 4, 2)": (
        lambda q, k: math.hypot(q // 4 - k // 4, q % 4 - k % 4) <= 2
    ),
}

# text of an expression -> its value in Python
VALUES: dict[str, Callable[[int, int], float]] = {
    "alibi(0.5)": lambda q, k: -0.5 * (q - k),
    "alibi_symmetric(0.5)": lambda q, k: -0.5 * abs(q - k),
    "alibi_slope": lambda q, k: (1 / 2) ** (8 * (q % 4 + 1) / 4),
    "softcap(float(q * k), 3.0)": lambda q, k: 3 * math.tanh(q * k / 3),
    "kerple_log(0.5, 2.0)": lambda q, k: -0.5 * math.log(1 + 2 * abs(q - k)),
    "kerple_power(0.5, 1.5)": lambda q, k: -0.5 * abs(q - k) ** 1.5,
    "gaussian(q - k, 3)": lambda q, k: -((q - k) ** 2) / 18,
    "log_n(4)": lambda q, k: max(1, math.log(q + 1, 4)),
    "retention(0.5)": lambda q, k: 0.5 ** (q - k),
    "retention_gamma": lambda q, k: 1 - 2 ** (-5 - q % 4),
    "sigmoid_weight(float(q - k))": lambda q, k: 1 / (1 + math.exp(-(q - k - math.log(N + 5)))),
    "taylor(float(q - k))": lambda q, k: 1 + (q - k) + (q - k) ** 2 / 2,
    "clipped(k - q, 3)": lambda q, k: min(max(k - q, -3), 3) + 3,
    "window_offset(q // 4 - k // 4, q % 4 - k % 4, 3, 4)": (
        lambda q, k: (q // 4 - k // 4 + 2) * 7 + (q % 4 - k % 4 + 3)
    ),
}

SIZES = {"Nq": N, "Nk": N + 5, "H": 4, "b": 0}
HEAD = "from std import " + ", ".join(standard_library())


@pytest.mark.parametrize("text", MASKS)
def test_masks(text: str) -> None:
    mask = program(f"mask {text}", head=HEAD).mask
    for q, k in PAIRS:
        assert evaluate(mask, q=q, k=k, h=q % 4, **SIZES) == MASKS[text](q, k), (q, k)


@pytest.mark.parametrize("text", VALUES)
def test_values(text: str) -> None:
    score = program(f"score {text}", head=HEAD).score
    for q, k in PAIRS:
        value = evaluate(score, q=q, k=k, h=q % 4, **SIZES)
        assert value == pytest.approx(VALUES[text](q, k), rel=1e-12), (q, k)


def clamped_window(x: int, radius: int, extent: int) -> list[int]:
    """The keys of a query in NATTEN: a window of 2 * radius + 1 that stays inside."""
    if extent <= 2 * radius + 1:
        return list(range(extent))
    start = x - radius
    if start < 0:
        start = 0
    if start + 2 * radius + 1 > extent:
        start = extent - 2 * radius - 1
    return list(range(start, start + 2 * radius + 1))


@pytest.mark.parametrize(("radius", "extent"), [(0, 4), (1, 3), (1, 7), (2, 12), (3, 5), (3, 12)])
def test_neighborhood(radius: int, extent: int) -> None:
    mask = program(f"mask neighborhood(q, k, {radius}, {extent})", head=HEAD).mask
    for q in range(extent):
        keys = [k for k in range(extent) if evaluate(mask, q=q, k=k)]
        assert keys == clamped_window(q, radius, extent), q


def strided_window(x: int, window: int, stride: int, extent: int) -> list[int]:
    """The keys of a query in GNA: a window around the leader of its group that stays inside."""
    group = range(x - x % stride, x - x % stride + stride)
    leader = group[len(group) // 2]
    while leader >= extent:
        leader -= 1
    keys = list(range(leader - window // 2, leader - window // 2 + window))
    while keys[-1] >= extent and keys[0] > 0:
        keys = [k - 1 for k in keys]
    while keys[0] < 0:
        keys = [k + 1 for k in keys]
    return [k for k in keys if k < extent]


@pytest.mark.parametrize(
    ("window", "stride", "extent"),
    [(3, 1, 8), (4, 2, 9), (5, 4, 12), (2, 3, 7), (4, 4, 8), (9, 2, 6), (1, 1, 3)],
)
def test_strided_neighborhood(window: int, stride: int, extent: int) -> None:
    call = f"strided_neighborhood(q, k, {window}, {stride}, {extent})"
    mask = program(f"mask {call}", head=HEAD).mask
    for q in range(extent):
        keys = [k for k in range(extent) if evaluate(mask, q=q, k=k)]
        assert keys == strided_window(q, window, stride, extent), q


def t5_buckets(
    distance: torch.Tensor, buckets: int, max_distance: int, bidirectional: bool
) -> torch.Tensor:
    """The paper's formula: half of the buckets exact, half logarithmic, in float64."""
    result = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        result += (distance > 0).long() * buckets
        steps = distance.abs()
    else:
        steps = (-distance).clamp(min=0)
    exact = buckets // 2
    ratio = torch.log(steps.clamp(min=1).double() / exact) / math.log(max_distance / exact)
    far = exact + (ratio * (buckets - exact) + 1e-9).long()
    return result + torch.where(steps < exact, steps, far.clamp(max=buckets - 1))


@pytest.mark.parametrize(
    ("buckets", "max_distance", "bidirectional"),
    [(32, 128, True), (32, 128, False), (320, 800, True), (8, 20, False)],
)
def test_t5_bucket(buckets: int, max_distance: int, bidirectional: bool) -> None:
    flag = "true" if bidirectional else "false"
    call = f"t5_bucket(k - q, {buckets}, {max_distance}, {flag})"
    score = program(f"score {call}", head=HEAD).score
    distances = torch.arange(-300, 301, 1)
    expected = t5_buckets(distances, buckets, max_distance, bidirectional).tolist()
    found = [evaluate(score, q=0, k=int(d)) for d in distances]
    assert found == expected


def test_everything_is_tested() -> None:
    apart = "neighborhood( first_neighbor( strided_neighborhood( first_strided_neighbor("
    texts = " ".join([*MASKS, *VALUES, apart])
    helpers = {name for name in standard_library() if name.startswith("t5_")}
    assert {n for n in standard_library() if n not in texts} <= helpers
