"""The op table: every operation of the IR, declared once.

A signature is the kinds of the arguments and of the result: `ii->i` with b(ool), i(nt), f(loat).
A spelling is a template with its precedence; generators fill it. That of C++ has its syntax, the
others Python's; precedences are Python's in all. Names that start with `attn_` are helper functions
that a generator writes into its output when used.
Derivatives stand in `transform/differentiate.py`, interval transfers in `analysis/intervals.py`;
a test fails for an op that one of them lacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["bool", "int", "float"]
KIND_OF_LETTER: dict[str, Kind] = {"b": "bool", "i": "int", "f": "float"}

# The int of a float lies within +-INT_OF_FLOAT, the largest float32 below 2**31; that of NaN is the
# lower end. So every generator gives the same number.
INT_OF_FLOAT = 2**31 - 128

# Python's precedences, lowest first; an argument is put in brackets below the slot's precedence.
TEST, COMPARE, BIT_OR, BIT_AND, SUM, PRODUCT, UNARY, ATOM = 0, 4, 5, 7, 9, 10, 11, 15


@dataclass(frozen=True)
class Spelling:
    """`template` has `{0}`, `{1}` for arguments; `precedence` is that of the whole text.

    An argument is bracketed when its precedence is lower than `slots` (one per argument), so that
    `a - (b - c)` keeps its brackets and `a - b - c` gets none.
    """

    template: str
    precedence: int
    slots: tuple[int, ...]


def infix(symbol: str, precedence: int) -> Spelling:
    return Spelling(f"{{0}} {symbol} {{1}}", precedence, (precedence, precedence + 1))


def compare(symbol: str) -> Spelling:
    return Spelling(f"{{0}} {symbol} {{1}}", COMPARE, (COMPARE + 1, COMPARE + 1))


def call(function: str, arity: int = 1) -> Spelling:
    slots = ", ".join(f"{{{i}}}" for i in range(arity))
    return Spelling(f"{function}({slots})", ATOM, (TEST,) * arity)


def method(suffix: str) -> Spelling:
    return Spelling(f"{{0}}.{suffix}", ATOM, (ATOM,))


def prefix(symbol: str) -> Spelling:
    return Spelling(f"{symbol}{{0}}", UNARY, (UNARY,))


def bits(symbol: str) -> Spelling:
    """C++'s `&` and `|`, which bind weaker than comparisons: anything but a name gets brackets."""
    return Spelling(f"{{0}} {symbol} {{1}}", TEST + 1, (UNARY, UNARY))


def strict_prefix(symbol: str) -> Spelling:
    """A prefix that is never followed by another: C++ would read `--x` as one operator."""
    return Spelling(f"{symbol}{{0}}", UNARY, (ATOM,))


CHOICE = Spelling("{0} ? {1} : {2}", TEST + 1, (TEST + 2,) * 3)  # C++'s


@dataclass(frozen=True)
class Op:
    """One operation. Leaves (`signatures` empty) take their kind and meaning from the node."""

    name: str
    signatures: tuple[str, ...]
    torch: Spelling | None
    triton: Spelling | None
    cpp: Spelling | None

    @property
    def arity(self) -> int:
        return self.signatures[0].index("-") if self.signatures else 0

    @property
    def is_leaf(self) -> bool:
        return not self.signatures


def op(
    name: str,
    signatures: str,
    torch: Spelling,
    triton: Spelling | None = None,
    cpp: Spelling | None = None,
) -> Op:
    """An operation; a spelling that is not given is torch's."""
    return Op(name, tuple(signatures.split()), torch, triton or torch, cpp or torch)


def function(name: str, signatures: str, torch: str, triton: str, cpp: str, arity: int = 1) -> Op:
    """An operation that is a function everywhere, with these names."""
    return op(name, signatures, call(torch, arity), call(triton, arity), call(cpp, arity))


