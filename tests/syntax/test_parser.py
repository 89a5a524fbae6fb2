"""Text to tree: every construct, every spelling, and nothing but ProgramError."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attndsl.diagnostics import ProgramError
from attndsl.source import Source
from attndsl.syntax import ast
from attndsl.syntax.parser import MAX_PROBLEMS, load_source, parse
from attndsl.syntax.text import dump, expression_text, unparse
from tests.syntax.programs import PROGRAM
from tests.syntax.trees import files

HEADER = "attention f:\n    mask "


def tree_of(text: str) -> ast.File:
    return parse(Source("<text>", text))


def value_of(text: str) -> ast.Expression:
    """The tree of an expression."""
    (item,) = tree_of(f"def f = {text}\n").items
    assert isinstance(item, ast.Define)
    return item.value


def problems_of(text: str) -> list[tuple[str, int, int]]:
    """Code, line and column of everything that is wrong."""
    with pytest.raises(ProgramError) as caught:
        tree_of(text)
    return [(each.code, each.line, each.column) for each in caught.value.diagnostics]


@given(files)
@settings(max_examples=100, deadline=None)
def test_reads_what_is_written(file: ast.File) -> None:
    assert tree_of(unparse(file)) == file


@pytest.mark.parametrize(
    ("text", "bracketed"),
    [
        ("a or b and not c", "(a or (b and (not c)))"),
        ("a or b or c", "((a or b) or c)"),
        ("a - b - c * d // e", "((a - b) - ((c * d) // e))"),
        ("-a ** -b ** c", "(-(a ** (-(b ** c))))"),
        ("a if b else c if d else e", "(a if b else (c if d else e))"),
        ("not a < b <= c", "(not (a < b <= c))"),
        ("a + b < c and d", "(((a + b) < c) and d)"),
        ("--a", "(-(-a))"),
    ],
)
def test_precedence(text: str, bracketed: str) -> None:
    assert value_of(text) == value_of(bracketed)
    assert expression_text(value_of(bracketed)) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0", 0), ("12", 12), ("1_000", 1000), ("9223372036854775807", 2**63 - 1)),
        *((".5", 0.5), ("1.", 1.0), ("1e-3", 1e-3), ("1_0.5_0E+2", 1050.0)),
    ],
)
def test_number(text: str, value: float) -> None:
    number = value_of(text)
    assert isinstance(number, ast.Number)
    assert (number.value, type(number.value)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [("-1", -1), ("inf", float("inf")), ("-inf", float("-inf")), ("-.5", -0.5), ("true", True)],
)
def test_default(text: str, value: float) -> None:
    (item,) = tree_of(f"attention f(w: float = {text}):\n    mask w\n").items
    assert isinstance(item, ast.Attention)
    assert item.parameters[0].default == value


@pytest.mark.parametrize(
    "text",
    [
        PROGRAM.replace("\n", "\r\n"),
        PROGRAM.rstrip("\n"),
        "\ufeff" + PROGRAM,
        "\n\n  # comment\n" + PROGRAM + "\n   \n\t\n# end",
        PROGRAM.replace("    ", "  "),
        PROGRAM.replace(" = ", " \t= "),
    ],
)
def test_spelling_does_not_matter(text: str) -> None:
    assert tree_of(text) == tree_of(PROGRAM)


@pytest.mark.parametrize("text", ["", "\n", "# only a comment", " \t \n\r\n", "\ufeff"])
def test_empty_text_has_no_items(text: str) -> None:
    file = tree_of(text)
    assert file.items == () and file.doc is None


def test_spans_are_the_users_text() -> None:
    text = (
        "\ufeffdef f = (a + b) * c  # end\r\n\r\nattention g(w: int[B] = 3):\r\n    mask k <= q\r\n"
    )
    define, attention = tree_of(text).items
    assert define.span.text == "def f = (a + b) * c"
    assert isinstance(define, ast.Define) and isinstance(attention, ast.Attention)
    assert define.value.span.text == "(a + b) * c"
    assert isinstance(define.value, ast.Binary)
    assert define.value.left.span.text == "a + b"
    assert attention.parameters[0].span.text == "w: int[B] = 3"
    assert attention.statements[0].span.text == "mask k <= q"
    assert attention.span.text.endswith("mask k <= q")


def test_one_error_for_every_item() -> None:
    text = "def a = (\ndef b = 3 4\nattention f(:\n    mask x y\n    mask z\n\ndef c = ]\n"
    assert [line for _, line, _ in problems_of(text)] == [1, 2, 3, 4, 7]


def test_errors_in_the_middle_of_blocks() -> None:
    text = (
        "attention f:\n    select s[i = q, j = k]:\n        rank r r\n        keep top 3\n"
        "    mask s s\n    mask t\nattention g\n    mask u u\n"
    )
    assert [(line, column) for _, line, column in problems_of(text)] == [
        *((3, 16), (5, 12), (7, 12), (8, 12))
    ]


DEEP = 10_000


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("(" * DEEP + "k" + ")" * DEEP, "E005"),
        ("(" * DEEP, "E005"),
        ("t[" * DEEP + "k" + "]" * DEEP, "E005"),
        ("f(" * DEEP + "k" + ")" * DEEP, "E005"),
        ("not " * DEEP + "k", "E005"),
        ("- " * DEEP + "k", "E005"),
        ("9 ** " * DEEP + "9", "E005"),
        ("k if q else " * DEEP + "k", "E005"),
        ("k + " * DEEP + "k", "E005"),
        ("k and " * DEEP + "k", "E005"),
        ("k <= " * 30_000 + "k", "E005"),
        ("9" * DEEP, "E006"),
    ],
)
def test_too_much_of_anything(text: str, code: str) -> None:
    assert {found for found, _, _ in problems_of(HEADER + text + "\n")} == {code}


def test_long_programs_work() -> None:
    tree_of(HEADER + " + ".join(["k"] * 1000) + " > 3\n")
    file = tree_of(HEADER + "f(" + ", ".join(["k"] * 10_000) + ")\n")
    assert dump(file).count("Name name='k'") == 10_000
    assert unparse(tree_of(HEADER + "1" + " - k" * 900 + "\n")).count("-") == 900


@pytest.mark.parametrize(
    "text",
    [
        "\0" * 1_000_000,
        "a" * 1_000_000,
        "≤\n" * 100_000,
        "(" * 500_000,
        ")\n" * 100_000,
        '"""' + "a\n" * 500_000,
        "# comment\n" * 100_000,
        " \n" * 300_000,
        "mask k\n" * 50_000,
        "attention f:\n    mask k =\n" * 20_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_much_text(text: str) -> None:
    began = time.process_time()
    try:
        tree_of(text)
    except ProgramError as error:
        assert 1 <= len(error.diagnostics) <= MAX_PROBLEMS
        assert len(str(error)) < 100_000
    assert time.process_time() - began < 20  # seconds; about 1 on an idle machine


