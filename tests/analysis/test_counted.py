"""Facts of tiles from counted tables of blocks, against enumeration of every pair of every tile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import attndsl
from attndsl.analysis.counted import Table, counted_tables, limited_mask
from attndsl.analysis.facts import TileFacts
from attndsl.analysis.ranges import solve_keys, solve_queries
from attndsl.analysis.tiles import classify
from attndsl.ir import text
from attndsl.ir.nodes import TRUE, Node, find, lookup, scalar, size
from attndsl.ir.program import Counted, Program, Tensor
from tests.analysis.evaluate import World, evaluate, judge_segments, judge_tiles
from tests.analysis.masks import CAUSAL, B, H, K, Q, expressions, node, world, written

EVERYTHING = attndsl.compile(text="attention f():\n    mask true\n").program
NI, NJ = size("m_Ni"), size("m_Nj")
TABLES = {"m": Table("m_sums", NI, NJ), "n": Table("n_sums", size("n_Ni"), size("n_Nj"))}
I0, J0 = scalar("i0", "int"), scalar("j0", "int")
MOVED = lookup("starts", "int", B)
HEAD = node("floordiv", H, size("G"))
SPREAD = scalar("spread", "int")
POSITIONS = range(0, 14)
ANY_POSITIONS = range(-5, 8)


def block(position: Node, rows: Any, first: Any) -> Node:
    return node("sub", node("floordiv", position, rows), first)


def chosen(rows: Any = 3, columns: Any = 4, i0: Any = I0, j0: Any = J0, head: Any = H) -> Node:
    return lookup("m", "bool", B, head, block(Q, rows, i0), block(K, columns, j0))


OTHER = lookup("n", "bool", node("floordiv", Q, 2), node("floordiv", K, 5))
MASKS: dict[str, Node] = {
    "alone": chosen(),
    "single rows": chosen(1, 4),
    "blocks of a scalar": chosen(SPREAD, SPREAD),
    "offsets of each sequence": chosen(3, 4, MOVED, MOVED),
    "per group": chosen(head=HEAD),
    "no offset": chosen(3, 4, 0, 0),
    "not": node("not", chosen()),
    "other table": OTHER,
}
JOINED: dict[str, Node] = {
    "causal": node("and", chosen(), CAUSAL),
    "window": node("or", chosen(), node("lt", node("sub", Q, K), 3)),
    "both tables": node("and", chosen(), OTHER),
    "either table": node("or", chosen(), node("not", OTHER)),
    "not twice": node("and", node("not", chosen()), node("or", CAUSAL, node("not", chosen()))),
    "one of two": node("ne", chosen(), CAUSAL),
    "by kind of row": node("where", node("lt", Q, 5), chosen(), CAUSAL),
    "number": node("lt", node("bool_to_int", chosen()), node("sub", Q, K)),
    "turned": lookup("m", "bool", B, H, block(K, 3, I0), block(Q, 4, J0)),
    "diagonal": lookup("m", "bool", B, H, node("sub", Q, K), block(K, 4, J0)),
    "backwards": lookup("m", "bool", B, H, node("sub", 3, node("floordiv", Q, 3)), block(K, 4, J0)),
    "quotient by a key": lookup(
        "m", "bool", B, H, node("floordiv", Q, node("sub", K, 3)), block(K, 4, J0)
    ),
    "index that is looked up": lookup("m", "bool", B, H, lookup("doc", "int", Q), block(K, 4, J0)),
    "head by row": lookup("m", "bool", B, node("floormod", Q, 2), block(Q, 3, I0), block(K, 4, J0)),
}


def sums_of(table: Any) -> Any:
    padding = [(0, 0)] * (table.ndim - 2) + [(1, 0)] * 2
    return np.pad(table.cumsum(-1).cumsum(-2), padding).astype(np.int32)


def call(seed: int, covers: bool = False, starts: Any = (0, 1)) -> World:
    """A call of positions -5 .. 13: tables of any extent and place, or that cover all blocks."""
    random = np.random.default_rng(seed)
    known = world(seed, wide=False)
    share = random.choice([0.0, 0.2, 0.5, 0.9, 1.0])
    extents = [int(random.integers(0, 7)) for _ in range(4)]
    if covers:
        extents = [20, 20, 20, 20]
    tables = {
        "m": random.random((2, 2, *extents[:2])) < share,
        "n": random.random(extents[2:]) < share,
        "starts": random.choice(starts, 2),
    }
    tables |= {f"{name}_sums": sums_of(tables[name]) for name in "mn"}
    leaves = {
        I0: 0 if covers else int(random.integers(-3, 3)),
        J0: 0 if covers else int(random.integers(-3, 3)),
        SPREAD: int(random.integers(1, 6) if covers else random.integers(-2, 6)),
        size("G"): 2,
        **{
            size(f"{t}_{e}"): n
            for (t, e), n in zip(
                (("m", "Ni"), ("m", "Nj"), ("n", "Ni"), ("n", "Nj")), extents, strict=True
            )
        },
    }
    return World({**known.leaves, **leaves}, {**known.tables, **tables})


def facts_of(mask: Node) -> TileFacts:
    return classify(mask, tables=TABLES)


@pytest.mark.parametrize("name", MASKS)
def test_a_table_alone_is_told_exactly(name: str) -> None:
    facts = facts_of(MASKS[name])
    assert facts.possible is not TRUE
    for seed in range(30):
        verdict = judge_tiles(MASKS[name], facts, call(seed, covers=True), POSITIONS)
        assert verdict.is_sound and verdict.is_tight, seed


@pytest.mark.parametrize("name", MASKS)
def test_tiles_beyond_a_table(name: str) -> None:
    """There entries are false; sound for block sizes below 1 too."""
    facts = facts_of(MASKS[name])
    for seed in range(60):
        known = call(seed)
        verdict = judge_tiles(MASKS[name], facts, known, ANY_POSITIONS)
        assert verdict.is_sound, seed
        assert verdict.is_tight or name == "blocks of a scalar", seed


@pytest.mark.parametrize("name", JOINED)
def test_tables_in_masks_are_sound(name: str) -> None:
    facts = facts_of(JOINED[name])
    for seed in range(60):
        assert judge_tiles(JOINED[name], facts, call(seed), ANY_POSITIONS).is_sound, seed


def test_a_start_that_fits_no_position() -> None:
    """An index that leaves 64 bits wraps where it is computed: nothing is claimed."""
    facts = facts_of(MASKS["offsets of each sequence"])
    for seed in range(40):
        known = call(seed, starts=(0, 2, 2**62, -(2**62), 2**63 - 1, -(2**63)))
        assert judge_tiles(MASKS["offsets of each sequence"], facts, known, ANY_POSITIONS).is_sound


def random_masks() -> st.SearchStrategy[Node]:
    @st.composite
    def masks(draw: st.DrawFn) -> Node:
        """A random mask of which some bools are entries of tables, at random indices."""
        mask = draw(expressions())
        table = draw(st.sampled_from([*MASKS.values(), *JOINED.values(), None]))
        if table is None:
            at = (draw(expressions(kind="int", depth=2)) for _ in "ij")
            table = lookup("m", "bool", B, H, *at)
        op = draw(st.sampled_from(["and", "or", "ne"]))
        return node(op, table, mask)

    return masks()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(mask=random_masks(), seed=st.integers(0, 10**6))
def test_random_masks_are_sound(mask: Node, seed: int) -> None:
    assert judge_tiles(mask, facts_of(mask), call(seed), ANY_POSITIONS).is_sound


@pytest.mark.sweep
@settings(
    max_examples=3000, derandomize=False, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(mask=random_masks(), seed=st.integers(0, 10**6))
def test_many_random_masks_are_sound(mask: Node, seed: int) -> None:
    assert judge_tiles(mask, facts_of(mask), call(seed), ANY_POSITIONS).is_sound


def test_nothing_is_known_of_a_table_without_sums() -> None:
    facts = classify(chosen())
    assert facts.possible is TRUE


# -- where it can be true --------------------------------------------------------------------------


def program_of(mask: Node, where: Node) -> Program:
    """A program with the table m [B, H, m_Ni, m_Nj], of which `where` is known."""
    batch = (size("B"), size("H"))
    tensors = (
        Tensor("m", "bool", (*batch, NI, NJ)),
        Tensor("m_sums", "int", (*batch, size("m_Ni1"), size("m_Nj1"))),
    )
    counted = (Counted("m", "m_sums", where),)
    return replace(EVERYTHING, parameters=tensors, mask=mask, counted=counted)


BELOW = written("k // 4 <= q // 3")
NEAR = written("q // 3 - k // 4 < 2")


def consistent(seed: int, where: Node) -> World:
    """A call in which the table is false where `where` is, for blocks of 3 x 4 from 0 on."""
    known = call(seed, covers=True)
    table = known.tables["m"].copy()
    blocks = np.arange(20)
    kept = evaluate(where, known, {Q: 3 * blocks[:, None], K: 4 * blocks[None, :]})
    table &= np.broadcast_to(kept, (20, 20))
    return World(known.leaves, {**known.tables, "m": table, "m_sums": sums_of(table)})


@pytest.mark.parametrize("axis", ["q", "k"])
@pytest.mark.parametrize("where", [BELOW, NEAR, node("and", BELOW, NEAR)], ids=str)
def test_segments_leave_out_where_a_table_is_false(where: Node, axis: str) -> None:
    program = program_of(chosen(3, 4, 0, 0), where)
    limited = limited_mask(program)
    solve = solve_keys if axis == "k" else solve_queries
    found, own = solve(limited).segments, solve(where).segments
    for seed in range(10):
        known = consistent(seed, where)
        verdict = judge_segments(program.mask, found, known, POSITIONS, axis)
        assert verdict.is_sound
        reached = judge_segments(where, own, known, POSITIONS, axis).possible
        assert (verdict.possible == reached).all()


def test_only_the_table_is_limited() -> None:
    """A window beside it is reached wherever it lies."""
    mask = node("or", chosen(3, 4, 0, 0), node("lt", node("sub", K, Q), 9))
    program = program_of(mask, BELOW)
    for seed in range(5):
        known = consistent(seed, BELOW)
        segments = solve_keys(limited_mask(program)).segments
        assert judge_segments(mask, segments, known, POSITIONS, "k").is_sound


def test_what_floats_decide_limits_nothing() -> None:
    half = node("lt", node("to_float", node("floordiv", K, 4)), 2.5)
    program = program_of(chosen(), half)
    assert limited_mask(program) is program.mask
    limited = limited_mask(program_of(chosen(), node("and", half, BELOW)))
    assert limited is not program.mask
    assert find(limited, "to_float") == []


def test_the_text_of_a_program_keeps_what_is_counted() -> None:
    program = program_of(chosen(), BELOW)
    again = text.parse(text.dump(program))
    assert again.counted == program.counted
    assert counted_tables(again) == {"m": Table("m_sums", NI, NJ)}
