"""summarise: which values of a mask are known per block of positions, once a call gives its tables.

A value that varies with q alone or with k alone is computed for all positions in one pass; of each
block its least and greatest are kept, and where two values are compared for equality also a
signature: 64 bits, of which each value of the block sets one. Blocks whose signatures have no bit
in common have no value in common, whatever their order. A table over q and k is reduced over
blocks of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attndsl.analysis.boxes import Summary as Extremes
from attndsl.analysis.linear import PAIR_INDICES
from attndsl.analysis.values import Truth, Value
from attndsl.ir.nodes import Node, find, index, lookup, make, topological, with_args
from attndsl.ir.ops import Kind

# Float operations that every device and library rounds alike. What else decides a summary would
# have to agree with the kernel's own value to the last bit.
EXACT = frozenset(
    "const scalar lookup to_float add sub mul neg abs min max where floor ceil round trunc".split()
)
STAND_IN = "summary "  # no tensor has a space in its name


@dataclass(frozen=True)
class Summary:
    """A value of the mask that is known per block.

    node   bool, int or float; varies with the `axes` ("q",), ("k",) or ("q", "k"), and b, h
    has_signature     whether a tile also knows which values occur
    least, greatest   leaves that stand for its extremes over a tile; of a bool: all, any
    """

    number: int
    node: Node
    axes: tuple[str, ...]
    has_signature: bool = False

    @property
    def kind(self) -> Kind:
        return self.node.kind

    @property
    def least(self) -> Node:
        return make("summary", attr=f"{self.number}_least", kind=self.kind)

    @property
    def greatest(self) -> Node:
        return make("summary", attr=f"{self.number}_greatest", kind=self.kind)


def meets(one: Summary, other: Summary) -> Node:
    """The leaf that says whether two signatures have a bit in common: "0_meets_1"."""
    return make("summary", attr=f"{one.number}_meets_{other.number}", kind="bool")


@dataclass(frozen=True)
class Summarised:
    """`mask` with stand-ins (lookups that no program has) for bools of one axis; the summaries of
    those and of its other lookups.

    places    lookup or stand-in -> its summary
    meetings  stand-in that is true where two values may be equal -> their summaries
    """

    mask: Node
    summaries: tuple[Summary, ...]
    places: dict[Node, Summary]
    meetings: dict[Node, tuple[Summary, Summary]]

    @property
    def extremes(self) -> Extremes:
        """What a tile knows of the mask's lookups."""

        def known(node: Node) -> Value | Truth | None:
            if node in self.meetings:
                meet = meets(*self.meetings[node])
                return Truth(meet, meet)
            found = self.places.get(node)
            if found is None:
                return None
            if found.kind == "bool":
                return Truth(found.greatest, found.least)
            return Value(found.least, found.greatest)

        return known


def summarise(mask: Node, are_rows_aligned: bool = True) -> Summarised:
    """The mask with what can be summarised.

    are_rows_aligned  whether every batch has the same offsets, so that blocks of a table over q
                      and k are the same rows and columns in each

    >>> doc = [lookup("doc", "int", index(axis)) for axis in "qk"]
    >>> [s.axes for s in summarise(make("eq", *doc)).summaries]
    [('q',), ('k',)]
    """
    finder = _Finder(are_rows_aligned)
    changed = finder.change(mask)
    order = topological(changed)
    places = {node: finder.places[node] for node in order if node in finder.places}
    meetings = {node: finder.meetings[node] for node in order if node in finder.meetings}
    signed = list(dict.fromkeys(value for pair in meetings.values() for value in pair))
    values = dict.fromkeys((*places.values(), *signed))
    found = {
        value: Summary(at, value, axes_of(value), value in signed)
        for at, value in enumerate(values)
    }
    return Summarised(
        changed,
        tuple(found.values()),
        {node: found[value] for node, value in places.items()},
        {node: (found[x], found[y]) for node, (x, y) in meetings.items()},
    )


def axes_of(node: Node) -> tuple[str, ...]:
    """Which of q and k a node varies with."""
    return tuple(axis for axis in ("q", "k") if axis in node.varies)


def is_data(node: Node) -> bool:
    """Whether a node looks something up by q or k."""
    return any(PAIR_INDICES & found.varies for found in find(node, "lookup"))


