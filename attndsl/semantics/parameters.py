"""Parameters of an attention: constants given, scalars, tensors and the dimensions they bind."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field

from attndsl.diagnostics import ArgumentError, did_you_mean
from attndsl.ir.nodes import Node, constant, scalar, size
from attndsl.ir.ops import Kind
from attndsl.ir.program import Scalar, Tensor
from attndsl.semantics import names
from attndsl.semantics.arithmetic import int_value
from attndsl.semantics.checker import Checker
from attndsl.semantics.findings import place, shown
from attndsl.semantics.lower import MAX_DEPTH, depth, lower
from attndsl.semantics.modules import Module, report_reserved
from attndsl.semantics.scope import Context, Scope, Symbol
from attndsl.semantics.types import WRONG, Table, kind_words
from attndsl.syntax.ast import Attention, Expression, Name, Parameter

CONST_LIMIT = 2**63 - 1  # of a const int, as of a literal
INT_LIMIT = 2**30 - 1  # of a scalar: added to a difference of positions it fits in 32 bits
Constant = bool | int | float


@dataclass
class Parameters:
    """What the parameters of one attention come to.

    symbols  name -> what it stands for in a statement; dimensions bound by tensors included
    missing  const parameters that have neither a value nor a default
    """

    found: list[Scalar | Tensor] = field(default_factory=list)
    symbols: dict[str, Symbol] = field(default_factory=dict)
    consts: list[tuple[str, Constant]] = field(default_factory=list)
    missing: list[Parameter] = field(default_factory=list)
    first: dict[str, Name] = field(default_factory=dict)


def lower_parameters(
    checker: Checker, module: Module, attention: Attention, consts: Mapping[str, Constant]
) -> Parameters:
    """The parameters, checked. Scalars come before tensors are looked at: a dimension may name a
    scalar that is declared after it."""
    result = Parameters()
    accepted = [p for p in attention.parameters if is_new(checker, module, p.name, result)]
    for parameter in accepted:
        if parameter.dims is None:
            add_scalar(checker, parameter, consts, result)
        else:
            result.symbols[parameter.name.name] = WRONG
    tensors = [p for p in accepted if p.dims is not None]
    bind_dimensions(checker, module, tensors, result)
    scope = Scope(Context(names.DIMENSION), module, result.symbols)
    for parameter in tensors:
        add_tensor(checker, parameter, scope, result)
    order = {p.name.name: i for i, p in enumerate(attention.parameters)}
    result.found.sort(key=lambda p: order[p.name])
    return result


def is_new(checker: Checker, module: Module, name: Name, result: Parameters) -> bool:
    """Whether a name may be given here; reports it where it is reserved or taken."""
    if name.name in names.RESERVED:
        report_reserved(checker.findings, name)
        return False
    taken = result.first.get(name.name) or module.named_at.get(name.name)
    if taken is not None:
        what = "a def" if name.name not in result.first else "a name of this attention"
        checker.findings.report(
            "E103",
            name.span,
            f"`{name.name}` is already {what}",
            "choose another name",
            [f"the first one is at {place(taken.span)}"],
        )
        return False
    result.first[name.name] = name
    return True


# -- scalars --------------------------------------------------------------------------------


def add_scalar(
    checker: Checker, parameter: Parameter, consts: Mapping[str, Constant], result: Parameters
) -> None:
    name, kind = parameter.name.name, kind_of(parameter)
    default = checked_default(checker, parameter)
    if not parameter.const:
        node = scalar(name, kind)
        result.found.append(Scalar(name, kind, default))
        result.symbols[name] = node
        checker.origins.setdefault(node, {}).setdefault(parameter.span)
        return
    if name in names.COMPILE_ARGUMENTS:
        message = f"the const parameter `{name}` has the name of an argument of compile()"
        checker.findings.report("E102", parameter.name.span, message, "choose another name")
    value = converted(consts[name], kind, CONST_LIMIT) if name in consts else default
    if value is None:
        if parameter.default is None:
            result.missing.append(parameter)
        result.symbols[name] = WRONG
    else:
        result.symbols[name] = constant(value)
        result.consts.append((name, value))


def kind_of(parameter: Parameter) -> Kind:
    assert parameter.kind in ("bool", "int", "float")
    return parameter.kind  # type: ignore[return-value]


def checked_default(checker: Checker, parameter: Parameter) -> Constant | None:
    """The default in the parameter's kind, or None where there is none or a wrong one."""
    default, kind = parameter.default, kind_of(parameter)
    if default is None:
        return None
    value = converted(default, kind)
    if value is None:
        name = parameter.name.name
        if kind == "int" and isinstance(default, int) and not isinstance(default, bool):
            message = f"the default of `{name}` is out of range: an int scalar is at most 2**30 - 1"
            hint = "a window that is never reached can be `1073741823`"
        else:
            given = kind_words(type(default).__name__)
            message = f"`{name}` is {kind_words(kind)}, but its default is {given}"
            hint = f"declare it `{name}: {type(default).__name__}`, or write {EXAMPLES[kind]}"
        checker.findings.report("E110", parameter.span, message, hint)
    return value


EXAMPLES: dict[str, str] = {
    "int": "an int such as `16`",
    "float": "a float such as `0.5`",
    "bool": "`true` or `false`",
}


