"""Text to tokens and logical lines, with what is wrong below the level of the grammar."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from attndsl.diagnostics import Diagnostic
from attndsl.source import Source, Span

MAX_BRACKETS = 100  # brackets inside brackets
MAX_SIGNS = 100  # `-`, `+` and `not` in a row
MAX_TOKENS = 50_000  # in one logical line
MAX_PROBLEMS = 50  # after which no further mistakes are looked for
MAX_CHARACTERS = 20  # forbidden characters that are reported
MAX_INT = 2**63 - 1  # tables of ints may be 64 bits wide
FILE_WORDS = frozenset({"attention", "def", "from"})
STATEMENT_WORDS = frozenset({"let", "grid", "mask", "score", "weights", "output", "select"})
PAIRS = {"(": ")", "[": "]"}

# What people write in other languages, and the language's own spelling.
SPELLINGS: dict[str, str] = {
    "===": "write `==`",
    "!==": "write `!=`",
    "<>": "write `!=`",
    "=>": "write `>=` for greater or equal",
    "=<": "write `<=`",
    "&&": "write `and`",
    "||": "write `or`",
    "&": "write `and`",
    "|": "write `or`",
    "!": "write `not`",
    "~": "write `not`",
    "^": "write `**` for a power, `!=` for exclusive or of two bools",
    ":=": "write `let name = ...`",
    "->": "an attention has no result kind; end its header with `:`",
    "?": "write `a if condition else b`",
    ";": "write every statement on a line of its own",
    "{": "write `(` or `[`",
    "}": "write `)` or `]`",
    "\\": "a line goes on by itself inside brackets; put the expression in `(` and `)`",
    "@": "write `dot(query, t[...])` for a product over the head dimension",
    "...": "write the expression out",
    "<<": "write `* 2 ** n`",
    ">>": "write `// 2 ** n`",
    "≤": "write `<=`",
    "≥": "write `>=`",
    "≠": "write `!=`",
    "×": "write `*`",
    "·": "write `*`",
    "÷": "write `/` or `//`",
    "−": "write `-`",
    "–": "write `-`",
    "∧": "write `and`",
    "∨": "write `or`",
    "¬": "write `not`",
    "∞": "write `inf`",
    "π": "write `pi`",
    "“": 'write `"`',
    "”": 'write `"`',
    "‘": "write `'`",
    "’": "write `'`",
    "…": "write the expression out",
    "\xa0": "this is a no-break space; write an ordinary one",
    "\ufeff": "this is a byte order mark; delete it",
} | {f"{sign}=": "values do not change; write `let` with a new name" for sign in "+-*/%"}

TOKEN = re.compile(
    r"""
      (?P<newline>\r?\n)
    | (?P<space>[ \t]+)
    | (?P<comment>\#[^\n]*)
    | (?P<string>\"{3}[\s\S]*?\"{3}|'{3}[\s\S]*?'{3}|"(?!"")[^"\n]*"|'(?!'')[^'\n]*')
    | (?P<open_string>"{3}|'{3}|"|')
    | (?P<number>(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][+-]?\d)?\w*)
    | (?P<name>[^\W\d]\w*)
    | (?P<open>[(\[])
    | (?P<close>[)\]])
    | (?P<wrong>===|!==|<>|=>|=<|&&|\|\||:=|->|\.\.\.|<<|>>|[-+%]=(?!=)|\*=(?!=)|/=(?!=))
    | (?P<operator>\*\*|//|<=|>=|==|!=|[-+*/%<>=,:.])
    | (?P<other>(?P<control>[\x00-\x1f\x7f])(?P=control)*|[\s\S])
    """,
    re.VERBOSE,
)
NUMBER = re.compile(r"(\d+(_\d+)*(\.(\d+(_\d+)*)?)?|\.\d+(_\d+)*)([eE][+-]?\d+(_\d+)*)?", re.ASCII)
# Characters that end lines, end files or turn text around elsewhere; no program needs one.
FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
    "|\r(?!\n)"
)


class Token(NamedTuple):
    """`kind` is a group name of `TOKEN`; `start` and `end` are offsets in the text."""

    kind: str
    text: str
    start: int
    end: int


@dataclass(slots=True)
class Line:
    """A logical line: what stands between two line ends outside brackets, and is not blank.

    tokens    without spaces, comments and line ends
    indent    columns before the first token
    depth     0 in the file, 1 in an attention, 2 in a select
    parent    columns before the line that opened the block (0 at depth 0 and 1)
    is_wrong  the scanner has reported it, or it stands in a block that fits nowhere
    """

    tokens: list[Token]
    indent: int
    depth: int = 0
    parent: int = 0
    is_wrong: bool = False

    @property
    def start(self) -> int:
        return self.tokens[0].start

    @property
    def end(self) -> int:
        return self.tokens[-1].end

    @property
    def word(self) -> str:
        return self.tokens[0].text

    @property
    def is_header(self) -> bool:
        """Whether a block belongs to the line: an attention, or a select inside one."""
        return self.word == ("attention", "select", "")[min(self.depth, 2)]


@dataclass
class Scan:
    """What the scanner found; `tokens` has comments and line ends, the lines' tokens do not."""

    source: Source
    tokens: list[Token] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)

    def line_at(self, offset: int) -> int:
        """The index of the last logical line that starts at or before the offset; 0 at least."""
        return max(0, bisect_right(self.lines, offset, key=lambda line: line.start) - 1)

    def report(
        self,
        code: str,
        message: str,
        start: int,
        end: int,
        hint: str = "",
        notes: tuple[str, ...] = (),
    ) -> None:
        span = Span(self.source, start, max(end, start + 1))
        self.problems.append(Diagnostic(code, message, span, hint, notes=notes))


def shorten(text: str) -> str:
    """A piece of the user's text for a message: 40 characters at most, printable."""
    text = "".join(char if char.isprintable() else "\ufffd" for char in text[:80])
    return text if len(text) <= 40 else text[:37] + "..."


def scan(source: Source) -> Scan:
    """The tokens and logical lines of a text; mistakes are listed in `problems`."""
    found = Scan(source, list(read_tokens(source.text)))
    found.lines, is_open = split_lines(source.text, found.tokens, recover=False)
    if is_open:
        found.lines, is_open = split_lines(source.text, found.tokens, recover=True)
    check_characters(found)
    if not check_tabs(found):
        check_layout(found)
        for line in found.lines:
            if len(found.problems) >= MAX_PROBLEMS:
                break
            before = len(found.problems)
            check_tokens(found, line)
            if len(found.problems) == before:
                check_brackets(found, line)
            line.is_wrong = line.is_wrong or len(found.problems) > before
    found.problems.sort(key=lambda problem: problem.span.start)
    return found


def read_tokens(text: str) -> Iterator[Token]:
    """Every token of the text, spaces left out; a byte order mark at its start is a space."""
    position, end = (1 if text.startswith("\ufeff") else 0), len(text)
    while position < end:
        match = TOKEN.match(text, position)
        assert match is not None and match.lastgroup is not None  # `other` matches anything
        kind, stop = match.lastgroup, match.end()
        if kind == "open_string":  # to the end of the line, or of the text
            quote = match.group()
            line_end = text.find("\n", position)
            stop = end if len(quote) == 3 or line_end < 0 else line_end
        if kind != "space":
            yield Token(kind, text[position:stop], position, stop)
        position = stop


def split_lines(text: str, tokens: list[Token], recover: bool) -> tuple[list[Line], bool]:
    """Logical lines, and whether a bracket was open at the end.

    With `recover`, a line inside brackets that looks like a new item or statement begins one.
    """
    lines: list[Line] = []
    current: list[Token] = []
    depth = 0
    for index, token in enumerate(tokens):
        if token.kind == "newline":
            if depth and recover and begins_line(tokens, index + 1, token.end):
                depth = 0
            if current and not depth:
                lines.append(logical_line(text, current))
                current = []
        elif token.kind != "comment":
            current.append(token)
            if token.kind == "open":
                depth += 1
            elif token.kind == "close":
                depth = max(0, depth - 1)
    if current:
        lines.append(logical_line(text, current))
    return lines, depth > 0


def logical_line(text: str, tokens: list[Token]) -> Line:
    first = tokens[0].start
    begin = text.rfind("\n", 0, first) + 1
    return Line(tokens, first - (1 if begin == 0 and text[0] == "\ufeff" else begin))


def begins_line(tokens: list[Token], index: int, line_start: int) -> bool:
    """Whether the token looks like the first word of an item or statement."""
    if index + 1 >= len(tokens):
        return False
    first, second = tokens[index], tokens[index + 1]
    if first.kind != "name" or second.kind not in ("name", "number", "open"):
        return False
    if first.text in FILE_WORDS:
        return first.start == line_start
    return first.text in STATEMENT_WORDS and second.start > first.end


# -- checks -----------------------------------------------------------------------------------


def check_characters(found: Scan) -> None:
    """E002 for characters that no program may hold, not even in a comment; the first few."""
    for count, match in enumerate(FORBIDDEN.finditer(found.source.text)):
        if count == MAX_CHARACTERS:
            break
        message = f"control character U+{ord(match.group()):04X}"
        found.report("E002", message, match.start(), match.end(), "delete it")
        if found.lines:
            found.lines[found.line_at(match.start())].is_wrong = True


def check_tabs(found: Scan) -> bool:
    """E003 for the first line that is indented with a tab; whether there is one."""
    text = found.source.text
    wrong = [line for line in found.lines if "\t" in text[line.start - line.indent : line.start]]
    if wrong:
        first = wrong[0]
        more = len(wrong) - 1
        notes = (f"{more} more line{'s begin' if more > 1 else ' begins'} with a tab",)
        start, hint = first.start - first.indent, "indent with four spaces"
        message = "tab in the indentation"
        found.report("E003", message, start, first.start, hint, notes if more else ())
    return bool(wrong)


def check_layout(found: Scan) -> None:
    """E003 for indentation that fits no block; sets `depth`, `parent`, `is_wrong` of the lines."""
    levels = [0]  # columns at which the open blocks begin
    misfits = [False]  # whether the block belongs to no header of this language
    opener: Line | None = None  # the line before, if it begins a block or looks as if
    is_orphan = False  # whether the line follows a header as if it were in its block
    for line in found.lines:
        at = line.start - line.indent
        if line.indent > levels[-1]:
            if opener is None and not misfits[-1]:
                hint = f"begin it in column {levels[-1] + 1}, as the other lines of the block"
                if len(levels) == 1:
                    hint = "begin it in the first column"
                found.report("E003", "unexpected indentation", at, line.start, hint)
            misfits.append(opener is None or not opener.is_header or misfits[-1])
            levels.append(line.indent)
        else:
            is_empty = report_empty_block(found, opener)
            is_orphan = (is_empty or is_orphan) and line.word in STATEMENT_WORDS
            left = levels[-1]
            while line.indent < levels[-1]:
                left = levels.pop()
                misfits.pop()
            if line.indent != levels[-1]:
                hint = f"begin it in column {levels[-1] + 1} or {left + 1}, as earlier lines do"
                found.report("E003", "indentation fits no block", at, line.start, hint)
                line.is_wrong = True
                levels.append(line.indent)
                misfits.append(misfits[-1])
        line.depth = len(levels) - 1
        line.parent = levels[-2] if len(levels) > 2 else 0
        line.is_wrong = line.is_wrong or is_orphan or misfits[-1]
        opener = line if line.is_header or line.tokens[-1].text == ":" else None
    report_empty_block(found, opener)


def report_empty_block(found: Scan, opener: Line | None) -> bool:
    """E003 for a header that ends with `:` and has no block; whether it is one."""
    if opener is None or not opener.is_header or opener.tokens[-1].text != ":":
        return False
    colon = opener.tokens[-1]
    hint = "indent the lines that belong to it by four spaces"
    found.report("E003", "expected an indented block after `:`", colon.start, colon.end, hint)
    opener.is_wrong = True
    return True


def check_tokens(found: Scan, line: Line) -> None:
    """E002, E005 or E006 for the first sign, name or number that cannot be one."""
    if len(line.tokens) > MAX_TOKENS:
        message = f"a statement of {len(line.tokens)} words and signs"
        hint = f"name parts of it with `let`; {MAX_TOKENS} are allowed"
        return found.report("E005", message, line.start, line.end, hint)
    signs = 0
    before = len(found.problems)
    for token in line.tokens:
        if token.kind == "number":
            check_number(found, token)
        elif token.kind == "name":
            if not token.text.isascii():
                hint = SPELLINGS.get(token.text, "write it with the letters a to z, digits and `_`")
                message = f"`{shorten(token.text)}` cannot be a name"
                found.report("E002", message, token.start, token.end, hint)
        elif token.kind in ("wrong", "other"):
            named = f"`{token.text}`" if token.text.isprintable() else f"U+{ord(token.text[0]):04X}"
            hint = SPELLINGS.get(token.text, "")
            if not FORBIDDEN.match(found.source.text, token.start):
                found.report("E002", f"unexpected {named}", token.start, token.end, hint)
        elif token.kind == "open_string":
            quote = token.text[:3] if token.text[:3] in ('"""', "'''") else token.text[0]
            end = token.start + len(quote)
            found.report("E002", "string is not closed", token.start, end, f"close it with {quote}")
        signs = signs + 1 if token.text in ("-", "+", "not") else 0
        if signs > MAX_SIGNS:
            message = f"more than {MAX_SIGNS} signs in a row"
            found.report("E005", message, token.start, token.end, "two of them cancel: delete both")
        if len(found.problems) > before:
            return None
    return None


def check_number(found: Scan, token: Token) -> None:
    text = token.text
    digits = text.replace("_", "")
    if NUMBER.fullmatch(text) is None:
        message = f"`{shorten(text)}` is neither a number nor a name"
        hint = "write a number as 12, 1_000, 0.5 or 1e-3"
        found.report("E002", message, token.start, token.end, hint)
    elif not digits.isdigit():
        if float(digits) == float("inf"):
            message = f"{shorten(text)} is larger than any float"
            found.report("E006", message, token.start, token.end, "write `inf`")
    elif len(digits) > 1 and digits[0] == "0":
        hint = f"write `{shorten(digits.lstrip('0') or '0')}`"
        message = f"`{shorten(text)}` begins with 0"
        found.report("E002", message, token.start, token.end, hint)
    elif len(digits) > 19 or int(digits) > MAX_INT:
        message = f"{shorten(text)} does not fit in 64 bits"
        hint = "write a float, such as 1e30, if that is what is meant"
        found.report("E006", message, token.start, token.end, hint)


def check_brackets(found: Scan, line: Line) -> None:
    """E004 for a bracket that has no partner, E005 for too many inside each other."""
    stack: list[Token] = []
    for token in line.tokens:
        if token.kind == "open":
            stack.append(token)
            if len(stack) > MAX_BRACKETS:
                message = f"more than {MAX_BRACKETS} brackets inside each other"
                hint = "name parts of the expression with `let`"
                return found.report("E005", message, token.start, token.end, hint)
        elif token.kind == "close":
            if not stack:
                message = f"`{token.text}` closes no bracket"
                return found.report("E004", message, token.start, token.end, "delete it")
            opener = stack.pop()
            if PAIRS[opener.text] != token.text:
                message = f"`{opener.text}` is closed by `{token.text}`"
                hint = f"write `{PAIRS[opener.text]}` instead of `{token.text}`"
                return found.report("E004", message, opener.start, opener.end, hint)
    if stack:
        opener = stack[-1]
        message, hint = f"`{opener.text}` is not closed", f"add `{PAIRS[opener.text]}`"
        return found.report("E004", message, opener.start, opener.end, hint)
    return None
