"""The operator attndsl::choose, under autograd and torch's tracers; and masks of programs with
selects."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl
from attndsl.diagnostics import ArgumentError
from attndsl.ir.nodes import FALSE, TRUE, Node, chosen, constant, index, make
from attndsl.ir.program import Program
from attndsl.reference import Values, evaluate
from attndsl.runtime.arguments import pack, slots_of
from attndsl.runtime.choosing import choice
from attndsl.runtime.choosing.choice import Choosing, lists_of, tables_of
from attndsl.runtime.choosing.covered import drop_covered, possible_of
from attndsl.runtime.choosing.operator import choose, chosen_blocks
from attndsl.runtime.operators import register
from attndsl.runtime.routed_views import routed_view
from attndsl.runtime.tiles import classify_tiles, facts_of
from attndsl.runtime.views import mask_pairs
from attndsl.transform.route import form_of, route
from tests.oracle.examples import FOLDER
from tests.runtime.choices import Case, by_hand, program_of_case, random_case

Q, K = index("q"), index("k")
CAUSAL = make("le", K, Q)


def own_block(case: Case) -> Node:
    blocks = (make("floordiv", x, constant(case.columns)) for x in (Q, K))
    return make("eq", *blocks)


def arguments_of(case: Case, program: Program, form: str, routed: str = "") -> tuple[Any, ...]:
    """What the operator is called with."""
    inputs = case.inputs
    names = [t.name for t in program.tensors]
    ints, floats = pack(slots_of(program), inputs.scalars)
    place: list[Any] = []
    for offset in (inputs.q_offset, inputs.k_offset):
        place.append((0, offset) if isinstance(offset, Tensor) else (offset, None))
    is_table = form == "table"
    return (
        inputs.query,
        inputs.key,
        [inputs.tensors[name] for name in names],
        ints,
        floats,
        place[0][0],
        place[1][0],
        place[0][1],
        place[1][1],
        inputs.k_len,
        None,
        register(program),
        form,
        routed,
        is_table,
        is_table,
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("form", ["lists", "table"])
def test_opcheck(seed: int, form: str) -> None:
    case = random_case(seed, keep=["top", "given"][seed % 2], rank="gated")
    program = program_of_case(case)
    arguments = arguments_of(case, program, form)
    torch.library.opcheck(choose, arguments)
    found = choose(*arguments)
    choosing = Choosing.of(case.select, case.inputs)
    if form == "lists":
        (lists,) = found
        assert torch.equal(lists, lists_of(choosing))
        return
    table, sums, i0, j0 = found
    assert all(torch.equal(*pair) for pair in zip((table, sums), tables_of(choosing), strict=True))
    for first, axis in ((i0, choosing.rows), (j0, choosing.columns)):
        assert first.dtype == torch.int32
        assert torch.equal(first, torch.zeros_like(first) + axis.first)


def test_no_gradient_passes_and_no_warning_is_given() -> None:
    case = random_case(5, keep="top", rank="gated")
    inputs = case.inputs
    gate = inputs.tensors["gate"].clone().requires_grad_()
    moved = replace(
        inputs,
        query=inputs.query.clone().requires_grad_(),
        key=inputs.key.clone().requires_grad_(),
        tensors=dict(inputs.tensors) | {"gate": gate},
    )
    program = program_of_case(case)
    for form in ("lists", "table"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = choose(*arguments_of(replace(case, inputs=moved), program, form))
        wanted = choose(*arguments_of(case, program, form))
        for x, y in zip(found, wanted, strict=True):
            assert not x.requires_grad and torch.equal(x, y)


def test_compile_and_lengths_that_change() -> None:
    case = random_case(0, keep="top", rank="dot", where="earlier", offsets="int", rows=1, nq=9)
    case = replace(case, select=replace(case.select, per_group=False, limit=constant(2)))
    program = program_of_case(case)
    given = {form: arguments_of(case, program, form) for form in ("lists", "table")}
    torch._dynamo.reset()

    def run(query: Tensor, key: Tensor, form: str) -> list[Tensor]:
        return choose(query * 1.0, key, *given[form][2:9], None, *given[form][10:])

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    sizes = case.inputs.sizes
    for form in ("lists", "table"):
        for n in (9, 12, 23):
            query = torch.randn(sizes["B"], sizes["H"], n, 3, requires_grad=True)
            key = torch.randn(sizes["B"], sizes["Hk"], n + 3, 3)
            for x, y in zip(compiled(query, key, form), run(query, key, form), strict=True):
                assert torch.equal(x, y)


def test_export() -> None:
    case = random_case(0, keep="top", rank="dot", where="all", offsets="none", rows=1, nq=9, nk=20)
    case = replace(case, select=replace(case.select, per_group=False, limit=constant(2)))
    arguments = arguments_of(case, program_of_case(case), "lists")

    class Module(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor) -> list[Tensor]:
            return choose(query, key, *arguments[2:9], None, *arguments[10:])

    length = torch.export.Dim("length", min=2, max=4096)
    exported = torch.export.export(
        Module(),
        (case.inputs.query, case.inputs.key),
        dynamic_shapes={"query": {2: length}, "key": None},
    )
    sizes = case.inputs.sizes
    query = torch.randn(sizes["B"], sizes["H"], 31, 3)
    (found,) = exported.module()(query, case.inputs.key)
    (wanted,) = Module()(query, case.inputs.key)
    assert torch.equal(found, wanted) and found.shape[2] == 31


# Entries that the rest of the mask covers


@pytest.mark.parametrize("seed", range(24))
def test_covered_blocks_are_not_listed(seed: int) -> None:
    case = random_case(seed, keep=["top", "given"][seed % 2], rows=1, nq=14, nk=20)
    leaf = chosen(case.select.name)
    either = make("or", leaf, own_block(case))
    window = make("lt", make("sub", Q, K), constant(4))
    mask = [
        make("and", either, CAUSAL),
        make("and", make("or", leaf, window), CAUSAL),
        make("or", leaf, CAUSAL),
        make("and", leaf, make("le", index("h"), K)),
    ][seed % 4]
    program = program_of_case(case, mask)
    routed = route(program, "lists").routed
    assert form_of(program) == "lists" and routed is not None
    choosing = Choosing.of(case.select, case.inputs)
    whole = lists_of(choosing)
    lists = whole.clone()
    drop_covered(lists, routed, choosing)
    adds = added_pairs(case, routed.mask, choosing)
    kept = lists >= 0
    assert torch.equal(lists[kept], whole[kept])
    at = whole.clamp(min=0).long()
    needed = adds.gather(3, at) & (whole >= 0)
    assert not (needed & ~kept).any()
    # Here the facts of a tile of one row miss nothing.
    assert torch.equal(needed, kept)
    operated = choose(*arguments_of(case, program, "lists", register(route(program, "lists"))))
    assert torch.equal(operated[0], lists)


@pytest.mark.parametrize("name", ["moba", "nsa_selected", "quest"])
def test_lists_are_not_searched_for_what_is_proved(name: str) -> None:
    """Every candidate has pairs that nothing else in the mask has."""
    routed = route(attndsl.compile(FOLDER / f"{name}.attn").program, "lists").routed
    assert routed is not None and possible_of(routed.mask, routed.where) is TRUE


def added_pairs(case: Case, mask: Node, choosing: Choosing) -> Tensor:
    """Whether a row has a pair of the mask in a block: bool [B, choosing heads, Nq, blocks]."""
    inputs, sizes = case.inputs, case.inputs.sizes
    batches = torch.arange(sizes["B"])[:, None, None, None]
    starts = [x.view(-1, 1, 1, 1) if isinstance(x, Tensor) else x for x in offsets_of(case)]
    values = Values(torch.float32, torch.device("cpu"), sizes, inputs.scalars, inputs.tensors, {})
    values.leaves["b"], values.leaves["h"] = batches, torch.arange(sizes["H"])[:, None, None]
    values.leaves["q"] = torch.arange(sizes["Nq"])[:, None] + starts[0]
    k = torch.arange(sizes["Nk"]) + starts[1]
    values.leaves["k"] = k
    shape = (sizes["B"], sizes["H"], sizes["Nq"], sizes["Nk"])
    pairs = evaluate(mask, values).expand(shape)
    if inputs.k_len is not None:
        pairs = pairs & (torch.arange(sizes["Nk"]) < inputs.k_len[:, None, None, None])
    first = choosing.columns.first
    first = first.view(-1, 1, 1, 1) if isinstance(first, Tensor) else first
    numbers = (torch.div(k, case.columns, rounding_mode="floor") - first).expand(shape)
    adds = torch.zeros(*shape[:3], choosing.columns.count, dtype=torch.int32)
    adds = adds.scatter_add(3, numbers, pairs.int()) > 0
    if case.select.per_group:
        adds = torch.unflatten(adds, 1, (sizes["Hk"], sizes["G"])).any(2)
    return adds


def offsets_of(case: Case) -> tuple[int | Tensor, int | Tensor]:
    return case.inputs.q_offset, case.inputs.k_offset


# attn.select, attn.mask and attn.tiles


def test_chosen_blocks_by_name() -> None:
    case = random_case(3, keep="top", offsets="none")
    program = program_of_case(case)
    one = chosen_blocks(program, case.inputs)
    assert isinstance(one, Tensor)
    other = replace(case.select, name="other")
    both = chosen_blocks(replace(program, selects=(case.select, other)), case.inputs)
    assert isinstance(both, dict) and list(both) == ["picked", "other"]
    assert torch.equal(both["other"], one)
    with pytest.raises(ArgumentError, match="picking has no select"):
        chosen_blocks(replace(program, selects=(), mask=FALSE), case.inputs)


@pytest.mark.parametrize("seed", range(24))
def test_mask_and_tiles(seed: int) -> None:
    case = random_case(seed)
    program = program_of_case(case, make("or", chosen("picked"), make("eq", K, Q)))
    inputs, sizes = case.inputs, case.inputs.sizes
    given = {t.name: inputs.tensors[t.name] for t in program.tensors} | {"n": case.columns}
    routed, seen = routed_view(
        program,
        slots_of(program),
        dict.fromkeys(("Nq", "Nk", "B", "H", "Hk", "D")),
        inputs.q_offset,
        inputs.k_offset,
        inputs.k_len,
        given,
        inputs.query,
        inputs.key,
    )
    found = mask_pairs(routed, seen)
    wanted = pairs_by_hand(case)
    assert torch.equal(found.expand(wanted.shape), wanted)
    tiles = classify_tiles(facts_of(routed, seen.is_aligned), seen, (4, 4))
    for row in range(tiles.shape[2]):
        for column in range(tiles.shape[3]):
            part = wanted[:, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
            tile = tiles[:, :, row, column].expand(sizes["B"], sizes["H"])
            assert not (part.flatten(2).any(2) & (tile == 0)).any()
            assert not (~part.flatten(2).all(2) & (tile == 2)).any()


def pairs_by_hand(case: Case) -> Tensor:
    inputs, sizes = case.inputs, case.inputs.sizes
    chosen_of = by_hand(case)
    pairs = torch.zeros(sizes["B"], sizes["H"], sizes["Nq"], sizes["Nk"], dtype=torch.bool)
    for b in range(sizes["B"]):
        q0, k0 = (int(x[b]) if isinstance(x, Tensor) else x for x in offsets_of(case))
        length = sizes["Nk"] if inputs.k_len is None else int(inputs.k_len[b])
        for h in range(sizes["H"]):
            head = h // sizes["G"] if case.select.per_group else h
            for r in range(sizes["Nq"]):
                blocks = chosen_of[b, head, (q0 + r) // case.rows - q0 // case.rows]
                for c in range(length):
                    is_chosen = (k0 + c) // case.columns in blocks
                    pairs[b, h, r, c] = is_chosen or q0 + r == k0 + c
    return pairs


def test_a_mask_with_selects_needs_query_and_key() -> None:
    case = random_case(0, offsets="none")
    program = program_of_case(case)
    sizes = {"Nq": 4, "Nk": 4}
    call = (program, slots_of(program), sizes, 0, 0, None, {})
    with pytest.raises(ArgumentError, match="query, key: the mask of `picking` depends on what"):
        routed_view(*call)
    with pytest.raises(ArgumentError, match="Nq: 4 is given, but query and key have"):
        routed_view(*call, torch.zeros(1, 2, 5, 3), torch.zeros(1, 2, 4, 3))


def test_a_bounded_number_is_listed_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory goes with what is chosen, also where every head has its own number."""
    attention = attndsl.compile(
        text="attention a(n: int[H], most: int):\n    select s[i = q, j = k // 4]:\n"
        "        rank dot(query, mean(key))\n        keep top min(n[h], most)\n    mask s\n"
    )
    query, key = torch.randn(1, 3, 10, 8), torch.randn(1, 3, 30, 8)
    n = torch.tensor([0, 2, 9])
    every = attention.select(query, key, n=n, most=8)
    monkeypatch.setattr(choice, "tables_of", None)
    found = attention.select(query, key, n=n, most=4)
    assert found.shape == (1, 3, 10, 4)
    assert (found >= 0).sum(3).unique(dim=2).flatten().tolist() == [0, 2, 4]
    assert torch.equal(found[:, :2, :, :2], every[:, :2, :, :2])
