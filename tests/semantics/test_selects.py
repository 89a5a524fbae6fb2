"""Selects: the nodes that they become, the names that they bind, what the checks hold."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from attndsl.analysis.warnings import warnings_of
from attndsl.diagnostics import ArgumentError, ProgramError
from attndsl.ir.nodes import FALSE, TRUE, Node, chosen, constant, index, lookup, make, pooled, total
from attndsl.ir.program import Program, Select
from attndsl.ir.text import dump, parse
from attndsl.ir.verify import verify
from attndsl.semantics import analyse, check_all
from attndsl.source import Source
from attndsl.transform.simplify import simplify

from .programs import errors

MOBA = """
attention moba(block: const int = 512, n: const int = 3):
    select routed[i = q, j = k // block]:
        rank  dot(mean(query), mean(key))
        where j < i // block
        keep  top n
    mask (routed or k // block == q // block) and k <= q
"""
QUEST = """
def bound(low, high) = sum(max(query * low, query * high))
attention quest(page: int = 16, share: float):
    select pages[i = q, j = k // page]:
        rank bound(min(key), max(key))
        keep mass share
    mask pages
"""
NSA = """
attention nsa(block: int, n: int):
    let wide = 2 * block
    select best[row = q // wide, column = k // block] per group:
        rank  dot(mean(query), mean(key))
        where column <= row and h // G < 4
        keep  top n + h // G
    mask best and k <= q
"""
GIVEN = """
attention listed(idx: int[B, Hk, rows, T]):
    select kept[i = q, j = k] per group:
        given idx
        where j % 2 == 0
    let kept_before = kept and k <= q
    mask kept_before or not kept
"""
GATE = """
attention gate(logit: float[B, H, rows, blocks], probe: float[H, D], n: int):
    select open[i = q // n, j = k // (n // 2)]:
        rank  logit[b, h, i, j] + dot(probe[h], max(key)) * 2 if j < 4 else i
        keep  above logit[b, h, i, 0]
    mask open
"""


def lowered(text: str, **consts: bool | int | float) -> Program:
    """The program, after a round through its text form."""
    program = verify(analyse(Source("<text>", text), consts=consts))
    assert parse(dump(program)) == program
    return verify(simplify(program)) and program


def only(text: str) -> Select:
    [select] = lowered(text).selects
    return select


def words(select: Select) -> dict[str, str]:
    parts = ("rows", "columns", "rank", "where", "limit")
    return {name: repr(getattr(select, name)) for name in parts}


def test_moba() -> None:
    program = lowered(MOBA)
    [select] = program.selects
    assert (select.name, select.keep, select.given, select.per_group) == (
        "routed",
        "top",
        "",
        False,
    )
    assert words(select) == {
        "rows": "const(1)",
        "columns": "const(512)",
        "rank": "total(mul(pooled('query_mean'), pooled('key_mean')))",
        "where": "lt(index('j'), floordiv(index('i'), const(512)))",
        "limit": "const(3)",
    }
    either, causal = program.mask.args
    assert either.args[0] is chosen("routed") and causal.varies == {"q", "k"}
    assert program.select("routed") is select


def test_quest_through_a_def() -> None:
    select = only(QUEST)
    assert words(select) == {
        "rows": "const(1)",
        "columns": "scalar('page')",
        "rank": "total(max(mul(pooled('query'), pooled('key_min')), "
        "mul(pooled('query'), pooled('key_max'))))",
        "where": "const(True)",
        "limit": "scalar('share')",
    }
    assert select.rank is not None and select.rank.varies == {"b", "h", "i", "j"}


def test_nsa_per_group_with_names_of_its_own() -> None:
    select = only(NSA)
    assert select.per_group
    assert words(select) | {"rank": ""} == {
        "rows": "mul(const(2), scalar('block'))",
        "columns": "scalar('block')",
        "rank": "",
        "where": "and(le(index('j'), index('i')), lt(floordiv(index('h'), size('G')), const(4)))",
        "limit": "add(scalar('n'), floordiv(index('h'), size('G')))",
    }


def test_given() -> None:
    program = lowered(GIVEN)
    [select] = program.selects
    assert (select.keep, select.given, select.per_group) == ("given", "idx", True)
    assert select.rank is None and select.limit is None
    assert (select.rows, select.columns) == (constant(1), constant(1))
    assert select.where.varies == {"j"}
    assert repr(program.mask).count("chosen('kept')") == 2


def test_ranks_of_tensors() -> None:
    select = only(GATE)
    probe = lookup("probe", "float", index("h"), index("d"))
    assert select.rank is not None and total_of(probe, pooled("key_max")) in repr(select.rank)
    assert words(select)["columns"] == "floordiv(scalar('n'), const(2))"
    assert select.keep == "above" and select.limit is not None
    assert select.limit.varies == {"b", "h", "i"}


def total_of(x: Node, y: Node) -> str:
    return repr(total(make("mul", x, y)))


RULE = "        rank dot(mean(query), mean(key))\n        keep top 3\n"


def header(index: str, parameters: str = "", head: str = "") -> str:
    return f"{head}attention a({parameters}):\n    select s[{index}]:\n{RULE}    mask s\n"


@pytest.mark.parametrize(
    ("form", "rows", "columns"),
    [
        ("i = q, j = k", "const(1)", "const(1)"),
        ("i = q // 1, j = k // 64", "const(1)", "const(64)"),
        ("i = q // n, j = k // (2 * n)", "scalar('n')", "mul(const(2), scalar('n'))"),
        ("i = q // (Nq // 8), j = k // max(D, 4)", "floordiv(size('Nq'), const(8))", ""),
        ("i = half(q), j = half(k)", "const(32)", "const(32)"),
    ],
)
def test_blocks(form: str, rows: str, columns: str) -> None:
    select = only(header(form, "n: int", "def half(x) = x // 32\n"))
    assert repr(select.rows) == rows and columns in repr(select.columns)


def test_a_block_that_is_a_single_row_by_a_const() -> None:
    text = header("i = q // m, j = k", "m: const int").replace("mean(query)", "query")
    assert only_of(text, m=1).rank is not None
    with pytest.raises(ProgramError, match="E115"):
        lowered(text, m=2)
    with pytest.raises(ProgramError, match="E113"):
        lowered(text, m=0)


def only_of(text: str, **consts: int) -> Select:
    return lowered(text, **consts).selects[0]


def test_indices_are_names_of_their_select_alone() -> None:
    two = MOBA + "    select near[i = q // 4, j = k // 4]:\n" + RULE + "    mask near\n"
    assert [s.name for s in lowered(two).selects] == ["routed", "near"]
    [error] = errors(MOBA + "    mask i < 3\n")
    assert (error.code, error.line) == ("E101", 8)
    assert lowered(MOBA + "    let i = q // 2\n    mask i < 3\n").mask.varies >= {"q"}


def test_names_that_the_user_gives_to_functions_of_vectors() -> None:
    text = "def sum(x, y) = x + y\nattention a(mean: float[H]):\n    score sum(score, mean[h])\n"
    assert analyse(Source("<text>", text)).score.op == "add"
    inside = f"attention a(n: int):\n    let mean = 3\n    select s[i = q, j = k]:\n{RULE}"
    assert {e.code for e in errors(inside)} == {"E104"}


def test_a_def_may_be_meant_for_a_rank() -> None:
    head = "def near = dot(mean(query), max(key))\ndef far(x) = sum(x * query)\n"
    assert not errors(head + MOBA)
    assert not errors(head + MOBA.replace("dot(mean(query), mean(key))", "near + far(min(key))"))
    [error] = errors(head + "attention a():\n    score near\n")
    assert error.code == "E101" and "`rank` of a `select`" in error.hint


# -- warnings -------------------------------------------------------------------------------


def warned(text: str) -> list[tuple[str, int]]:
    return [(w.code, w.line) for w in warnings_of(simplify(analyse(Source("<text>", text))))]


def test_parameters_of_selects_are_used() -> None:
    for text in (QUEST, NSA, GIVEN, GATE):
        assert "W203" not in {code for code, _ in warned(text)}, text


def test_a_choice_is_not_taken_for_constant() -> None:
    assert warned(MOBA) == []
    assert warned(GIVEN) == []
    for part in ("routed", "not routed", "routed and k <= q", "(routed or k == q)"):
        assert warned(MOBA.partition("    mask")[0] + f"    mask {part}\n") == [], part


def test_selects_that_no_mask_names() -> None:
    assert warned(MOBA.replace("routed or ", "")) == [("W206", 3)]


# -- what the compiler holds ----------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"rank": pooled("query_mean")},
        {"rank": index("i")},
        {"rank": None},
        {"where": chosen("routed")},
        {"where": index("j")},
        {"limit": index("j")},
        {"limit": constant(0.5)},
        {"limit": None},
        {"rows": index("i")},
        {"columns": constant(4.0)},
        {"given": "idx"},
        {"keep": "given"},
        {"name": "other"},
    ],
)
def test_verify_refuses(change: dict[str, object]) -> None:
    program = lowered(MOBA)
    with pytest.raises(AssertionError, match="IR"):
        verify(replace(program, selects=(replace(program.selects[0], **change),)))  # type: ignore[arg-type]


def test_verify_keeps_vectors_in_ranks() -> None:
    program = lowered(MOBA)
    rank = program.selects[0].rank
    assert rank is not None
    with pytest.raises(AssertionError, match="IR"):
        verify(replace(program, score=rank))
    with pytest.raises(AssertionError, match="IR"):
        verify(replace(program, mask=index("i")))
    with pytest.raises(AssertionError, match="IR"):
        verify(replace(program, selects=()))
    verify(replace(program, selects=(), mask=TRUE))
    verify(replace(program, mask=FALSE))


# -- nothing else escapes -------------------------------------------------------------------


def test_random_selects_raise_only_program_errors() -> None:
    numbers = random.Random(2)
    for _ in range(400):
        one, two = (expression(numbers, 1) for _ in range(2))
        rows = [f"    select s[i = {one}, j = {two}]{numbers.choice(('', ' per group'))}:"]
        clauses = [
            f"rank {expression(numbers, 4)}",
            f"where {expression(numbers, 3)}",
            f"keep {numbers.choice(('top', 'above', 'mass'))} {expression(numbers, 3)}",
            f"given {expression(numbers, 1)}",
        ]
        kept = numbers.sample(clauses, numbers.randint(1, 3))
        rows += [f"        {clause}" for clause in kept]
        rows.append(f"    mask {expression(numbers, 2)}")
        head = f"def f(x, y) = {expression(numbers, 3)}\n"
        head += "attention a(t: float[B, D], u: int[B, H, n, T], w: int, p: bool):\n"
        try:
            for program in check_all(Source("<text>", head + "\n".join(rows) + "\n")):
                warnings_of(simplify(verify(program)))
        except (ProgramError, ArgumentError):
            pass


def expression(numbers: random.Random, depth: int) -> str:
    if depth == 0 or numbers.random() < 0.2:
        leaves = "q k i j b h w p u s 0 1 3 2.5 true Nq G query key value d score f".split()
        return numbers.choice(leaves)
    a, b, c = (expression(numbers, depth - 1) for _ in range(3))
    forms = [f"({a} {numbers.choice('+ - * / // % < == and or'.split())} {b})"] * 4
    forms += [f"({a} if {b} else {c})", f"t[{a}, {b}]", f"t[{a}]", f"f({a}, {b})", f"q // {a}"]
    forms += [f"{name}({a})" for name in ("mean", "max", "min", "sum", "exp")]
    forms += [f"{name}({a}, {b})" for name in ("dot", "dot", "max", "mean")]
    forms += ["mean(query)", "max(key)", "dot(mean(query), mean(key))"]
    return numbers.choice(forms)
