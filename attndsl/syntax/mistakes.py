"""A word that the grammar does not expect to a message in the user's words."""

from __future__ import annotations

from attndsl.diagnostics import Diagnostic, did_you_mean
from attndsl.source import Span
from attndsl.syntax.builder import PYTHON_WORDS
from attndsl.syntax.scanner import FILE_WORDS, STATEMENT_WORDS, Line, Scan, Token, shorten

CLAUSE_WORDS = frozenset({"rank", "where", "keep", "given"})
WORDS = (FILE_WORDS, STATEMENT_WORDS, CLAUSE_WORDS)  # that begin a line, by its depth
EXPECTED = ("an attention, a definition or an import", "a statement", "a clause")
BEGINNINGS = (
    "the file has `attention`, `def` and `from ... import` in its first column",
    "a statement begins with let, mask, score, weights, output, grid or select",
    "a line of a select begins with rank, where, keep or given",
)
FORMS: dict[str, str] = {
    "from": "write `from std import causal` or `from './masks.attn' import near`",
    "def": "write `def name(a, b) = expression`",
    "attention": "write `attention name(window: int = 512):`",
    "let": "write `let name = expression`",
    "grid": "write `grid y = height, x = width`",
    "mask": "write `mask k <= q`",
    "score": "write `score score + bias[h]`",
    "weights": "write `weights softmax`, `weights normalize(E)` or `weights E`",
    "output": "write `output out * gate[b, h, q]`",
    "select": "write `select near[i = q // 64, j = k // 64]:`",
    "rank": "write `rank dot(mean(query), mean(key))`",
    "where": "write `where j <= i`",
    "keep": "write `keep top 4`, `keep above 0.5` or `keep mass 0.9`",
    "given": "write `given blocks`",
}
KINDS: dict[str, str] = {
    "boolean": "write `bool`",
    "Boolean": "write `bool`",
    "integer": "write `int`",
    "double": "write `float`",
    "number": "write `int` or `float`",
    "tensor": "write `float[B, H, Nq]`, with the dimensions",
    "Tensor": "write `float[B, H, Nq]`, with the dimensions",
} | {f"float{bits}": "write `float`; any of torch's widths is taken" for bits in (16, 32, 64)}
KINDS |= {f"int{bits}": "write `int`; any of torch's widths is taken" for bits in (8, 16, 32, 64)}


def explain(found: Scan, line: Line, offset: int, accepts: set[str]) -> Diagnostic:
    """E002 for the token at the offset, where the grammar accepts the terminals `accepts`."""
    index = next((i for i, t in enumerate(line.tokens) if t.end > offset), len(line.tokens))
    if index > 1 and is_misused_word(line, index - 1):
        index -= 1
    place = Place(found, line, index, accepts)
    message, hint = place.beginning() if index == 0 else place.inside()
    if index < len(line.tokens):
        start, end = line.tokens[index].start, line.tokens[index].end
    else:
        start, end = line.end, line.end + 1
    return Diagnostic("E002", message, Span(found.source, start, end), hint)


def is_misused_word(line: Line, index: int) -> bool:
    """Whether a word of Python stands where an expression begins, and was taken for a name."""
    word, before = line.tokens[index], line.tokens[index - 1]
    if word.text not in PYTHON_WORDS or word.text in ("from", "import", "as", "def"):
        return False
    if word.text == "not":
        return before.kind == "operator" and before.text not in (",", "=", ":")
    is_operand = before.kind in ("number", "close") or (
        before.kind == "name" and index > 1 and before.text not in PYTHON_WORDS
    )
    return not is_operand


