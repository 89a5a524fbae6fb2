"""What names and operations of the IR look like in PyTorch code.

A value is "plain" where it is a Python number at run time: constants, sizes, scalar parameters and
whatever follows from them. Everything else is a tensor on the device of the call. The two meet only
where torch takes a number, so that no number is copied to the device, and none is read back.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from types import ModuleType

from attndsl.analysis.intervals import may_wrap
from attndsl.analysis.lookups import prove
from attndsl.ir.nodes import Node, find
from attndsl.ir.ops import ATOM, OPS, TEST, Spelling, call
from attndsl.ir.program import SIZES, Program
from attndsl.plan.kernel_plan import KernelPlan

from . import library
from .expressions import LeafText, Printer, table_spelling, unnamed

PLAIN_LEAVES = frozenset(("const", "scalar", "size"))
# Python does the same as torch on these, and never raises.
PLAIN_OPS = frozenset(
    "add sub mul neg lt le eq ne and or not where floordiv floormod to_float bool_to_int".split()
)
PLAIN_INT_OPS = frozenset(("abs", "min", "max"))  # likewise, on ints
# Ops that may leave the 64 bits in which their arguments lie: Python's ints do not wrap around.
GROWING = frozenset(("add", "sub", "mul", "neg", "abs", "floordiv"))
FUNCTION = re.compile(r"\b(?:attn|torch)_\w+")
NOT = 3  # Python's precedence of `not`
INDEX_OF_SIZE = {"B": "b", "H": "h", "Hk": "h", "G": "h", "Nq": "q", "Nk": "k"}
INT64, BOOL = "int64", "bool"


def size_name(name: str) -> str:
    """The name of a size: those of a program's own dimensions have a prefix of their own, for a
    generated module has further sizes (`size_Dv`), which a dimension may be called like."""
    return f"size_{name}" if name in SIZES else f"dim_{name}"


def scalar_name(name: str) -> str:
    return f"p_{name}"


def tensor_name(name: str) -> str:
    return f"t_{name}"


def gradient_name(name: str) -> str:
    return f"grad_t_{name}"


class Plainness:
    """Which nodes are Python numbers at run time: those of the ops `leaves`, and what follows."""

    def __init__(self, leaves: frozenset[str] = PLAIN_LEAVES) -> None:
        self._leaves = leaves
        self._known: dict[Node, bool] = {}

    def is_plain(self, node: Node) -> bool:
        for below in unnamed((node,), self._known):
            if OPS[below.op].is_leaf:
                self._known[below] = below.op in self._leaves
            else:
                self._known[below] = all(self._known[arg] for arg in below.args)
        return self._known[node]

    def spell(self, node: Node, device: str = "") -> Spelling:
        """The spelling of a node in torch, given which arguments are Python numbers.

        device  text of the device on which tensors that torch does not take numbers for are made;
                "" for the CPU
        """
        found = self._spell(node, f", {device}" if device else "")
        return replace(found, template=re.sub(r"\battn_(?!tensor)", "torch_", found.template))

    def _spell(self, node: Node, device: str) -> Spelling:
        plain = [self.is_plain(arg) for arg in node.args]
        if all(plain):
            return self._spell_plain(node)
        if node.op == "where":
            return self._spell_where(node, plain, device)
        if node.op in ("min", "max") and any(plain):
            tensor, number = ("{1}", "{0}") if plain[0] else ("{0}", "{1}")
            slots = (TEST, ATOM) if plain[0] else (ATOM, TEST)
            side = "max" if node.op == "min" else "min"
            return Spelling(f"{tensor}.clamp({side}={number})", ATOM, slots)
        return table_spelling("torch", node)

    def _spell_plain(self, node: Node) -> Spelling:
        """The spelling of a node that is a Python number."""
        spelling = self._spell_number(node)
        if node.op in GROWING and node.kind == "int" and may_wrap(node):
            return Spelling(f"torch_wrapped({spelling.template})", ATOM, spelling.slots)
        return spelling

    def _spell_number(self, node: Node) -> Spelling:
        if node.op == "where":
            return Spelling("{1} if {0} else {2}", TEST, (1, 1, TEST))
        if node.op == "not":
            return Spelling("not {0}", NOT, (NOT,))
        if node.op in ("to_float", "bool_to_int"):
            return call("float" if node.op == "to_float" else "int")
        if node.op in PLAIN_INT_OPS and node.kind == "int":
            return call(node.op, len(node.args))
        spelling = table_spelling("torch", node)
        if node.op in PLAIN_OPS:
            return spelling
        template = re.sub(r"(\{\d\})", r"attn_tensor(\1)", spelling.template)
        template = template if spelling.precedence == ATOM else f"({template})"
        return Spelling(f"{template}.item()", ATOM, (TEST,) * len(node.args))

    def _spell_where(self, node: Node, plain: list[bool], device: str) -> Spelling:
        condition, yes, no = plain
        # A choice by Python is right only where both sides have the same shape: that follows from
        # what they vary with.
        if condition and yes == no and node.args[1].varies == node.args[2].varies:
            return Spelling("{1} if {0} else {2}", TEST, (1, 1, TEST))
        test = f"attn_tensor({{0}}{device})" if condition else "{0}"
        # The first of two numbers gives the result its dtype.
        first = f"attn_tensor({{1}}{device})" if yes and no else "{1}"
        return Spelling(f"torch.where({test}, {first}, {{2}})", ATOM, (TEST, TEST, TEST))


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
    # As an index torch would read back a tensor without dimensions.
    if guarded or any(not arg.varies and find(arg, "lookup") for arg in node.args):
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

    device = "" if plan.request.target == "cpu" else "query.device"
    spell = partial((plainness or Plainness()).spell, device=device)
    return Printer("torch", leaf, spell=spell, prefix=prefix)


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
