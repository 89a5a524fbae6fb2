"""A call without query, key and value: what a program's mask is evaluated on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.ir.nodes import Node, find, topological
from attndsl.ir.program import SIZES, Program, Select
from attndsl.reference import Number, Values, keep_pairs, positions
from attndsl.runtime.arguments import Slot, check_values, collect, take_batch_ints, take_offset
from attndsl.runtime.dims import bind_dims, is_binding, write_type
from attndsl.transform.route import used_selects

EMPTY, PARTIAL, FULL = 0, 1, 2  # what a tile is


@dataclass(frozen=True)
class View:
    """What the mask is evaluated on: a call without query, key and value."""

    sizes: Mapping[str, int]
    scalars: Mapping[str, Number]
    tensors: Mapping[str, Tensor]
    q_offset: int | Tensor
    k_offset: int | Tensor
    k_len: Tensor | None
    device: torch.device

    @property
    def batch_ints(self) -> dict[str, Tensor]:
        """Those of the offsets and lengths that are tensors."""
        given = {"q_offset": self.q_offset, "k_offset": self.k_offset, "k_len": self.k_len}
        return {name: value for name, value in given.items() if isinstance(value, Tensor)}

    @property
    def per_batch(self) -> tuple[str, ...]:
        """The names of the offsets and lengths that are tensors."""
        return tuple(self.batch_ints)

    @property
    def shifted(self) -> tuple[str, ...]:
        """The names of the offsets that may not be 0."""
        offsets = {"q_offset": self.q_offset, "k_offset": self.k_offset}
        return tuple(n for n, x in offsets.items() if isinstance(x, Tensor) or x != 0)

    @property
    def is_aligned(self) -> bool:
        """Whether every batch has the same offsets."""
        return not {"q_offset", "k_offset"} & set(self.per_batch)

    @property
    def values(self) -> Values:
        # A mask computes with floats only where its user does: float32, as the kernels.
        return Values(torch.float32, self.device, self.sizes, self.scalars, self.tensors, {})


def view(
    program: Program,
    slots: tuple[Slot, ...],
    sizes: Mapping[str, object],
    q_offset: object,
    k_offset: object,
    k_len: object,
    parameters: Mapping[str, object],
) -> View:
    """Check the arguments of `mask` and `tiles`."""
    needed = needed_by_mask(program, parameters)
    consts = tuple(name for name, _ in program.consts)
    tensors, scalars = collect(slots, consts, parameters, needed)
    q_number, q_offsets = take_offset("q_offset", q_offset)
    k_number, k_offsets = take_offset("k_offset", k_offset)
    lengths = None if k_len is None else take_batch_ints("k_len", k_len)
    batch_ints = {"q_offset": q_offsets, "k_offset": k_offsets, "k_len": lengths}
    given = {name: t for name, t in (batch_ints | tensors).items() if t is not None}
    place = next((t.device for t in given.values()), torch.device("cpu"))
    for name, tensor in given.items():
        if tensor.device != place:
            raise ArgumentError(f"{name}: expected a tensor on {place}, got one on {tensor.device}")
    known = solve_sizes(program, sizes, tensors, batch_ints)
    check_values(known, scalars, 1.0, batch_ints)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return View(
        sizes=bind_dims(program, shapes, known, scalars),
        scalars=scalars,
        tensors=tensors,
        q_offset=q_number if q_offsets is None else q_offsets,
        k_offset=k_number if k_offsets is None else k_offsets,
        k_len=lengths,
        device=place,
    )


def needed_by_mask(program: Program, given: Mapping[str, object]) -> frozenset[str]:
    """Names of the parameters that the mask and its selects read, that bind a size which they read,
    or that say how large a given tensor must be."""
    selects = used_selects(program)
    read = [program.mask, *(node for select in selects for node in nodes_of(select))]
    leaves = [node for node in topological(*read) if node.op in ("lookup", "scalar", "size")]
    sizes = {node.name for node in leaves if node.op == "size"}
    needed = {node.name for node in leaves if node.op != "size"}
    needed |= {counted.sums for counted in program.counted if counted.table in needed}
    needed |= {select.given for select in selects if select.given}
    for tensor in program.tensors:
        if tensor.name in given or tensor.name in needed:
            for dim in tensor.dims:
                needed |= {node.name for node in find(dim, "scalar")}
                sizes |= {node.name for node in find(dim, "size")}
    for name in sizes - set(SIZES):
        binders = [t.name for t in program.tensors if any(is_size(d, name) for d in t.dims)]
        if binders and not any(b in needed or b in given for b in binders):
            needed.add(binders[0])
    return frozenset(needed)


def nodes_of(select: Select) -> list[Node]:
    """The expressions of a select."""
    nodes = (select.rows, select.columns, select.rank, select.where, select.limit)
    return [node for node in nodes if node is not None]


def is_size(dim: Node, name: str) -> bool:
    return is_binding(dim) and dim.name == name


def solve_sizes(
    program: Program,
    given: Mapping[str, object],
    tensors: Mapping[str, Tensor],
    batch_ints: Mapping[str, Tensor | None],
) -> dict[str, int]:
    """B, H, Hk, G, Nq, Nk and D: as given, else from tensors, else 1; lengths have no default."""
    known: dict[str, int] = {}
    origin: dict[str, str] = {}

    def learn(name: str, extent: int, source: str) -> None:
        origin.setdefault(name, source)
        if known.setdefault(name, extent) != extent:
            raise ArgumentError(
                f"{name}: {known[name]} from {origin[name]}, but {extent} from {source}"
            )

    for name, number in given.items():
        if number is not None:
            learn(name, take_size(name, number), "the call")
    for declared in program.tensors:
        tensor = tensors.get(declared.name)
        if tensor is None or tensor.dim() != len(declared.dims):
            continue
        for dim, extent in zip(declared.dims, tensor.shape, strict=True):
            if dim.op == "size" and dim.name in SIZES:
                learn(dim.name, extent, f"{declared.name}: {write_type(declared)}")
    for name, numbers in batch_ints.items():
        if numbers is not None:
            learn("B", numbers.shape[0], name)
    for name in ("Nq", "Nk"):
        if name not in known:
            raise ArgumentError(f"{name}: missing, and no tensor given determines it")
    return with_heads(known)


def with_heads(known: dict[str, int]) -> dict[str, int]:
    """H, Hk and G complete and consistent; the rest 1 where unknown."""
    group = known.get("G")
    if "H" not in known:
        known["H"] = known.get("Hk", 1) * (1 if group is None else group)
    if "Hk" not in known:
        known["Hk"] = known["H"] // group if group else 1
    heads, key_heads = known["H"], known["Hk"]
    if heads < 1 or key_heads < 1 or heads % key_heads or group not in (None, heads // key_heads):
        raise ArgumentError(f"H: {heads} query heads do not go with Hk = {key_heads} key heads")
    known["G"] = heads // key_heads
    known.setdefault("B", 1)
    known.setdefault("D", 1)
    return known


def take_size(name: str, number: object) -> int:
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise ArgumentError(f"{name}: expected an int of 0 or more, got {number!r}")
    value, _ = take_offset(name, number)
    if value < 0:
        raise ArgumentError(f"{name}: expected an int of 0 or more, got {value}")
    return value


@torch.no_grad()
def mask_pairs(program: Program, seen: View) -> Tensor:
    """The mask: bool [B or 1, H or 1, Nq, Nk]; a dimension is 1 where the mask does not vary."""
    queries, keys = seen.sizes["Nq"], seen.sizes["Nk"]
    q = positions(queries, seen.q_offset, seen.device)
    k = positions(keys, seen.k_offset, seen.device)
    columns = torch.arange(keys, device=seen.device)
    return keep_pairs(program.mask, seen.values, q, k, columns, seen.k_len).contiguous()


def take_block(block: object) -> tuple[int, int]:
    if not isinstance(block, (tuple, list)) or len(block) != 2:
        raise ArgumentError(f"block: expected (rows, columns), got {block!r}")
    rows, columns = (take_size("block", extent) for extent in block)
    if rows < 1 or columns < 1:
        raise ArgumentError(f"block: expected at least one row and column, got {block!r}")
    return rows, columns


def shift(offset: int | Tensor, device: torch.device) -> Tensor:
    """An offset as [1 or B, 1], to be added to indices."""
    if isinstance(offset, Tensor):
        return offset.to(torch.int64)[:, None]
    return torch.tensor([[offset]], dtype=torch.int64, device=device)


def tile_ends(length: int, block: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First and last index of every tile."""
    first = torch.arange(0, length, block, device=device)
    return first, torch.clamp(first + (block - 1), max=length - 1)
