"""The two programs of a comparison: read, with settled values, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from attndsl.diagnostics import ArgumentError, did_you_mean
from attndsl.ir.nodes import Node, constant, rebuild, scalar, size, with_args
from attndsl.ir.program import SIZES, Program, Scalar
from attndsl.ir.program import Tensor as Table
from attndsl.report.arguments import Number, Parameter, Sizes, random_parameters
from attndsl.report.files import load_program, parted
from attndsl.runtime.views import needed_by_mask
from attndsl.transform.simplify import simplify

LARGEST = 2**30 - 1  # of an int scalar, as in every call


@dataclass(frozen=True)
class Side:
    """One program of a comparison and what it is called there."""

    label: str
    program: Program


def settled(program: Program, values: Mapping[str, Number]) -> Program:
    """A simplified program with the values of some scalars, sizes and dimensions in the place of
    their names."""
    known: dict[Node, Node] = {}
    for parameter in program.scalars:
        if parameter.name in values:
            value = checked(parameter, values[parameter.name])
            known[scalar(parameter.name, parameter.kind)] = constant(value)
    for name in (*SIZES, *program.bound_dims):
        if name in values:
            known[size(name)] = constant(checked_size(name, values[name]))
    changed: dict[Node, Node] = {}

    def change(node: Node, args: tuple[Node, ...]) -> Node:
        changed[node] = known.get(node) or with_args(node, args)
        return changed[node]

    parameters = tuple(
        replace(p, dims=tuple(rebuild(dim, change) for dim in p.dims))
        if isinstance(p, Table)
        else p
        for p in program.parameters
    )
    mask = rebuild(program.mask, change)
    origins = {**program.origins}
    origins |= {changed[n]: spans for n, spans in program.origins.items() if n in changed}
    return simplify(replace(program, parameters=parameters, mask=mask, origins=origins))


def checked(parameter: Scalar, value: Number) -> Number:
    """A value for a scalar, of its kind. Raises ArgumentError."""
    kind, name = parameter.kind, parameter.name
    if kind == "float" and not isinstance(value, bool):
        return float(value)
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) <= LARGEST:
            return value
        raise ArgumentError(f"{name}: {value} is beyond +-{LARGEST}")
    if kind == "bool" and isinstance(value, bool):
        return value
    raise ArgumentError(f"{name}: expected a value of kind {kind}, got {value!r}")


def checked_size(name: str, value: Number) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ArgumentError(f"{name}: expected a size, got {value!r}")
    return value


def sides_of(
    words: tuple[str, str],
    consts: Mapping[str, Number],
    values: Sequence[Mapping[str, Number]],
    *,
    use_defaults: bool,
) -> tuple[Side, Side]:
    """The sides that two words (FILE or FILE:NAME) name, with settled values: see
    `difference.compare_files`. Raises ArgumentError for a name that neither side has."""
    programs = [load_program(word, consts) for word in words]
    check_names("const", consts, {name for program in programs for name, _ in program.consts})
    known = [{s.name for s in program.scalars} | set(program.bound_dims) for program in programs]
    check_names("scalar or dimension", {**values[0], **values[1]}, known[0] | known[1])
    sides = []
    for word, program, given, names in zip(words, programs, values, known, strict=True):
        fixed = {s.name: s.default for s in program.scalars if s.default is not None}
        fixed = {**(fixed if use_defaults else {}), **given}
        fixed = {name: value for name, value in fixed.items() if name in names}
        shown = ", ".join(f"{name} = {str(value).lower()}" for name, value in fixed.items())
        label = f"{program.name} ({parted(word)[0]})" + (f" with {shown}" if shown else "")
        sides.append(Side(label, settled(program, fixed)))
    return sides[0], sides[1]


def check_names(what: str, given: Mapping[str, object], known: set[str]) -> None:
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) or f"there are {', '.join(sorted(known)) or 'none'}"
            raise ArgumentError(f"neither program has a {what} `{name}`: {hint}")


def check_alike(a: Program, b: Program) -> None:
    """Parameters of the same name must be of the same kind: they get the same value. What a select
    chooses is not known without queries and keys. Raises ArgumentError."""
    for program in (a, b):
        for select in program.selects:
            raise ArgumentError(
                f"{program.name}: what `{select.name}` chooses depends on queries and keys: "
                "its mask cannot be compared"
            )
    known = {parameter.name: parameter for parameter in a.parameters}
    for parameter in b.parameters:
        other = known.get(parameter.name, parameter)
        same = type(other) is type(parameter) and other.kind == parameter.kind
        ranks = [len(getattr(p, "dims", ())) for p in (other, parameter)]
        if not same or ranks[0] != ranks[1]:
            raise ArgumentError(
                f"`{parameter.name}` is another kind of parameter in {a.name} than in {b.name}: "
                "parameters of one name get one value, so rename one of them"
            )


def completed(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes with what follows from them: one length for both, as many key heads as heads, and no
    offsets where a whole call is described."""
    known = dict(sizes)
    for one, other in (("Nq", "Nk"), ("Nk", "Nq"), ("H", "Hk"), ("Hk", "H")):
        if one in known:
            known.setdefault(other, known[one])
    if "Nq" in known:
        known = {"B": 1, "H": 1, "Hk": 1, "D": 64, "q_offset": 0, "k_offset": 0} | known
    if "H" in known:
        known["G"] = known["H"] // max(known["Hk"], 1)
    return known


def drawn(program: Program, sizes: Mapping[str, int], seed: int) -> dict[str, Parameter]:
    """A value for every parameter that a mask reads."""
    extents = Sizes(
        batch=sizes["B"],
        heads=sizes["H"],
        kv_heads=sizes["Hk"],
        nq=sizes["Nq"],
        nk=sizes["Nk"],
        head_dim=sizes["D"],
        q_offset=sizes["q_offset"],
        k_offset=sizes["k_offset"],
    )
    needed = needed_by_mask(program, {})
    return random_parameters(program, extents, seed=seed, only=needed)
