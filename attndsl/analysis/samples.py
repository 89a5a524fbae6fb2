"""samples: values of nodes at a few drawn pairs, which spare proofs of what is plainly not so."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache

from attndsl.ir.nodes import Node, topological
from attndsl.transform.fold import FOLD

Value = bool | int | float
SAMPLES = 48


def samples(
    roots: Sequence[Node], count: int = SAMPLES, without_offsets: bool = False
) -> Iterator[list[Value]]:
    """Values of the roots together, at one pair of a call at a time. What one shows can happen,
    up to the rounding of floats; what none shows may happen too. Calls where an operation has
    no value in Python's numbers are left out.

    >>> from attndsl.ir.nodes import index, make
    >>> later = make("lt", index("q"), index("k"))
    >>> {value for value, in samples([later])} == {True, False}
    True
    """
    order = topological(*roots)
    for seed in range(count):
        found = values_at(order, Call(seed, without_offsets))
        if found is not None:
            yield [found[root] for root in roots]


class Call:
    """A drawn call and a pair in it: the value of each leaf, found when it is first asked for."""

    def __init__(self, seed: int, without_offsets: bool) -> None:
        chance = random.Random(seed)
        self.seed = seed
        heads, group = chance.randint(1, 3), chance.randint(1, 2)
        length = chance.choice((4, 12, 40))
        self.sizes = {
            "B": chance.randint(1, 3),
            "Hk": heads,
            "G": group,
            "H": heads * group,
            "Nq": chance.randint(1, length),
            "Nk": chance.randint(1, length),
            "D": 8,
        }
        self.places = {"b": chance.randrange(self.sizes["B"]), "h": chance.randrange(heads * group)}
        for name, extent in (("q", "Nq"), ("k", "Nk")):
            place = chance.randrange(self.sizes[extent])
            self.places[name] = place if without_offsets or seed % 2 else place + seed % 7 - 3
        if seed % 3 == 0:  # near each other
            self.places["k"] = max(0, min(self.places["q"] - seed % 5, self.sizes["Nk"] - 1))

    def leaf(self, node: Node, args: Sequence[Value]) -> Value:
        """The value of a leaf, or of a lookup at some indices."""
        if node.op == "index" and node.name in self.places:
            return self.places[node.name]
        if node.op == "size" and node.name in self.sizes:
            return self.sizes[node.name]
        return drawn(self.seed, node.op, str(node.attr), node.kind, tuple(args))


@lru_cache(maxsize=4096)
def drawn(seed: int, op: str, name: str, kind: str, args: tuple[Value, ...]) -> Value:
    """A value that depends on the call, the name and the indices alone."""
    chance = random.Random(repr((seed, op, name, args)))
    if kind == "bool":
        return chance.random() < 0.5
    if kind == "float":
        return chance.gauss(0, 2)
    if op == "size":
        return chance.randint(1, 20)
    return chance.randint(1, 8) if seed % 2 else chance.randint(-4, 16)


def values_at(order: Sequence[Node], call: Call) -> dict[Node, Value] | None:
    found: dict[Node, Value] = {}
    for node in order:
        args = [found[arg] for arg in node.args]
        if node.op == "const":
            found[node] = node.value
        elif node.op in FOLD:
            try:
                found[node] = FOLD[node.op](*args)
            except (ArithmeticError, ValueError):
                return None
        else:
            found[node] = call.leaf(node, args)
    return found
