"""Functions that a generated PyTorch module carries along, besides those of codegen/library.py.

The same rules hold: their source is copied verbatim.
"""

from __future__ import annotations

import torch

from ..library import attn_add_at, attn_flat, attn_scatter, attn_tensor


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


def attn_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Turns logits [..., columns] into their softmax in place; returns the logarithm of the
    denominator [..., 1]. A row that is -inf throughout becomes 0, with -inf."""
    largest = logits.amax(-1, keepdim=True)
    torch.softmax(logits, -1, out=logits)
    # The largest weight is 1 / sum(exp(logits - largest)).
    lse = largest - torch.log(logits.amax(-1, keepdim=True))
    empty = largest == float("-inf")
    if empty.any():
        logits.masked_fill_(empty, 0.0)
        lse.masked_fill_(empty, float("-inf"))
    return lse


def attn_merge(
    raw: torch.Tensor, stat: torch.Tensor, more: torch.Tensor, more_stat: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Joins two softmax results over different columns: raw, more [..., Dv] and the logarithms of
    their denominators [..., 1]. Changes both raw and more."""
    total = torch.logaddexp(stat, more_stat)
    raw *= torch.where(stat == float("-inf"), 0.0, torch.exp(stat - total))
    more *= torch.where(more_stat == float("-inf"), 0.0, torch.exp(more_stat - total))
    return raw.add_(more), total


def attn_parts(
    size_B: int, size_Hk: int, size_G: int, by: str, heads: int
) -> list[tuple[int, int, int, int, int, int]]:
    """Ranges of batch, key heads and query heads of a group that are worked on together.

    by     "all", "batch" or "head": what must not be joined, since other columns take part
    heads  how many key heads to work on together, so that a block stays in the cache
    """
    parts = []
    batches = heads // max(size_Hk, 1) if by == "all" else 1
    if by == "head":
        heads = 1
    for b in range(0, size_B, max(batches, 1)):
        for j in range(0, size_Hk, heads):
            for g in range(0, size_G, 1 if by == "head" else max(size_G, 1)):
                end = g + 1 if by == "head" else size_G
                last = min(b + max(batches, 1), size_B)
                parts.append((b, last, j, min(j + heads, size_Hk), g, end))
    return parts


def attn_ints(x: torch.Tensor | int, count: int) -> list[int]:
    """A number, or a tensor of one or `count` ints, as a list of `count` ints."""
    found: list[int] = torch.as_tensor(x).reshape(-1).tolist()
    return found * count if len(found) == 1 else found


def attn_union(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges [lo, hi) without overlap, in order, that cover the same; empty ones are dropped."""
    joined: list[tuple[int, int]] = []
    for lo, hi in sorted(ranges):
        if lo >= hi:
            continue
        if joined and lo <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(hi, joined[-1][1]))
        else:
            joined.append((lo, hi))
    return joined


def attn_without(lo: int, hi: int, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of [lo, hi) none of the ranges (in order, without overlap) covers."""
    left = []
    for start, end in ranges:
        if start >= hi:
            break
        if end > lo:
            if start > lo:
                left.append((lo, start))
            lo = end
    if lo < hi:
        left.append((lo, hi))
    return left


def attn_spans(
    segments: list[tuple[torch.Tensor | int, ...]], blocks: int, shift: int, limit: int
) -> list[tuple[list[tuple[int, int]], list[tuple[int, int]]]]:
    """For every block of queries the ranges of columns that can take part, and of those that do
    for sure.

    segments  (lo, hi, full_lo, full_hi) in positions, for all blocks at once
    shift     the position of column 0; limit: the number of columns
    """
    table = [[attn_ints(bound, blocks) for bound in segment] for segment in segments]
    spans = []
    for at in range(blocks):
        reached, full = [], []
        for bounds in table:
            lo, hi, full_lo, full_hi = (bound[at] - shift for bound in bounds)
            lo, hi = max(lo, 0), min(hi, limit)
            reached.append((lo, hi))
            full.append((max(full_lo, lo), min(full_hi, hi)))
        spans.append((attn_union(reached), attn_union(full)))
    return spans


def attn_open_tiles(
    spans: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]], width: int
) -> list[tuple[int, int, int]]:
    """(block, first column, end) of the undecided tiles of blocks that have more than three."""
    tiles = []
    for at, (reached, full) in enumerate(spans):
        parts = [part for lo, hi in reached for part in attn_without(lo, hi, full)]
        if sum(hi - lo for lo, hi in parts) > 3 * width:
            for lo, hi in parts:
                ends = [*range(lo - lo % width + width, hi, width), hi]
                tiles += [(at, a, z) for a, z in zip([lo, *ends], ends, strict=False)]
    return tiles


