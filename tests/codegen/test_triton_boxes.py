"""Kernels whose tiles are boxes of a grid: values, gradients and visited tiles, in the interpreter.

Images are small, so the choice of the order is put out of action: every call gets boxes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl
from attndsl.backend import load
from attndsl.plan.boxes import attn_box, attn_counts, attn_order, attn_positions
from attndsl.plan.kernel_plan import KernelPlan
from attndsl.plan.planner import plan
from attndsl.report.requests import request_for
from attndsl.runtime import operators, order
from attndsl.runtime.order import Order
from tests.codegen.visits import Counts, counting, needed_visits
from tests.oracle.compare import cast, difference, differentiate, is_softmax, oracle_function

PLANE = "(h0: int = 9, w0: int = 11{}):\n    grid y = h0, x = w0\n"


def plane(name: str, parameters: str, body: str) -> str:
    """A program over an image of h0 x w0."""
    return f"attention {name}" + PLANE.format(f", {parameters}" if parameters else "") + body


NEAR = (
    "from std import neighborhood\n"
    "attention near(h0: int = 9, w0: int = 11, r: int = 2):\n    grid y = h0, x = w0\n"
    "    mask neighborhood(q.y, k.y, r, h0) and neighborhood(q.x, k.x, r, w0)\n"
)
VIDEO = (
    "from std import neighborhood\n"
    "attention video(f: int = 3, h0: int = 5, w0: int = 7, r: int = 1):\n"
    "    grid t = f, y = h0, x = w0\n"
    "    mask neighborhood(q.y, k.y, r, h0) and neighborhood(q.x, k.x, r, w0) and q.t >= k.t\n"
)
STRIDED = (
    "from std import strided_neighborhood\n"
    "attention gna(h0: int = 16, w0: int = 16, window: int = 8, stride: int = 8):\n"
    "    grid y = h0, x = w0\n"
    "    mask strided_neighborhood(q.y, k.y, window, stride, h0)\n"
    "    mask strided_neighborhood(q.x, k.x, window, stride, w0)\n"
)
SWIN = (
    "attention swin(bias: float[H, 2 * size - 1, 2 * size - 1], h0: int = 7, w0: int = 9, "
    "size: int = 3, shift: int = 1):\n    grid y = h0, x = w0\n"
    "    mask (q.y - shift) // size == (k.y - shift) // size\n"
    "    mask (q.x - shift) // size == (k.x - shift) // size\n"
    "    score score + bias[h, q.y - k.y + size - 1, q.x - k.x + size - 1]\n"
)
DISC = plane("discs", "r: int = 4", "    mask (q.y - k.y) ** 2 + (q.x - k.x) ** 2 <= r ** 2\n")
HEADS = plane("heads", "r: int[H]", "    mask abs(q.y - k.y) <= r[h] and q.x >= k.x\n")
DOCUMENTS = plane(
    "documents",
    "doc: int[B, N], r: int = 3",
    "    mask abs(q.y - k.y) <= r and doc[b, q] == doc[b, k]\n",
)
PARTS = (
    "attention parts(on: bool[N], level: float[H, N]):\n    grid y = 8, x = 12\n"
    "    mask q.y // 4 == k.y // 4 and on[k] and level[h, q] > 0.2\n"
)
TABLE = plane("tables", "near: bool[Nq, Nk]", "    mask near[q, k] and abs(q.x - k.x) <= 2\n")
DOT = plane(
    "dots",
    "rel: float[H, M, D], own: float[M, D]",
    "    mask abs(q.y - k.y) <= 1\n"
    "    score score + dot(query, rel[h, q.x - k.x + 8]) + dot(query, own[q.y])\n",
)
PROFILES = plane(
    "profiles",
    "rows: float[N], columns: float[H, N], far: float[B, N], place: int[N]",
    "    mask abs(q.x - k.x) <= 3\n"
    "    score score * rows[q.y] + columns[h, k] + far[b, place[q]] * 0.1 * (q - k)\n",
)
SINK = plane(
    "sinks",
    "sink: float[H], gate: float[B, H, Nq]",
    "    mask q.y >= k.y and k.x != 3 and q.x != 4\n"
    "    weights softmax(sink = sink[h] + 0.1 * q.x)\n"
    "    output out * sigmoid(gate[b, h, q])\n",
)
NORMALIZE = plane(
    "normal",
    "decay: float[H]",
    "    mask abs(q.y - k.y) < 3 and abs(q.x - k.x) < 4\n"
    "    weights normalize(1 + score + decay[h] * score ** 2 / 2)\n",
)
ELEMENTWISE = plane(
    "elementwise",
    "gain: float[N]",
    "    mask q.y == k.y or q.x == k.x\n    weights sigmoid(score - gain[k.x]) * gain[q.y]\n",
)
NAMES = (
    "attention names(a: int = 5, b0: int = 6):\n    grid places = a, lo = b0\n"
    "    mask abs(q.places - k.places) <= 1 and q.lo >= k.lo\n"
)
NOTHING = plane("nothing", "", "    mask q.y + 100 < k.x\n")


@dataclass
class Case:
    """A call: the grid, sizes (batch, heads, key heads, D, Dv), parameters and arguments.

    exact  whether no tile is visited in vain and every full one is known
    """

    text: str
    grid: tuple[int, ...] = (9, 11)
    sizes: tuple[int, int, int, int, int] = (1, 2, 1, 16, 16)
    parameters: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    tolerance: float = 2e-3
    exact: bool = True


def floats(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ints(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(2))


CASES = {
    "neighborhood": Case(NEAR),
    "neighborhood of another size": Case(NEAR, (13, 6), (2, 2, 2, 16, 32), {"h0": 13, "w0": 6}),
    "smaller than a box": Case(NEAR, (2, 5), parameters={"h0": 2, "w0": 5, "r": 1}, exact=False),
    "video": Case(VIDEO, (3, 5, 7), (2, 4, 2, 16, 16)),
    "video of one frame": Case(VIDEO, (1, 7, 9), parameters={"f": 1, "h0": 7, "w0": 9}),
    "strided": Case(
        STRIDED,
        (11, 13),
        parameters={"h0": 11, "w0": 13, "window": 5, "stride": 3},
        exact=False,
    ),
    "swin": Case(SWIN, (7, 9), (2, 2, 1, 16, 16), {"bias": floats(2, 5, 5)}),
    "swin, no shift": Case(SWIN, (7, 9), parameters={"bias": floats(2, 5, 5), "shift": 0}),
    "disc": Case(DISC),
    "disc of a point": Case(DISC, parameters={"r": 0}),
    "radius by head": Case(
        HEADS, sizes=(2, 3, 3, 16, 16), parameters={"r": torch.tensor([0, 2, 5])}
    ),
    "documents": Case(
        DOCUMENTS,
        sizes=(2, 2, 1, 16, 16),
        parameters={"doc": (torch.arange(198) // 23).view(2, 99)},
        exact=False,
    ),
    "documents, strewn": Case(DOCUMENTS, parameters={"doc": ints(30, 1, 99)}, exact=False),
    "values by position": Case(
        PARTS,
        (8, 12),
        parameters={"on": torch.arange(96) // 7 % 2 == 0, "level": floats(2, 96)},
    ),
    "table by query and key": Case(
        TABLE, parameters={"near": ints(3, 99, 99) == 0}, sizes=(1, 1, 1, 16, 16), exact=False
    ),
    "lengths": Case(
        NEAR, sizes=(4, 2, 1, 16, 16), call={"k_len": torch.tensor([99, 0, 50, 1])}, exact=False
    ),
    "lengths of documents": Case(
        DOCUMENTS,
        sizes=(2, 1, 1, 16, 16),
        parameters={"doc": ints(3, 2, 99)},
        call={"k_len": torch.tensor([61, 99])},
        exact=False,
    ),
    "dots": Case(DOT, parameters={"rel": floats(2, 17, 16), "own": floats(17, 16, seed=2)}),
    "profiles": Case(
        PROFILES,
        sizes=(2, 2, 2, 16, 16),
        parameters={
            "rows": floats(99),
            "columns": floats(2, 99, seed=2),
            "far": floats(2, 99, seed=3),
            "place": ints(99, 99),
        },
        tolerance=5e-3,
    ),
    "sink and gate": Case(
        SINK,
        sizes=(2, 2, 1, 16, 16),
        parameters={"sink": floats(2), "gate": floats(2, 2, 99, seed=2)},
    ),
    "normalize": Case(NORMALIZE, parameters={"decay": floats(2) ** 2}),
    "elementwise": Case(ELEMENTWISE, parameters={"gain": floats(99)}),
    "names": Case(NAMES, (5, 6)),
    "nothing": Case(NOTHING),
    "wide head": Case(NEAR, sizes=(1, 1, 1, 80, 64)),
    "float16": Case(NEAR, sizes=(1, 2, 1, 64, 64), dtype=torch.float16, tolerance=2e-2),
    "float16, tables": Case(
        SWIN,
        (7, 9),
        (1, 2, 1, 80, 80),
        {"bias": floats(2, 5, 5)},
        dtype=torch.float16,
        tolerance=2e-2,
    ),
}


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "order_of", lambda *_: Order("boxes", "as the test says"))


def inputs_of(case: Case) -> dict[str, Any]:
    """query, key, value in float64, from numbers that the case's dtype can hold; parameters."""
    batch, heads, key_heads, width, value_width = case.sizes
    n = math.prod(case.grid)
    given = {
        "query": floats(batch, heads, n, width, seed=3),
        "key": floats(batch, key_heads, n, width, seed=4),
        "value": floats(batch, key_heads, n, value_width, seed=5),
        **case.parameters,
    }
    return {name: cast(cast(x, case.dtype), torch.float64) for name, x in given.items()}


