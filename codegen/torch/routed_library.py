"""Functions that a generated PyTorch module carries along where lists of blocks add pairs.

The same rules hold as for codegen/library.py: their source is copied verbatim.

Lists are turned round once a call: of every list [rows, T] and every block of keys the rows that
hold it, in order. *Entries* are those rows, of all lists and blocks one behind the other. A *piece*
is at most ROWS entries of one list and one block, the unit of which facts are asked; a *tile* joins
pieces that follow each other.
"""

from __future__ import annotations

import torch

from .library import attn_has_fast_onednn

ROWS = 128  # a generated module sets its own


def attn_entries(lists: torch.Tensor, blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Turns lists [B, lists, rows, T] of block numbers round; what is no block is none.

    Returns the rows (of list l from l * rows on) of all entries, int64; and [lists, blocks + 1],
    where the entries of each block begin, with the end of the last.
    """
    number, held = lists.shape[0] * lists.shape[1], max(lists.shape[3], 1)
    dtype = torch.int32 if number * (blocks + 1) < 1 << 31 else torch.int64
    there = (lists >= 0) & (lists < blocks)
    keys = torch.where(there, lists, blocks).to(dtype).reshape(number, -1)
    keys += torch.arange(number, dtype=dtype, device=lists.device)[:, None] * (blocks + 1)
    # Of one axis, for that is what torch sorts by digits; equal ones keep the order of rows.
    keys, entries = keys.view(-1).sort(dim=0, stable=True)
    places = torch.arange(number * (blocks + 1), dtype=dtype, device=lists.device)
    edges = torch.searchsorted(keys, places).view(number, blocks + 1)
    return entries.div_(held, rounding_mode="floor"), edges


def attn_pieces(edges: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The pieces: their list and block (list * blocks + block), first entry and end."""
    starts, ends = edges[:, :-1].reshape(-1), edges[:, 1:].reshape(-1)
    counts = (ends - starts + (ROWS - 1)) // ROWS
    place = torch.repeat_interleave(counts)
    at = torch.arange(len(place), device=edges.device) - (counts.cumsum(0) - counts)[place]
    low = starts[place] + at * ROWS
    return place, low, torch.minimum(low + ROWS, ends[place])


def attn_fact(fact: torch.Tensor | bool, like: torch.Tensor, every: bool) -> torch.Tensor:
    """A fact of pieces, a bool, [pieces] or [heads, pieces], as [pieces]: true of `every` head, or
    of any."""
    found = torch.as_tensor(fact, device=like.device)
    if found.dim() > 1:
        found = found.all(0) if every else found.any(0)
    return found.expand(len(like))


def attn_joined(
    place: torch.Tensor, low: torch.Tensor, high: torch.Tensor, certain: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Joins pieces of one place that follow each other and are certain alike, at most `most` of
    them: a bool that marks the first of every tile, and the tiles' ends. A short piece behind
    several stays alone: oneDNN multiplies matrices of common sizes only."""
    begins = torch.ones_like(certain)
    begins[1:] = (place[1:] != place[:-1]) | (certain[1:] != certain[:-1]) | (low[1:] != high[:-1])
    run = begins.cumsum(0) - 1
    lengths = torch.bincount(run)
    at = torch.arange(len(run), device=run.device) - (lengths.cumsum(0) - lengths)[run]
    begins |= at % most == 0
    if attn_has_fast_onednn():
        begins |= (high - low < ROWS) & (lengths[run] > 2)
    return begins, high[begins.roll(-1)]


def attn_tiles(
    entries: torch.Tensor,
    size_Nq: int,
    columns: int,
    tiles: tuple[torch.Tensor, ...],
) -> dict[int, list[tuple[torch.Tensor, list[tuple[int, int, list[tuple[int, int]]]]]]]:
    """The tiles of every list that has one: the rows, and chunks of at most `columns` columns, each
    with the ranges in it that need the mask.

    tiles  of each tile the list, the first entry and the end, the first column and the end, and
           whether all pairs take part
    """
    found: dict[int, list[tuple[torch.Tensor, list[tuple[int, int, list[tuple[int, int]]]]]]] = {}
    ends = (x.tolist() for x in tiles)
    for at, lo, hi, start, stop, is_certain in zip(*ends, strict=True):
        chunks = []
        for column in range(start, stop, columns):
            last = min(column + columns, stop)
            chunks.append((column, last, [] if is_certain else [(column, last)]))
        found.setdefault(at, []).append((entries[lo:hi] - at * size_Nq, chunks))
    return found


def attn_list_part(
    listed: int, lists: int, size_G: int, heads: int
) -> tuple[int, int, int, int, int, int]:
    """The part (b0, b1, j0, j1, g0, g1) of a list: `heads` query heads of one key head share it, so
    that there are `lists` to a batch."""
    b, at = divmod(listed, lists)
    j, g = divmod(at * heads, size_G)
    return b, b + 1, j, j + 1, g, g + heads


def attn_columns(
    lists: torch.Tensor,
    width: int,
    k_shift: torch.Tensor | int,
    limit: torch.Tensor | int,
    size_Nk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns of listed blocks, and which of them exist: lists [.., T] int64 -> [.., columns].
    What is no block has columns too, none of which exists.

    width             columns of a block
    k_shift, limit    the position of column 0, and the first column that does not exist
    """
    first = lists * width - k_shift % width
    end = torch.minimum(first + width, torch.as_tensor(limit, device=lists.device))[..., None]
    along = torch.arange(min(width, size_Nk), device=lists.device)
    columns = first.clamp(min=0)[..., None] + along
    return columns.clamp(max=size_Nk - 1).flatten(-2), (columns < end).flatten(-2)


def attn_gathered(x: torch.Tensor, b0: int, j0: int, columns: torch.Tensor) -> torch.Tensor:
    """Rows of x [B, Hk, Nk, D] for each list: columns [b, j, lists, 1, columns], the first of batch
    b0 and key head j0 -> [b * j * lists, columns, D]."""
    batch, heads = columns.shape[:2]
    b = torch.arange(b0, b0 + batch, device=x.device)[:, None, None, None, None]
    j = torch.arange(j0, j0 + heads, device=x.device)[:, None, None, None]
    return x[b, j, columns].flatten(0, 3)


def attn_merge(
    raw: torch.Tensor,
    stat: torch.Tensor,
    places: torch.Tensor,
    found: torch.Tensor,
    most: torch.Tensor,
    sums: torch.Tensor,
) -> None:
    """Adds keys to a softmax: changes rows of raw [places, Dv] and stat (lse) [places].

    found  the sum of value * exp(logit - most), [1, rows, Dv]; sums: that of exp(logit - most), and
           most: the greatest logit of a row (-inf where it has none), [1, rows, 1]
    """
    found, most = found.view(places.shape[0], -1), most.view(-1)
    before = stat.index_select(0, places)
    after = torch.logaddexp(before, most + torch.log(sums.view(-1)))
    base = after.masked_fill(after == float("-inf"), 0.0)  # no key yet: exp(-inf - 0), not NaN
    found *= torch.exp(most - base)[:, None]
    found.addcmul_(raw.index_select(0, places), torch.exp(before - base)[:, None])
    raw.index_copy_(0, places, found)
    stat.index_copy_(0, places, after)
