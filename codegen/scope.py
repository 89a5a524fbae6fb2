"""What names and operations of the IR look like in PyTorch code.

A value is "plain" where it is a Python number at run time: constants, sizes, scalar parameters and
what needs no torch function to follow from them. Everything else is a tensor.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from types import ModuleType

from attndsl.analysis.lookups import prove
from attndsl.ir.nodes import Node, find
from attndsl.ir.ops import ATOM, TEST, Spelling, call
from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import KernelPlan

from . import library
from .expressions import LeafText, Printer, table_spelling, unnamed

PLAIN_LEAVES = frozenset(("const", "scalar", "size"))
# Python does the same as torch on these, and never raises.
PLAIN_OPS = frozenset(
    "add sub mul neg lt le eq ne and or not where floordiv floormod to_float bool_to_int".split()
)
PLAIN_INT_OPS = frozenset(("abs", "min", "max"))
FUNCTION = re.compile(r"\b(?:attn|torch)_\w+")
NOT = 3  # Python's precedence of `not`
INDEX_OF_SIZE = {"B": "b", "H": "h", "Hk": "h", "G": "h", "Nq": "q", "Nk": "k"}
INT64, BOOL = "int64", "bool"


def size_name(name: str) -> str:
    return f"size_{name}"


def scalar_name(name: str) -> str:
    return f"p_{name}"


def tensor_name(name: str) -> str:
    return f"t_{name}"


def gradient_name(name: str) -> str:
    return f"grad_t_{name}"


class Plainness:
    """Which nodes are Python numbers at run time."""

    def __init__(self) -> None:
        self._known: dict[Node, bool] = {}

    def is_plain(self, node: Node) -> bool:
        for below in unnamed((node,), self._known):
            if below.op in PLAIN_LEAVES:
                self._known[below] = True
            else:
                same = below.op in PLAIN_OPS or (below.op in PLAIN_INT_OPS and below.kind == "int")
                self._known[below] = same and all(self._known[arg] for arg in below.args)
        return self._known[node]

    def spell(self, node: Node) -> Spelling:
        """The spelling of a node in torch, given which arguments are Python numbers."""
        found = self._spell(node)
        return replace(found, template=re.sub(r"\battn_(?!tensor)", "torch_", found.template))

    def _spell(self, node: Node) -> Spelling:
        plain = [self.is_plain(arg) for arg in node.args]
        if node.op == "where":
            return self._spell_where(node, plain)
        if node.op in ("min", "max"):
            return self._spell_extremum(node, plain)
        if all(plain):
            return self._spell_plain(node)
        return table_spelling("torch", node)

    def _spell_plain(self, node: Node) -> Spelling:
        if node.op == "not":
            return Spelling("not {0}", NOT, (NOT,))
        if node.op in ("to_float", "bool_to_int"):
            return call("float" if node.op == "to_float" else "int")
        if node.op == "abs" and node.kind == "int":
            return call("abs")
        spelling = table_spelling("torch", node)
        if node.op in PLAIN_OPS:
            return spelling
        slots = (TEST, *spelling.slots[1:])
        return Spelling(
            spelling.template.replace("{0}", "attn_tensor({0})"), spelling.precedence, slots
        )

    def _spell_where(self, node: Node, plain: list[bool]) -> Spelling:
        condition, yes, no = plain
        # A choice by Python is right only where both sides have the same shape: that follows from
        # what they vary with.
        if condition and yes == no and node.args[1].varies == node.args[2].varies:
            return Spelling("{1} if {0} else {2}", TEST, (1, 1, TEST))
        test = "attn_tensor({0})" if condition else "{0}"
        first = "attn_tensor({1})" if yes and no else "{1}"  # gives the result its dtype
        return Spelling(f"torch.where({test}, {first}, {{2}})", ATOM, (TEST, TEST, TEST))

    def _spell_extremum(self, node: Node, plain: list[bool]) -> Spelling:
        if all(plain):
            if node.kind == "int":
                return call(node.op, 2)
            function = "minimum" if node.op == "min" else "maximum"
            return Spelling(
                f"torch.{function}(attn_tensor({{0}}), attn_tensor({{1}}))", ATOM, (TEST, TEST)
            )
        if any(plain):
            tensor, number = ("{1}", "{0}") if plain[0] else ("{0}", "{1}")
            slots = (TEST, ATOM) if plain[0] else (ATOM, TEST)
            side = "max" if node.op == "min" else "min"
            return Spelling(f"{tensor}.clamp({side}={number})", ATOM, slots)
        return table_spelling("torch", node)


@lru_cache(maxsize=256)
def guarded_axes(program: Program, node: Node) -> tuple[int, ...]:
    """The axes of a lookup or dot where the index may lie outside the tensor."""
    dims = program.tensor(node.name).dims

    def fits(axis: int) -> bool:
        # A value that does not vary with an index is computed even where that index has no value.
        sizes = find(dims[axis], "size")
        if any(
            size.name in INDEX_OF_SIZE and INDEX_OF_SIZE[size.name] not in node.args[axis].varies
            for size in sizes
        ):
            return False
        # Whatever a proof assumes may fail: masked pairs are looked up too.
        proof = prove(program, node, axis)
        return proof is not None and not proof.assumes

    return tuple(axis for axis in range(len(node.args)) if not fits(axis))


def tuple_text(texts: tuple[str, ...]) -> str:
    """A tuple display, right for one element too."""
    return f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"


def lookup_text(plan: KernelPlan, node: Node, args: tuple[str, ...]) -> str:
    """A lookup as torch text, in the accumulator's dtype, int64 or bool."""
    tensor = tensor_name(node.name)
    guarded = guarded_axes(plan.program, node)
    if guarded:
        axes = tuple_text(tuple(str(a) for a in guarded))
        text = f"attn_lookup({tensor}, {tuple_text(args)}, {axes})"
    else:
        text = f"{tensor}[{', '.join(args)}]"
    return text + conversion_text(plan, node)