def run(case: Case) -> Counts:
    """Holds values and gradients against the oracle; the tiles that were visited."""
    attention = attndsl.compile(text=case.text, backend="triton")
    wants_lse = is_softmax(case.text)

    def compiled(**given: Any) -> Any:
        result = attention(**given, **case.call, return_lse=wants_lse)
        return result if wants_lse else (result, None)

    given = inputs_of(case)
    with counting(torch.device("cpu")) as counter:
        got = differentiate(compiled, {n: cast(x, case.dtype) for n, x in given.items()}, wants_lse)
    oracle = oracle_function(case.text, "<text>", None, case.call)
    wrong = difference(got, differentiate(oracle, given, wants_lse), case.tolerance, 0.1)
    assert not wrong, wrong
    call = {**case.parameters, **case.call}
    masked = {n: x for n, x in call.items() if n in attention_inputs(attention)}
    query, key = given["query"], given["key"]
    needed = needed_visits(attention, counter, query, key, case.grid, **masked)
    for name, (visited, full) in counter.counts.items():
        assert visited >= needed[name][0]
        assert full <= needed[name][1]
    if case.exact:
        assert counter.counts == needed
    return counter.counts


def attention_inputs(attention: attndsl.Attention) -> set[str]:
    return {p.name for p in attention.program.parameters} | {"k_len"}


