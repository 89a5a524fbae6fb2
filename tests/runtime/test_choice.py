"""Choosing against loops over plain numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attndsl.diagnostics import ArgumentError
from attndsl.ir.nodes import constant, make, total
from attndsl.ir.nodes import pooled as pooled_node
from attndsl.runtime.choosing import blocks as choice_blocks
from attndsl.runtime.choosing import choice
from attndsl.runtime.choosing import ranks as choice_ranks
from attndsl.runtime.choosing.choice import Choosing, lists_of, public_list, rectangles, tables_of
from attndsl.runtime.choosing.totals import products_of
from tests.codegen.test_capture import META, watched
from tests.runtime.choices import RANKS, Case, by_hand, random_case


def sets_of(lists: Tensor, case: Case) -> dict[tuple[int, int, int], list[int]]:
    """Lists of numbers as absolute indices, checked to rise with -1 behind."""
    found = {}
    for b in range(lists.shape[0]):
        offset = case.inputs.k_offset
        first = (int(offset[b]) if isinstance(offset, Tensor) else offset) // case.columns
        for h in range(lists.shape[1]):
            for i in range(lists.shape[2]):
                row = lists[b, h, i].tolist()
                numbers = [n for n in row if n >= 0]
                assert row == numbers + [-1] * (len(row) - len(numbers))
                assert numbers == sorted(set(numbers))
                found[b, h, i] = [first + n for n in numbers]
    return found


def check(case: Case) -> None:
    wanted = by_hand(case)
    choosing = Choosing.of(case.select, case.inputs)
    table, sums = tables_of(choosing)
    wide = table.shape[3]
    numbers = torch.where(table, torch.arange(wide), wide).sort(-1).values
    found = sets_of(torch.where(numbers == wide, -1, numbers), case)
    # Blocks of queries without a row, of other batches' offsets, may hold anything.
    assert {at: found[at] for at in wanted} == wanted
    padded = torch.nn.functional.pad(table.long().cumsum(2).cumsum(3), (1, 0, 1, 0))
    assert sums.dtype == torch.int32 and torch.equal(sums.long(), padded)
    if case.select.keep in ("top", "given"):
        lists = lists_of(choosing)
        assert lists.dtype == torch.int32 and lists.shape[3] >= 1
        found = sets_of(lists, case)
        assert {at: found[at] for at in wanted} == wanted


@pytest.mark.parametrize("seed", range(120))
def test_random_selects(seed: int) -> None:
    check(random_case(seed))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("per_group", [False, True])
def test_ranks(rank: str, per_group: bool) -> None:
    for seed in range(4):
        check(random_case(seed, rank=rank, per_group=per_group, keep="top", nk=20, where="all"))


@pytest.mark.parametrize("keep", ["top", "top by row", "above", "mass", "given"])
@pytest.mark.parametrize("offsets", ["none", "int", "tensor"])
def test_keeps(keep: str, offsets: str) -> None:
    for seed in range(6):
        check(random_case(seed, keep=keep, offsets=offsets, ties=True, nk=20, columns=2))


@pytest.mark.parametrize("keep", ["top", "top by row", "above", "mass"])
def test_infinite_ranks_and_those_that_are_no_number(keep: str) -> None:
    for seed in range(12):
        check(random_case(seed, keep=keep, rank="gate", special=True, nk=20, where="all"))


@pytest.mark.parametrize("keep", ["top", "mass", "given"])
def test_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch, keep: str) -> None:
    for name in ("MOST_RANKS", "MOST_RANKS_CPU", "MOST_LISTED"):
        monkeypatch.setattr(choice, name, 1)
    monkeypatch.setattr(choice, "MOST_SUMMED", 1)
    monkeypatch.setattr(choice_ranks, "MOST_TERMS_CPU", 1)
    monkeypatch.setattr(choice_blocks, "MOST_WIDENED_CPU", 5)
    monkeypatch.setattr(choice_blocks, "MOST_GATHERED", 1)
    for seed in range(12):
        check(random_case(seed, keep=keep, nq=14, nk=20))
    check(random_case(0, keep=keep, rank="apart", nq=14, nk=20))


def test_ranks_are_never_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "MOST_RANKS_CPU", 4096)
    case = random_case(1, keep="top", rank="dot", where="earlier", rows=1, offsets="none")
    case = replace(case, inputs=with_length(case, 512))
    held = []
    rank = choice_ranks.Evaluation.rank

    def recorded(*args: object) -> Tensor:
        found = rank(*args)  # type: ignore[arg-type]
        held.append(found.numel())
        return found

    monkeypatch.setattr(choice_ranks.Evaluation, "rank", recorded)
    choosing = Choosing.of(case.select, case.inputs)
    lists_of(choosing)
    assert max(held) <= 4096
    # Later blocks cannot be chosen, and are not ranked.
    sizes = case.inputs.sizes
    pairs = sizes["B"] * sizes["H"] * 512 * choosing.columns.count
    assert sum(held) < 0.7 * pairs


def with_length(case: Case, length: int) -> choice_ranks.Inputs:
    """The inputs with as many queries and keys, and blocks of single keys."""
    inputs = case.inputs
    sizes = dict(inputs.sizes) | {"Nq": length, "Nk": length}
    query = torch.randn(sizes["B"], sizes["H"], length, sizes["D"])
    key = torch.randn(sizes["B"], sizes["Hk"], length, sizes["D"])
    return replace(inputs, query=query, key=key, k_len=None, sizes=sizes, scalars={"n": 1})


def on_meta(inputs: choice_ranks.Inputs) -> choice_ranks.Inputs:
    """The same call for a device."""

    def moved(x: object) -> object:
        return x.to(META) if isinstance(x, Tensor) else x

    names = ("query", "key", "q_offset", "k_offset", "k_len")
    tensors = {name: tensor.to(META) for name, tensor in inputs.tensors.items()}
    place: dict[str, Any] = {name: moved(getattr(inputs, name)) for name in names}
    return replace(inputs, tensors=tensors, **place)


class Launches(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("keep", ["top", "given"])
def test_a_device_is_not_kept_busy_with_launches(keep: str) -> None:
    """What a GPU computes in no time is not cut, and nothing is made that no expression reads."""
    case = random_case(1, keep=keep, rank="dot", where="earlier", rows=1, offsets="none")
    if keep == "top":
        case = replace(case, inputs=with_length(case, 512))
        assert len(list(rectangles(Choosing.of(case.select, case.inputs)))) >= 8
    choosing = Choosing.of(case.select, on_meta(case.inputs))
    with Launches() as launches:
        lists_of(choosing)
    assert launches.count <= 60
    assert keep == "given" or len(list(rectangles(choosing))) == 1


def test_tables_whose_sums_may_not_fit_are_refused() -> None:
    case = random_case(3, keep="top", rank="dot", rows=1, columns=1, offsets="none")
    inputs = on_meta(replace(case.inputs, k_len=None))
    length, sizes = 2**16, case.inputs.sizes
    query, key = (x[:, :, :1].expand(-1, -1, length, -1) for x in (inputs.query, inputs.key))
    sizes = dict(sizes) | {"Nq": length, "Nk": length}
    wide = replace(inputs, query=query, key=key, sizes=sizes)
    with pytest.raises(ArgumentError, match="65536 blocks of queries by 65536 of keys"):
        tables_of(Choosing.of(case.select, wide))


@pytest.mark.parametrize(
    ("capability", "precision", "dtype"),
    [
        ((9, 0), "tf32", torch.float64),
        ((8, 9), "none", torch.float32),
        ((8, 9), "ieee", torch.float32),
        ((8, 9), "tf32", torch.float64),
    ],
)
def test_products_are_never_rounded_to_less_than_float32(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: str, dtype: object
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        assert choice_ranks.product_dtype(torch.device("cuda")) == dtype
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("where", ["earlier", "near", "none"])
def test_only_blocks_that_may_be_candidates_are_ranked(where: str) -> None:
    case = random_case(3, keep="top", where=where, rows=1, columns=1, offsets="int")
    case = replace(case, inputs=with_length(case, 64))
    choosing = Choosing.of(case.select, case.inputs)
    ranked = torch.zeros(64, 64, dtype=torch.bool)
    for rows, columns in rectangles(choosing):
        ranked[rows, columns] = True
    i = torch.arange(64)[:, None] + case.inputs.q_offset
    j = torch.arange(64) + case.inputs.k_offset
    may = {"earlier": j < i, "near": i - j <= 2, "none": (i < j) & (j < i)}[where]
    assert not (may & ~ranked).any()
    assert (ranked.sum() == 0) == (where == "none")


def test_equal_keys_have_equal_ranks_in_blocks_of_any_length() -> None:
    case = random_case(0, rank="dot", keep="top", where="all", group=1, per_group=False)
    inputs = case.inputs
    torch.manual_seed(0)
    key = torch.randn(1, 1, 1, 64).expand(2, inputs.sizes["Hk"], 1000, 64)
    query = torch.randn(2, inputs.sizes["H"], 33, 64)
    sizes = dict(inputs.sizes) | {"Nq": 33, "Nk": 1000, "D": 64}
    inputs = replace(inputs, query=query, key=key, sizes=sizes, scalars={"n": 7})
    inputs = replace(inputs, q_offset=0, k_offset=3, k_len=torch.tensor([1000, 991]))
    select = replace(case.select, rows=constant(1), limit=constant(4))
    lists = lists_of(Choosing.of(select, inputs))
    assert torch.equal(lists, torch.arange(4, dtype=torch.int32).expand_as(lists))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    for seed in range(8):
        case = random_case(seed)
        inputs = case.inputs
        query, key = inputs.query.to(dtype), inputs.key.to(dtype)
        check(replace(case, inputs=replace(inputs, query=query, key=key)))


def test_keys_beyond_k_len_do_not_count_whatever_they_hold() -> None:
    for seed in range(12):
        case = random_case(seed, keep="top", nk=13)
        inputs = replace(case.inputs, k_len=torch.tensor([5, 8]))
        key = inputs.key.clone()
        wanted = by_hand(replace(case, inputs=inputs))
        key[0, :, 5:], key[1, :, 8:] = torch.nan, torch.inf
        changed = replace(case, inputs=replace(inputs, key=key))
        assert by_hand(changed) == wanted
        check(changed)


def test_infinite_keys_have_the_bounds_that_they_have() -> None:
    for seed in range(8):
        case = random_case(seed, keep="top", rank="quest", where="all", per_group=False)
        key = case.inputs.key.clone()
        key[:, :, ::3, 0] = torch.inf
        key[:, :, 1::4, 1] = -torch.inf
        query = case.inputs.query.clone()
        query[query == 0] = 1.0  # inf * 0
        case = replace(case, inputs=replace(case.inputs, key=key, query=query.abs()))
        check(replace(case, rank=lambda v, at: quest_by_sum(v)))


def quest_by_sum(v: dict[str, list[float]]) -> float:
    q, a, b = (torch.tensor(v[name]) for name in ("query_max", "key_max", "key_min"))
    return float(torch.maximum(q * a, q * b).double().sum())


@pytest.mark.parametrize("name", ["dot", "quest", "least", "difference"])
def test_sums_of_products_are_found(name: str) -> None:
    node = RANKS[name][0]
    assert node.op == "total"
    products = products_of(node.args[0])
    assert products
    for product in products:
        assert "j" not in product.x.varies and "i" not in product.y.varies


def test_what_is_no_product_is_none() -> None:
    x, y = pooled_node("query_mean"), pooled_node("key_mean")
    assert products_of(make("max", make("mul", x, y), x)) is None
    assert products_of(make("relu", make("mul", x, y))) is None
    assert products_of(make("mul", make("add", x, y), y)) is None
    # max(x * y, x * x): the rest of the second is no column.
    assert products_of(make("max", make("mul", x, y), make("mul", x, x))) is None
    assert total(x).varies == {"b", "h", "i"}


@pytest.mark.parametrize("sizes", [{"Nq": 0}, {"Nk": 0}, {"B": 0}])
@pytest.mark.parametrize("keep", ["top", "given", "mass"])
def test_nothing_to_choose_from(sizes: dict[str, int], keep: str) -> None:
    case = random_case(2, keep=keep, offsets="none", nq=5, nk=6, rows=1, columns=1)
    known = dict(case.inputs.sizes) | sizes
    query = torch.randn(known["B"], known["H"], known["Nq"], 3)
    key = torch.randn(known["B"], known["Hk"], known["Nk"], 3)
    listed = torch.zeros(known["B"], known["H"], known["Nq"], 2, dtype=torch.int64)
    tensors = dict(case.inputs.tensors) | {"listed": listed}
    inputs = replace(case.inputs, query=query, key=key, k_len=None, sizes=known, tensors=tensors)
    select = replace(case.select, per_group=False)
    choosing = Choosing.of(select, inputs)
    table, sums = tables_of(choosing)
    assert not table.any() and not sums.any()
    assert table.shape == (known["B"], known["H"], known["Nq"], known["Nk"])
    assert sums.shape == (known["B"], known["H"], known["Nq"] + 1, known["Nk"] + 1)
    lists = public_list(choosing)
    assert lists.shape[:3] == table.shape[:3] and lists.shape[3] >= 1 and (lists == -1).all()


@pytest.mark.parametrize("keep", ["top", "top by row", "above", "mass", "given"])
def test_given_takes_what_is_chosen(keep: str) -> None:
    for seed in range(12):
        case = random_case(seed, keep=keep)
        if not isinstance(case.inputs.k_offset, Tensor) and case.inputs.k_offset < 0:
            case = replace(case, inputs=replace(case.inputs, k_offset=2))
        choosing = Choosing.of(case.select, case.inputs)
        found = public_list(choosing)
        wanted = by_hand(case)
        rows = {at: [j for j in found[at].tolist() if j >= 0] for at in wanted}
        assert rows == wanted
        if keep in ("above", "mass", "top by row"):
            table, _ = tables_of(choosing)
            assert found.shape[3] == max(1, int(table.sum(3).max()))
        tensors = dict(case.inputs.tensors) | {"listed": found}
        again = replace(
            case.select,
            keep="given",
            rank=None,
            limit=None,
            given="listed",
            where=case.select.where,
        )
        repeated = Choosing.of(again, replace(case.inputs, tensors=tensors))
        assert torch.equal(tables_of(repeated)[0], tables_of(choosing)[0])


def test_negative_indices_are_refused() -> None:
    case = random_case(0, offsets="none")
    for offset in (-1, torch.tensor([2, -1])):
        with pytest.raises(ArgumentError, match="k_offset: keys before position 0"):
            public_list(Choosing.of(case.select, replace(case.inputs, k_offset=offset)))


def test_blocks_need_a_position() -> None:
    case = random_case(0)
    with pytest.raises(ArgumentError, match="the blocks of `picked` have 0 positions"):
        Choosing.of(case.select, replace(case.inputs, scalars={"n": 0}))


def test_given_needs_a_row_for_every_block_of_queries() -> None:
    case = random_case(0, keep="given", nq=14, rows=4, offsets="none")
    listed = case.inputs.tensors["listed"][:, :, 1:]
    tensors = dict(case.inputs.tensors) | {"listed": listed}
    with pytest.raises(ArgumentError, match="listed: `picked` has 4 blocks of queries"):
        Choosing.of(case.select, replace(case.inputs, tensors=tensors))


@pytest.mark.parametrize("seed", range(40))
def test_nothing_waits_for_the_device(seed: int) -> None:
    case = random_case(seed)
    there = on_meta(case.inputs)
    wanted = tables_of(Choosing.of(case.select, case.inputs))
    with watched():
        choosing = Choosing.of(case.select, there)
        found = tables_of(choosing)
        if case.select.keep in ("top", "given"):
            lists = lists_of(choosing)
            assert lists.shape[:3] == found[0].shape[:3]
    assert [x.shape for x in found] == [x.shape for x in wanted]