# attr: const: the value; index: "b" "h" "q" "k" "d", or a coordinate such as "q.y" (made by the
# analysis, `grids.py`); size: "B" "H" "Hk" "G" "Nq" "Nk" "D" or a dimension that a tensor binds;
# scalar: a parameter; lookup: a tensor (args: one int per dimension); dot: a tensor whose last
# dimension is D (args: the other indices); bound: an end of a tile, summary: the least or greatest
# entry of one, both made by the analysis; chosen: a select (args none). In the rank of a select:
# index "i" and "j"; pooled: element d of "query" or "key", or of "query_mean", "key_max", ..., over
# the rows of a block; total: the sum over d (args: what is added).
LEAVES: tuple[str, ...] = (
    "const",
    "index",
    "size",
    "scalar",
    "score",
    "out",
    "lookup",
    "dot",
    "bound",
    "summary",
    "chosen",
    "pooled",
    "total",
)

OPS: dict[str, Op] = {
    entry.name: entry
    for entry in (
        *(Op(name, (), None, None, None) for name in LEAVES),
        op("add", "ii->i ff->f", infix("+", SUM)),
        op("sub", "ii->i ff->f", infix("-", SUM)),
        op("mul", "ii->i ff->f", infix("*", PRODUCT)),
        op("div", "ff->f", infix("/", PRODUCT)),
        # x // 0 and x % 0 are 0: the language is total.
        op("floordiv", "ii->i", call("attn_floordiv", 2)),
        op("floormod", "ii->i", call("attn_floormod", 2)),
        # The float forms are Python's too: floor(x / y) and x - y * floor(x / y).
        op("floordiv_float", "ff->f", call("attn_floordiv_float", 2)),
        op("floormod_float", "ff->f", call("attn_floormod_float", 2)),
        function("pow", "ff->f", "torch.pow", "attn_pow", "attn_pow", 2),
        op("neg", "i->i f->f", prefix("-"), cpp=strict_prefix("-")),
        function("abs", "i->i f->f", "torch.abs", "tl.abs", "attn_abs"),
        function("min", "ii->i ff->f", "torch.minimum", "tl.minimum", "attn_min", 2),
        function("max", "ii->i ff->f", "torch.maximum", "tl.maximum", "attn_max", 2),
        op("lt", "ii->b ff->b", compare("<")),
        op("le", "ii->b ff->b", compare("<=")),
        op("eq", "ii->b ff->b bb->b", compare("==")),
        op("ne", "ii->b ff->b bb->b", compare("!=")),
        op("and", "bb->b", infix("&", BIT_AND), cpp=bits("&")),
        op("or", "bb->b", infix("|", BIT_OR), cpp=bits("|")),
        op("not", "b->b", prefix("~"), call("attn_not"), strict_prefix("!")),
        op("where", "bii->i bff->f bbb->b", call("torch.where", 3), call("tl.where", 3), CHOICE),
        function("exp", "f->f", "torch.exp", "tl.exp", "attn_exp"),
        function("exp2", "f->f", "torch.exp2", "tl.exp2", "attn_exp2"),
        function("log", "f->f", "torch.log", "tl.log", "attn_log"),
        function("log2", "f->f", "torch.log2", "tl.log2", "attn_log2"),
        function("sqrt", "f->f", "torch.sqrt", "tl.sqrt", "attn_sqrt"),
        function("rsqrt", "f->f", "torch.rsqrt", "tl.rsqrt", "attn_rsqrt"),
        function("sin", "f->f", "torch.sin", "tl.sin", "attn_sin"),
        function("cos", "f->f", "torch.cos", "tl.cos", "attn_cos"),
        function("tanh", "f->f", "torch.tanh", "attn_tanh", "attn_tanh"),
        function("erf", "f->f", "torch.erf", "tl.erf", "attn_erf"),
        function("sigmoid", "f->f", "torch.sigmoid", "attn_sigmoid", "attn_sigmoid"),
        function("relu", "f->f", "torch.relu", "attn_relu", "attn_relu"),
        function(
            "softplus",
            "f->f",
            "torch.nn.functional.softplus",
            "attn_softplus",
            "attn_softplus",
        ),
        op("floor", "f->i", call("attn_floor")),
        op("ceil", "f->i", call("attn_ceil")),
        op("round", "f->i", call("attn_round")),  # halves to the even neighbour, as in Python
        op("trunc", "f->i", call("attn_trunc")),
        op("to_float", "i->f", call("attn_to_float")),
        op("bool_to_int", "b->i", call("attn_bool_to_int")),
    )
}
