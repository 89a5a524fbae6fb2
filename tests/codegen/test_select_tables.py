"""Masks that read tables of blocks: the tiles that both generators visit, values and gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import attndsl
from attndsl.backend import load
from attndsl.ir.nodes import TRUE, Node, chosen, constant, index, make
from attndsl.ir.program import Counted, Program, Select
from attndsl.plan.planner import plan
from attndsl.report.compiled.compile import Job, compile_jobs
from attndsl.report.requests import request_for
from attndsl.runtime import order
from attndsl.runtime.attention import Attention
from attndsl.runtime.order import Order
from attndsl.transform.route import route
from tests.codegen.test_spans import ROWS, marked, touched
from tests.codegen.test_torch import TORCH, module_of, request, with_small_blocks
from tests.codegen.visits import counting, needed_visits

Sizes = tuple[int, int, int, int, int]  # B, H, Hk, Nq, Nk
HEAD = "attention f(m: bool[B, {heads}, Ni, Nj], m_sums: int[B, {heads}, Ni + 1, Nj + 1]{more}):\n"
CHOSEN = "m[b, {head}, q // {rows} - {i0}, k // {columns} - {j0}]"
MORE = ", n: bool[H, X, Y], n_sums: int[H, X + 1, Y + 1]"
OTHER = "n[h, q // 32, k // 16]"


def counted(text: str, backend: str, where: Node = TRUE) -> Attention:
    """The attention of a text whose tables m and n are counted."""
    program = attndsl.compile(text=text).program
    names = [t.name for t in program.tensors]
    tables = [Counted("m", "m_sums", where), Counted("n", "n_sums")]
    known = tuple(table for table in tables if table.table in names)
    return Attention(replace(program, counted=known), backend)


def sums_of(table: Tensor) -> Tensor:
    return torch.nn.functional.pad(table.int().cumsum(-1).cumsum(-2), (1, 0, 1, 0)).int()


def drawn(*shape: int, share: float = 0.4, seed: int = 5) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


@dataclass
class Case:
    """A call of a mask with `{m}` for a table of blocks of rows x columns.

    exact  whether no tile is visited in vain and every full one is known
    """

    mask: str = "{m}"
    rows: int = 16
    columns: int = 32
    sizes: Sizes = (1, 2, 1, 64, 97)
    share: float = 0.4
    per_group: bool = False
    more: str = ""
    call: dict[str, Any] = field(default_factory=dict)
    exact: bool = True

    @property
    def text(self) -> str:
        batched = [isinstance(self.call.get(name), Tensor) for name in ("q_offset", "k_offset")]
        more = "".join(
            f", {name}: {'int[B]' if is_tensor else 'int'}"
            for name, is_tensor in zip(("i0", "j0"), batched, strict=True)
        )
        place = {
            "heads": "Hk" if self.per_group else "H",
            "head": "h // G" if self.per_group else "h",
            "rows": self.rows,
            "columns": self.columns,
            "i0": "i0[b]" if batched[0] else "i0",
            "j0": "j0[b]" if batched[1] else "j0",
            "more": self.more + more,
        }
        mask = self.mask.format(m=CHOSEN.format(**place))
        return f"{HEAD.format(**place)}    mask {mask}\n"

    @property
    def arguments(self) -> dict[str, Any]:
        """The tables, as large as the call needs them, and where they begin."""
        batch, heads, key_heads, rows, columns = self.sizes
        found: dict[str, Any] = {}
        extents = []
        for name, offset, block, length in (
            ("i0", "q_offset", self.rows, rows),
            ("j0", "k_offset", self.columns, columns),
        ):
            place = self.call.get(offset, 0)
            found[name] = place // block
            last = torch.as_tensor((place + max(length, 1) - 1) // block - place // block)
            extents.append(int(last.max()) + 1)
        shape = (batch, key_heads if self.per_group else heads, *extents)
        found["m"] = drawn(*shape, share=self.share)
        if "n" in self.more:
            found["n"] = drawn(heads, 5, 9, seed=6)
        sums = {f"{name}_sums": sums_of(found[name]) for name in ("m", "n") if name in found}
        return found | sums | self.call

    def inputs(self, width: int = 16) -> list[Tensor]:
        batch, heads, key_heads, rows, columns = self.sizes
        source = torch.Generator().manual_seed(3)
        shapes = [(batch, heads, rows, width), *2 * [(batch, key_heads, columns, width)]]
        return [torch.randn(shape, generator=source) for shape in shapes]


def gradients(attend: Any, case: Case) -> list[Tensor]:
    """The output and the gradients of query, key and value."""
    inputs = [x.requires_grad_() for x in case.inputs()]
    out = attend(*inputs, **case.arguments)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, inputs, weights)]


OFFSETS = torch.tensor([3, 40])
TWO = (2, 1, 1, 64, 97)  # sequences
CASES = {
    "alone": Case(),
    "few": Case(share=0.05),
    "most": Case(share=0.95),
    "all": Case(share=1.0),
    "none": Case(share=0.0),
    "large blocks": Case(rows=64, columns=64),
    "small blocks": Case(rows=5, columns=7, share=0.1),
    "single rows": Case(rows=1, columns=32, share=0.1),
    "not": Case("not {m}"),
    "causal": Case("{m} and k <= q", rows=64, columns=64, exact=False),
    "causal, not": Case("k <= q and not {m}", exact=False),
    "or a window": Case("{m} or 0 <= q - k < 20", exact=False),
    "two tables": Case(f"{{m}} and {OTHER}", more=MORE, exact=False),
    "one of two tables": Case(f"{{m}} or not {OTHER} and k <= q", more=MORE, exact=False),
    "batches": Case(sizes=(2, 4, 2, 33, 64)),
    "per group": Case(per_group=True, sizes=(2, 4, 2, 33, 64)),
    "three of a group": Case(per_group=True, sizes=(1, 6, 2, 33, 64)),
    "fewer queries": Case("{m} and k <= q + 90", sizes=(1, 2, 1, 7, 97), exact=False),
    "one query": Case(sizes=(2, 2, 1, 1, 200), rows=1, columns=16),
    "no query": Case(sizes=(1, 2, 1, 0, 33)),
    "no key": Case(sizes=(1, 2, 1, 33, 0)),
    "offsets": Case(call={"q_offset": 50, "k_offset": -21}),
    "offsets of each sequence": Case(
        sizes=TWO, call={"q_offset": OFFSETS, "k_offset": OFFSETS - 9}
    ),
    "an offset of each sequence": Case(sizes=TWO, call={"q_offset": OFFSETS.int()}),
    "lengths": Case(sizes=TWO, call={"k_len": torch.tensor([97, 50])}),
    "lengths and offsets": Case(
        "{m} or q == k",
        sizes=TWO,
        call={"k_len": torch.tensor([0, 70]), "q_offset": OFFSETS},
        exact=False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_triton(name: str) -> None:
    """Values and gradients as the reference has them, and the tiles that were needed."""
    case = CASES[name]
    attention = counted(case.text, "triton")
    query, key, _ = case.inputs()
    with counting(query.device) as counter:
        got = gradients(attention, case)
    for mine, right in zip(got, gradients(attention.reference, case), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)
    needed = needed_visits(attention, counter, query, key, **case.arguments)
    if query.numel():
        assert counter.counts.keys() >= {"forward", "backward_dq", "backward_dkv"}
    if case.exact:
        assert counter.counts == needed
    for kernel, (visited, full) in counter.counts.items():
        assert visited >= needed[kernel][0]
        assert full <= needed[kernel][1]


@pytest.mark.parametrize("name", CASES)
def test_torch(name: str) -> None:
    case = CASES[name]
    attention = counted(case.text, "torch")
    for mine, right in zip(
        gradients(attention, case), gradients(attention.reference, case), strict=True
    ):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)
    check_spans(attention, case)


def check_spans(attention: Attention, case: Case) -> None:
    """No pair is left out, none that is masked lies in a full range; exactly the tiles are reached
    that must be, where the case is exact."""
    (batch, heads, key_heads, rows, columns), given = case.sizes, case.arguments
    sizes: dict[str, Any] = dict(zip(("B", "H", "Hk", "Nq", "Nk"), case.sizes, strict=True))
    mask = attention.mask(**sizes, **given).expand(batch, heads, -1, -1)
    group, times_seen = heads // key_heads, torch.zeros(batch, heads, dtype=torch.int64)
    for (b0, b1, j0, j1, g0, g1), spans in spans_of(attention.program, case, given):
        chosen = [j * group + g for j in range(j0, j1) for g in range(g0, g1)]
        times_seen[b0:b1, chosen] += 1
        assert len(spans) == -(-rows // ROWS)
        for at, (reached, full) in enumerate(spans):
            block = mask[b0:b1, chosen, at * ROWS : (at + 1) * ROWS].flatten(0, 2)
            inside, sure = marked(reached, columns), marked(full, columns)
            assert not (block & ~inside).any()
            assert block[:, sure].all()
            if case.exact:
                assert torch.equal(touched(inside), touched(block.any(0)))
                assert torch.equal(~touched(~sure), ~touched(~block.all(0)))
    assert (times_seen == 1).all()


def spans_of(program: Program, case: Case, given: Mapping[str, Any]) -> Any:
    """What run_spans returns, with small tiles."""
    query, key, value = (x.double() for x in case.inputs(2))
    made = plan(program, request(program, query, value, case.call))
    module = module_of(with_small_blocks(TORCH.emit(made)))
    scalars = tuple(given[s.name] for s in program.scalars)
    tensors = tuple(
        given[t.name].long() if t.kind == "int" else given[t.name] for t in program.tensors
    )
    places = (case.call.get("q_offset", 0), case.call.get("k_offset", 0), case.call.get("k_len"))
    return module["run_spans"](query, key, value, 0.5, *places, tensors, scalars)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_any_sizes(data: st.DataObject) -> None:
    """Random sizes, blocks, groups, offsets and lengths, in the engine on CPU."""
    key_heads, group, batch = (data.draw(st.sampled_from([1, 2, 3])) for _ in range(3))
    rows, columns = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 80))
    call: dict[str, Any] = {"q_offset": data.draw(st.integers(-30, 50))}
    if data.draw(st.booleans()):
        call["k_offset"] = torch.randint(-40, 40, (batch,))
    if data.draw(st.booleans()):
        call["k_len"] = torch.randint(0, columns + 1, (batch,))
    case = Case(
        data.draw(st.sampled_from(["{m}", "not {m}", "{m} and k <= q", "{m} or q - k == 1"])),
        data.draw(st.integers(1, 40)),
        data.draw(st.integers(1, 40)),
        (batch, key_heads * group, key_heads, rows, columns),
        data.draw(st.sampled_from([0.05, 0.5, 0.9])),
        data.draw(st.booleans()),
        call=call,
        exact=False,
    )
    attention = counted(case.text, "torch")
    for mine, right in zip(
        gradients(attention, case), gradients(attention.reference, case), strict=True
    ):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)
    check_spans(attention, case)


@pytest.mark.parametrize("block", [(16, 16), (7, 50), (128, 128)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_tiles_of_a_call(name: str, block: tuple[int, int]) -> None:
    """`tiles` says of each what the mask of its pairs says, or leaves it open."""
    case = CASES[name]
    attention = counted(case.text, "torch")
    sizes: dict[str, Any] = dict(zip(("B", "H", "Hk", "Nq", "Nk"), case.sizes, strict=True))
    mask = attention.mask(**sizes, **case.arguments)
    found = attention.tiles(**sizes, block=block, **case.arguments)
    mask, found = (x.expand(*case.sizes[:2], -1, -1) for x in (mask, found))
    for i, j in product(range(found.shape[2]), range(found.shape[3])):
        rows, columns = (
            slice(at * size, (at + 1) * size) for at, size in zip((i, j), block, strict=True)
        )
        part = mask[:, :, rows, columns].flatten(2)
        kept = part.any(-1).int() + part.all(-1).int()
        tile = found[:, :, i, j]
        assert ((tile == kept) | (tile == 1)).all()
        if case.exact:
            assert (tile == kept).all()


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_boxes_of_a_grid(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A box lies within a run of positions, and so within blocks of them."""
    monkeypatch.setattr(order, "order_of", lambda *_: Order("boxes", "as the test says"))
    case = Case("{m} and abs(q.x - k.x) <= 4", 12, 24, (1, 2, 1, 96, 96), share=0.6)
    text = case.text.replace("):\n", "):\n    grid y = 8, x = 12\n", 1)
    attention = counted(text, backend)
    query, key, _ = case.inputs()
    with counting(query.device) as counter:
        got = gradients(attention, case)
    for mine, right in zip(got, gradients(attention.reference, case), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)
    if backend == "triton":
        needed = needed_visits(attention, counter, query, key, (8, 12), **case.arguments)
        for kernel, (visited, full) in counter.counts.items():
            assert visited >= needed[kernel][0]
            assert full <= needed[kernel][1]


