"""Programs named on the command line: read, checked and compiled; `-` is what comes in on stdin."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attndsl.diagnostics import ArgumentError, Diagnostic, ProgramError
from attndsl.source import Source, Span

if TYPE_CHECKING:
    from attndsl.ir.program import Program
    from attndsl.runtime.attention import Attention

STDIN = "<stdin>"


def read(file: str) -> Source:
    """The text of a file, or of stdin for `-`; ProgramError where it cannot be read."""
    from attndsl.syntax.parser import load_source

    if file != "-":
        return load_source(file)
    data = sys.stdin.buffer.read()
    try:
        return Source(STDIN, data.decode("utf-8"))
    except UnicodeDecodeError as error:
        message = f"stdin is not UTF-8: byte {error.start} is {data[error.start]:#04x}"
        raise ProgramError([Diagnostic("E001", message, Span(Source(STDIN, ""), 0, 0))]) from error


def check_file(
    file: str, consts: Mapping[str, bool | int | float], *, causal: bool = False
) -> list[Diagnostic]:
    """Everything that is wrong with the attentions of a file, warnings included; where `causal` is
    wanted, also whether a query may read a later key."""
    from attndsl.analysis.warnings import warnings_of
    from attndsl.semantics import check_all
    from attndsl.transform.simplify import simplify

    try:
        source = read(file)
        programs = [simplify(program) for program in check_all(source, consts)]
    except ProgramError as error:
        return list(error.diagnostics)
    found = [warning for program in programs for warning in warnings_of(program)]
    if causal:
        from attndsl.report.differences.future import check_causal

        found += [d for program in programs if (d := check_causal(program, source)) is not None]
    return found


def parted(word: str) -> tuple[str, str | None]:
    """A file and which attention of it: `FILE`, or `FILE:NAME`.

    >>> parted("masks.attn:window"), parted("masks.attn"), parted("-")
    (('masks.attn', 'window'), ('masks.attn', None), ('-', None))
    """
    file, colon, name = word.rpartition(":")
    return (
        (file, name) if colon and name.isidentifier() and not Path(word).exists() else (word, None)
    )


def load_program(word: str, consts: Mapping[str, bool | int | float]) -> Program:
    """The simplified program of FILE or FILE:NAME; consts that it does not declare are left out."""
    from attndsl.semantics import analyse
    from attndsl.syntax.ast import Attention as Tree
    from attndsl.syntax.parser import parse
    from attndsl.transform.simplify import simplify

    file, name = parted(word)
    source = read(file)
    trees = [item for item in parse(source).items if isinstance(item, Tree)]
    meant = [tree for tree in trees if name in (None, tree.name.name)]
    declared = {parameter.name.name for tree in meant for parameter in tree.parameters}
    known = {name: value for name, value in consts.items() if name in declared}
    return simplify(analyse(source, name, known))


def load(
    file: str,
    name: str | None,
    consts: Mapping[str, bool | int | float],
    backend: str = "auto",
    deterministic: bool = True,
) -> Attention:
    """The compiled attention of a file."""
    import attndsl

    reserved = {"path", "name", "text", "backend", "tune", "deterministic"} & set(consts)
    if reserved:
        raise ArgumentError(f"no const is called {', '.join(sorted(reserved))}")
    given: dict[str, Any] = {**consts, "backend": backend, "deterministic": deterministic}
    if file == "-":
        return attndsl.compile(None, name, text=read(file).text, **given)
    return attndsl.compile(file, name, **given)
