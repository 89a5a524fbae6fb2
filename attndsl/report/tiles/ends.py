"""The ends of a segment as text for a person, case by case where they depend on conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attndsl.analysis.build import HIGHEST, LOWEST, given, negation
from attndsl.analysis.facts import EVERYTHING_HIGH, EVERYTHING_LOW
from attndsl.ir.nodes import (
    TRUE,
    Node,
    bound,
    constant,
    find,
    index,
    is_const,
    make,
    rebuild,
    substitute,
    topological,
    with_args,
)
from attndsl.report.tiles.formulas import formula

LONGEST_FORMULA = 160  # characters
LONGEST_CONDITION = 100
MOST_NODES = 400  # of a formula that is written out at all
MOST_CASES = 3
UNWRITTEN = "by cases: `attndsl emit --stage plan` has them; an example is below"
NOTHING, EVERYTHING = "nothing", "all"
BEYOND = 2**30  # where guards and clips lie that keep an entry of a table within 32 bits
CLIPPED = 2**29  # positions lie below it

Ends = tuple[Node, Node]


# -- what a person need not read ----------------------------------------------------------------


def without_guards(root: Node) -> Node:
    """The root without what keeps entries of tables within 32 bits: comparisons with numbers that
    no position reaches, taken as met, and clips to such numbers."""

    def plain(node: Node, args: tuple[Node, ...]) -> Node:
        if node.op in ("min", "max"):
            sign = 1 if node.op == "min" else -1
            for end, other in (args, args[::-1]):
                if is_const(end) and sign * end.value >= CLIPPED and not is_const(other):
                    return other
        if is_guard(with_args(node, args)):
            return TRUE
        return with_args(node, args)

    return rebuild(root, plain)


def is_guard(node: Node) -> bool:
    """`l[h] <= 2147483647`, `-2147483648 <= l[h]`."""
    if node.op not in ("le", "lt"):
        return False
    low, high = node.args
    if is_const(high) and high.kind == "int" and not is_const(low):
        return int(high.value) >= BEYOND
    return is_const(low) and low.kind == "int" and not is_const(high) and -low.value >= BEYOND


def has_guards(root: Node) -> bool:
    return any(is_guard(node) for node in topological(root))


def with_extremes(root: Node, tile: str) -> Node:
    """The root with what is known of a remainder over the tile of an axis by a short name:
    `least(k % s)`."""

    def named(node: Node, args: tuple[Node, ...]) -> Node:
        node = with_args(node, args)
        what = extreme_of(node, tile)
        return node if what is None else bound(what)

    return rebuild(root, named)


def extreme_of(node: Node, tile: str) -> str | None:
    """`least(k % s)` for `k_lo % s if k_lo // s == k_hi // s else 0` and its like."""
    if node.op != "where" or node.args[0].op != "eq" or node.args[1].op != "floormod":
        return None
    condition, value, other = node.args
    quotients = condition.args
    if any(part.op != "floordiv" or part.args[1] is not value.args[1] for part in quotients):
        return None
    anywhere = {bound("lo"): index(tile), bound("hi"): index(tile)}
    divided = {substitute(part.args[0], anywhere) for part in (*quotients, value)}
    if len(divided) > 1:
        return None
    if other.op in ("min", "max"):
        name = {"min": "least", "max": "greatest"}[other.op]
    elif is_const(other):
        name = "greatest" if other.value > 0 else "least"
    else:
        return None
    return f"{name}({formula(make('floormod', divided.pop(), value.args[1]))})"


def positions_first(root: Node) -> Node:
    """The root with the terms of sums of ints ordered alike: the tile's ends, others, a number."""

    def ordered(node: Node, args: tuple[Node, ...]) -> Node:
        node = with_args(node, args)
        if node.op not in ("add", "sub") or node.kind != "int":
            return node
        terms = sorted(terms_of(node), key=lambda term: rank(*term))
        sign, total = terms[0]
        if sign < 0 or not find(total, "bound"):
            return node
        for sign, term in terms[1:]:
            total = make("add" if sign > 0 else "sub", total, term)
        return total

    return rebuild(root, ordered)


