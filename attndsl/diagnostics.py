"""What is wrong, where, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from attndsl.source import Span

# Every code, with its title. tests/errors/ holds a pair of files for each.
CODES: dict[str, str] = {
    # text -> tree
    "E001": "the file cannot be read",
    "E002": "unexpected text",
    "E003": "indentation does not fit",
    "E004": "bracket is not closed",
    "E005": "too deeply nested",
    "E006": "number is out of range",
    # tree -> IR
    "E101": "unknown name",
    "E102": "name is reserved",
    "E103": "name is defined twice",
    "E104": "kinds do not fit",
    "E105": "wrong number of arguments",
    "E106": "not available here",
    "E107": "definition refers to itself",
    "E108": "import cannot be resolved",
    "E109": "wrong statement",
    "E110": "wrong parameter",
    "E111": "wrong lookup",
    "E112": "no attention, or which one",
    "E113": "constant is wrong",
    "E114": "wrong select",
    "E115": "vectors and numbers do not fit",
    # facts
    "W201": "lookup may fall outside its tensor",
    "W202": "mask is never true",
    "W203": "parameter has no effect",
    "W204": "part of the mask has no effect",
    "W206": "choice is not used",
    # asked for by `check --causal`
    "E201": "a query reads a later key",
    "W205": "not proved to be causal",
}


@dataclass(frozen=True)
class Diagnostic:
    """One finding.

    `line` and `column` count from 1; `length` is the number of characters underlined (at least 1).
    `hint` says what to write instead (may be empty). `severity` is "error" or "warning".
    """

    code: str
    message: str
    span: Span
    hint: str = ""
    label: str = ""
    notes: tuple[str, ...] = ()

    @property
    def severity(self) -> str:
        return "error" if self.code.startswith("E") else "warning"

    @property
    def file(self) -> str:
        return self.span.source.name

    @property
    def line(self) -> int:
        return self.span.source.position(self.span.start)[0]

    @property
    def column(self) -> int:
        return self.span.source.position(self.span.start)[1]

    @property
    def length(self) -> int:
        line_end = self.span.start - self.column + 1 + len(self.span.source.line(self.line))
        return max(1, min(self.span.end, line_end) - self.span.start)

    def render(self) -> str:
        """The finding as text: title, place, the line, carets, notes and help."""
        line, column = self.line, self.column
        text = self.span.source.line(line)
        shown_from = max(0, column - 61) if len(text) > 120 else 0
        shown = text[shown_from : shown_from + 120].replace("\t", " ")
        shown = "".join(char if char.isprintable() else "\ufffd" for char in shown)
        carets = "^" * min(self.length, max(1, len(shown) - (column - 1 - shown_from)))
        gutter = " " * len(str(line))
        label = f" {self.label}" if self.label else ""
        rows = [
            f"{self.severity}[{self.code}]: {self.message}",
            f"{gutter}--> {self.file}:{line}:{column}",
            f"{gutter} |",
            f"{line} | {shown}",
            f"{gutter} | {' ' * (column - 1 - shown_from)}{carets}{label}",
        ]
        rows += [f"{gutter} = note: {note}" for note in self.notes]
        if self.hint:
            rows.append(f"{gutter} = help: {self.hint}")
        return "\n".join(rows)

    def short(self) -> str:
        """`file:line:column: error[E101]: message`, one line, for editors."""
        return (
            f"{self.file}:{self.line}:{self.column}: {self.severity}[{self.code}]: {self.message}"
        )


class ProgramError(ValueError):
    """The program is wrong. `diagnostics` lists everything that the stage found."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        text = "\n\n".join(d.render() for d in self.diagnostics)
        # A file's name may hold what no encoding has.
        super().__init__(text.encode("utf-8", "backslashreplace").decode())

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


class ArgumentError(ValueError):
    """A call is wrong: the message names the argument, what was expected and what came."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint with the nearest known name, or an empty text.

    >>> did_you_mean("wndow", ["window", "cap"])
    'did you mean `window`?'
    """
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else ""