class _Finder:
    """Finds summaries and puts stand-ins for bools of one axis.

    places    a lookup or a stand-in -> the value that is summarised for it
    meetings  a stand-in -> the two values that are compared for equality
    """

    def __init__(self, are_rows_aligned: bool) -> None:
        self.are_rows_aligned = are_rows_aligned
        self.places: dict[Node, Node] = {}
        self.meetings: dict[Node, tuple[Node, Node]] = {}
        self._changed: dict[Node, Node] = {}

    def change(self, root: Node) -> Node:
        for node in self._order(root):
            self._changed[node] = self._change(node)
        return self._settled(root)

    def _order(self, root: Node) -> Iterator[Node]:
        return (node for node in topological(root) if node not in self._changed)

    def _change(self, node: Node) -> Node:
        """A node with its arguments changed; itself where it varies with one axis only, for what
        uses it decides what becomes of it."""
        if len(axes_of(node)) < 2:
            return node
        if node.op == "lookup":
            if self._is_over_pairs(node):
                self.places[node] = node
            return node
        if node.op in ("and", "or"):
            return self._joined(node)
        changed = with_args(node, tuple(self._settled(arg) for arg in node.args))
        if node.op in ("eq", "ne") and self._has_signatures(node):
            return self._with_meeting(changed, node)
        return changed

    def _has_signatures(self, node: Node) -> bool:
        """Whether a comparison of ints has one axis on each side, and a table on one of them."""
        x, y = node.args
        sides = (axes_of(x), axes_of(y))
        if sides not in ((("q",), ("k",)), (("k",), ("q",))) or x.kind != "int":
            return False
        return is_data(node) and _is_exact(x) and _is_exact(y)

    def _with_meeting(self, changed: Node, node: Node) -> Node:
        """x == y as (x == y and their blocks meet): for all pairs of a tile alike, and true where
        any pair is equal."""
        x, y = node.args
        indices = [index(name) for name in ("b", "h", "q", "k") if name in node.varies]
        stand_in = lookup(f"{STAND_IN}{id(x)} {id(y)}", "bool", *indices)
        self.meetings[stand_in] = (x, y)
        if node.op == "eq":
            return make("and", changed, stand_in)
        return make("or", changed, make("not", stand_in))

    def _joined(self, node: Node) -> Node:
        """A conjunction or disjunction: what of it varies with one axis only becomes one bool."""
        parts: dict[tuple[str, ...], list[Node]] = {}
        for part in _operands(node, node.op):
            parts.setdefault(axes_of(part), []).append(part)
        joined = []
        for axes, members in parts.items():
            if len(axes) == 1 and any(map(is_data, members)):
                joined.append(self._settled(_join(node.op, members)))
            else:
                joined += [self._settled(member) for member in members]
        return _join(node.op, joined)

    def _settled(self, node: Node) -> Node:
        """A node as an argument of one that varies with both axes."""
        if len(axes_of(node)) == 1 and is_data(node):
            if node.kind == "bool" and _is_exact(node):
                return self._stand_in(node)
            self._summarise_lookups(node)
        return self._changed.get(node, node)

    def _summarise_lookups(self, root: Node) -> None:
        """The outermost lookups below a node of one axis."""
        waiting = [root]
        while waiting:
            node = waiting.pop()
            if node.op == "lookup" and axes_of(node):
                self.places[node] = node
            else:
                waiting += node.args

    def _stand_in(self, node: Node) -> Node:
        indices = [index(name) for name in ("b", "h", *axes_of(node)) if name in node.varies]
        stand_in = lookup(f"{STAND_IN}{id(node)}", "bool", *indices)
        self.places[stand_in] = node
        return stand_in

    def _is_over_pairs(self, node: Node) -> bool:
        """Whether a lookup in q and k has bare indices, each once: blocks of it are slices."""
        names = [arg.attr for arg in node.args if arg.op == "index"]
        bare = len(names) == len(node.args) == len(set(names))
        return bare and self.are_rows_aligned


def _operands(node: Node, op: str) -> list[Node]:
    """The operands of nested conjunctions or disjunctions, in order."""
    found: list[Node] = []
    waiting = [node]
    while waiting:
        part = waiting.pop()
        if part.op == op and len(axes_of(part)) > 1:
            waiting += reversed(part.args)
        else:
            found.append(part)
    return found


def _join(op: str, parts: list[Node]) -> Node:
    whole = parts[0]
    for part in parts[1:]:
        whole = make(op, whole, part)
    return whole


def _is_exact(node: Node) -> bool:
    """Whether the host computes a value of one axis just as the kernels do: floats that vary with
    nothing are doubles on the host."""
    return all(
        below.op in EXACT and (below.varies or not below.args)
        for below in topological(node)
        if below.kind == "float" or below.op in ("floor", "ceil", "round", "trunc")
    )
