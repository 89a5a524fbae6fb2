"""Text to canonical text: same tree, same comments, nothing left to change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings

from attndsl.source import Source
from attndsl.syntax import ast
from attndsl.syntax.formatter import WIDTH, format_text
from attndsl.syntax.parser import parse
from attndsl.syntax.scanner import scan
from attndsl.syntax.text import unparse
from tests.syntax.programs import PROGRAM
from tests.syntax.trees import files

FIXTURES = Path(__file__).parent / "fixtures"


def formatted(text: str) -> str:
    """The canonical text, checked for what every formatting must keep."""
    result = format_text(Source("<text>", text))
    assert parse(Source("<result>", result)) == parse(Source("<text>", text))
    assert format_text(Source("<result>", result)) == result
    assert comments_of(result) == comments_of(text)
    assert not re.search(r"[ \t]\n|\n\n\n|^\n|\r", result)
    return result


def comments_of(text: str) -> list[str]:
    tokens = scan(Source("<text>", text)).tokens
    return [token.text.rstrip() for token in tokens if token.kind == "comment"]


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.attn")), ids=lambda path: path.stem)
def test_fixture(path: Path, update_golden: bool) -> None:
    text, _, expected = path.read_text(encoding="utf-8").partition("# ----\n")
    result = formatted(text)
    if update_golden:
        path.write_text(f"{text}# ----\n{result}", encoding="utf-8")
    else:
        assert result == expected


@pytest.mark.parametrize(
    "text", [PROGRAM, PROGRAM.replace("\n", "\r\n"), "\ufeff" + PROGRAM, "", "#x"]
)
def test_keeps_tree_and_comments(text: str) -> None:
    formatted(text)


@given(files)
@settings(max_examples=80, deadline=None)
def test_random_programs(file: ast.File) -> None:
    text = unparse(file)
    assert parse(Source("<text>", formatted(text))) == file


@given(files)
@settings(max_examples=50, deadline=None)
def test_comments_everywhere(file: ast.File) -> None:
    """A comment after every line and before it, and line ends with comments in brackets."""
    lines = unparse(file).split("\n")
    if '"""' in unparse(file) or "'''" in unparse(file):
        return  # a docstring takes no comments
    spread = [re.sub(r"([(\[])(?=\w)", r"\1 # in\n", line, count=2) for line in lines]
    formatted("\n".join(f"  # before\n{line}  # after" if line else "" for line in spread))


def test_long_lines_are_broken_in_brackets() -> None:
    names = [f"parameter_{number}" for number in range(30)]
    text = f"attention f({', '.join(f'{name}: int' for name in names)}):\n"
    text += f"    mask ({' and '.join(names)}) or f({', '.join(names)}, t[{', '.join(names)}])\n"
    assert max(len(line) for line in formatted(text).split("\n")) <= WIDTH