def converted(value: object, kind: Kind, limit: int = INT_LIMIT) -> Constant | None:
    """A scalar's value in its kind (an int serves as a float), or None where it is none."""
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()  # type: ignore[attr-defined]
    if isinstance(value, bool):
        return value if kind == "bool" else None
    if kind == "int" and isinstance(value, numbers.Integral):
        return int(value) if abs(int(value)) <= limit else None
    if kind == "float" and isinstance(value, numbers.Real):
        try:
            number = float(value)
        except OverflowError:
            return None
        return None if math.isnan(number) else number
    return None


# -- tensors --------------------------------------------------------------------------------


def bind_dimensions(
    checker: Checker, module: Module, tensors: list[Parameter], result: Parameters
) -> None:
    """A bare new name as a dimension is bound by the tensor."""
    for parameter in tensors:
        for dim in parameter.dims or ():
            if (
                isinstance(dim, Name)
                and dim.name not in names.RESERVED
                and dim.name not in result.symbols
                and dim.name not in module.visible
                and dim.name not in result.first
            ):
                result.symbols[dim.name] = size(dim.name)
                result.first[dim.name] = dim


def add_tensor(checker: Checker, parameter: Parameter, scope: Scope, result: Parameters) -> None:
    name = parameter.name.name
    dims = [lower_dimension(checker, dim, scope) for dim in parameter.dims or ()]
    if parameter.const or parameter.default is not None:
        what = "be const" if parameter.const else "have a default"
        message = f"`{name}` is a tensor and cannot {what}"
        hint = "tensors are given with each call" + (
            "; leave out `const`" if parameter.const else "; leave out the default"
        )
        checker.findings.report("E110", parameter.span, message, hint)
    known = [dim for dim in dims if dim is not None]
    if len(known) < len(dims):
        return
    tensor = Tensor(name, kind_of(parameter), tuple(known))
    inside = ", ".join(shown(dim.span) for dim in parameter.dims or ())
    result.found.append(tensor)
    result.symbols[name] = Table(tensor, f"{parameter.kind}[{inside}]")


def lower_dimension(checker: Checker, dim: Expression, scope: Scope) -> Node | None:
    """A dimension as an int node over sizes and scalars."""
    text = shown(dim.span)
    if isinstance(dim, Name) and dim.name in scope.symbols and dim.name not in names.VALUES:
        symbol = scope.symbols[dim.name]
        if isinstance(symbol, Node) and symbol.kind == "bool":
            report_kind(checker, dim, symbol)
            return None
    value = lower(checker, dim, scope)
    node = checker.number(value, dim, scope, "a dimension is an int")
    if node is None:
        return None
    number = int_value(node)
    if node.kind != "int":
        report_kind(checker, dim, node)
    elif number is not None and number < 0:
        checker.findings.report("E110", dim.span, f"the dimension `{text}` is negative: {number}")
    elif depth([node]) > MAX_DEPTH:
        checker.findings.report("E005", dim.span, "this dimension is too deeply nested")
    else:
        return node
    return None


def report_kind(checker: Checker, dim: Expression, node: Node) -> None:
    text = shown(dim.span)
    message = f"a dimension must be an int, but `{text}` is {kind_words(node.kind)}"
    hint = "divide ints with `//`" if "/" in text else "use sizes and `int` parameters"
    checker.findings.report("E110", dim.span, message, hint)


# -- consts given to compile ----------------------------------------------------------------


def check_consts(attentions: list[Attention], consts: Mapping[str, object]) -> None:
    """Raises ArgumentError for a const that no attention declares, or of a wrong kind."""
    declared = [p for attention in attentions for p in attention.parameters]
    for name, value in consts.items():
        same = [p for p in declared if p.name.name == name]
        if not same:
            raise ArgumentError(unknown_const(name, attentions))
        matching = [p for p in same if p.const and p.dims is None]
        if not matching:
            raise ArgumentError(
                f"`{name}` is not const: give it when the function is called, or declare it "
                f"`{name}: const {same[0].kind}`"
            )
        if all(converted(value, kind_of(p), CONST_LIMIT) is None for p in matching):
            kind = matching[0].kind
            limit = " within +-(2**63 - 1)" if kind == "int" else ""
            raise ArgumentError(
                f"const `{name}` must be {kind_words(kind)}{limit}, not {brief(value)}"
            )


def brief(value: object) -> str:
    """A value for a message: its text where that is short, and its type."""
    text = repr(value) if isinstance(value, bool | float | str) else type(value).__name__
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 128:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def unknown_const(name: str, attentions: list[Attention]) -> str:
    where = " or ".join(f"`{a.name.name}`" for a in attentions)
    names_of_consts = [p.name.name for a in attentions for p in a.parameters if p.const]
    hint = did_you_mean(name, names_of_consts)
    if not hint and names_of_consts:
        hint = "it has " + ", ".join(f"`{n}`" for n in names_of_consts)
    return f"{where} has no const parameter `{name}`" + (f": {hint}" if hint else "")


def missing_const(attention: Attention, missing: list[Parameter]) -> str:
    given = ", ".join(f"{p.name.name}=<{p.kind}>" for p in missing)
    which = ", ".join(f"`{p.name.name}`" for p in missing)
    noun = "const parameter" if len(missing) == 1 else "const parameters"
    verb = "has" if len(missing) == 1 else "have"
    return f"{noun} {which} of `{attention.name.name}` {verb} no default: give {given}"
