"""classify_boxes against enumeration: sound for any mask, exact for conditions on coordinates."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attndsl.analysis.boxes import Summary, no_summary
from attndsl.analysis.grids import classify_boxes, coordinated, is_boxable
from attndsl.analysis.summaries import Summarised, summarise
from attndsl.ir.nodes import Node, bound, constant, find, index, make, scalar, size
from attndsl.ir.program import Grid, Program
from attndsl.runtime.dims import compute_dim
from attndsl.semantics import analyse
from attndsl.semantics.calls import coordinate as spelled
from attndsl.source import Source
from attndsl.syntax.parser import load_source
from attndsl.transform.simplify import simplified, simplify
from tests.analysis.evaluate import Verdict, World, evaluate, mask_matrix
from tests.analysis.masks import LEAVES, LETTERS, MAKERS, NK, NQ, K, Q, world
from tests.oracle.examples import FOLDER, NAMES, Sizes, example_inputs

HEAD = "from std import neighborhood, strided_neighborhood, disc, axial\n"
HEIGHT, WIDTH = scalar("height", "int"), scalar("width", "int")


def program(text: str) -> Program:
    return simplify(analyse(Source("<test>", HEAD + text), None, {}))


def image(*masks: str, parameters: str = "r: int = 1", grid: str = "y = height, x = width") -> str:
    body = "".join(f"\n    mask {mask}" for mask in masks)
    return f"attention a(height: int, width: int, {parameters}):\n    grid {grid}{body}\n"


class Boxes:
    """Every box of a grid: the ends of its coordinates and positions, and what positions it has."""

    def __init__(self, axes: tuple[str, ...], extents: tuple[int, ...]) -> None:
        spans = [[(lo, hi) for hi in range(n) for lo in range(hi + 1)] for n in extents]
        boxes = list(product(*spans))
        self.ends: dict[str, Any] = {}
        for at, axis in enumerate(axes):
            self.ends[f"{axis}_lo"] = np.array([box[at][0] for box in boxes])
            self.ends[f"{axis}_hi"] = np.array([box[at][1] for box in boxes])
        places = np.unravel_index(np.arange(prod(extents)), extents)
        inside = np.ones((len(boxes), prod(extents)), bool)
        for place, axis in zip(places, axes, strict=True):
            inside &= self.ends[f"{axis}_lo"][:, None] <= place
            inside &= place <= self.ends[f"{axis}_hi"][:, None]
        self.inside = inside
        self.ends["lo"] = inside.argmax(1)
        self.ends["hi"] = inside.shape[1] - 1 - inside[:, ::-1].argmax(1)


def judge(
    grid: Grid,
    extents: tuple[int, ...],
    mask: Node,
    call: World,
    summary: Summary = no_summary,
    summarised: Summarised | None = None,
) -> Verdict:
    """The facts of every pair of boxes against every pair of positions."""
    boxes = Boxes(grid.axes, extents)
    matrix = mask_matrix(mask, call, range(prod(extents)))
    inside = boxes.inside.astype(np.float64)
    kept = inside @ matrix.astype(np.float64) @ inside.T
    leaves: dict[Node, Any] = {}
    for name, values in boxes.ends.items():
        leaves[bound(f"q_{name}")] = values[:, None]
        leaves[bound(f"k_{name}")] = values[None, :]
    if summarised is not None:
        leaves |= summary_leaves(summarised, boxes, call)
    facts = classify_boxes(
        grid, simplified(mask) if summarised is None else summarised.mask, summary
    )
    possible, certain = (
        np.broadcast_to(evaluate(node, call, leaves), kept.shape).astype(bool)
        for node in (facts.possible, facts.certain)
    )
    whole = inside.sum(1)
    return Verdict(possible, certain, kept > 0, kept == whole[:, None] * whole[None, :])


def summary_leaves(summarised: Summarised, boxes: Boxes, call: World) -> dict[Node, Any]:
    """What a host would compute of every box."""
    found: dict[Node, Any] = {}
    positions = np.arange(boxes.inside.shape[1])
    for summary in summarised.summaries:
        (axis,) = summary.axes
        values = np.broadcast_to(
            evaluate(summary.node, call, {index(axis): positions}), positions.shape
        )
        chosen = [values[inside] for inside in boxes.inside]
        shape = (-1, 1) if axis == "q" else (1, -1)
        found[summary.least] = np.array([c.min() for c in chosen]).reshape(shape)
        found[summary.greatest] = np.array([c.max() for c in chosen]).reshape(shape)
    return found


# Masks that are conditions on coordinates: exact.
EXACT = {
    "windows": image("abs(q.y - k.y) <= r", "abs(q.x - k.x) <= r"),
    "neighborhood": image("neighborhood(q.y, k.y, r, height) and neighborhood(q.x, k.x, r, width)"),
    "disc": image("disc(q.y - k.y, q.x - k.x, r)"),
    "axial": image("axial(q.y, k.y, q.x, k.x)"),
    "shifted windows": image(
        "(q.y - 1) // r == (k.y - 1) // r", "(q.x - 1) // r == (k.x - 1) // r"
    ),
    "causal rows": image("k.y <= q.y", "abs(q.x - k.x) <= r"),
    "of one number": image("q.y // 2 == k.y // 2", grid="y = height, x = 5"),
    "strided": image(
        "strided_neighborhood(q.y, k.y, 3, r, height)",
        "strided_neighborhood(q.x, k.x, 2, r, width)",
    ),
    "by positions": image("k <= q"),
}


@pytest.mark.parametrize("radius", [1, 2, 3])
@pytest.mark.parametrize("name", EXACT)
def test_conditions_on_coordinates_are_exact(name: str, radius: int) -> None:
    made = program(EXACT[name])
    assert made.grid is not None
    for extents in ((5, 5), (6, 5), (1, 5)) if "5" in EXACT[name] else ((5, 6), (6, 3), (1, 4)):
        call = World({HEIGHT: extents[0], WIDTH: extents[1], scalar("r", "int"): radius})
        verdict = judge(made.grid, extents, made.mask, call)
        assert verdict.is_sound
        assert (verdict.certain == verdict.every).all()
        if name != "strided" or radius <= 2:  # a stride beyond the window leaves gaps
            assert (verdict.possible == verdict.some).all(), name


def test_a_causal_window_of_a_video_is_exact() -> None:
    made = program(
        "attention a(height: int, width: int):\n"
        "    grid t = 3, y = height, x = width\n"
        "    mask 0 <= q.t - k.t < 2 and abs(q.y - k.y) <= 1 and abs(q.x - k.x) <= 1\n"
    )
    assert made.grid is not None
    call = World({HEIGHT: 3, WIDTH: 3})
    assert judge(made.grid, (3, 3, 3), made.mask, call).is_tight


def test_documents_over_a_grid_use_summaries_of_boxes() -> None:
    made = program(
        image("doc[q] == doc[k]", "abs(q.x - k.x) <= r", parameters="doc: int[Nk], r: int")
    )
    assert made.grid is not None
    for seed in range(3):
        doc = np.random.default_rng(seed).integers(0, 4, 20)
        call = World({HEIGHT: 4, WIDTH: 5, scalar("r", "int"): 1}, {"doc": doc})
        found = summarise(made.mask)
        boxes = Boxes(made.grid.axes, (4, 5))
        sets = [set(doc[inside].tolist()) for inside in boxes.inside]
        meet = np.array([[bool(one & other) for other in sets] for one in sets])
        assert found.meetings
        verdict = judge_with_meetings(made.grid, made.mask, call, found, meet)
        assert verdict.is_sound
        assert not verdict.possible.all()
        assert verdict.certain.any()


def judge_with_meetings(
    grid: Grid, mask: Node, call: World, found: Summarised, meet: Any
) -> Verdict:
    leaves = {node for fact in _facts(grid, found) for node in find(fact, "summary")}
    meets = {node: meet for node in leaves if "meets" in node.name}
    call = World({**call.leaves, **meets}, call.tables)
    return judge(grid, (4, 5), mask, call, found.extremes, found)


def _facts(grid: Grid, found: Summarised) -> tuple[Node, Node]:
    facts = classify_boxes(grid, found.mask, found.extremes)
    return facts.possible, facts.certain


@pytest.mark.parametrize(
    "name", [n for n in NAMES if "grid " in (FOLDER / f"{n}.attn").read_text()]
)
def test_examples_are_sound(name: str) -> None:
    made = simplify(analyse(load_source(str(FOLDER / f"{name}.attn")), None, {}))
    assert made.grid is not None
    assert is_boxable(made)
    for length in (12, 20, 25):
        arguments = example_inputs(name, Sizes(length=length))[3].arguments
        scalars: dict[str, int] = {p.name: arguments[p.name] for p in made.scalars}
        extents = tuple(compute_dim(extent, {}, scalars) for extent in made.grid.extents)
        call = World({scalar(n, "int"): value for n, value in scalars.items()})
        verdict = judge(made.grid, extents, made.mask, call)
        assert verdict.is_sound
        assert (verdict.certain == verdict.every).all()


# Grids of every sort of extent: (axes, extents as nodes, their values).
GRIDS: list[tuple[Grid, tuple[int, ...]]] = [
    (Grid(("y", "x"), (constant(3), constant(4)), constant(0)), (3, 4)),
    (Grid(("y", "x"), (HEIGHT, WIDTH), constant(0)), (3, 4)),
    (Grid(("y", "x"), (HEIGHT, constant(4)), scalar("from", "int")), (3, 4)),
    (Grid(("y", "x"), (size("Nk"), constant(1)), constant(0)), (9, 1)),
    (Grid(("t", "y", "x"), (constant(2), HEIGHT, constant(2)), constant(0)), (2, 3, 2)),
    (Grid(("t", "y", "x"), (HEIGHT, constant(2), constant(2)), constant(0)), (3, 2, 2)),
]


def a_world(seed: int, extents: tuple[int, ...]) -> World:
    """The values of a call with this grid."""
    found = world(seed, wide=False)
    n = prod(extents)
    own = {HEIGHT: 3, WIDTH: 4, scalar("from", "int"): 0, NK: n, NQ: n}
    return World({**found.leaves, **own}, found.tables)


@st.composite
def masks(draw: st.DrawFn, grid: Grid, kind: str = "bool", depth: int = 4) -> Node:
    """A random expression over coordinates and all else."""
    if depth == 0 or (kind != "bool" and draw(st.integers(0, depth)) == 0):
        if kind == "int" and draw(st.integers(0, 2)):
            return spelled(draw(st.sampled_from([Q, K])), draw(st.sampled_from(grid.axes)), grid)
        return draw(st.sampled_from(LEAVES[kind]))
    name, takes = draw(st.sampled_from(MAKERS[kind]))
    return make(name, *(draw(masks(grid, LETTERS[take[0]], depth - 1)) for take in takes))


def check_random(data: st.DataObject, at: int, seed: int) -> None:
    grid, extents = GRIDS[at]
    mask = data.draw(masks(grid))
    assert judge(grid, extents, mask, a_world(seed, extents)).is_sound


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), at=st.integers(0, len(GRIDS) - 1), seed=st.integers(0, 10**6))
def test_random_masks_are_sound(data: st.DataObject, at: int, seed: int) -> None:
    check_random(data, at, seed)


@pytest.mark.sweep
@settings(
    max_examples=4000,
    derandomize=False,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data(), at=st.integers(0, len(GRIDS) - 1), seed=st.integers(0, 10**6))
def test_many_random_masks_are_sound(data: st.DataObject, at: int, seed: int) -> None:
    check_random(data, at, seed)


@pytest.mark.parametrize("divisor", [1, 2, 3])
@pytest.mark.parametrize("at", range(len(GRIDS)))
def test_coordinates_are_found_after_simplification(at: int, divisor: int) -> None:
    grid, _ = GRIDS[at]
    for axis in grid.axes:
        mask = simplified(
            make(
                "lt",
                make("floordiv", spelled(Q, axis, grid), constant(divisor)),
                make("mul", spelled(K, axis, grid), constant(5)),
            )
        )
        assert not {Q, K} & set(find(coordinated(grid, mask), "index")), (axis, mask)


def test_lookups_stay_as_they_are() -> None:
    made = program(image("table[q.y, k.x]", parameters="table: bool[height, width]"))
    assert made.grid is not None
    assert coordinated(made.grid, made.mask) is made.mask


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (image("q.y == k.y"), True),
        (image("k <= q"), False),
        (image("q.y == k.y", grid="y = height, x = width, start = 3"), False),
        (image("q.y == k.y", grid="y = height, x = width, start = r"), True),
        (image("q.x == k.x", grid="x = width"), False),
        ("attention a():\n    mask k <= q\n", False),
    ],
)
def test_which_programs_can_have_boxes(text: str, expected: bool) -> None:
    assert is_boxable(program(text)) is expected