class Place:
    """Where a line of tokens stops being a program: at `line.tokens[index]`, or at its end."""

    def __init__(self, found: Scan, line: Line, index: int, accepts: set[str]) -> None:
        self.found = found
        self.line = line
        self.index = index
        self.accepts = accepts
        self.token: Token | None = line.tokens[index] if index < len(line.tokens) else None
        self.before = line.tokens[max(0, index - 1)]
        self.word = line.word if line.word in FORMS else ""
        self.opener = open_bracket(line, index)

    @property
    def text(self) -> str:
        return "" if self.token is None else self.token.text

    @property
    def here(self) -> str:
        return (
            "found the end of the line" if self.token is None else f"found `{shorten(self.text)}`"
        )

    @property
    def after(self) -> str:
        return f"`{shorten(self.before.text)}`"

    def beginning(self) -> tuple[str, str]:
        """The first word of a line begins nothing that may stand there."""
        token, depth = self.line.tokens[0], min(self.line.depth, 2)
        message = f"expected {EXPECTED[depth]}, {self.here}"
        if token.kind == "string":
            places = ("file", "attention", "attention")
            return message, f"a docstring is the first line of its {places[depth]}"
        home = next((level for level in range(3) if token.text in WORDS[level]), None)
        if home is not None and home != depth:
            homes = (
                "stands in the first column, outside any attention",
                "belongs in an attention, indented below its header",
                "belongs in a select, indented below its header",
            )
            return message, f"`{token.text}` {homes[home]}"
        if len(self.line.tokens) > 1 and self.line.tokens[1].text == "=" and depth == 1:
            return message, f"write `let {shorten(token.text)} = ...` to name a value"
        if token.text in PYTHON_WORDS:
            return message, PYTHON_WORDS[token.text]
        return message, did_you_mean(token.text, WORDS[depth]) or BEGINNINGS[depth]

    def inside(self) -> tuple[str, str]:
        """A line begins well and goes wrong later."""
        accepts = self.accepts
        if self.text in PYTHON_WORDS and self.text not in ("if", "not", "import"):
            return f"unexpected `{self.text}` after {self.after}", PYTHON_WORDS[self.text]
        if self.line.tokens[0].kind == "string":
            hint = "write a statement below the docstring, such as `mask k <= q`"
            return f"expected a statement after the docstring, {self.here}", hint
        if "NUMBER" in accepts and "INF" in accepts:
            hint = PYTHON_WORDS.get(self.text) or "a default is a number, inf, true or false"
            return f"expected a default value, {self.here}", hint
        if "NUMBER" in accepts:
            return self.operand()
        if "INT" in accepts:
            hint = KINDS.get(self.text) or "write int, float or bool"
            if self.text == "const":
                hint = "write `const` once"
            return f"expected a kind, {self.here}", hint
        if "NAME" in accepts:
            return self.name()
        if "STAR" in accepts:
            return self.operator()
        return self.sign()

    def operand(self) -> tuple[str, str]:
        """An expression should begin here."""
        message = f"expected an expression after {self.after}, {self.here}"
        if self.text == "=" and self.index == 1:
            return message, f"{FORMS.get(self.word, 'write the expression')}, without `=`"
        if self.text == "=" and self.before.text in ("<", ">", "="):
            return message, f"write `{self.before.text}=` without a space"
        if self.text == ":" and self.opener == "[":
            return message, "there are no slices; write one index for each dimension"
        if self.text == "not":
            return message, "put `not` and what follows it in brackets"
        if self.text in ("*", "**") and self.before.text in ("(", ","):
            return message, "give every argument by itself"
        if "TOP" in self.accepts or self.index == 1:
            return message, FORMS.get(self.word, "")
        if self.text == ",":
            return message, "delete one `,`" if self.before.text == "," else ""
        return message, ""

    def name(self) -> tuple[str, str]:
        """A name should stand here."""
        form = FORMS.get(self.word, "")
        if self.before.text == ".":
            return f"expected a coordinate after `.`, {self.here}", "write `q.x` for an axis `x`"
        if self.word == "attention" and self.opener:
            hint = "write a parameter as `window: int = 512`"
            return f"expected a parameter, {self.here}", hint
        return f"expected a name after {self.after}, {self.here}", form

    def operator(self) -> tuple[str, str]:
        """An expression ends here; an operator or what follows the expression should stand."""
        after = f"after {self.after}"
        if "ELSE" in self.accepts and "IF" not in self.accepts and self.text != "=":
            message = f"expected `else` {after}, {self.here}"
            return message, "write `a if condition else b`; both values are needed"
        if self.text == "=":
            hint = "write `==` to compare"
            if self.opener == "(" and self.before.kind == "name":
                hint += "; arguments of a function have no names"
            return f"unexpected `=` {after}", hint
        if self.text == ":" and self.opener == "[":
            return "unexpected `:`", "there are no slices; write one index for each dimension"
        if self.text == ":":
            return "unexpected `:`", f"{FORMS.get(self.word, '')}, without `:`".lstrip(", ")
        if self.text == "[" and self.before.text == "]":
            return "unexpected `[`", "write all indices in one bracket, `t[i, j]`"
        if self.text in ("[", "("):
            kind = "looked up" if self.text == "[" else "called"
            return f"unexpected `{self.text}`", f"only a name can be {kind}"
        if self.text == ".":
            return "unexpected `.`", "coordinates are those of a position: `q.x`, `k.y`"
        if self.text == "," and not self.opener:
            return "unexpected `,`", self.extra_comma()
        if self.text == "if":
            return "unexpected `if`", "put the first condition in brackets"
        choice = "an operator or the end of the line"
        if self.opener:
            closer = ")" if self.opener == "(" else "]"
            choice = f"an operator or `{closer}`"
            if "COMMA" in self.accepts:
                choice = f"an operator, `,` or `{closer}`"
        if "COMMA" not in self.accepts and self.text == ",":
            return f"unexpected `,` {after}", "there are no tuples; write one expression"
        message = f"expected {choice} {after}, {self.here}"
        if self.token is not None and self.text in STATEMENT_WORDS:
            return message, "write every statement on a line of its own"
        return message, ""

    def extra_comma(self) -> str:
        if self.word == "let":
            return "write one `let` for each name"
        if self.word == "mask":
            return "join conditions with `and`, or write one `mask` for each"
        return f"one expression stands here; {FORMS.get(self.word, '')}".rstrip("; ")

    def sign(self) -> tuple[str, str]:
        """One sign or word should stand here: `:`, `=`, `import`, a bracket, the line's end."""
        accepts, form = self.accepts, FORMS.get(self.word, "")
        after = f"after {self.after}, {self.here}"
        if "EQUAL" in accepts and self.text == ":" and self.word == "def":
            return f"expected `=` {after}", "a definition has `=` instead of `:`"
        if self.word == "attention" and self.opener == "(" and "COLON" in accepts:
            name = shorten(self.before.text)
            return f"expected `:` and a kind {after}", f"write `{name}: int`, float or bool"
        if self.word == "attention" and self.opener == "(":
            return f"expected `,` or `)` {after}", "write a parameter as `name: int[B, N] = 4`"
        if self.word == "def" and self.opener and self.text in ("=", ":"):
            hint = "the parameters of a definition are names alone, without kinds and defaults"
            return f"unexpected `{self.text}` after {self.after}", hint
        if self.word == "attention" and self.text == "[":
            return f"expected `(` or `:` {after}", "write the parameters in `(` and `)`"
        if self.word == "attention" and "COLON" in accepts:
            where = "the parameters" if self.before.text == ")" else f"the name {self.after}"
            return f"expected `:` after {where}, {self.here}", "end the header with `:`"
        if "COLON" in accepts and self.word == "select":
            hint = "end the line with `:`, or with `per group:`"
            return f"expected `:` {after}", hint
        if "IMPORT" in accepts:
            return f"expected `import` {after}", form
        if "TOP" in accepts:
            return f"expected `top`, `above` or `mass` {after}", form
        if "SINK" in accepts:
            return f"expected `sink` {after}", "write `weights softmax(sink = s[h])`"
        if "GROUP" in accepts:
            return f"expected `group` {after}", "write `per group`"
        if "EQUAL" in accepts:
            return f"expected `=` {after}", form
        if "LSQB" in accepts or "LPAR" in accepts:
            sign = "(" if "LPAR" in accepts else "["
            if "_NEWLINE" not in accepts:
                return f"expected `{sign}` {after}", form
        if "_NEWLINE" in accepts and self.before.text == ":":
            return f"expected the end of the line {after}", (
                "begin the block on the next line, indented by four spaces"
            )
        if "RPAR" in accepts or "RSQB" in accepts:
            closer = ")" if "RPAR" in accepts else "]"
            return f"expected `,` or `{closer}` {after}", form
        if "_NEWLINE" in accepts:
            return f"expected the end of the line {after}", form
        return f"unexpected {self.here.removeprefix('found ')}", form


def open_bracket(line: Line, index: int) -> str:
    """The innermost bracket that is open before the token, or an empty text."""
    stack: list[str] = []
    for token in line.tokens[:index]:
        if token.kind == "open":
            stack.append(token.text)
        elif token.kind == "close" and stack:
            stack.pop()
    return stack[-1] if stack else ""
