"""Text to canonical text: the same tree, the same comments.

Four spaces a block, one space around operators, at most one blank line, one around every
attention. A line that is longer than `WIDTH` is broken inside brackets; a line with comments
inside its brackets keeps the user's line ends. Brackets are kept as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from attndsl.source import Source
from attndsl.syntax.builder import clean_doc, unquote
from attndsl.syntax.parser import parse
from attndsl.syntax.scanner import Line, Scan, Token, scan

WIDTH = 100  # columns
INDENT = 4  # columns
OPERATOR_WORDS = frozenset({"and", "or", "not", "if", "else"})
# At which a long expression in brackets is broken: the first of these that it has.
BREAKS: tuple[frozenset[str], ...] = (
    frozenset({"if", "else"}),
    frozenset({"or"}),
    frozenset({"and"}),
    frozenset({"<", "<=", ">", ">=", "==", "!="}),
    frozenset({"+", "-"}),
    frozenset({"*", "/", "//", "%"}),
)


@dataclass
class Entry:
    """A logical line, or a comment on a line of its own (`line` None), as it will be written."""

    depth: int
    rows: list[str]  # without indentation of the block
    has_blank: bool  # whether a blank line stands before it
    line: Line | None = None
    trailing: str = ""


def format_text(source: Source) -> str:
    """The program in its canonical form; formatting that again changes nothing.

    Raises ProgramError for a text that does not parse.
    """
    parse(source)
    entries = read_entries(scan(source))
    place_blank_lines(entries)
    rows: list[str] = []
    for entry in entries:
        if entry.has_blank:
            rows.append("")
        pad = " " * (INDENT * entry.depth)
        rows.extend(f"{pad}{row}" if row else "" for row in entry.rows)
        if entry.trailing:
            rows[-1] += f"  {entry.trailing}"
    return "\n".join(rows) + "\n" if rows else ""


# -- lines, comments and blank lines ----------------------------------------------------------


@dataclass
class Reader:
    """Where `read_entries` is: the columns of open blocks, and the entry before."""

    columns: list[int] = field(default_factory=lambda: [0])  # by depth
    depth: int = 0
    end: int = 0


def read_entries(found: Scan) -> list[Entry]:
    """Logical lines and the comments between them, in order."""
    text, reader = found.source.text, Reader()
    entries: list[Entry] = []
    comments = [token for token in found.tokens if token.kind == "comment"]
    upcoming = 0  # the first comment not yet placed

    def between(stop: int, depth: int) -> None:
        nonlocal upcoming
        while upcoming < len(comments) and comments[upcoming].start < stop:
            comment = comments[upcoming]
            upcoming += 1
            if entries and "\n" not in text[reader.end : comment.start]:
                entries[-1].trailing = comment.text.rstrip()
            else:
                level = comment_depth(text, comment, reader, depth)
                has_blank = text.count("\n", reader.end, comment.start) > 1
                entries.append(Entry(level, [comment.text.rstrip()], has_blank))
            reader.end = comment.end

    for line in found.lines:
        between(line.start, line.depth)
        inside = []
        while upcoming < len(comments) and comments[upcoming].start < line.end:
            inside.append(comments[upcoming])
            upcoming += 1
        has_blank = text.count("\n", reader.end, line.start) > 1
        rows = line_rows(text, line, inside)
        entries.append(Entry(line.depth, rows, has_blank, line))
        del reader.columns[line.depth :]
        reader.columns.append(line.indent)
        reader.depth, reader.end = line.depth, line.end
    between(len(text), 0)
    return entries


def comment_depth(text: str, comment: Token, reader: Reader, following: int) -> int:
    """The block that a comment between two lines belongs to, by its column."""
    column = comment.start - text.rfind("\n", 0, comment.start) - 1
    for depth in range(reader.depth, following, -1):
        if column >= reader.columns[depth]:
            return depth
    return following


def place_blank_lines(entries: list[Entry]) -> None:
    """One blank line around attentions and after the docstring, none at the start of a block."""
    for index, entry in enumerate(entries):
        before = entries[index - 1] if index else None
        if before is None or is_opening(before):
            entry.has_blank = False
        elif entry.depth == 0 and (before.depth > 0 or is_docstring(before)):
            entry.has_blank = True
        if entry.line is not None and entry.line.word == "attention" and entry.depth == 0:
            first = index
            while first and not entries[first].has_blank and is_comment(entries[first - 1]):
                first -= 1
            entries[first].has_blank = first > 0


def is_comment(entry: Entry) -> bool:
    return entry.line is None and entry.depth == 0


def is_docstring(entry: Entry) -> bool:
    return entry.line is not None and entry.line.tokens[0].kind == "string"


def is_opening(entry: Entry) -> bool:
    return entry.line is not None and entry.line.is_header


# -- one logical line -------------------------------------------------------------------------


def line_rows(text: str, line: Line, comments: list[Token]) -> list[str]:
    """The rows of a logical line, relative to the indentation of its block."""
    if line.tokens[0].kind == "string":
        return docstring_rows(line.tokens[0].text)
    if comments:
        return commented_rows(text, line, comments)
    tokens = [
        token
        for token, after in zip(line.tokens, [*line.tokens[1:], None], strict=True)
        if token.text != "," or (after is not None and after.kind != "close")
    ]
    room = WIDTH - INDENT * line.depth
    return Layout(tokens).rows(0, len(tokens), room)


def docstring_rows(literal: str) -> list[str]:
    """A docstring with its further lines moved to the indentation of its block."""
    size = 3 if literal[:3] in ('"""', "'''") and len(literal) >= 6 else 1
    quote, inner = literal[:size], unquote(literal)
    cleaned = clean_doc(inner)
    lines = inner.split("\n")
    if len(lines) == 1:
        return [f"{quote}{inner if cleaned.endswith(quote[0]) else cleaned}{quote}"]
    if not cleaned:
        return [quote * 2]
    rows = cleaned.split("\n")
    if lines[0].strip():
        rows[0] = quote + rows[0]
    else:
        rows.insert(0, quote)
    if lines[-1].strip() and not cleaned.endswith(quote[0]):
        rows[-1] += quote
    else:
        rows.append(quote)
    return rows


