"""Random trees for the tests of parser and formatter."""

from __future__ import annotations

from hypothesis import strategies as st

from attndsl.source import Source, Span
from attndsl.syntax import ast
from attndsl.syntax.builder import clean_doc

SOURCE = Source("<tree>", "")
AT = Span(SOURCE, 0, 0)

# The words of the language that are names where no statement or clause begins.
NAMES = (
    "q k score out window start text block rank where keep top above mass given per group grid mask"
    " weights output let select softmax sink normalize const int float bool inf attention x1 _y"
).split()

names = st.sampled_from(NAMES).map(lambda name: ast.Name(AT, name))
numbers = st.one_of(
    st.integers(0, 2**63 - 1),
    st.floats(0, allow_infinity=False, allow_nan=False).filter(lambda value: str(value)[0] != "-"),
).map(lambda value: ast.Number(AT, value))
leaves = st.one_of(
    names,
    numbers,
    st.booleans().map(lambda value: ast.Boolean(AT, value)),
    st.builds(ast.Coordinate, st.just(AT), names, names),
)


def few(
    strategy: st.SearchStrategy[object], least: int = 0, most: int = 3
) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(strategy, min_size=least, max_size=most).map(tuple)


@st.composite
def comparisons(draw: st.DrawFn, operands: st.SearchStrategy[ast.Expression]) -> ast.Comparison:
    count = draw(st.integers(1, 3))
    signs = st.sampled_from(("<", "<=", ">", ">=", "==", "!="))
    operators = tuple(draw(signs) for _ in range(count))
    return ast.Comparison(AT, operators, tuple(draw(operands) for _ in range(count + 1)))


def operations(inner: st.SearchStrategy[ast.Expression]) -> st.SearchStrategy[ast.Expression]:
    operators = ("+", "-", "*", "/", "//", "%", "**", "and", "or")
    return st.one_of(
        st.builds(ast.Unary, st.just(AT), st.sampled_from(("-", "+", "not")), inner),
        st.builds(ast.Binary, st.just(AT), st.sampled_from(operators), inner, inner),
        comparisons(inner),
        st.builds(ast.Conditional, st.just(AT), inner, inner, inner),
        st.builds(ast.Call, st.just(AT), names, few(inner)),
        st.builds(ast.Lookup, st.just(AT), names, few(inner, least=1)),
    )


expressions = st.recursive(leaves, operations, max_leaves=12)

docs = st.none() | st.text('abc "#\\\n\té', max_size=30).map(clean_doc)

axis_names = names.filter(lambda name: name.name != "start")

selects = st.one_of(
    st.builds(
        ast.Select,
        st.just(AT),
        *(names, names, expressions, names, expressions),
        per_group=st.booleans(),
        rank=expressions,
        where=st.none() | expressions,
        keep=st.sampled_from(("top", "above", "mass")),
        amount=expressions,
        given=st.none(),
    ),
    st.builds(
        ast.Select,
        st.just(AT),
        *(names, names, expressions, names, expressions),
        per_group=st.booleans(),
        rank=st.none(),
        where=st.none(),
        keep=st.none(),
        amount=st.none(),
        given=expressions,
    ),
)

statements = st.one_of(
    st.builds(ast.Let, st.just(AT), names, expressions),
    st.builds(
        ast.Grid,
        st.just(AT),
        few(st.tuples(axis_names, expressions), least=1),
        st.none() | expressions,
    ),
    st.builds(ast.Mask, st.just(AT), expressions),
    st.builds(ast.Score, st.just(AT), expressions),
    st.builds(ast.Output, st.just(AT), expressions),
    st.builds(ast.Weights, st.just(AT), st.just("softmax"), st.none(), st.none() | expressions),
    st.builds(
        ast.Weights,
        st.just(AT),
        st.sampled_from(("normalize", "elementwise")),
        expressions,
        st.none(),
    ),
    selects,
)

defaults = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63 - 1), 2**63 - 1),
    st.floats(allow_nan=False),
)
parameters = st.builds(
    ast.Parameter,
    st.just(AT),
    names,
    st.booleans(),
    st.sampled_from(("int", "float", "bool")),
    st.none() | few(expressions, least=1),
    defaults,
)

items = st.one_of(
    st.builds(
        ast.Import,
        st.just(AT),
        st.sampled_from(("std", "from_here")),
        st.just(False),
        few(st.tuples(names, names), least=1),
    ),
    st.builds(
        ast.Import,
        st.just(AT),
        st.sampled_from(("./masks.attn", "a b.attn", "it's.attn")),
        st.just(True),
        few(st.tuples(names, names), least=1),
    ),
    st.builds(ast.Define, st.just(AT), names, few(names), expressions),
    st.builds(
        ast.Attention,
        st.just(AT),
        names,
        few(parameters),
        docs,
        few(statements, least=1),
    ),
)

files = st.builds(ast.File, st.just(AT), st.just(SOURCE), docs, few(items))
