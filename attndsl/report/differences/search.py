"""Small random calls of masks, and single pairs in them: where a counterexample is looked for."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.ir import program as ir
from attndsl.ir.nodes import Node, find
from attndsl.reference import evaluate
from attndsl.report.arguments import Parameter, Sizes, bound_dimensions
from attndsl.runtime import views
from attndsl.runtime.arguments import slots_of
from attndsl.runtime.dims import compute_dim

TRIES = 400  # calls that are tried before a search gives up
MOST_ENTRIES = 1 << 18  # of one table in a trial
FARTHEST = 1 << 20  # a constant of a mask beyond it is not visited
MOST_SHOWN = 48  # entries of a table that are written out
DEFAULT_SIZES = ("B", "H", "Hk", "Nq", "Nk", "D")


@dataclass(frozen=True)
class Trial:
    """The arguments of a call of `mask`: sizes by name, offsets, and values of parameters."""

    sizes: Mapping[str, int]
    offsets: Mapping[str, int] = field(default_factory=dict)
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def view(self, program: ir.Program) -> views.View:
        """The call of a program. Raises ArgumentError where a table does not fit it."""
        own = {parameter.name for parameter in program.parameters}
        given = {name: value for name, value in self.parameters.items() if name in own}
        offsets = (self.offsets.get("q_offset", 0), self.offsets.get("k_offset", 0))
        return views.view(program, slots_of(program), self.sizes, *offsets, None, given)

    def pairs(self, program: ir.Program) -> Tensor:
        """The mask of a program: bool [B, H, Nq, Nk]."""
        kept = views.mask_pairs(program, self.view(program))
        return kept.expand(self.sizes["B"], self.sizes["H"], *kept.shape[2:])

    def text(self, *programs: ir.Program) -> str:
        """What the masks of programs read of the call, as a person would write it."""
        read = {node.name for p in programs for node in find(p.mask, "size", "lookup", "scalar")}
        varies = frozenset[str]().union(*(p.mask.varies for p in programs))
        sizes = [
            f"{name} = {size}"
            for name, size in self.sizes.items()
            if name in read | {"Nq", "Nk"} or (name.lower() in varies and name in "BH")
        ]
        offsets = [f"{name} = {value}" for name, value in self.offsets.items() if value]
        values = [
            f"{name} = {written(value)}" for name, value in self.parameters.items() if name in read
        ]
        return ", ".join([*sizes, *offsets, *values])


@dataclass(frozen=True)
class Pair:
    """A pair of a trial: batch, head, and positions of the query and the key."""

    trial: Trial
    batch: int
    head: int
    q: int
    k: int

    def __str__(self) -> str:
        places = {"batch": self.batch, "head": self.head, "query": self.q, "key": self.k}
        return ", ".join(f"{name} {value}" for name, value in places.items())

    def is_kept(self, program: ir.Program, part: Node | None = None) -> bool:
        """Whether a mask, or a part of it, keeps the pair."""
        values = self.trial.view(program).values
        places = {"b": self.batch, "h": self.head, "q": self.q, "k": self.k}
        values.leaves.update({name: torch.tensor(value) for name, value in places.items()})
        return bool(evaluate(part or program.mask, values))


def written(value: Parameter) -> str:
    if not isinstance(value, Tensor):
        return f"{value:.6g}" if isinstance(value, float) else str(value).lower()
    if value.numel() <= MOST_SHOWN:
        return str(value.tolist()).lower()
    return f"a random {list(value.shape)}"


def first_pair(trial: Trial, wanted: Tensor) -> Pair | None:
    """The first pair of a bool [B, H, Nq, Nk] that is true."""
    places = wanted.flatten().nonzero()
    if not len(places):
        return None
    rest, column = divmod(int(places[0]), wanted.shape[3])
    rest, row = divmod(rest, wanted.shape[2])
    batch, head = divmod(rest, wanted.shape[1])
    q, k = row + trial.offsets.get("q_offset", 0), column + trial.offsets.get("k_offset", 0)
    return Pair(trial, batch, head, q, k)


# -- drawing --------------------------------------------------------------------------------


def trials(
    programs: Sequence[ir.Program],
    given: Mapping[str, bool | int | float],
    count: int = TRIES,
    seed: int = 0,
    with_offsets: bool = True,
) -> Iterator[Trial]:
    """Calls of all programs at once: parameters of the same name have the same value.

    given         sizes, q_offset, k_offset, scalars and dimensions of tables that are settled
    with_offsets  whether later calls have offsets, where `given` does not say

    Plain calls come first: short, one batch and head, as many keys as queries, no offsets, positive
    scalars. Then everything varies. Calls that no value of a table fits are left out.
    """
    chance = random.Random(seed)
    near = numbers_of(programs)
    for at in range(count):
        sizes = _sizes(chance, at, near, given)
        offsets = _offsets(chance, at, near, sizes, given, with_offsets)
        scalars = {
            s.name: given.get(s.name, _scalar(s, chance, at, near, sizes))
            for p in programs
            for s in p.scalars
        }
        try:
            tables = _tables(programs, Trial(sizes, offsets, scalars), chance, given)
        except ArgumentError:  # a dimension without a value: such a call is refused
            continue
        yield Trial(sizes, offsets, {**scalars, **tables})


def numbers_of(programs: Sequence[ir.Program]) -> list[int]:
    """Int constants of the masks: near them something may change."""
    found = {abs(int(n.value)) for p in programs for n in find(p.mask, "const") if n.kind == "int"}
    return sorted(number for number in found if 3 < number <= FARTHEST)


def _sizes(
    chance: random.Random, at: int, near: list[int], given: Mapping[str, bool | int | float]
) -> dict[str, int]:
    longest = 4 + at // 8
    nq = chance.randint(2, min(longest, 40))
    nk = nq if chance.random() < 0.5 or at < 20 else chance.randint(1, min(longest, 40))
    if near and at % 16 == 15:
        nk = min(chance.choice(near) + chance.randint(-2, 2), 300)
    heads = chance.choice((1, 2)) if at >= 10 else 1
    group = chance.choice((1, 2)) if at >= 20 else 1
    drawn = {
        "B": chance.choice((1, 2)) if at >= 10 else 1,
        "H": heads * group,
        "Hk": heads,
        "Nq": nq,
        "Nk": max(nk, 1),
        "D": 8,
    }
    settled = {name: int(given[name]) for name in DEFAULT_SIZES if name in given}
    if "H" in settled and "Hk" not in settled:
        settled["Hk"] = settled["H"]
    if "Hk" in settled and "H" not in settled:
        settled["H"] = settled["Hk"]
    return {**drawn, **settled}


def _offsets(
    chance: random.Random,
    at: int,
    near: list[int],
    sizes: Mapping[str, int],
    given: Mapping[str, bool | int | float],
    with_offsets: bool,
) -> dict[str, int]:
    q_offset = k_offset = 0
    if with_offsets and at >= 60:
        kind = at % 4
        if kind == 1:  # the last queries of the keys
            q_offset = sizes["Nk"] - sizes["Nq"]
        elif kind == 2 and near:  # all near a constant of the mask
            q_offset = k_offset = chance.choice(near) - chance.randint(0, sizes["Nq"])
        elif kind == 3:
            q_offset, k_offset = chance.randint(-4, 20), chance.randint(-4, 20)
    return {
        "q_offset": int(given.get("q_offset", q_offset)),
        "k_offset": int(given.get("k_offset", k_offset)),
    }


def _scalar(
    scalar: ir.Scalar,
    chance: random.Random,
    at: int,
    near: list[int],
    sizes: Mapping[str, int],
) -> bool | int | float:
    if scalar.kind == "bool":
        return chance.random() < 0.5
    if scalar.kind == "float":
        return round(chance.gauss(0, 2), 2)
    longest = max(sizes["Nq"], sizes["Nk"])
    if at < 60 or at % 2:
        return chance.randint(1, max(longest // 2, 1))
    if near and chance.random() < 0.1:
        return chance.choice(near) + chance.randint(-1, 1)
    return chance.randint(-3, longest + 2)


def _tables(
    programs: Sequence[ir.Program],
    trial: Trial,
    chance: random.Random,
    given: Mapping[str, bool | int | float],
) -> dict[str, Tensor]:
    """The tables that the masks read. A table that several programs have takes the shape that the
    first of them says, unless a later one names all its dimensions."""
    sizes = Sizes(
        batch=trial.sizes["B"],
        heads=trial.sizes["H"],
        kv_heads=trial.sizes["Hk"],
        nq=trial.sizes["Nq"],
        nk=trial.sizes["Nk"],
        head_dim=trial.sizes["D"],
        q_offset=max(trial.offsets["q_offset"], 0),
        k_offset=max(trial.offsets["k_offset"], 0),
    )
    scalars: dict[str, Any] = dict(trial.parameters)
    found: dict[str, Tensor] = {}
    for program in sorted(programs, key=lambda p: len(p.bound_dims)):
        lengths = {**sizes.named, **bound_dimensions(program, sizes)}
        lengths |= {name: int(given[name]) for name in program.bound_dims if name in given}
        needed = views.needed_by_mask(program, {})
        for tensor in program.tensors:
            if tensor.name in needed and tensor.name not in found:
                shape = [compute_dim(dim, lengths, scalars) for dim in tensor.dims]
                found[tensor.name] = draw(tensor, shape, chance, sizes)
    return found


def draw(tensor: ir.Tensor, shape: list[int], chance: random.Random, sizes: Sizes) -> Tensor:
    """A table of a kind that masks read: ids that rise or not, lengths, flags rare or frequent."""
    entries = math.prod(shape)
    if min(shape, default=0) < 0 or entries > MOST_ENTRIES:
        raise ArgumentError(f"{tensor.name}: no such table: {shape}")
    if tensor.kind == "bool":
        share = chance.choice((0.2, 0.5, 0.8))
        return torch.tensor([chance.random() < share for _ in range(entries)]).bool().view(shape)
    if tensor.kind == "float":
        return torch.tensor([chance.gauss(0, 1) for _ in range(entries)]).view(shape)
    low, high = chance.choice(((0, 2), (0, max(sizes.nq, sizes.nk)), (-2, 3)))
    values = [chance.randint(low, high) for _ in range(entries)]
    drawn = torch.tensor(values, dtype=torch.int64).view(shape)
    return drawn.sort(-1).values if shape and chance.random() < 0.5 else drawn


# -- which part of a mask it is -------------------------------------------------------------


def reason(program: ir.Program, pair: Pair) -> Node:
    """The smallest part of a mask that says by itself what becomes of a pair: of an `or` that keeps
    it the part that does, of an `and` that drops it the part that does."""
    node, decided = program.mask, pair.is_kept(program)
    while node.op == ("or" if decided else "and"):
        node = next(part for part in node.args if pair.is_kept(program, part) == decided)
    return node