def terms_of(node: Node, sign: int = 1) -> Iterator[tuple[int, Node]]:
    """The terms of a sum with their signs."""
    if node.op in ("add", "sub"):
        yield from terms_of(node.args[0], sign)
        yield from terms_of(node.args[1], sign if node.op == "add" else -sign)
    elif is_const(node) and node.value < 0:
        yield -sign, constant(-int(node.value))
    else:
        yield sign, node


def rank(sign: int, term: Node) -> int:
    if is_const(term):
        return 4
    if not find(term, "bound"):
        return 3
    return (0 if term.op == "bound" else 1) if sign > 0 else 2


# -- text -----------------------------------------------------------------------------------------


def ends_text(start: Node, end: Node, names: Mapping[str, str]) -> str:
    """What lies from a start to before an end, of positions; only named where it is more than a
    person reads."""
    if len(topological(start, end)) > MOST_NODES:
        return UNWRITTEN
    text = cases_text(start, end, names, MOST_CASES)
    return UNWRITTEN if text is None else text


def cases_text(start: Node, end: Node, names: Mapping[str, str], most: int) -> str | None:
    """`k_lo .. last if k_lo < base, else nothing`; None where it is long, or has more cases."""
    condition = next((node.args[0] for node in (start, end) if node.op == "where"), None)
    if condition is None:
        return part_text(start, end, names)
    if most < 2:
        return None
    opposite = negation(condition)
    texts = []
    for known, other in ((condition, opposite), (opposite, condition)):
        first, last = (given(known, other, node) for node in (start, end))
        texts.append(cases_text(first, last, names, most - 1))
    yes, no = texts
    if yes is None or no is None:
        return None
    if yes == no:
        return yes
    if ", else " in yes or (yes == NOTHING and ", else " not in no):
        yes, no, condition = no, yes, opposite
    test = formula(condition, names)
    if ", else " in yes or len(test) > LONGEST_CONDITION:
        return None
    return f"{yes} if {test}, else {no}"


def part_text(start: Node, end: Node, names: Mapping[str, str]) -> str | None:
    """`first .. q_hi`."""
    if is_never(start, end):
        return NOTHING
    low, high = unlimited(formula(start, names)), unlimited(formula(less_one(end), names))
    low, high = {"-inf": "first"}.get(low, low), {"inf": "last"}.get(high, high)
    if max(len(low), len(high)) > LONGEST_FORMULA:
        return None
    ends = [f"({text})" if " if " in text else text for text in (low, high)]
    return EVERYTHING if ends == ["first", "last"] else " .. ".join(ends)


def less_one(node: Node) -> Node:
    """An exclusive end as the last position in it: `q_hi` for `q_hi + 1`."""
    if is_const(node):
        return constant(int(node.value) - 1)
    if node.op in ("add", "sub") and is_const(node.args[1]):
        change = int(node.args[1].value) - (1 if node.op == "add" else -1)
        return make(node.op, node.args[0], constant(change)) if change else node.args[0]
    if node.op in ("min", "max"):
        return make(node.op, *(less_one(arg) for arg in node.args))
    if node.op == "where":
        condition, *branches = node.args
        return make("where", condition, *(less_one(branch) for branch in branches))
    return make("sub", node, constant(1))


def unlimited(text: str) -> str:
    """A formula with the analysis' own limits read as what they stand for."""
    for limit in (EVERYTHING_LOW - 1, EVERYTHING_LOW):
        text = text.replace(str(limit), "-inf")
    for limit in (EVERYTHING_HIGH, EVERYTHING_HIGH - 1):
        text = text.replace(str(limit), "inf")
    return text


def is_never(start: Node, end: Node) -> bool:
    """Whether a range is empty whatever the tile."""
    if start is end or start is HIGHEST or end is LOWEST:
        return True
    return is_const(start) and is_const(end) and bool(start.value >= end.value)