@pytest.mark.parametrize("name", CASES)
def test_against_the_oracle(name: str, boxes: None) -> None:
    run(CASES[name])


def test_a_fitting_stride_has_no_partial_tile(boxes: None) -> None:
    counts = run(Case(STRIDED, (16, 16), (1, 1, 1, 16, 16)))
    assert counts and all(visited == full > 0 for visited, full in counts.values())


def test_rows_that_are_too_long(boxes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """They visit every box from the first to the last that they need, with the mask."""
    from attndsl.codegen.triton import host

    shorter = host.LIST_FUNCTIONS.replace("MOST_LISTED = 1024", "MOST_LISTED = 2")
    listed = run(Case(NEAR, (24, 11), parameters={"h0": 24}))
    monkeypatch.setattr("attndsl.codegen.triton.LIST_FUNCTIONS", shorter)
    counts = run(Case(NEAR, (24, 11), parameters={"h0": 24}, exact=False))
    rows, columns = (math.prod(attn_counts((24, 11), attn_box(n, (24, 11)))) for n in (32, 16))
    for name, (visited, full) in counts.items():
        assert (listed[name][0] <= visited < 2 * rows * columns) and full == 0


# -- which calls get boxes -----------------------------------------------------------------------


def orders_of(monkeypatch: pytest.MonkeyPatch, **call: Any) -> list[str]:
    """The orders of the modules of a call and its gradients, where boxes always pay."""
    monkeypatch.setattr(order, "BOXES_PAY", 1e9)
    monkeypatch.setattr(order, "_order", order._order.__wrapped__)
    found: list[str] = []
    obtain = operators.cache.module_of

    def seen(handle: str, program: Any, request: Any) -> Any:
        found.append(request.order)
        return obtain(handle, program, request)

    monkeypatch.setattr(operators.cache, "module_of", seen)
    attention = attndsl.compile(text=NEAR, backend="triton")
    query = torch.randn(1, 1, 30, 16, requires_grad=True)
    attention(query, query, query, h0=5, w0=6, **call).sum().backward()
    return found


def test_the_runtime_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert orders_of(monkeypatch) == ["boxes", "boxes"]


@pytest.mark.parametrize(
    "call",
    [
        {"q_offset": 3},
        {"k_offset": 6},
        {"q_offset": torch.tensor([0])},
        {"k_offset": torch.tensor([0])},
    ],
    ids=["queries", "keys", "queries of each sequence", "keys of each sequence"],
)
def test_offsets_keep_runs(call: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert orders_of(monkeypatch, **call) == ["linear", "linear"]


# -- generated text ------------------------------------------------------------------------------


def plan_of(text: str, **changes: Any) -> KernelPlan:
    from dataclasses import replace

    program = attndsl.compile(text=text, backend="triton").program
    request = request_for(program, "sm_90", "bfloat16", 64, 64)
    return plan(program, replace(request, order="boxes", **changes))


def test_coordinates_are_not_divided_out_of_positions() -> None:
    """A pair costs comparisons only: kernels have the coordinates of a box as they are."""
    text = load("attndsl.codegen", "triton").emit(plan_of(SWIN))
    forward = text[text.index("def forward(") : text.index("def backward_delta(")]
    in_lookup = [line for line in forward.splitlines() if "attn_lookup" in line and "bias" in line]
    assert in_lookup and all("//" not in line and "floor" not in line for line in in_lookup)
    assert "p_w0" not in forward.replace("p_w0: tl.int32", "")


def test_tables_by_query_and_key_are_a_loss() -> None:
    made = plan_of(TABLE)
    assert not made.summaries
    assert [loss.node.op for loss in made.losses] == ["lookup"]


def test_boxes_are_described_for_a_target_that_is_not_here() -> None:
    generator = load("attndsl.codegen", "triton")
    specs = generator.kernels(plan_of(VIDEO))
    names = [spec.name for spec in specs]
    assert {"classify_rows", "classify_columns", "forward"} < set(names)
    for spec in specs:
        if spec.name != "backward_delta":
            assert {"extent_t", "size_m_t", "shift_m_t", "size_n_x"} < set(spec.signature)
            assert "size_m_t" not in spec.constants


# -- boxes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(5, 6), (1, 9), (3, 5, 7), (2, 2, 2, 3)])
@pytest.mark.parametrize("size", [16, 32])
def test_order_has_every_position_once(grid: tuple[int, ...], size: int) -> None:
    box = attn_box(size, grid)
    assert math.prod(box) == size
    places = attn_positions(grid, box)
    assert places.shape == (math.prod(attn_counts(grid, box)), size)
    assert places[places >= 0].sort().values.equal(torch.arange(math.prod(grid)))
    filled = attn_order(grid, box).view_as(places)
    assert filled.equal(torch.where(places < 0, places[:, :1], places))
