"""Interning, traversal and substitution of nodes."""

import copy
import gc
import pickle

import pytest

from attndsl.ir.nodes import (
    SCORE,
    Node,
    constant,
    find,
    index,
    is_const,
    lookup,
    make,
    rebuild,
    substitute,
    topological,
    with_args,
)
from attndsl.ir.ops import OPS


def test_equal_nodes_are_one_object() -> None:
    assert make("add", index("q"), constant(1)) is make("add", index("q"), constant(1))
    assert lookup("t", "int", index("b")) is lookup("t", "int", index("b"))
    assert lookup("t", "int", index("b")) is not lookup("t", "float", index("b"))


def test_constants_of_different_kinds_differ() -> None:
    ones = [constant(1), constant(1.0), constant(True)]
    assert len({id(node) for node in ones}) == 3
    assert constant(0.0) is not constant(-0.0)
    assert constant(float("nan")) is constant(float("nan"))
    assert is_const(constant(1), 1) and not is_const(constant(1.0), 1)


def test_nodes_cannot_be_built_by_hand() -> None:
    with pytest.raises(TypeError, match="make"):
        Node("add", (), None, "int", object())


def test_kinds_are_checked() -> None:
    with pytest.raises(TypeError, match="add does not take"):
        make("add", index("q"), constant(1.0))


def test_copies_and_pickles_are_the_same_object() -> None:
    node = make("mul", SCORE, make("to_float", index("k")))
    assert copy.deepcopy(node) is node
    assert pickle.loads(pickle.dumps(node)) is node


def test_dead_nodes_leave_the_table() -> None:
    before = id(make("add", index("q"), constant(123456789)))
    gc.collect()
    again = make("add", index("q"), constant(987654321))
    assert is_const(again.args[1], 987654321), before


def test_sharing_stays_linear() -> None:
    node = index("q")
    for _ in range(200):
        node = make("add", node, node)
    assert len(topological(node)) == 201
    assert len(topological(substitute(node, {index("q"): index("k")}))) == 201


def test_topological_puts_arguments_first() -> None:
    node = make("sub", make("mul", index("q"), index("k")), index("q"))
    order = topological(node)
    for position, member in enumerate(order):
        assert all(order.index(arg) < position for arg in member.args)


def test_varies() -> None:
    assert lookup("t", "float", index("h"), index("k")).varies == {"h", "k"}
    assert make("add", SCORE, constant(1.0)).varies == {"score"}
    assert make("dot", index("k"), attr="r", kind="float").varies == {"b", "h", "q", "k"}


def test_find_and_rebuild() -> None:
    node = make("add", make("neg", index("q")), index("k"))
    assert find(node, "neg") == [make("neg", index("q"))]
    assert rebuild(node, lambda n, args: with_args(n, args)) is node


def test_every_op_spells_itself_with_its_arguments() -> None:
    for entry in OPS.values():
        if entry.is_leaf:
            continue
        for spelling in (entry.torch, entry.triton):
            assert spelling is not None
            assert len(spelling.slots) == entry.arity
            filled = spelling.template.format(*(f"x{i}" for i in range(entry.arity)))
            compile(filled, entry.name, "eval")
            assert all(f"x{i}" in filled for i in range(entry.arity))
        assert entry.cpp is not None and len(entry.cpp.slots) == entry.arity
