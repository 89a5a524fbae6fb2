"""Choosing in one kernel, interpreted, against loops and against tensor operations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl
from attndsl import backend
from attndsl.ir.nodes import TRUE, Node, constant, index, lookup, make, scalar, size
from attndsl.report.compiled.compile import Job, compile_jobs
from attndsl.runtime import cache
from attndsl.runtime.choosing import fused as choice_fused
from attndsl.runtime.choosing.choice import Choosing, lists_of, tables_of
from attndsl.runtime.choosing.fused import Fused, segment_of_row
from attndsl.runtime.choosing.ranks import Evaluation, Inputs
from tests.oracle.examples import FOLDER, Sizes, example_inputs
from tests.runtime.choices import RANKS, Case, by_hand, random_case

PRODUCTS = ("dot", "quest", "least", "difference")
RANGES = ("all", "earlier", "near")
ROW, COLUMN = index("i"), index("j")


class Uses:
    """How often the kernel was taken."""

    count = 0


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch) -> Iterator[Uses]:
    """The kernel serves the CPU, however few rows there are."""
    found = Uses()
    write = Fused.write

    def counted(fused: Fused, lists: Tensor) -> None:
        found.count += 1
        write(fused, lists)

    monkeypatch.setattr(choice_fused, "has_kernel", lambda device: True)
    monkeypatch.setattr(choice_fused, "LEAST_ROWS", 1)
    monkeypatch.setattr(Fused, "write", counted)
    yield found


def by_operations(choosing: Choosing) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice_fused, "has_kernel", lambda device: False)
        return lists_of(choosing)


def check(case: Case) -> None:
    """Lists and tables of the kernel are what loops find, of blocks whose means are whole."""
    query, key = 12 * case.inputs.query, 12 * case.inputs.key
    case = replace(case, inputs=replace(case.inputs, query=query, key=key))
    choosing = Choosing.of(case.select, case.inputs)
    lists = lists_of(choosing)
    assert torch.equal(lists, by_operations(choosing))
    offset = case.inputs.k_offset
    for (b, h, i), wanted in by_hand(case).items():
        first = (int(offset[b]) if isinstance(offset, Tensor) else offset) // case.columns
        row = lists[b, h, i].tolist()
        assert row == [j - first for j in wanted] + [-1] * (len(row) - len(wanted))
    table, _ = tables_of(choosing)
    wide = table.shape[3]
    numbers = torch.where(lists < 0, wide, lists).long()
    again = torch.zeros((*table.shape[:3], wide + 1), dtype=torch.bool)
    assert torch.equal(table, again.scatter_(-1, numbers, True)[..., :wide])


@pytest.mark.parametrize("rank", PRODUCTS)
@pytest.mark.parametrize("where", RANGES)
def test_random_selects(uses: Uses, rank: str, where: str) -> None:
    for seed in range(8):
        case = random_case(seed, keep="top", rank=rank, where=where)
        used = 0 if case.select.limit in (constant(-1), constant(0)) else 2
        before = uses.count
        check(case)
        assert uses.count - before == used


@pytest.mark.parametrize("group", [1, 2, 3, 8])
@pytest.mark.parametrize("per_group", [False, True])
def test_groups(uses: Uses, group: int, per_group: bool) -> None:
    for seed in range(4):
        fixed = {"group": group, "per_group": per_group, "offsets": "tensor", "where": "earlier"}
        check(limited(random_case(seed, keep="top", rank="dot", nk=20, **fixed), 3))
    assert uses.count


def limited(case: Case, count: int) -> Case:
    """The case with another number of blocks to keep."""
    select = replace(case.select, limit=constant(count))
    return replace(case, select=select, limit=lambda at: count)


def long_case(count: int, seed: int = 0, where: str = "earlier", **fixed: Any) -> Case:
    """Several tiles of rows and of columns, of blocks that are short at the end."""
    torch.manual_seed(seed)
    shape = {"B": 2, "Hk": 2, "G": fixed.get("group", 1), "Nq": 40, "Nk": 329, "D": 19}
    shape |= fixed.get("sizes", {})
    sizes = {**shape, "H": shape["Hk"] * shape["G"]}
    case = random_case(1, keep="top", rank="dot", where=where, offsets="none", rows=1, columns=3)
    high = fixed.get("high", 9)

    def integers(heads: int, length: int) -> Tensor:
        return torch.randint(-high, high + 1, (sizes["B"], heads, length, sizes["D"])).float()

    query = integers(sizes["H"], sizes["Nq"]).to(fixed.get("dtype", torch.float32))
    # Whole means, whatever is added first.
    key = 6 * integers(sizes["Hk"], sizes["Nk"]).to(query.dtype)
    offset = fixed.get("q_offset", 60)
    inputs = Inputs(query, key, offset, 0, fixed.get("k_len"), sizes, {"n": 3}, {})
    per_group = fixed.get("per_group", False)
    select = replace(case.select, per_group=per_group)
    rank = RANKS[fixed.get("rank", "dot")][0]
    select = replace(select, rank=rank, rows=constant(fixed.get("rows", 1)))
    return limited(replace(case, select=select, inputs=inputs), count)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 64])
def test_several_tiles(uses: Uses, count: int) -> None:
    for high in (9, 0):  # all ranks are equal
        case = long_case(count, high=high)
        choosing = Choosing.of(case.select, case.inputs)
        lists = lists_of(choosing)
        assert lists.shape[3] == count and uses.count
        assert torch.equal(lists, by_operations(choosing))
        if high == 0:
            first = torch.arange(count, dtype=torch.int32)
            assert torch.equal(lists[:, :, 30], first.expand_as(lists[:, :, 30]))


@pytest.mark.parametrize(
    "fixed",
    [
        {"group": 3, "per_group": True},
        {"group": 2, "rank": "quest", "sizes": {"D": 16}},
        {"rank": "quest", "rows": 2, "per_group": True, "group": 2},
        {"dtype": torch.bfloat16, "sizes": {"D": 32}},
        {"dtype": torch.float16},
        {"dtype": torch.float64},
        {"rows": 4, "sizes": {"D": 32}},
        {"k_len": torch.tensor([329, 100])},
        {"k_len": torch.tensor([0, 328])},
        {"q_offset": torch.tensor([3, 99])},
        {"where": "all", "sizes": {"Nk": 64}},
    ],
)
def test_calls(uses: Uses, fixed: dict[str, Any]) -> None:
    case = long_case(5, **fixed)
    choosing = Choosing.of(case.select, case.inputs)
    assert torch.equal(lists_of(choosing), by_operations(choosing))
    assert uses.count == 1


def test_some_rows_at_a_time(uses: Uses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice_fused, "MOST_VECTORS", 1)
    for rank in ("dot", "quest"):
        case = long_case(5, rank=rank, rows=2)
        choosing = Choosing.of(case.select, case.inputs)
        assert torch.equal(lists_of(choosing), by_operations(choosing))
    assert uses.count == 2


def test_any_strides(uses: Uses) -> None:
    case = long_case(4, group=2, sizes={"D": 32})
    wanted = lists_of(Choosing.of(case.select, case.inputs))
    query, key = case.inputs.query, case.inputs.key
    by_rows = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key)]
    shifted = [torch.cat([x[..., :1], x], -1)[..., 1:] for x in (query, key)]
    across = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (query, key)]
    for one, other in (by_rows, shifted, across):
        inputs = replace(case.inputs, query=one, key=other)
        assert torch.equal(lists_of(Choosing.of(case.select, inputs)), wanted)
    assert uses.count == 4


def test_one_tensor_as_queries_and_keys(uses: Uses) -> None:
    case = long_case(4, sizes={"Nq": 70, "Nk": 70})
    inputs = replace(case.inputs, key=case.inputs.query, q_offset=0)
    select = replace(case.select, columns=constant(1))
    choosing = Choosing.of(select, inputs)
    assert torch.equal(lists_of(choosing), by_operations(choosing))
    assert uses.count == 1


def test_numbers_that_are_no_integers(uses: Uses) -> None:
    """Away from rounding: the least rank that is kept is above the best that is not."""
    case = long_case(6, group=2, per_group=True)
    torch.manual_seed(3)
    inputs = case.inputs
    inputs = replace(inputs, query=torch.randn_like(inputs.query), key=torch.randn_like(inputs.key))
    choosing = Choosing.of(case.select, inputs)
    found, wanted = lists_of(choosing), by_operations(choosing)
    evaluation = Evaluation(inputs, choosing.rows, choosing.columns)
    rows, columns = (slice(0, axis.count) for axis in (choosing.rows, choosing.columns))
    assert case.select.rank is not None
    ranks = evaluation.rank(case.select.rank, True, rows, columns)[:, :, 0]
    at = inputs.q_offset + torch.arange(choosing.rows.count)[:, None]
    ranks = ranks.masked_fill(torch.arange(choosing.columns.count) >= at, -math.inf)
    falling = ranks.sort(-1, descending=True).values
    is_clear = falling[..., 5] - falling[..., 6] > 1e-4
    assert is_clear.float().mean() > 0.9
    assert torch.equal(found[is_clear], wanted[is_clear])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("per_group", [False, True])
def test_infinite_ranks_and_those_that_are_no_number(uses: Uses, per_group: bool) -> None:
    odd = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -2.0, 3.0, -1.0, 2.0])
    for seed in range(3):
        case = long_case(8, group=2, per_group=per_group, seed=seed, sizes={"D": 2, "Nq": 40})
        inputs = case.inputs
        key = odd[torch.randint(0, len(odd), inputs.key.shape)]
        query = odd[torch.randint(3, len(odd), inputs.query.shape)]
        inputs = replace(inputs, query=query, key=key)
        choosing = Choosing.of(replace(case.select, columns=constant(1)), inputs)
        lists = lists_of(choosing)
        assert torch.equal(lists, by_operations(choosing))
    key = torch.full_like(inputs.key, math.nan)
    choosing = Choosing.of(case.select, replace(inputs, key=key))
    assert (lists_of(choosing) == -1).all() and uses.count == 4


def test_fewer_candidates_than_are_kept(uses: Uses) -> None:
    case = long_case(7, q_offset=0, sizes={"Nq": 20, "Nk": 60})
    lists = lists_of(Choosing.of(case.select, case.inputs))
    for i in range(7):
        assert lists[0, 0, i].tolist() == [*range(i), *[-1] * (7 - i)]
    case = long_case(60, where="all", sizes={"Nq": 20, "Nk": 60})  # of 20
    lists = lists_of(Choosing.of(case.select, case.inputs))
    assert torch.equal(lists, torch.arange(20, dtype=torch.int32).expand_as(lists))
    assert uses.count == 2


# What the kernel is for


def wheres() -> dict[str, Node]:
    earlier = make("lt", COLUMN, make("floordiv", ROW, scalar("m", "int")))
    two = make("eq", make("floormod", COLUMN, constant(2)), constant(0))
    return {
        "scalar": earlier,
        "between": make("and", make("lt", constant(0), COLUMN), earlier),
        "every": TRUE,
        "apart": make("or", make("lt", COLUMN, constant(2)), make("eq", COLUMN, ROW)),
        "even": make("and", two, earlier),
        "table": lookup("open", "bool", COLUMN),
        "heads": make("le", make("floordiv", index("h"), size("G")), COLUMN),
    }


@pytest.mark.parametrize(
    ("name", "is_range"),
    [
        ("scalar", True),
        ("between", True),
        ("every", True),
        ("apart", False),
        ("even", False),
        ("table", False),
        ("heads", False),
    ],
)
def test_candidates_must_be_one_range_of_every_row(uses: Uses, name: str, is_range: bool) -> None:
    case = long_case(3, where="all")
    select = replace(case.select, where=wheres()[name])
    tensors = {"open": torch.rand(150) < 0.5}
    for m in (1, 2, 50):
        inputs = replace(case.inputs, scalars={"n": 3, "m": m}, tensors=tensors)
        choosing = Choosing.of(select, inputs)
        evaluation = Evaluation(inputs, choosing.rows, choosing.columns)
        fused = Fused.of(select, evaluation, 3)
        assert (fused is not None) == is_range
        if fused is None:
            continue
        low, high = fused.ranges()
        every = slice(0, choosing.columns.count)
        holds = evaluation.value(select.where, slice(0, choosing.rows.count), every)
        at = torch.arange(choosing.columns.count)
        inside = (at >= low[..., None]) & (at < high[..., None])
        assert torch.equal(inside, holds.expand_as(inside[:, None, None])[:, 0, 0])


def test_a_divisor_below_1_leaves_it_to_operations(uses: Uses) -> None:
    case = long_case(3)
    select = replace(case.select, where=wheres()["scalar"])
    for m in (0, -3):
        inputs = replace(case.inputs, scalars={"n": 3, "m": m})
        choosing = Choosing.of(select, inputs)
        evaluation = Evaluation(inputs, choosing.rows, choosing.columns)
        assert segment_of_row(select.where) is not None
        assert Fused.of(select, evaluation, 3) is None


@pytest.mark.parametrize("rank", ["gate", "gated", "apart", "parity"])
def test_other_ranks_are_left_to_operations(uses: Uses, rank: str) -> None:
    case = random_case(0, keep="top", rank=rank, where="all")
    lists_of(Choosing.of(case.select, case.inputs))
    assert not uses.count


def test_few_rows_and_many_kept_are_left_to_operations(
    uses: Uses, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in (long_case(65), long_case(0)):
        lists_of(Choosing.of(case.select, case.inputs))
    monkeypatch.undo()
    case = long_case(4)
    assert not choice_fused.has_kernel(case.inputs.device)
    lists_of(Choosing.of(case.select, case.inputs))
    assert not uses.count


@pytest.mark.parametrize("name", ["moba", "quest", "landmark", "biformer"])
def test_examples(uses: Uses, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A call and `select` choose alike, and as tensor operations do."""
    query, key, value, inputs = example_inputs(name, Sizes(1, 2, 1, 90, 16, 16))
    attention = attndsl.compile(FOLDER / f"{name}.attn", backend="torch", **inputs.consts)
    given = {"query": query.float(), "key": key.float(), **inputs.arguments}
    chosen = attention.select(**given, **inputs.call)
    assert uses.count == 1
    out = attention(value=value.float(), **given, **inputs.call)
    assert uses.count == 2
    monkeypatch.setattr(choice_fused, "has_kernel", lambda device: False)
    assert torch.equal(chosen, attention.select(**given, **inputs.call))
    assert torch.equal(out, attention(value=value.float(), **given, **inputs.call))
    assert uses.count == 2


def test_the_kernel_is_kept_on_disk(own_cache: Path) -> None:
    first = cache.fixed_module("triton.choosing")
    assert cache.fixed_module("triton.choosing") is first
    (path,) = own_cache.iterdir()
    text = path.read_bytes()
    cache.forget()
    assert cache.fixed_module("triton.choosing") is not first
    path.write_bytes(text + b"raise SystemExit")
    cache.forget()
    cache.fixed_module("triton.choosing")
    assert path.read_bytes() == text and list(own_cache.iterdir()) == [path]


def test_registers_suffice() -> None:
    choosing: Any = backend.load("attndsl.codegen", "triton.choosing")
    specs = [choosing.kernel_spec("bfloat16", d, n) for d in (64, 128) for n in (4, 16, 64)]
    (found,) = compile_jobs([Job(choosing.TEXT, tuple(specs), "sm_90")])
    for kernel in found:
        assert kernel.spill_bytes == 0, kernel
        assert kernel.registers <= 168, kernel  # three blocks of threads at a time