def attn_refine(spans, classify, rows, width, size_Nq, q_shift, k_shift, device):  # type: ignore[no-untyped-def]
    """Spans without the tiles of rows x width that classify(q_lo, q_hi, k_lo, k_hi) calls
    impossible, and with those as full that it calls certain."""
    tiles = attn_open_tiles(spans, width)
    changed: dict[int, tuple[list[tuple[int, int]], list[tuple[int, int]]]] = {}
    for some in range(0, len(tiles), 1 << 18):
        group = tiles[some : some + (1 << 18)]
        block, first, end = torch.tensor(group, device=device).unbind(1)
        q_lo = block * rows + q_shift
        q_hi = ((block + 1) * rows).clamp(max=size_Nq) - 1 + q_shift
        facts = classify(q_lo, q_hi, first + k_shift, end - 1 + k_shift)
        possible, certain = (attn_ints(fact, len(group)) for fact in facts)
        for (at, a, z), may, must in zip(group, possible, certain, strict=True):
            reached, full = changed.setdefault(at, ([], list(spans[at][1])))
            if may:
                reached.append((a, z))
                if must:
                    full.append((a, z))
    for at, (reached, full) in changed.items():
        spans[at] = (attn_union([*reached, *spans[at][1]]), attn_union(full))
    return spans


def attn_chunks(
    span: tuple[list[tuple[int, int]], list[tuple[int, int]]], columns: int
) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """A block's columns in chunks: (first, end, the ranges in it that need the mask)."""
    reached, full = span
    chunks = []
    for lo, hi in reached:
        pieces = -(-(hi - lo) // columns)
        step = -(-(hi - lo) // pieces)
        for first in range(lo, hi, step):
            end = min(first + step, hi)
            chunks.append((first, end, attn_without(first, end, full)))
    return chunks


def attn_window(
    tensor: torch.Tensor, ranges: dict[str, tuple[int, int]], groups: int
) -> torch.Tensor:
    """A lookup whose indices run through ranges -> [batch, key heads, group, rows, columns], with 1
    for an index that is not there; 0 outside the tensor.

    ranges  for every axis of the tensor the index ("b", "h", "q" or "k") and its [lo, hi)
    groups  heads of a group
    """
    inner = [
        (max(lo, 0), min(hi, n)) for (lo, hi), n in zip(ranges.values(), tensor.shape, strict=True)
    ]
    found = tensor[tuple(slice(lo, max(lo, hi)) for lo, hi in inner)]
    if inner != list(ranges.values()):
        whole = tensor.new_zeros([hi - lo for lo, hi in ranges.values()])
        if found.numel():
            starts = [
                first - lo for (first, _), (lo, _) in zip(inner, ranges.values(), strict=True)
            ]
            whole[tuple(slice(at, at + n) for at, n in zip(starts, found.shape, strict=True))] = (
                found
            )
        found = whole
    names = list(ranges)
    found = found.permute([names.index(name) for name in "bhqk" if name in ranges])
    for axis, name in enumerate("bhqk"):
        if name not in ranges:
            found = found.unsqueeze(axis)
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
