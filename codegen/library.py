"""Functions that generated host code carries along: their source is copied verbatim.

They can be recorded in a CUDA graph: nothing waits for the device, copies a number there, or lets
torch read a tensor back (as it does where a tensor without dimensions is an index). An index that
follows from numbers alone is a Python int.

Nothing here may use anything but torch, `ACCUMULATOR` and other functions that are copied too. The
functions of operations are called torch_*, for a module may also hold the kernels' attn_*.
"""

from __future__ import annotations

import torch

from attndsl.plan.signatures import attn_bit, attn_bits

ACCUMULATOR = torch.float32  # a generated module sets its own


def torch_to_float(x: torch.Tensor) -> torch.Tensor:
    """An int tensor as floats."""
    return x.to(ACCUMULATOR)


def torch_bool_to_int(x: torch.Tensor) -> torch.Tensor:
    """1 for true, 0 for false."""
    return x.long()


def torch_saturated(x: torch.Tensor) -> torch.Tensor:
    """A whole float as int; what lies beyond int32 becomes its end, NaN the lower one."""
    return torch.nan_to_num(x, nan=float("-inf")).clamp(-2147483520.0, 2147483520.0).long()


def torch_floor(x: torch.Tensor) -> torch.Tensor:
    """x rounded down, as int."""
    return torch_saturated(torch.floor(x))


def torch_ceil(x: torch.Tensor) -> torch.Tensor:
    """x rounded up, as int."""
    return torch_saturated(torch.ceil(x))


def torch_round(x: torch.Tensor) -> torch.Tensor:
    """x rounded to the nearest int, halves to the even one."""
    return torch_saturated(torch.round(x))


def torch_trunc(x: torch.Tensor) -> torch.Tensor:
    """x rounded towards zero, as int."""
    return torch_saturated(torch.trunc(x))


