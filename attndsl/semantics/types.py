"""What an expression can stand for, and the kinds of its values."""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.ir.nodes import Node
from attndsl.ir.program import Tensor


@dataclass(frozen=True)
class Table:
    """A tensor that is named, not looked up: legal before `[...]` and as an argument of a def."""

    tensor: Tensor
    declared: str  # as the user wrote it: `float[H, 2 * R + 1]`

    @property
    def example(self) -> str:
        """A lookup of it that a message can propose."""
        usual = {"B": "b", "H": "h", "Nq": "q", "Nk": "k", "D": "d"}
        names = [
            usual.get(str(d.attr), "...") if d.op == "size" else "..." for d in self.tensor.dims
        ]
        return f"{self.tensor.name}[{', '.join(names)}]"


@dataclass(frozen=True)
class Vector:
    """`query`, `key` or `value`: legal only inside `dot`, and in a `select`."""

    name: str


@dataclass(frozen=True)
class Wrong:
    """The value of something that an error was already reported for; it causes no second error."""


WRONG = Wrong()
Value = Node | Table | Vector | Wrong


def describe(value: Value) -> str:
    """What a value is, for messages: "an int", "a bool", "the tensor `t`"."""
    if isinstance(value, Node):
        return kind_words(value.kind)
    if isinstance(value, Table):
        return f"the tensor `{value.tensor.name}`"
    return f"`{value.name}`" if isinstance(value, Vector) else "wrong"


def kind_words(kind: str) -> str:
    return "an int" if kind == "int" else f"a {kind}"
