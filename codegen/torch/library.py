"""Functions that a generated PyTorch module carries along, besides those of codegen/library.py.

The same rules hold: their source is copied verbatim.
"""

from __future__ import annotations

import torch

from ..library import attn_add_at, attn_flat, attn_scatter, attn_table, attn_tensor


def attn_limit(kept: torch.Tensor) -> torch.Tensor:
    """inf where kept, else -inf: the minimum with it drops what is masked."""
    return torch.where(kept, attn_tensor(float("inf")), float("-inf"))


def attn_full(x: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    """A number or a tensor that broadcasts, as a new tensor of the shape of `like`."""
    return torch.empty_like(like).copy_(x if isinstance(x, torch.Tensor) else attn_tensor(x))


def attn_clear(x: torch.Tensor, masks: list[tuple[int, int, torch.Tensor]]) -> torch.Tensor:
    """Sets x [..., columns] to 0 where one of masks (first column, end, dropped) says so."""
    for first, end, dropped in masks:
        x[..., first:end].masked_fill_(dropped, 0.0)
    return x


def attn_weigh(
    logits: torch.Tensor, most: torch.Tensor | None, sums: torch.Tensor | None, unit: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Turns a chunk's logits [..., columns] into weights 2 ** (unit * (logit - most)), in place.

    most, sums  of the chunks before, [..., 1] (or None): each row's largest logit, and the sum of
                its weights. Returns both with this chunk, and the factor by which the results of
                the chunks before shrink. A row without keys has -inf and 0.
    """
    largest = logits.amax(-1, keepdim=True)
    if most is not None:
        largest = torch.maximum(largest, most)
    base = largest.masked_fill(largest == float("-inf"), 0.0)  # -inf - 0 stays -inf: no weight
    logits.sub_(base)
    if unit != 1.0:
        logits.mul_(unit)
    total = logits.exp2_().sum(-1, keepdim=True)
    if most is None or sums is None:
        return largest, total, None
    factor = torch.exp2((most - base) * unit)
    return largest, sums * factor + total, factor


def attn_has_fast_onednn() -> bool:
    """Whether oneDNN multiplies matrices of float32 faster than torch.bmm: MKL, the BLAS of torch's
    builds for x86, uses AVX-512 on Intel's CPUs only."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    found = torch.cpu.get_capabilities()
    return "AMD" in found.get("cpu_name", "") and bool(found.get("avx512_f", False))


def attn_suits_onednn(rows: int, inner: int, columns: int) -> bool:
    """Whether to multiply matrices by oneDNN one by one: where each is work enough for all threads
    (a call costs about 10 us more than its share of torch.bmm), and of a common size, since oneDNN
    compiles a kernel of about 1 MB for each."""
    wide = max(inner, columns)
    is_common = rows % 64 == 0 and (wide == 64 or wide % (128 if wide <= 1024 else 1024) == 0)
    return is_common and 2 * rows * inner * columns >= 4e6 * torch.get_num_threads()


def attn_products(
    x: torch.Tensor, y: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x [n, rows, inner] @ y [n, inner, columns] -> [n, rows, columns], new or in `out`."""
    rows, inner = x.shape[1:]
    is_float = x.dtype == torch.float32 and x.device.type == "cpu"
    if not (is_float and attn_suits_onednn(rows, inner, y.shape[2]) and attn_has_fast_onednn()):
        return torch.bmm(x, y) if out is None else torch.bmm(x, y, out=out)
    linear = torch.ops.mkldnn._linear_pointwise.default
    pairs = zip(x.unbind(), y.transpose(1, 2).unbind(), strict=True)
    found = [linear(*pair, None, "none", [], "") for pair in pairs]
    return found[0][None] if out is None and len(found) == 1 else torch.stack(found, out=out)


def attn_window(
    tensor: torch.Tensor, ranges: dict[str, tuple[int, int]], groups: int
) -> torch.Tensor:
    """A lookup whose indices run through ranges -> [batch, key heads, group, rows, columns], with 1
    for an index that is not there; 0 outside the tensor.

    ranges  for every axis of the tensor the index ("b", "h", "q" or "k") and its [lo, hi)
    groups  heads of a group
    """
    found = attn_table(tensor, ranges)
    heads = (found.shape[1] // groups, groups) if "h" in ranges else (1, 1)
    return found.reshape(found.shape[0], *heads, *found.shape[2:])


def attn_window_add(
    grad: torch.Tensor, adjoint: torch.Tensor, ranges: dict[str, tuple[int, int]]
) -> None:
    """Adds adjoint [batch, key heads, group, rows, columns] to what attn_window reads of grad."""
    adjoint = adjoint.flatten(1, 2)
    shared = [axis for axis, name in enumerate("bhqk") if name not in ranges]
    adjoint = adjoint.sum(shared) if shared else adjoint
    order = [name for name in "bhqk" if name in ranges]
    adjoint = adjoint.permute([order.index(name) for name in ranges])
    inner = [
        (max(lo, 0), min(hi, n)) for (lo, hi), n in zip(ranges.values(), grad.shape, strict=True)
    ]
    if all(first < end for first, end in inner):
        source = [
            slice(first - lo, end - lo)
            for (first, end), (lo, _) in zip(inner, ranges.values(), strict=True)
        ]
        grad[tuple(slice(first, end) for first, end in inner)] += adjoint[tuple(source)]


def attn_distances(
    last_row: int, first_column: int, count: int, like: torch.Tensor
) -> torch.Tensor:
    """The distances q - k of a block, the greatest first: [rows + columns - 1]."""
    return last_row - first_column - torch.arange(count, device=like.device)


def attn_diagonals(x: torch.Tensor, rows: int) -> torch.Tensor:
    """Values by distance [..., 1, rows + columns - 1] or [rows + columns - 1], the greatest
    distance first -> by pair [..., rows, columns]."""
    found = x.unfold(-1, x.shape[-1] - rows + 1, 1)
    return (found.squeeze(-3) if x.dim() > 1 else found).flip(-2)


def attn_skewed(x: torch.Tensor, columns: int) -> torch.Tensor:
    """Of x [..., rows, rows + columns - 1] (contiguous), by row and distance, the view by row and
    column."""
    rows, line = x.shape[-2:]
    shape, stride = (*x.shape[:-1], columns), (*x.stride()[:-2], line - 1, 1)
    return x.as_strided(shape, stride, x.storage_offset() + rows - 1)


def attn_by_distance(x: torch.Tensor) -> torch.Tensor:
    """Values by pair [..., rows, columns] -> by row and distance, [..., rows, rows + columns - 1],
    0 where a row has no column at that distance."""
    rows, columns = x.shape[-2:]
    found = x.new_zeros((*x.shape[:-1], rows + columns - 1))
    attn_skewed(found, columns).copy_(x)
    return found


def attn_dot_diagonals(
    query: torch.Tensor, table: torch.Tensor, indices: tuple[torch.Tensor | int, ...]
) -> torch.Tensor:
    """dot(query, table[indices]) -> [..., rows, columns]: query [..., rows, D], the indices by
    distance [..., 1, rows + columns - 1]."""
    taken, _ = attn_rows(query, table, indices)
    products = (query @ taken.transpose(-1, -2)).contiguous()
    return attn_skewed(products, products.shape[-1] - query.shape[-2] + 1)


def attn_dot_diagonals_backward(
    grad_query: torch.Tensor,
    grad_table: torch.Tensor | None,
    adjoint: torch.Tensor,
    query: torch.Tensor,
    table: torch.Tensor,
    indices: tuple[torch.Tensor | int, ...],
) -> None:
    """Adds the gradients of attn_dot_diagonals: adjoint [..., rows, columns], grad_query
    [..., rows, D], and grad_table (contiguous, or None where nobody wants it)."""
    taken, inside = attn_rows(query, table, indices)
    adjoint = attn_by_distance(adjoint) * inside
    grad_query += adjoint @ taken
    if grad_table is not None:
        change = (adjoint.transpose(-1, -2) @ query).unsqueeze(-3)
        elements = [torch.as_tensor(i, device=query.device)[..., None] for i in indices]
        last = torch.arange(table.shape[-1], device=query.device)
        attn_scatter(grad_table, change, (*elements, last))


def attn_rows(
    query: torch.Tensor, table: torch.Tensor, indices: tuple[torch.Tensor | int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the table by distance, [..., rows + columns - 1, D], 0 where there is none; and
    whether there is one, [..., 1, rows + columns - 1]."""
    flat, inside = attn_flat(table.shape[:-1], indices, query)
    if table.numel() == 0:
        return query.new_zeros((flat.shape[-1], query.shape[-1])), inside
    taken = table.flatten(0, -2)[flat].to(query.dtype)
    taken = torch.where(inside[..., None], taken, 0)
    return (taken.squeeze(-3) if taken.dim() > 2 else taken), inside


def attn_dot_pair(
    query: torch.Tensor, table: torch.Tensor, indices: tuple[torch.Tensor | int, ...]
) -> torch.Tensor:
    """dot(query, table[indices]) -> [..., rows, columns]: query [..., rows, D]; the indices
    broadcast to the result."""
    columns = max(torch.as_tensor(index).shape[-1:].numel() for index in indices)
    found = query.new_zeros((*query.shape[:-1], columns))
    for part, flat, inside, low, rows in attn_dot_pieces(query, table, indices):
        products = query[part] @ rows.to(query.dtype).T
        products = products.take_along_dim(flat - low, -1)
        found[part] = torch.where(inside, products, 0)
    return found


def attn_dot_pair_backward(
    grad_query: torch.Tensor,
    grad_table: torch.Tensor | None,
    adjoint: torch.Tensor,
    query: torch.Tensor,
    table: torch.Tensor,
    indices: tuple[torch.Tensor | int, ...],
) -> None:
    """Adds the gradients of attn_dot_pair: adjoint [..., rows, columns], grad_query [..., rows, D],
    and grad_table (contiguous, or None where nobody wants it)."""
    for part, flat, inside, low, rows in attn_dot_pieces(query, table, indices):
        q, count = query[part], rows.shape[0]
        values = torch.where(inside, adjoint[part], 0)
        sums = values.new_zeros((*q.shape[:-1], count))
        line = torch.arange(sums.numel() // count, device=q.device).view(*q.shape[:-1], 1)
        places = (line * count + (flat - low)).expand(values.shape)
        attn_add_at(sums.view(-1), places.reshape(-1), values.reshape(-1))
        grad_query[part] += sums @ rows.to(query.dtype)
        if grad_table is not None:
            change = sums.flatten(0, -2).T @ q.flatten(0, -2)
            grad_table.view(-1, table.shape[-1])[low : low + count] += change


def attn_dot_pieces(
    query: torch.Tensor, table: torch.Tensor, indices: tuple[torch.Tensor | int, ...]
) -> list[tuple[tuple[slice, ...], torch.Tensor, torch.Tensor, int, torch.Tensor]]:
    """Pieces of a dot in which the leading axes share the table's rows: the place in the result,
    the row numbers, which of them exist, the least of them, and the rows from there to the
    greatest."""
    if table.numel() == 0:
        return []
    flat, inside = attn_flat(table.shape[:-1], indices, query)
    flat = flat.reshape((1,) * (query.dim() - flat.dim()) + flat.shape)
    inside = inside.reshape((1,) * (query.dim() - inside.dim()) + inside.shape)
    leading = flat.shape[:-2]
    pieces = []
    for place in torch.cartesian_prod(*(torch.arange(n) for n in leading)).view(-1, len(leading)):
        at = [(int(i), n > 1) for i, n in zip(place, leading, strict=True)]
        some = tuple(slice(i, i + 1) for i, _ in at)
        part = tuple(slice(i, i + 1) if varies else slice(None) for i, varies in at)
        rows, exist = flat[some], inside[some]
        if exist.any():
            low, high = (int(bound) for bound in rows[exist].aminmax())
            taken = table.flatten(0, -2)[low : high + 1]
            pieces.append((part, torch.where(exist, rows, low), exist, low, taken))
    return pieces
