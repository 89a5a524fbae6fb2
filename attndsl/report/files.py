"""Programs named on the command line: read, checked and compiled; `-` is what comes in on stdin."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attndsl.diagnostics import ArgumentError, Diagnostic, ProgramError
from attndsl.source import Source, Span

if TYPE_CHECKING:
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


def check_file(file: str, consts: Mapping[str, bool | int | float]) -> list[Diagnostic]:
    """Everything that is wrong with the attentions of a file, warnings included."""
    from attndsl.analysis.warnings import warnings_of
    from attndsl.semantics import check_all
    from attndsl.transform.simplify import simplify

    try:
        programs = check_all(read(file), consts)
    except ProgramError as error:
        return list(error.diagnostics)
    return [warning for program in programs for warning in warnings_of(simplify(program))]


def load(
    file: str, name: str | None, consts: Mapping[str, bool | int | float], backend: str = "auto"
) -> Attention:
    """The compiled attention of a file."""
    import attndsl

    reserved = {"path", "name", "text", "backend"} & set(consts)
    if reserved:
        raise ArgumentError(f"no const is called {', '.join(sorted(reserved))}")
    given: dict[str, Any] = dict(consts)
    if file == "-":
        return attndsl.compile(None, name, text=read(file).text, backend=backend, **given)
    return attndsl.compile(file, name, backend=backend, **given)
