"""The errors that checking and lowering find, each place once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from attndsl.diagnostics import Diagnostic, ProgramError
from attndsl.source import Span


@dataclass
class Findings:
    """A collection of diagnostics. A second one with the same code at the same place is dropped:
    a def that is used twice is wrong once."""

    found: dict[tuple[str, int, int, int], Diagnostic] = field(default_factory=dict)

    def report(
        self, code: str, span: Span, message: str, hint: str = "", notes: Iterable[str] = ()
    ) -> None:
        self.add(Diagnostic(code, message, span, hint, notes=tuple(notes)))

    def add(self, diagnostic: Diagnostic) -> None:
        span = diagnostic.span
        self.found.setdefault((diagnostic.code, id(span.source), span.start, span.end), diagnostic)

    def raise_any(self) -> None:
        """Raises ProgramError with everything found, in the order of the files' lines."""
        if self.found:
            sources = list(dict.fromkeys(source for _, source, _, _ in self.found))
            raise ProgramError(
                sorted(
                    self.found.values(),
                    key=lambda d: (sources.index(id(d.span.source)), d.span.start, d.span.end),
                )
            )


def place(span: Span) -> str:
    """`file:line:column`, for notes."""
    line, column = span.source.position(span.start)
    return f"{span.source.name}:{line}:{column}"


def shown(span: Span, limit: int = 40) -> str:
    """The text of a span on one line, cut where it is long."""
    text = " ".join(span.text[: 4 * limit].split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