def commented_rows(text: str, line: Line, comments: list[Token]) -> list[str]:
    """A line with comments inside brackets, row by row as the user broke it."""
    layout = Layout(line.tokens)
    marks = sorted([*line.tokens, *comments], key=lambda token: token.start)
    index = {token.start: position for position, token in enumerate(line.tokens)}
    rows: list[str] = []
    row, depth, end = "", 0, marks[0].start
    for mark in marks:
        if "\n" in text[end : mark.start]:
            rows.append(row)
            row = " " * (INDENT * (depth - (mark.kind == "close")))
        end = mark.end
        depth += (mark.kind == "open") - (mark.kind == "close")
        if mark.kind == "comment":
            row += ("  " if row.strip() else "") + mark.text.rstrip()
        else:
            has_gap = bool(row.strip()) and layout.gaps[index[mark.start]]
            row += f" {mark.text}" if has_gap else mark.text
    return [*rows, row]


class Layout:
    """The tokens of a line, which of them have a space before them, and where rows can break."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.words = [is_word(tokens, index) for index in range(len(tokens))]
        self.signs = [self.is_sign(index) for index in range(len(tokens))]
        self.gaps = [self.has_gap(index) for index in range(len(tokens))]
        self.partner = partners(tokens)

    def is_operand(self, index: int) -> bool:
        """Whether an operand ends with the token."""
        kind = self.tokens[index].kind
        return kind in ("number", "close", "string") or (kind == "name" and not self.words[index])

    def is_sign(self, index: int) -> bool:
        """Whether the token is a minus or plus with one operand."""
        return self.tokens[index].text in ("-", "+") and not (index and self.is_operand(index - 1))

    def has_gap(self, index: int) -> bool:
        """Whether a space stands before the token."""
        if index == 0 or self.signs[index - 1]:
            return False
        before, token = self.tokens[index - 1], self.tokens[index]
        if before.kind == "open" or "." in (before.text, token.text):
            return False
        if token.kind == "close" or token.text in (",", ":"):
            return False
        if token.kind == "open":
            return self.words[index - 1] or before.kind not in ("name", "close")
        return True

    def text(self, start: int, end: int) -> str:
        """The tokens from `start` up to `end` in one row."""
        pieces: list[str] = []
        for index in range(start, end):
            if index > start and self.gaps[index]:
                pieces.append(" ")
            pieces.append(self.tokens[index].text)
        return "".join(pieces)

    def rows(self, start: int, end: int, room: int) -> list[str]:
        """The tokens from `start` up to `end`, in rows of `room` columns where that can be."""
        whole = self.text(start, end)
        if len(whole) <= room:
            return [whole]
        opener = self.widest(start, end)
        if opener is None:
            return [whole]
        closer = self.partner[opener]
        rows = self.rows(start, opener + 1, room)
        pieces, comma = self.pieces(opener, closer)
        for first, last in pieces:
            inner = self.rows(first, last, room - INDENT - len(comma))
            inner[-1] += comma
            rows.extend(" " * INDENT + row for row in inner)
        return rows + self.rows(closer, end, room)

    def widest(self, start: int, end: int) -> int | None:
        """The opening bracket, inside no other, with the most text up to its partner."""
        best, width = None, 0
        index = start
        while index < end:
            closer = self.partner.get(index)
            if closer is not None and closer < end:
                size = self.tokens[closer].end - self.tokens[index].end
                if closer > index + 1 and size > width:
                    best, width = index, size
                index = closer
            index += 1
        return best

    def pieces(self, opener: int, closer: int) -> tuple[list[tuple[int, int]], str]:
        """What gets rows of its own between two brackets, and what ends each, if anything."""
        start = opener + 1
        outer: list[int] = []  # indices of tokens inside no further bracket
        index = start
        while index < closer:
            outer.append(index)
            index = self.partner.get(index, index) + 1
        commas = [each for each in outer if self.tokens[each].text == ","]
        is_list = (
            opener > 0 and self.tokens[opener - 1].kind == "name" and not self.words[opener - 1]
        )
        if commas or is_list:
            bounds = [start, *(each + 1 for each in commas), closer + 1]
            return [(a, b - 1) for a, b in zip(bounds, bounds[1:], strict=False)], ","
        for operators in BREAKS:
            places = [
                each
                for each in outer
                if self.tokens[each].text in operators and each > start and not self.signs[each]
            ]
            if places:
                bounds = [start, *places, closer]
                return list(zip(bounds, bounds[1:], strict=False)), ""
        return [(start, closer)], ""


def is_word(tokens: list[Token], index: int) -> bool:
    """Whether a token is a word of the language and not a name."""
    token, first = tokens[index], tokens[0].text
    if token.kind != "name":
        return False
    if index == 0 or token.text in OPERATOR_WORDS:
        return True
    if first == "from":
        return token.text in ("import", "as")
    return first == "keep" and index == 1


def partners(tokens: list[Token]) -> dict[int, int]:
    """The closing bracket of every opening one, as indices."""
    found: dict[int, int] = {}
    stack: list[int] = []
    for index, token in enumerate(tokens):
        if token.kind == "open":
            stack.append(index)
        elif token.kind == "close":
            found[stack.pop()] = index
    return found