# -- where a table can be true ---------------------------------------------------------------------

BELOW = make(
    "le", make("floordiv", index("k"), constant(32)), make("floordiv", index("q"), constant(16))
)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_segments_know_where_a_table_can_be_true(backend: str) -> None:
    """The same tiles are visited, and fewer looked at."""
    case = Case()
    plain, limited = (counted(case.text, backend, where) for where in (TRUE, BELOW))
    given = case.arguments
    i, j = (torch.arange(n) for n in given["m"].shape[2:])
    table = given["m"] & (j <= i[:, None])
    case.call = {"m": table, "m_sums": sums_of(table)}
    got = gradients(limited, case)
    for mine, right in zip(got, gradients(plain.reference, case), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)
    if backend == "triton":
        query, key, _ = case.inputs()
        with counting(query.device) as counter:
            gradients(limited, case)
        assert counter.counts == needed_visits(limited, counter, query, key, **case.arguments)
    plans = [
        plan(a.program, request_for(a.program, "sm_90", "bfloat16", 64, 64))
        for a in (plain, limited)
    ]
    assert plans[0].tile == plans[1].tile
    assert plans[0].keys != plans[1].keys


# -- from a select ---------------------------------------------------------------------------------


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_routed_program(backend: str, per_group: bool) -> None:
    """What `route` makes of a select has counted tables."""
    i, j = index("i"), index("j")
    select = Select(
        "near",
        constant(16),
        constant(32),
        "given",
        None,
        make("le", j, i),
        None,
        "listed",
        per_group,
    )
    program = attndsl.compile(text="attention f():\n    mask k <= q\n").program
    mask = make("and", chosen("near"), program.mask)
    made = route(replace(program, selects=(select,), mask=mask), "table")
    (table,) = made.counted
    assert table.where is not TRUE
    kept = drawn(1, 1 if per_group else 2, 4, 4) & (torch.arange(4) <= torch.arange(4)[:, None])
    case = Case(per_group=per_group)
    case.call = {table.table: kept, table.sums: sums_of(kept)}
    case.call |= {s.name: 0 for s in made.scalars}
    attention = Attention(made, backend)

    def attend(*inputs: Tensor, **_: Any) -> Any:
        return attention(*inputs, **case.call)

    def right(*inputs: Tensor, **_: Any) -> Any:
        return attention.reference(*inputs, **case.call)

    for mine, other in zip(gradients(attend, case), gradients(right, case), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    assert plan(made, request_for(made, "sm_90", "bfloat16", 64, 64)).strategy == "lists"


# -- compiled --------------------------------------------------------------------------------------


def test_kernels_compile() -> None:
    """On sm_90 without a spill, and with wgmma."""
    program = counted(Case("{m} and k <= q", rows=128, columns=64).text, "triton").program
    found = plan(program, request_for(program, "sm_90", "bfloat16", 128, 128))
    generator = load("attndsl.codegen", "triton")
    (kernels,) = compile_jobs([Job(generator.emit(found), generator.kernels(found), "sm_90")])
    names = {kernel.name for kernel in kernels}
    assert names >= {"classify_rows", "classify_columns", "forward", "backward_dq", "backward_dkv"}
    for kernel in kernels:
        assert kernel.spill_bytes == 0, kernel
        if kernel.name in ("forward", "backward_dq", "backward_dkv"):
            assert kernel.wgmma > 0, kernel


@pytest.mark.parametrize(
    ("rows", "columns", "tile"),
    [(64, 64, (64, 64)), (128, 512, (128, 128)), (49, 49, (49, 128)), (8, 96, (128, 32))],
)
def test_tiles_of_the_engine_lie_within_blocks(
    rows: int, columns: int, tile: tuple[int, int]
) -> None:
    """A tile within one block is empty or full: no pair of it is looked at."""
    text = counted(Case("{m}", rows=rows, columns=columns).text, "torch").source(backend="torch")
    assert f"\nROWS = {tile[0]} " in text and f"\nWIDTH = {tile[1]} " in text
