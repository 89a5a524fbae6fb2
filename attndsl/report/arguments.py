"""Draws random arguments for a program: tensors and parameters of the declared kinds and shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from attndsl.diagnostics import ArgumentError, did_you_mean
from attndsl.ir.nodes import Node, find
from attndsl.ir.program import Program, Scalar, Select, Tensor
from attndsl.ir.text import roots
from attndsl.runtime.choosing.blocks import block_count
from attndsl.runtime.choosing.numbers import block_sizes
from attndsl.runtime.dims import compute_dim

Number = bool | int | float
MOST_ENTRIES = 1 << 30  # of a random tensor
MOST_LISTED = 4  # blocks of each row of a random list
Parameter = torch.Tensor | bool | int | float


@dataclass(frozen=True)
class Sizes:
    """The sizes and offsets of a call."""

    batch: int = 1
    heads: int = 2
    kv_heads: int = 2
    nq: int = 1024
    nk: int = 1024
    head_dim: int = 64
    value_dim: int = 64
    q_offset: int = 0
    k_offset: int = 0

    @property
    def named(self) -> dict[str, int]:
        """By the names that programs use."""
        return {
            "B": self.batch,
            "H": self.heads,
            "Hk": self.kv_heads,
            "G": self.heads // self.kv_heads if self.kv_heads else 0,
            "Nq": self.nq,
            "Nk": self.nk,
            "D": self.head_dim,
        }

    @property
    def keywords(self) -> dict[str, int]:
        """As `mask`, `tiles` and `explain` take them."""
        named = {name: size for name, size in self.named.items() if name != "G"}
        return {**named, "q_offset": self.q_offset, "k_offset": self.k_offset}


def random_parameters(
    program: Program,
    sizes: Sizes,
    given: Mapping[str, Number] | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    only: frozenset[str] | None = None,
) -> dict[str, Parameter]:
    """A value for every parameter: what is given, else the default, else something plausible.

    Float tensors are normal, bool tensors mostly true, int tensors 0 to 3 and sorted along
    their last dimension. A dimension that a tensor binds is as long as the axis that indexes
    it, or as `given` says. Tensors outside `only` are left out, where it is given. Raises
    ArgumentError for a name that is no scalar and no such dimension, and for a tensor of more than
    MOST_ENTRIES entries.
    """
    given = given or {}
    settable = {s.name for s in program.scalars} | set(program.bound_dims)
    for name in given:
        if name not in settable:
            if name in sizes.named:
                raise ArgumentError(f"`{name}` is a size of the call, not a parameter")
            hint = (
                did_you_mean(name, settable) or f"there are {', '.join(sorted(settable)) or 'none'}"
            )
            if name in dict(program.consts):
                hint = f"it is const, give it as --const {name}=..."
            raise ArgumentError(f"{program.name} has no scalar or dimension `{name}`: {hint}")
    scalars = {s.name: given.get(s.name, plausible(s, sizes)) for s in program.scalars}
    lengths = {**sizes.named, **bound_dimensions(program, sizes, scalars)}
    lengths |= {name: int(given[name]) for name in program.bound_dims if name in given}
    random = torch.Generator().manual_seed(seed)
    drawn: dict[str, Parameter] = dict(scalars)
    for tensor in program.tensors:
        if only is not None and tensor.name not in only:
            continue
        shape = [compute_dim(dim, lengths, scalars) for dim in tensor.dims]
        if min(shape, default=0) < 0:
            raise ArgumentError(f"`{tensor.name}` would have the shape {shape}")
        if math.prod(shape) > MOST_ENTRIES:
            raise ArgumentError(f"`{tensor.name}` would have {math.prod(shape):,} entries: {shape}")
        drawn[tensor.name] = draw(tensor, shape, random, dtype).to(device)
    return drawn


def plausible(scalar: Scalar, sizes: Sizes) -> Number:
    """The default of a scalar, or where it has none a value that most programs can work with."""
    if scalar.default is not None:
        return scalar.default
    values: dict[str, Number] = {"int": sizes.nk // 4 + 1, "float": 0.5, "bool": True}
    return values[scalar.kind]


def bound_dimensions(
    program: Program, sizes: Sizes, scalars: Mapping[str, Number] | None = None
) -> dict[str, int]:
    """A length for every dimension that a tensor names itself, from how it is indexed.

    scalars  on which the lengths of blocks may depend; plausible ones unless they are given
    """
    if scalars is None:
        scalars = {s.name: plausible(s, sizes) for s in program.scalars}
    axes = {
        "b": sizes.batch,
        "h": sizes.heads,
        "q": sizes.nq + sizes.q_offset,
        "k": sizes.nk + sizes.k_offset,
        "d": sizes.value_dim,
    }
    lengths: dict[str, int] = {}
    for select in program.selects:
        blocks = blocks_of(select, sizes, scalars)
        if select.keep == "given":
            dims = program.tensor(select.given).dims
            lengths |= {d.name: n for d, n in zip(dims[2:], blocks.given, strict=True)}
        learn_lengths(program, select_roots(select), axes | blocks.axes, lengths)
    rest = replace(program, selects=())
    learn_lengths(program, roots(rest), axes, lengths)
    either = max(sizes.nq, sizes.nk)
    return {name: lengths.get(name, either) for name in program.bound_dims}


def select_roots(select: Select) -> list[Node]:
    """What a select computes with."""
    return [node for node in (select.rank, select.where, select.limit) if node is not None]


def learn_lengths(
    program: Program, nodes: Iterable[Node], axes: Mapping[str, int], lengths: dict[str, int]
) -> None:
    """Adds lengths of dimensions that are looked up by a bare index."""
    for lookup in {node for root in nodes for node in find(root, "lookup", "dot")}:
        for dim, index in zip(program.tensor(lookup.name).dims, lookup.args, strict=False):
            if dim.op == "size" and index.op == "index":
                lengths[dim.name] = max(axes[index.name], lengths.get(dim.name, 0))


@dataclass(frozen=True)
class BlockCounts:
    """axes   blocks up to the last of the call, by "i" and "j"
    given  the two last dimensions of a tensor that lists blocks
    """

    axes: dict[str, int]
    given: tuple[int, int]


def blocks_of(select: Select, sizes: Sizes, scalars: Mapping[str, Number]) -> BlockCounts:
    m, n = block_sizes(select, sizes.named, scalars)
    queries, keys = (
        block_count(sizes.nq, m, sizes.q_offset),
        block_count(sizes.nk, n, sizes.k_offset),
    )
    ends = {"i": sizes.q_offset // m + queries, "j": sizes.k_offset // n + keys}
    return BlockCounts(ends, (queries, max(1, min(keys, MOST_LISTED))))


def draw(
    tensor: Tensor, shape: list[int], random: torch.Generator, dtype: torch.dtype
) -> torch.Tensor:
    if tensor.kind == "float":
        return torch.randn(shape, generator=random).to(dtype)
    if tensor.kind == "bool":
        return torch.rand(shape, generator=random) < 0.8
    drawn = torch.randint(0, 4, shape, generator=random)
    return drawn.sort(-1).values if shape else drawn
