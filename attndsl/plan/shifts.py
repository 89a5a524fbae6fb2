"""Shifts: what the logits of a row have in common within a tile, taken out of the work for pairs.

A bias by distance, as ALiBi's `slope * (k - q)`, is the sum of what a key's place within its tile
adds, the same for every tile, and of what the distance from the row to the tile's first key adds,
the same for every key of the tile. So a pair costs no arithmetic with positions; the row's part
is added to the maximum that is subtracted from it anyway. The places are small numbers: what is
rounded is of the size of the bias within a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.ir.nodes import Node, bound, index, make

FIRST_KEY = bound("k_first")  # the position of the first key of a tile
PLACE = index("k.place")  # the number of a key within its tile

Term = tuple[int, Node]  # a sign and what it stands before


@dataclass(frozen=True)
class Shift:
    """A value as value + rows, over `PLACE` and `FIRST_KEY` where the original has k."""

    value: Node
    rows: Node


def shift_of(value: Node) -> Shift | None:
    """The split of a logit that has the raw score and a bias that is affine in k as summands.

    >>> from attndsl.ir.nodes import SCORE, scalar
    >>> distance = make("to_float", make("sub", index("k"), index("q")))
    >>> bias = make("mul", scalar("slope", "float"), distance)
    >>> found = shift_of(make("add", SCORE, bias))
    >>> found.value
    add(score(), mul(scalar('slope'), to_float(index('k.place'))))
    >>> found.rows
    mul(scalar('slope'), to_float(add(neg(index('q')), bound('k_first'))))
    """
    terms = terms_of(value)
    for at, (sign, term) in enumerate(terms):
        parts = split(term)
        if parts is None or len(terms) == 1:
            continue
        places, rows = parts
        rest = [*terms[:at], (sign, places), *terms[at + 1 :]]
        return Shift(total(rest), rows if sign > 0 else make("neg", rows))
    return None


def split(term: Node) -> tuple[Node, Node] | None:
    """factor * to_float(affine in k), with a factor that differs by batch and head alone, as that
    of the place in a tile and that of the rest; None for all other terms."""
    if term.op == "to_float":
        return split_distance(term)
    if term.op != "mul":
        return None
    for at, factor in enumerate(term.args):
        other = term.args[1 - at]
        if factor.varies <= {"b", "h"} and other.op == "to_float":
            parts = split_distance(other)
            if parts is not None:
                places, rows = parts
                return make("mul", factor, places), make("mul", factor, rows)
    return None


def split_distance(distance: Node) -> tuple[Node, Node] | None:
    """The float of a sum of ints in which k stands once, alone."""
    terms = terms_of(distance.args[0])
    keys = [sign for sign, term in terms if term is index("k")]
    others = [(sign, term) for sign, term in terms if term is not index("k")]
    if len(keys) != 1 or any("k" in term.varies or "score" in term.varies for _, term in others):
        return None
    (sign,) = keys
    places = PLACE if sign > 0 else make("neg", PLACE)
    return make("to_float", places), make("to_float", total([*others, (sign, FIRST_KEY)]))


def terms_of(node: Node) -> list[Term]:
    """The signed terms of a sum."""
    if node.op == "neg":
        return [(-sign, term) for sign, term in terms_of(node.args[0])]
    if node.op in ("add", "sub"):
        flip = -1 if node.op == "sub" else 1
        left, right = map(terms_of, node.args)
        return [*left, *((flip * sign, term) for sign, term in right)]
    return [(1, node)]


def total(terms: list[Term]) -> Node:
    """The sum of signed terms, in their order."""
    (sign, first), *rest = terms
    found = first if sign > 0 else make("neg", first)
    for sign, term in rest:
        found = make("add" if sign > 0 else "sub", found, term)
    return found