def torch_floordiv(x: torch.Tensor | int, y: torch.Tensor | int) -> torch.Tensor | int:
    """x // y rounded down, and 0 where y is 0."""
    if not isinstance(y, torch.Tensor):
        return x // y if y else x * 0
    return torch.where(y == 0, 0, x // torch.where(y == 0, 1, y))


def torch_floormod(x: torch.Tensor | int, y: torch.Tensor | int) -> torch.Tensor | int:
    """x % y with the sign of y, and 0 where y is 0."""
    if not isinstance(y, torch.Tensor):
        return x % y if y else x * 0
    return torch.where(y == 0, 0, x % torch.where(y == 0, 1, y))


def torch_wrapped(x: int) -> int:
    """What 64 bits hold of an int: Python's have no end, those of tensors wrap around."""
    return (x + 2**63) % 2**64 - 2**63


def torch_floordiv_float(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The largest whole number not above x / y."""
    return torch.floor(x / y)


def torch_floormod_float(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What is left of x when y is taken floor(x / y) times."""
    return x - y * torch.floor(x / y)


def attn_tensor(x: bool | int | float, device: torch.device | None = None) -> torch.Tensor:
    """A number as a tensor without dimensions: on the CPU, or written (not copied) to a device."""
    dtype = ACCUMULATOR if isinstance(x, float) else None
    number = torch.tensor(x, dtype=dtype, device="cpu")  # too large a float becomes inf
    if device is None:
        return number
    return torch.full((), number.item(), dtype=number.dtype, device=device)


def attn_lookup(
    tensor: torch.Tensor, indices: tuple[torch.Tensor | int, ...], guarded: tuple[int, ...]
) -> torch.Tensor:
    """tensor[indices]; 0 where the index of a guarded axis lies outside of it."""
    places = [index for index in indices if isinstance(index, torch.Tensor)]
    outside = any(
        isinstance(index, int) and not 0 <= index < length
        for index, length in zip(indices, tensor.shape, strict=True)
    )
    if outside or tensor.numel() == 0:
        shape = torch.broadcast_shapes(*(p.shape for p in places))  # type: ignore[no-untyped-call]
        return tensor.new_zeros(shape)
    is_one = all(place.dim() == 0 for place in places)
    inside, at = None, 0
    for axis, index in enumerate(indices):
        if isinstance(index, int):
            tensor = tensor.select(at, index)
            continue
        if axis in guarded:
            last = tensor.shape[at] - 1
            there = (index >= 0) & (index <= last)
            inside = there if inside is None else inside & there
            index = index.clamp(0, last)
        places[at] = index if index.dim() else index.reshape(1)
        at += 1
    found = tensor[tuple(places)] if places else tensor
    found = found.reshape(()) if is_one else found
    return found if inside is None else attn_where(inside, found)


def attn_where(inside: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """What was found inside, 0 or false elsewhere."""
    return found & inside if found.dtype == torch.bool else torch.where(inside, found, 0)


def attn_flat(
    shape: tuple[int, ...], indices: tuple[torch.Tensor | int, ...], like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of a tensor of this shape as one row-major index (0 where they lie outside), and
    whether they lie inside; on the device of `like`."""
    flat = torch.zeros((), dtype=torch.int64, device=like.device)
    inside = torch.ones((), dtype=torch.bool, device=like.device)
    for index, length in zip(indices, shape, strict=True):
        inside = inside & (index >= 0) & (index < length)
        if isinstance(index, int) and not 0 <= index < length:
            index = 0  # it may be too large for a tensor
        flat = flat * length + index
    return torch.where(inside, flat, 0), inside


def attn_add_at(flat_grad: torch.Tensor, flat: torch.Tensor, values: torch.Tensor) -> None:
    """flat_grad[flat] += values in an order that is always the same, and so gives the same bits."""
    if flat_grad.is_cuda:
        flat_grad.index_put_((flat,), values, accumulate=True)  # sorts first
    else:
        flat_grad.index_add_(0, flat, values)  # a sequential loop


def attn_scatter(
    grad: torch.Tensor, adjoint: torch.Tensor, indices: tuple[torch.Tensor | int, ...]
) -> None:
    """grad[indices] += adjoint; drops what lies outside the tensor.

    grad is contiguous. The indices broadcast to the shape of adjoint: where they do not vary with
    an axis, adjoint is summed over it first.
    """
    if grad.numel() == 0 or adjoint.numel() == 0:
        return
    flat, inside = attn_flat(grad.shape, indices, grad)
    flat = flat.reshape((1,) * (adjoint.dim() - flat.dim()) + flat.shape)
    shared = [a for a in range(adjoint.dim()) if flat.shape[a] == 1 and adjoint.shape[a] > 1]
    if shared:
        adjoint = adjoint.sum(shared, keepdim=True)
    values = torch.where(inside, adjoint, 0).to(grad.dtype)
    attn_add_at(grad.view(-1), flat.expand(values.shape).reshape(-1), values.reshape(-1))


def attn_table_rows(
    table: torch.Tensor, indices: tuple[torch.Tensor | int, ...], query: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """table[indices] -> [..., D] in query's dtype (row 0 for an index outside), and whether the
    indices lie inside."""
    flat, inside = attn_flat(table.shape[:-1], indices, query)
    rows = table.flatten(0, -2).index_select(0, flat.reshape(-1))
    return rows.reshape(*flat.shape, table.shape[-1]).to(query.dtype), inside


def attn_dot_row(
    query: torch.Tensor, table: torch.Tensor, indices: tuple[torch.Tensor | int, ...]
) -> torch.Tensor:
    """dot(query, table[indices]) -> [...]: query [..., D], indices broadcast to [...]."""
    if table.numel() == 0:
        return query.new_zeros(query.shape[:-1])
    rows, inside = attn_table_rows(table, indices, query)
    return torch.where(inside, (query * rows).sum(-1), 0)


def attn_dot_row_backward(
    grad_query: torch.Tensor,
    grad_table: torch.Tensor | None,
    adjoint: torch.Tensor,
    query: torch.Tensor,
    table: torch.Tensor,
    indices: tuple[torch.Tensor | int, ...],
) -> None:
    """Adds the gradients of dot(query, table[indices]): adjoint [...], grad_query [..., D], and
    grad_table (contiguous, or None where nobody wants it)."""
    if table.numel() == 0 or adjoint.numel() == 0:
        return
    rows, inside = attn_table_rows(table, indices, query)
    adjoint = torch.where(inside, adjoint, 0)[..., None]
    grad_query += adjoint * rows
    if grad_table is not None:
        elements = [i[..., None] if isinstance(i, torch.Tensor) else i for i in indices]
        last = torch.arange(table.shape[-1], device=query.device)
        attn_scatter(grad_table, adjoint * query, (*elements, last))


def attn_profile(x: torch.Tensor) -> torch.Tensor:
    """A value by position, with axes for batch and head: [B or 1, H or 1, positions]."""
    return x.reshape((1,) * (3 - x.dim()) + x.shape)


def attn_table(tensor: torch.Tensor, ranges: dict[str, tuple[int, int]]) -> torch.Tensor:
    """The entries of a tensor whose indices run through ranges -> [b, h, q, k], with 1 for an index
    that is not there; 0 outside the tensor. A view, where nothing lies outside.

    ranges  for every axis of the tensor the index ("b", "h", "q" or "k") and its [lo, hi)
    """
    inner = [
        (max(lo, 0), min(hi, n)) for (lo, hi), n in zip(ranges.values(), tensor.shape, strict=True)
    ]
    found = tensor[tuple(slice(lo, max(lo, hi)) for lo, hi in inner)]
    if inner != list(ranges.values()):
        whole = tensor.new_zeros([hi - lo for lo, hi in ranges.values()])
        if found.numel():
            starts = [lo - low for (lo, _), (low, _) in zip(inner, ranges.values(), strict=True)]
            place = tuple(slice(at, at + n) for at, n in zip(starts, found.shape, strict=True))
            whole[place] = found
        found = whole
    names = list(ranges)
    found = found.permute([names.index(name) for name in "bhqk" if name in ranges])
    for axis, name in enumerate("bhqk"):
        if name not in ranges:
            found = found.unsqueeze(axis)
    return found


def attn_blocks(x: torch.Tensor, block: int, axis: int = -1) -> list[torch.Tensor]:
    """An axis [n] (counted from the end) cut into blocks: the whole ones as axes [blocks, block],
    and a short last one as [1, rest] where there is one."""
    count, rest = divmod(x.shape[axis], block)
    whole: torch.Tensor = x.narrow(axis, 0, count * block)
    parts = [whole.reshape(*x.shape[:axis], count, block, *x.shape[axis:][1:])]
    if rest:
        parts.append(x.narrow(axis, count * block, rest).unsqueeze(axis - 1))
    return parts


def attn_least(x: torch.Tensor, block: int, axis: int = -1) -> torch.Tensor:
    """The least of every block of an axis (counted from the end), NaN where it has one; of a bool,
    whether all are true."""
    if x.dtype == torch.bool:  # bytes are reduced many times faster
        return attn_least(x.view(torch.uint8), block, axis).view(torch.bool)
    return torch.cat([part.amin(axis) for part in attn_blocks(x, block, axis)], axis)


def attn_greatest(x: torch.Tensor, block: int, axis: int = -1) -> torch.Tensor:
    """The greatest of every block of an axis (counted from the end), NaN where it has one; of a
    bool, whether any is true."""
    if x.dtype == torch.bool:
        return attn_greatest(x.view(torch.uint8), block, axis).view(torch.bool)
    return torch.cat([part.amax(axis) for part in attn_blocks(x, block, axis)], axis)


def attn_block_extremes(profile: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the greatest of every block of the last axis."""
    return attn_least(profile, block), attn_greatest(profile, block)


def attn_pair_extremes(
    table: torch.Tensor, block_m: int, block_n: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the greatest of every block_m x block_n block of the last two axes."""
    if table.stride(-1) > table.stride(-2):  # first along what lies apart: whole vectors at a time
        least, greatest = attn_pair_extremes(table.transpose(-1, -2), block_n, block_m)
        return least.transpose(-1, -2).contiguous(), greatest.transpose(-1, -2).contiguous()
    least = attn_least(attn_least(table, block_m, -2), block_n)
    return least, attn_greatest(attn_greatest(table, block_m, -2), block_n)


def attn_signatures(profile: torch.Tensor, block: int) -> torch.Tensor:
    """Which int64 values occur in every block of the last axis, as a set of 64 bits."""
    return torch.cat([attn_bits(part, -1) for part in attn_blocks(attn_bit(profile), block)], -1)
