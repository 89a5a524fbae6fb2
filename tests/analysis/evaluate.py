"""Nodes evaluated with numpy, over many positions or tiles at once: the oracle of these tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attndsl.analysis.facts import Segment, TileFacts
from attndsl.ir.nodes import Node, bound, index, topological

Array = Any


def floordiv(x: Array, y: Array) -> Array:
    return np.where(y == 0, 0, np.floor_divide(x, np.where(y == 0, 1, y)))


def floormod(x: Array, y: Array) -> Array:
    return np.where(y == 0, 0, np.mod(x, np.where(y == 0, 1, y)))


def erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def to_int(x: Array) -> Array:
    """The int of a whole float; what has none becomes one with which sums do not overflow."""
    return np.nan_to_num(np.clip(np.asarray(x, np.float64), -(2**20), 2**20)).astype(np.int64)


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "floordiv": floordiv,
    "floormod": floormod,
    "floordiv_float": lambda x, y: np.floor(x / y),
    "floormod_float": lambda x, y: x - y * np.floor(x / y),
    "pow": np.power,
    "neg": np.negative,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "where": np.where,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log2": np.log2,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "erf": erf,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.where(x > 0, x, np.where(np.isnan(x), x, 0)),
    "softplus": lambda x: np.logaddexp(x, 0),
    "floor": lambda x: to_int(np.floor(x)),
    "ceil": lambda x: to_int(np.ceil(x)),
    "round": lambda x: to_int(np.round(x)),
    "trunc": lambda x: to_int(np.trunc(x)),
    "bool_to_int": to_int,
}


@dataclass(frozen=True)
class World:
    """The values of a call: scalars and sizes by node, tables by name."""

    leaves: Mapping[Node, Any] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)
    dtype: Any = np.float32


def evaluate(root: Node, world: World, leaves: Mapping[Node, Array] | None = None) -> Array:
    """The root's value, broadcast over what the leaves hold."""
    given = {**world.leaves, **(leaves or {})}
    found: dict[Node, Array] = {}
    with np.errstate(all="ignore"):
        for node in topological(root):
            found[node] = _evaluate(node, [found[arg] for arg in node.args], given, world)
    return found[root]


def _evaluate(node: Node, args: list[Array], given: Mapping[Node, Array], world: World) -> Array:
    if node in given:
        value = given[node]
        return world.dtype(value) if node.kind == "float" else np.asarray(value)
    if node.op == "const":
        return world.dtype(node.value) if node.kind == "float" else np.asarray(node.value)
    if node.op == "lookup":
        return looked_up(world.tables[node.name], args)
    if node.op == "to_float":
        return np.asarray(args[0]).astype(world.dtype)
    value = FUNCTIONS[node.op](*args)
    return np.asarray(value).astype(world.dtype) if node.kind == "float" else value


def looked_up(table: Array, indices: list[Array]) -> Array:
    """table[indices], 0 outside."""
    inside = np.asarray(True)
    for axis, i in enumerate(indices):
        inside = inside & (i >= 0) & (i < table.shape[axis])
    if table.size == 0:
        return np.zeros(np.broadcast_shapes(*(np.shape(i) for i in indices)), table.dtype)
    safe = tuple(np.where(inside, i, 0) for i in np.broadcast_arrays(*indices))
    return np.where(inside, table[safe], np.zeros((), table.dtype))


def mask_matrix(mask: Node, world: World, positions: range) -> Array:
    """bool [len(positions), len(positions)]: queries by keys."""
    p = np.array(positions)
    values = evaluate(mask, world, {index("q"): p[:, None], index("k"): p[None, :]})
    return np.broadcast_to(values, (len(p), len(p)))


def tiles(positions: range) -> tuple[Array, Array]:
    """First and last position of every interval of positions."""
    lows, highs = np.meshgrid(positions, positions, indexing="ij")
    keep = lows <= highs
    return lows[keep], highs[keep]


def counts(matrix: Array, q: tuple[Array, Array], k: tuple[Array, Array], start: int) -> Array:
    """How many pairs of each tile [q tiles, k tiles] the mask keeps."""
    sums = np.zeros((matrix.shape[0] + 1, matrix.shape[1] + 1), dtype=np.int64)
    sums[1:, 1:] = matrix.cumsum(0).cumsum(1)
    q0, q1 = (q[0] - start)[:, None], (q[1] - start + 1)[:, None]
    k0, k1 = (k[0] - start)[None, :], (k[1] - start + 1)[None, :]
    return sums[q1, k1] - sums[q0, k1] - sums[q1, k0] + sums[q0, k0]


@dataclass(frozen=True)
class Verdict:
    """Per tile: what is claimed and what is so."""

    possible: Array
    certain: Array
    some: Array
    every: Array

    @property
    def is_sound(self) -> bool:
        return bool((self.possible | ~self.some).all() and (~self.certain | self.every).all())

    @property
    def is_tight(self) -> bool:
        return bool((self.possible == self.some).all() and (self.certain == self.every).all())


def judge_tiles(mask: Node, facts: TileFacts, world: World, positions: range) -> Verdict:
    """The facts against enumeration, for every tile of the positions."""
    lows, highs = tiles(positions)
    kept = counts(mask_matrix(mask, world, positions), (lows, highs), (lows, highs), positions[0])
    sizes = highs - lows + 1
    leaves = {
        bound("q_lo"): lows[:, None],
        bound("q_hi"): highs[:, None],
        bound("k_lo"): lows[None, :],
        bound("k_hi"): highs[None, :],
    }
    possible, certain = (
        np.broadcast_to(evaluate(node, world, leaves), kept.shape).astype(bool)
        for node in (facts.possible, facts.certain)
    )
    return Verdict(possible, certain, kept > 0, kept == sizes[:, None] * sizes[None, :])


def judge_segments(
    mask: Node, segments: tuple[Segment, ...], world: World, positions: range, axis: str
) -> Verdict:
    """Segments of keys (axis "k") or queries against enumeration, per tile and position."""
    lows, highs = tiles(positions)
    matrix = mask_matrix(mask, world, positions)
    matrix = matrix if axis == "k" else matrix.T
    single = np.array(positions)
    kept = counts(matrix, (lows, highs), (single, single), positions[0])
    possible, certain = np.zeros(kept.shape, bool), np.zeros(kept.shape, bool)
    leaves = {bound("lo"): lows, bound("hi"): highs}
    for segment in segments:
        lo, hi, full_lo, full_hi = (
            np.broadcast_to(evaluate(node, world, leaves), lows.shape)[:, None]
            for node in (segment.lo, segment.hi, segment.full_lo, segment.full_hi)
        )
        possible |= (lo <= single) & (single < hi)
        certain |= (full_lo <= single) & (single < full_hi)
    return Verdict(possible, certain, kept > 0, kept == (highs - lows + 1)[:, None])