def conversion_text(plan: KernelPlan, node: Node) -> str:
    """The suffix that brings an element of a tensor to the dtype in which it is computed with."""
    names = [t.name for t in plan.program.tensors]
    dtypes = dict(zip(names, plan.request.tensor_dtypes, strict=False))
    dtype = dtypes.get(node.name)
    if node.kind == "float":
        return "" if dtype == plan.accumulator else ".to(ACCUMULATOR)"
    if node.kind == "int":
        return "" if dtype == INT64 else ".long()"
    return "" if dtype == BOOL else ".bool()"


def scope_printer(
    plan: KernelPlan,
    leaves: Mapping[tuple[str, str], str],
    dot: LeafText,
    plainness: Plainness | None = None,
    prefix: str = "v",
    lookup: LeafText | None = None,
) -> Printer:
    """A printer for PyTorch code.

    leaves   (op, name) -> text for "index", "bound", "score" and "out" leaves; the name of the two
             last is ""
    dot      text of a `dot`, given the texts of its indices; lookup: likewise, of a `lookup`
    """

    def leaf(node: Node, args: tuple[str, ...]) -> str:
        if node.op == "size":
            return size_name(node.name)
        if node.op == "scalar":
            return scalar_name(node.name)
        if node.op == "lookup":
            return lookup(node, args) if lookup else lookup_text(plan, node, args)
        if node.op == "dot":
            return dot(node, args)
        return leaves[node.op, node.name if isinstance(node.attr, str) else ""]

    return Printer("torch", leaf, spell=(plainness or Plainness()).spell, prefix=prefix)


def library_text(body: str, *modules: ModuleType) -> str:
    """The source of every function of codegen/library.py, or of the given modules, that the body
    calls, directly or through others."""
    functions = {
        name: re.sub(r" +# type: ignore.*", "", inspect.getsource(value)).rstrip()
        for module in modules or (library,)
        for name, value in vars(module).items()
        if FUNCTION.fullmatch(name)
    }
    needed: set[str] = set()
    new = set(FUNCTION.findall(body)) & functions.keys()
    while new:
        needed |= new
        found = {n for name in new for n in FUNCTION.findall(functions[name])}
        new = (found & functions.keys()) - needed
    return "\n\n\n".join(text for name, text in functions.items() if name in needed)