FRAGMENTS = [
    "(",
    ")",
    "[",
    "]",
    ":",
    "=",
    "\n",
    "    ",
    "\t",
    '"""',
    "'",
    "#",
    " mask ",
    " q.",
    "1e",
    "\r",
    "\0",
]
FRAGMENTS += [
    "not ",
    " if ",
    "select s[i = q, j = k]:\n",
    "\\",
    "é",
    "\ud800",
    "attention",
    ",",
    "-",
    "**",
]


@st.composite
def damaged_programs(draw: st.DrawFn) -> str:
    """A valid program with a few spans deleted, doubled, or replaced by fragments."""
    text = PROGRAM
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 30)))
        text = (
            text[:start] + draw(st.sampled_from(["", text[start:end] * 2, *FRAGMENTS])) + text[end:]
        )
    return text


@given(st.one_of(damaged_programs(), st.text(), st.lists(st.sampled_from(FRAGMENTS)).map("".join)))
@settings(max_examples=200, deadline=None)
def test_only_program_errors(text: str) -> None:
    try:
        tree_of(text)
    except ProgramError as error:
        str(error).encode()  # printable whatever the text is
        for each in error.diagnostics:
            assert each.code in ("E002", "E003", "E004", "E005", "E006")
            assert each.message and 0 <= each.span.start <= len(text)
            assert each.render() and each.short()


def test_recursion_limit_is_far() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(__import__("inspect").stack()) + 120)
    try:
        tree_of(HEADER + " + ".join(["k"] * 900) + "\n")
    finally:
        sys.setrecursionlimit(before)


def test_many_threads_parse_at_once() -> None:
    expected = tree_of(PROGRAM)
    with ThreadPoolExecutor(4) as pool:
        assert all(file == expected for file in pool.map(tree_of, [PROGRAM] * 16))


def test_files(tmp_path: Path) -> None:
    good = tmp_path / "good.attn"
    good.write_bytes(b"\xef\xbb\xbfdef f = 3\r\n")
    assert load_source(good).name == str(good)
    assert len(parse(load_source(good)).items) == 1
    bad = tmp_path / "bad.attn"
    bad.write_bytes(b"def f = \xff\n")
    for path in (bad, tmp_path, tmp_path / "none.attn", "nul\0.attn", "a" * 5000, "attention f:\n"):
        with pytest.raises(ProgramError) as caught:
            load_source(path)
        assert [each.code for each in caught.value.diagnostics] == ["E001"]
        assert str(path)[:3] in str(caught.value)
