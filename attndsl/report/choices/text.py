"""Selects for a person: what they choose, what choosing costs, and what is attended to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.ir.nodes import chosen, find, is_const
from attndsl.ir.program import Program
from attndsl.plan.configs import NARROWEST, width_for
from attndsl.plan.kernel_plan import KernelPlan
from attndsl.report.choices.counts import Choice
from attndsl.report.table import figure, share
from attndsl.report.tiles.formulas import formula
from attndsl.runtime.views import View
from attndsl.transform.route import Form, has_lists, is_positive, used_selects

RANK_BYTES = 4  # float32, whatever the inputs


@dataclass(frozen=True)
class Routing:
    """The selects of a call.

    program   as the user wrote it
    form      what the choices are kept as
    choices   of the selects that the mask names
    lists     int [B, H or Hk, Nq, T] of blocks within the call, where query and key were given
    is_known  whether the tiles of form "table" are those of a choice; else they are those of all
              candidates
    has_tiles whether tiles of form "table" can be told
    """

    program: Program
    form: Form
    choices: tuple[Choice, ...]
    lists: Tensor | None = None
    is_known: bool = False
    has_tiles: bool = True


def select_lines(program: Program) -> list[str]:
    """The statements, with the values of const parameters."""
    lines: list[str] = []
    for select in program.selects:
        rows, columns = (
            "" if is_const(node, 1) else f" // {formula(node)}"
            for node in (select.rows, select.columns)
        )
        group = " per group" if select.per_group else ""
        lines.append(f"select   {select.name}[i = q{rows}, j = k{columns}]{group}:")
        if select.rank is not None:
            lines.append(f"             rank   {formula(select.rank)}")
        if not is_const(select.where, True):
            lines.append(f"             where  {formula(select.where)}")
        if select.limit is not None:
            lines.append(f"             keep   {select.keep} {formula(select.limit)}")
        else:
            lines.append(f"             given  {select.given}")
    return lines


def reason_of(program: Program) -> str:
    """Why the choices are kept in the form that they are."""
    used = used_selects(program)
    if len(used) > 1:
        return "the mask names several selects"
    select = used[0]
    if not is_const(select.rows, 1):
        return f"{formula(select.rows)} queries in a row choose together"
    if select.keep in ("above", "mass"):
        return f"how many blocks `keep {select.keep}` keeps is not known before"
    if not has_lists(select):
        limit = "" if select.limit is None else formula(select.limit)
        return f"nothing bounds `{limit}` for all queries, as `min({limit}, 16)` would"
    if not is_positive(program.mask, chosen(select.name)):
        return f"the mask may lose pairs by `{select.name}`"
    return "every query chooses for itself, a number of blocks that is known before"


# -- choosing ---------------------------------------------------------------------------------


def choosing_lines(routing: Routing, seen: View) -> list[str]:
    """What is computed and kept to choose, select by select."""
    if not routing.choices:
        return ["nothing: the mask names no select"]
    lines: list[str] = []
    for choice in routing.choices:
        if len(routing.choices) > 1:
            lines.append(f"{choice.select.name}")
        lines += costs_of(choice, routing, seen)
    return [*lines, f"as {routing.form}: {reason_of(routing.program)}"]


def costs_of(choice: Choice, routing: Routing, seen: View) -> Iterator[str]:
    select = choice.select
    per = "heads that share keys choose together" if select.per_group else "each head for itself"
    yield (
        f"blocks   {choice.queries:,} of {counted(choice.rows, 'query', 'queries')} and "
        f"{choice.keys:,} of {counted(choice.columns, 'key')}; {per}"
    )
    pooled = pooled_text(choice, seen)
    if pooled:
        yield f"pooled   {pooled}"
    if select.rank is not None:
        yield f"ranks    {ranks_text(choice)}"
    yield f"chosen   at most {shown(choice.kept, choice)} blocks{each_text(choice)}"
    yield f"kept as  {kept_text(choice, routing.form)}"


def ranks_text(choice: Choice) -> str:
    """How many pairs of blocks have a rank that counts."""
    if is_const(choice.select.where, True):
        return f"{choice.in_all:,}, of all pairs of blocks, in float32"
    part = share(choice.candidates, choice.in_all)
    text = f"of {shown(choice.candidates, choice)} of {choice.in_all:,} pairs of blocks ({part}), "
    text += "those that `where` admits, in float32"
    if choice.unknown:
        text += f"; fewer by `{choice.unknown}`, which is not given"
    return text


def shown(number: int, choice: Choice) -> str:
    """A figure of a choice; of an estimate no more digits than are known."""
    return f"~{figure(number, '').strip()}" if choice.is_sample else f"{number:,}"


def counted(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def pooled_text(choice: Choice, seen: View) -> str:
    """`mean(key): 2 x 32 x 64 numbers, 16.4 kB`."""
    rank = choice.select.rank
    names = sorted({node.name for node in find(rank, "pooled")}) if rank is not None else []
    texts = []
    for name in names:
        vector, _, pooling = name.partition("_")
        if not pooling:
            continue
        heads = seen.sizes["H"] if vector == "query" else seen.sizes["Hk"]
        blocks = choice.queries if vector == "query" else choice.keys
        size = RANK_BYTES * seen.sizes["B"] * heads * blocks * seen.sizes["D"]
        texts.append(f"{pooling}({vector}) of {counted(blocks, 'block')}, {figure(size, 'B')}")
    return "; ".join([*texts, "one pass over what is pooled"]) if texts else ""


def each_text(choice: Choice) -> str:
    """How many that is for a block of queries."""
    blocks = choice.queries * choice.lists
    if not blocks:
        return ""
    each = choice.kept / blocks
    number = f"{each:,.0f}" if each >= 100 else f"{each:.3g}"
    return f", {number} for each {'query' if choice.rows == 1 else 'block of queries'}"


def kept_text(choice: Choice, form: Form) -> str:
    """What a call holds of a choice until its gradients are taken."""
    if form == "lists":
        if choice.listed is None:
            return "a list of blocks for every query"
        size = 4 * choice.lists * choice.queries * choice.listed
        room = counted(choice.listed, "block")
        return f"a list for every query, with room for {room}: {figure(size, 'B')}"
    pairs = choice.lists * choice.queries * choice.keys
    sums = 4 * choice.lists * (choice.queries + 1) * (choice.keys + 1)
    return f"a table of {figure(pairs, 'B')}, and its sums over rectangles, {figure(sums, 'B')}"


# -- attending --------------------------------------------------------------------------------


def attending_lines(routing: Routing, plan: KernelPlan) -> list[str]:
    """What is computed for the blocks that lists hold.

    plan  of the pairs that the lists add
    """
    (choice,) = routing.choices
    entries, most = choice.entries, "at most "
    if routing.lists is not None:
        entries, most = int((routing.lists >= 0).sum()) * choice.group, ""
        rows = f"{entries:,}"
    else:
        rows = f"at most {shown(entries, choice)}"
        most += "~" if choice.is_sample else ""
    pairs = entries * choice.columns
    lines = [
        f"gathered: the queries that chose a block share its tiles, {rows} rows and "
        f"{most}{figure(pairs, 'pairs')}"
    ]
    if not is_const(plan.program.mask, True):
        lines.append(f"of these take part: `{formula(plan.program.mask)}`")
    if plan.request.backend == "triton":
        tiles, high = tiles_of(choice, routing.lists, plan)
        wide = min(plan.forward.block_n, width_for(choice.columns))
        steps = -(-choice.columns // wide)
        number = f"at most {shown(tiles, choice)}" if routing.lists is None else f"{tiles:,}"
        each = f"in each {counted(steps, 'step')} of {wide} keys"
        lines.append(f"forward: {number} tiles of {high} rows, {each}")
        pairs = tiles * high * steps * wide
    work = 2 * pairs * (plan.request.head_dim + plan.request.value_dim)
    lines.append(
        f"forward: {most}{figure(pairs, 'pairs')} computed, {most}{figure(work, 'FLOP')} in matrix "
        "products"
    )
    if routing.lists is None:
        lines.append("what is really chosen is counted where query= and key= are given")
    return lines


def tiles_of(choice: Choice, lists: Tensor | None, plan: KernelPlan) -> tuple[int, int]:
    """How many tiles the forward kernel has, at most where no lists are given: of each list and
    block the rows that hold it, one for each head where they share tiles. And how many rows a tile
    has."""
    high = plan.forward.block_m
    packed = choice.group if plan.packs_heads else 1
    room = choice.queries * min(choice.listed or choice.keys, choice.keys)  # entries of a list
    if room * packed <= NARROWEST * choice.keys:
        high = min(NARROWEST, high)
    each = choice.group // packed
    if lists is not None:
        return each * tiles_of_lists(lists, choice.keys, high, packed), high
    ends = choice.lists * each * min(choice.keys, room)
    return min(choice.entries, choice.entries // high + ends), high


def tiles_of_lists(lists: Tensor, blocks: int, high: int, packed: int) -> int:
    """Tiles of `high` rows for the entries of each list and block, `packed` rows each."""
    flat = lists.flatten(0, 1).flatten(1).to(torch.int64)
    counts = torch.zeros((flat.shape[0], blocks + 1), dtype=torch.int64, device=flat.device)
    counts.scatter_add_(1, torch.where(flat < 0, blocks, flat), torch.ones_like(flat))
    return int(((counts[:, :blocks] * packed + high - 1) // high).sum())
