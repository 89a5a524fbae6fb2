"""Text to tree: reads a file, runs the grammar, and goes on after a mistake."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

from lark import Lark, Token, UnexpectedInput
from lark.indenter import Indenter

from attndsl.diagnostics import Diagnostic, ProgramError
from attndsl.source import Source, Span
from attndsl.syntax import ast
from attndsl.syntax.builder import Builder
from attndsl.syntax.mistakes import explain
from attndsl.syntax.scanner import MAX_PROBLEMS, Line, Scan, scan


class Blocks(Indenter):
    """Blocks from indentation, safe to use from many threads: each text gets its own state."""

    NL_type = "_NEWLINE"
    OPEN_PAREN_types = ["LPAR", "LSQB"]  # noqa: RUF012
    CLOSE_PAREN_types = ["RPAR", "RSQB"]  # noqa: RUF012
    INDENT_type = "_INDENT"
    DEDENT_type = "_DEDENT"
    tab_len = 8

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        tokens: Iterator[Token] = Indenter.process(Blocks(), stream)  # type: ignore[no-untyped-call]
        return tokens


@cache
def grammar() -> Lark:
    """The parser of the grammar file, built once in a process."""
    text = resources.files("attndsl.grammar").joinpath("attn.lark").read_text(encoding="utf-8")
    return Lark(text, parser="lalr", lexer="contextual", postlex=Blocks(), maybe_placeholders=True)


def load_source(path: str | os.PathLike[str]) -> Source:
    """The text of a file, by its path as the user gave it.

    Raises ProgramError (E001) for a file that is missing, a folder, unreadable or not UTF-8.
    """
    name = os.fspath(path)
    hint = ""
    try:
        return Source(name, Path(name).read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        message = f"there is no file {name!r}"
        if "\n" in name or name.lstrip().startswith("attention"):
            message, hint = "there is no such file", "give a program itself as `text=...`"
    except IsADirectoryError:
        message, hint = f"{name!r} is a folder", "give one of the files in it"
    except UnicodeDecodeError as error:
        message = f"{name!r} is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}"
        hint = "save the file as UTF-8"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else None
        message = f"cannot read {name!r}: {reason or error}"
    raise ProgramError([Diagnostic("E001", message, Span(Source(name, ""), 0, 0), hint)])


def parse(source: Source) -> ast.File:
    """The tree of a text; an empty text gives a file without items.

    Raises ProgramError (E002 to E006) with one mistake a line, at most `MAX_PROBLEMS`.
    """
    found = scan(source)
    problems = list(found.problems)
    file: ast.File | None = None
    if not found.lines:
        file = ast.File(Span(source, 0, len(source.text)), source, None, ())
    index = 0
    while index < len(found.lines) and len(problems) < MAX_PROBLEMS:
        if found.lines[index].is_wrong:
            index += 1
            continue
        file, index = parse_chunk(found, index, problems)
    if problems:
        raise ProgramError(one_a_line(problems)[:MAX_PROBLEMS])
    assert file is not None  # without problems, the first chunk is the whole text
    return file


def parse_chunk(found: Scan, index: int, problems: list[Diagnostic]) -> tuple[ast.File | None, int]:
    """Parses from a line up to the next that the scanner found wrong.

    Appends what is wrong; gives the tree, if nothing is, and the line to go on with.
    """
    source, lines = found.source, found.lines
    end = next((i for i in range(index, len(lines)) if lines[i].is_wrong), len(lines))
    start = lines[index].start - lines[index].indent
    stop = lines[end].start - lines[end].indent if end < len(lines) else len(source.text)
    header = block_header(lines[index])
    base = start - len(header)
    try:
        tree = grammar().parse(f"{header}{source.text[start:stop]}\n")
    except UnexpectedInput as error:
        offset = (error.pos_in_stream or 0) + base
        if end < len(lines) and offset >= lines[end - 1].end:
            return None, end  # what follows was reported by the scanner
        wrong = min(max(found.line_at(offset), index), end - 1)
        accepts = accepted(source, lines[wrong], offset)
        problems.append(explain(found, lines[wrong], offset, accepts))
        return None, next_line(lines, wrong)
    builder = Builder(source, base)
    file = builder.build(tree)
    problems.extend(builder.problems)
    return file, end


def block_header(line: Line) -> str:
    """A header that makes a line in the middle of a file the first of a block."""
    if line.depth == 0:
        return ""
    if line.depth == 1:
        return "attention a:\n"
    return f"attention a:\n{' ' * line.parent}select s[i = q, j = k]:\n"


def accepted(source: Source, line: Line, offset: int) -> set[str]:
    """The terminals that the grammar accepts at an offset of a line, before it sees what is there.

    (The parser that failed has seen the token, and reduced what it could before it gave up.)
    """
    header = block_header(line)
    start = line.start - line.indent
    end = min(offset, line.end) - start + len(header)
    parser = grammar().parse_interactive(f"{header}{source.text[start : line.end]}\n")
    tokens: Iterator[Token] = parser.lexer_thread.lex(parser.parser_state)  # type: ignore[no-untyped-call]
    try:
        for token in tokens:
            if token.start_pos is None or token.start_pos >= end:
                break
            parser.feed_token(token)
    except UnexpectedInput:
        pass  # what stands there is no token at all
    return set(parser.accepts())  # type: ignore[no-untyped-call]


def next_line(lines: list[Line], wrong: int) -> int:
    """Where to go on after a wrong line: in its block, if it opens one of the language."""
    index = wrong + 1
    if not lines[wrong].is_header:
        while index < len(lines) and lines[index].depth > lines[wrong].depth:
            index += 1
    return index


def one_a_line(problems: list[Diagnostic]) -> list[Diagnostic]:
    """The first problem of every line, in the order of the text."""
    by_line: dict[int, Diagnostic] = {}
    for problem in sorted(problems, key=lambda problem: problem.span.start):
        by_line.setdefault(problem.line, problem)
    return list(by_line.values())
