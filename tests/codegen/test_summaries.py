"""Summaries in host code: extremes and signatures of blocks against enumeration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attndsl.codegen import library
from attndsl.codegen.host import write_arguments
from attndsl.codegen.lines import Lines
from attndsl.codegen.scope import library_text
from attndsl.codegen.summaries import parts_of, used_leaves, write_blocks, write_profiles
from torch import Tensor

from attndsl.plan.kernel_plan import KernelPlan, Request, Summary
from attndsl.plan.planner import plan
from attndsl.reference import Values, evaluate
from tests.codegen.test_torch import compiled

GENERATOR = torch.Generator().manual_seed(5)
NAN = float("nan")


def blocks_of(x: Tensor, block: int) -> list[Tensor]:
    return [x[..., at : at + block] for at in range(0, x.shape[-1], block)]


@pytest.mark.parametrize("length", [1, 7, 8, 24, 30])
@pytest.mark.parametrize("kind", ["bool", "int64", "float32"])
def test_extremes_of_blocks(kind: str, length: int) -> None:
    if kind == "bool":
        x = torch.rand(2, 3, length, generator=GENERATOR) < 0.8
    elif kind == "int64":
        ends = torch.tensor([-(2**63), 2**63 - 1, 2**53 + 1, 2**53, 0, -1])
        x = ends[torch.randint(0, 6, (2, 3, length), generator=GENERATOR)]
    else:
        x = torch.randn(2, 3, length, generator=GENERATOR)
        x[0, 0, ::9], x[1, 2, 0] = NAN, float("inf")
    least, greatest = library.attn_block_extremes(x, 8)
    for at, part in enumerate(blocks_of(x, 8)):
        for row in torch.cartesian_prod(torch.arange(2), torch.arange(3)):
            values = part[tuple(row)].tolist()
            has_nan = any(value != value for value in values)
            want = (NAN, NAN) if has_nan else (min(values), max(values))
            got = [x[tuple(row)][at].item() for x in (least, greatest)]
            assert got == list(want) or (has_nan and got[0] != got[0] and got[1] != got[1])
    assert least.dtype == greatest.dtype == x.dtype and least.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float16])
@pytest.mark.parametrize("turned", [False, True])
def test_extremes_of_tables(dtype: torch.dtype, turned: bool) -> None:
    shape = (2, 1, 21, 18) if turned else (2, 1, 18, 21)
    x = (torch.randint(-9, 9, shape, generator=GENERATOR) > -8).to(dtype)
    x = x.transpose(-1, -2) if turned else x
    least, greatest = library.attn_pair_extremes(x, 8, 4)
    assert least.shape == greatest.shape == (2, 1, 3, 6)
    assert least.is_contiguous() and greatest.is_contiguous() and least.dtype == dtype
    for i in range(3):
        for j in range(6):
            tile = x[..., 8 * i : 8 * i + 8, 4 * j : 4 * j + 4].flatten(-2)
            assert torch.equal(least[..., i, j], tile.sort(-1).values[..., 0])
            assert torch.equal(greatest[..., i, j], tile.sort(-1).values[..., -1])


def test_equal_values_share_a_bit_of_their_signatures() -> None:
    values = torch.tensor([-(2**63), 2**63 - 1, -1, 0, 1, 63, 64, 2**40, 12345, -987654321])
    alone = library.attn_signatures(values[None, None], 1)[0, 0]
    assert all(bin(x & (2**64 - 1)).count("1") == 1 for x in alone.tolist())
    for block in (1, 3, 10):
        rows = values[torch.randint(0, 10, (2, 3, 31), generator=GENERATOR)]
        signatures = library.attn_signatures(rows, block)
        assert signatures.dtype == torch.int64
        for at, part in enumerate(blocks_of(rows, block)):
            one_bit_each = alone[(part[..., None] == values).int().argmax(-1)]
            want = torch.zeros(2, 3, dtype=torch.int64)
            for bit in one_bit_each.unbind(-1):
                want |= bit
            assert torch.equal(signatures[..., at], want)


@pytest.mark.parametrize("start", [0, 64, 1 << 20])
@pytest.mark.parametrize("step", [1, 64, 1024])
def test_few_values_have_signatures_apart(start: int, step: int) -> None:
    values = (start + torch.arange(64)) * step if step == 1 else torch.arange(64) * step
    found = library.attn_signatures(values[None, None], 1)
    assert len(set(found.flatten().tolist())) == 64


PARAMETERS = """
attention f(doc: int[B, N], place: int[N], kind: int[M], ok: bool[B, H, N], x: float[H, N],
            dense: int[Nk, B, Nq], w: int):
    mask """
MASKS = {
    "documents": "doc[b, q] == doc[b, k] or q == k",
    "tables of tables": "kind[place[k]] != kind[doc[b, q] + 1] and k <= q",
    "valid": "k <= q and ok[b, h, k] and place[k] < w and (q == k or ok[b, h, q])",
    "floats": "x[h, q] < x[h, k]",
    "two axes": "dense[k, b, q] < w",
    "one table": "place[q] // 2 == k",
}
SIZES = {"B": 2, "H": 4, "Hk": 2, "G": 2, "Nq": 21, "Nk": 34, "D": 2}


def arguments() -> dict[str, Tensor]:
    def ints(*shape: int) -> Tensor:
        return torch.randint(-2, 9, shape, generator=GENERATOR)

    return {
        "doc": ints(2, 30),
        "place": ints(30).int(),
        "kind": ints(7),
        "ok": torch.rand(2, 4, 30, generator=GENERATOR) < 0.5,
        "x": torch.where(ints(4, 30) == 0, NAN, torch.randn(4, 30, generator=GENERATOR)).half(),
        "dense": ints(34, 2, 21).int(),
    }


def made(name: str, *per_batch: str) -> KernelPlan:
    dtypes = ("int64", "int32", "int64", "bool", "float16", "int32")
    return plan(
        compiled(PARAMETERS + MASKS[name] + "\n"),
        Request(tensor_dtypes=dtypes, per_batch=per_batch),
    )


def run(
    found: KernelPlan, inputs: dict[str, Tensor], q_offset: Any, k_offset: Any
) -> dict[str, Any]:
    """The variables of generated host code that computes profiles and blocks of 8 rows or 5
    columns."""
    body = Lines()
    with body.block("def run(query, key, value, q_offset, k_offset, k_len, tensors, scalars):"):
        write_arguments(body, found)
        write_profiles(body, found)
        write_blocks(body, found, "ROWS", 5, "block_")
        body.add("return locals()")
    text = library_text(body.text()) + "\n\n\n" + body.text()
    names: dict[str, Any] = {"torch": torch, "ACCUMULATOR": torch.float32, "ROWS": 8}
    exec("from __future__ import annotations\n" + text, names)
    device = inputs["doc"].device
    query = torch.empty(2, 4, 21, 2, device=device)
    key = torch.empty(2, 2, 34, 2, device=device)
    local: dict[str, Any] = names["run"](
        query, key, key, q_offset, k_offset, None, tuple(inputs.values()), (7,)
    )
    return local


def enumerated(summary: Summary, inputs: dict[str, Tensor], q_offset: Any, k_offset: Any) -> Tensor:
    """The summarised value by the reference, [B or 1, H or 1, positions ..]."""
    b, h = torch.arange(2)[:, None, None, None], torch.arange(4)[:, None, None]
    q = torch.arange(21)[:, None] + torch.as_tensor(q_offset).view(-1, 1, 1, 1)
    k = torch.arange(34) + torch.as_tensor(k_offset).view(-1, 1, 1, 1)
    leaves: Any = {"b": b, "h": h, "q": q, "k": k}
    values = Values(torch.float32, torch.device("cpu"), SIZES, {"w": 7}, inputs, leaves)
    found = evaluate(summary.node, values)
    found = found[(None,) * (4 - found.dim())]
    return found.flatten(2) if len(summary.axes) == 1 else found


@pytest.mark.parametrize(
    "places", [(0, 0), (3, -4), (torch.tensor([3, -2]), 1), (0, torch.tensor([9, 9]))], ids=str
)
@pytest.mark.parametrize("name", MASKS)
def test_profiles_and_blocks(name: str, places: tuple[Any, Any]) -> None:
    names = ("q_offset", "k_offset")
    found = made(name, *(n for n, x in zip(names, places, strict=True) if isinstance(x, Tensor)))
    inputs = arguments()
    local = run(found, inputs, *places)
    used = [summary for summary in found.summaries if parts_of(found, summary)]
    assert used or (name == "two axes" and found.request.per_batch)
    for summary in used:
        want = enumerated(summary, inputs, *places)
        profile = local[f"profile_{summary.number}"]
        assert profile.dim() == 2 + len(summary.axes)
        torch.testing.assert_close(
            *torch.broadcast_tensors(profile.to(want.dtype), want), rtol=0, atol=0, equal_nan=True
        )
        moves = {f"{axis}_offset" for axis in summary.axes} & set(found.request.per_batch)
        varies = summary.node.varies | ({"b"} if moves else set())
        assert profile.shape[:2] == (2 if "b" in varies else 1, 4 if "h" in varies else 1)
        for part in parts_of(found, summary):
            got = local[f"block_{summary.number}_{part}"]
            assert got.is_contiguous()
            if part == "signature":
                continue
            dtypes = {"bool": torch.bool, "int": torch.int64, "float": torch.float32}
            assert got.dtype == dtypes[summary.kind]
            want_part = extreme(want, summary.axes, part)
            torch.testing.assert_close(
                *torch.broadcast_tensors(got, want_part), rtol=0, atol=0, equal_nan=True
            )


def extreme(x: Tensor, axes: tuple[str, ...], part: str) -> Tensor:
    """Extremes of blocks, one after the other."""

    def reduce(tile: Tensor) -> Tensor:
        flat = tile.flatten(2)
        if flat.dtype == torch.bool:
            return flat.all(-1) if part == "least" else flat.any(-1)
        return flat.amin(-1) if part == "least" else flat.amax(-1)

    if len(axes) == 1:
        block = 8 if axes == ("q",) else 5
        return torch.stack([reduce(tile) for tile in blocks_of(x, block)], -1)
    rows = [x[:, :, at : at + 8] for at in range(0, 21, 8)]
    return torch.stack(
        [torch.stack([reduce(tile) for tile in blocks_of(row, 5)], -1) for row in rows], 2
    )


@pytest.mark.parametrize("name", MASKS)
def test_only_what_facts_use_is_computed(name: str) -> None:
    found = made(name)
    local = run(found, arguments(), 0, 0)
    names = {name.removeprefix("block_") for name in local if name.startswith("block_")}
    meets = [leaf.split("_meets_") for leaf in used_leaves(found) if "_meets_" in leaf]
    assert meets or name not in ("documents", "tables of tables")
    assert names == {leaf for leaf in used_leaves(found) if "_meets_" not in leaf} | {
        f"{number}_signature" for pair in meets for number in pair
    }


def test_a_table_that_fits_is_not_copied() -> None:
    text = "attention f(t: bool[H, Nk, Nq]):\n    mask t[h, k, q]\n"
    found = plan(compiled(text), Request(tensor_dtypes=("bool",)))
    body = Lines()
    with body.block("def run(query, key, value, q_offset, k_offset, k_len, tensors, scalars):"):
        write_arguments(body, found)
        write_profiles(body, found)
        body.add("return profile_0")
    names: dict[str, Any] = {"torch": torch, "ACCUMULATOR": torch.float32}
    source = library_text(body.text()) + "\n\n\n" + body.text()
    exec("from __future__ import annotations\n" + source, names)
    table = torch.rand(2, 40, 30) < 0.5
    query, key = torch.empty(1, 2, 20, 4), torch.empty(1, 2, 40, 4)
    view = names["run"](query, key, key, 7, 0, None, (table,), ())
    assert torch.equal(view[0], table[:, :, 7:27].transpose(1, 2))
    assert view.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", MASKS)
def test_nothing_is_read_back_from_the_device(name: str) -> None:
    """On tensors without data: no shape and no branch depends on a value."""
    inputs = {name: tensor.to("meta") for name, tensor in arguments().items()}
    local = run(made(name), inputs, 3, -4)
    blocks = [x for name, x in local.items() if name.startswith("block_")]
    assert blocks and all(x.device.type == "meta" for x in blocks)
