"""Functions that generated host code carries along: their source is copied verbatim.

Nothing here may use anything but torch, `ACCUMULATOR` and other functions that are copied too. The
functions of operations are called torch_*, for a module may also hold the kernels' attn_*.
"""

from __future__ import annotations

import torch

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


def torch_floordiv_float(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The largest whole number not above x / y."""
    return torch.floor(x / y)


def torch_floormod_float(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What is left of x when y is taken floor(x / y) times."""
    return x - y * torch.floor(x / y)


def attn_tensor(x: bool | int | float) -> torch.Tensor:
    """A number as a tensor without dimensions."""
    return torch.tensor(x, dtype=ACCUMULATOR if isinstance(x, float) else None)


def attn_lookup(
    tensor: torch.Tensor, indices: tuple[torch.Tensor | int, ...], guarded: tuple[int, ...]
) -> torch.Tensor:
    """tensor[indices]; 0 where the index of a guarded axis (one at least) lies outside of it."""
    if tensor.numel() == 0:
        return tensor.new_zeros(attn_flat(tensor.shape, indices, tensor)[0].shape)
    places = [attn_index(index, tensor) for index in indices]
    if all(place.dim() == 0 for place in places):  # as an index such a tensor would be read back
        flat, inside = attn_flat(tensor.shape, indices, tensor)
        return attn_where(inside, torch.take(tensor, flat))
    inside = torch.ones((), dtype=torch.bool, device=tensor.device)
    for axis in guarded:
        index, last = places[axis], tensor.shape[axis] - 1
        inside = inside & (index >= 0) & (index <= last)
        places[axis] = index.clamp(0, last)
    found = tensor[tuple(places)]
    return attn_where(inside, found)


def attn_where(inside: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """What was found inside, 0 or false elsewhere."""
    return found & inside if found.dtype == torch.bool else torch.where(inside, found, 0)


def attn_index(index: torch.Tensor | int, like: torch.Tensor) -> torch.Tensor:
    """An index as a tensor on the device of `like`; a number is not copied there, but written."""
    if isinstance(index, torch.Tensor):
        return index.to(like.device)
    return torch.full((), index, dtype=torch.int64, device=like.device)


def attn_flat(
    shape: tuple[int, ...], indices: tuple[torch.Tensor | int, ...], like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of a tensor of this shape as one row-major index (0 where they lie outside), and
    whether they lie inside; on the device of `like`."""
    flat = torch.zeros((), dtype=torch.int64, device=like.device)
    inside = torch.ones((), dtype=torch.bool, device=like.device)
    for index, length in zip(indices, shape, strict=True):
        index = attn_index(index, like)
        inside = inside & (index >= 0) & (index < length)
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


def attn_dot_row(
    query: torch.Tensor, table: torch.Tensor, indices: tuple[torch.Tensor | int, ...]
) -> torch.Tensor:
    """dot(query, table[indices]) -> [...]: query [..., D], indices broadcast to [...]."""
    if table.numel() == 0:
        return query.new_zeros(query.shape[:-1])
    flat, inside = attn_flat(table.shape[:-1], indices, query)
    rows = table.flatten(0, -2)[flat].to(query.dtype)
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
    flat, inside = attn_flat(table.shape[:-1], indices, query)
    rows = table.flatten(0, -2)[flat].to(query.dtype)
    adjoint = torch.where(inside, adjoint, 0)[..., None]
    grad_query += adjoint * rows
    if grad_table is not None:
        elements = [attn_index(i, query)[..., None] for i in indices]
        last = torch.arange(table.shape[-1], device=query.device)
        attn_scatter(grad_table, adjoint * query, (*elements, last))
