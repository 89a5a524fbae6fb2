"""Summaries by block that Triton kernels make, against enumeration; what hosts do for lists."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from attndsl.codegen.library import attn_signatures
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import attndsl
from attndsl.backend import KernelSpec, load
from attndsl.plan.kernel_plan import Config, KernelPlan
from attndsl.plan.planner import plan
from attndsl.report.compiled.compile import Job, compile_jobs
from attndsl.report.requests import request_for
from attndsl.runtime import cache
from tests.codegen.test_summaries import MASKS, PARAMETERS, arguments, enumerated
from tests.codegen.test_torch import compiled
from tests.oracle.examples import FOLDER

GENERATOR: Any = load("attndsl.codegen", "triton")
SMALL = {"block_m": 8, "block_n": 4}
TURNED = {"block_m": 4, "block_n": 16}  # of backward_dkv: other blocks than those of rows
DTYPES = {"bool": torch.bool, "int": torch.int64, "float": torch.float32}
PLACES = [(0, 0), (3, -4), (torch.tensor([3, -2]), 1), (0, torch.tensor([9, 9]))]


def made(text: str, dtypes: tuple[str, ...], *per_batch: str) -> KernelPlan:
    program = compiled(text)
    request = replace(
        request_for(program, "sm_90", "bfloat16", 16, 16), tensor_dtypes=dtypes, per_batch=per_batch
    )
    found = plan(program, request)
    return replace(
        found,
        forward=replace(found.forward, **SMALL),
        backward_dq=replace(found.backward_dq, **SMALL),
        backward_dkv=replace(found.backward_dkv, **TURNED),
        decode=None,  # few queries as many: in tiles of the sizes above
    )


class Launches:
    """A module whose kernels are replaced: `launched` has the names, `seen` is called with the
    arguments of each by name. Kernels that summarise run, if they are asked to."""

    def __init__(
        self,
        found: KernelPlan,
        seen: Callable[[str, dict[str, Any]], None],
        with_summaries: bool = True,
    ) -> None:
        self.module = load_module(found)
        self.launched: list[str] = []
        for spec in GENERATOR.kernels(found):
            runs = with_summaries and spec.name.startswith("summarise")
            kernel = getattr(self.module, spec.name) if runs else None
            setattr(self.module, spec.name, Launch(self, spec, seen, kernel))


class Launch:
    def __init__(self, owner: Launches, spec: KernelSpec, seen: Any, kernel: Any) -> None:
        self.owner, self.spec, self.seen, self.kernel = owner, spec, seen, kernel
        self.grid: Any = None

    def __getitem__(self, grid: Any) -> Launch:
        self.grid = grid
        return self

    def __call__(self, *args: Any, **options: Any) -> None:
        self.owner.launched.append(self.spec.name)
        self.seen(self.spec.name, dict(zip(self.spec.signature, args, strict=False)))
        if self.kernel is not None:
            self.kernel[self.grid](*args, **options)


def load_module(found: KernelPlan) -> ModuleType:
    text = GENERATOR.emit(found)
    return cache.load_module(Path(f"summaries_{abs(hash(text))}.py"), text.encode())


def blocks_in(
    found: KernelPlan, inputs: dict[str, Tensor], q_offset: Any, k_offset: Any
) -> list[tuple[Config, dict[str, Tensor]]]:
    """What is known by block when tiles are classified, in the order of the launches."""
    kept: list[dict[str, Tensor]] = []

    def seen(name: str, given: dict[str, Any]) -> None:
        if name.startswith("classify"):
            kept.append({n: x for n, x in given.items() if n.startswith("block_")})

    module = Launches(found, seen).module
    query = torch.zeros(2, 4, 21, 16, dtype=torch.bfloat16)
    key = torch.zeros(2, 2, 34, 16, dtype=torch.bfloat16)
    rest = (1.0, q_offset, k_offset, None, tuple(inputs.values()), (7,))
    out, raw, stat = module.run_forward(query, key, key, *rest)
    module.run_backward(out, None, query, key, key, out, stat, *rest)
    return list(zip((found.forward, found.backward_dq, found.backward_dkv), kept, strict=True))


def extreme(x: Tensor, blocks: tuple[int, ...], part: str) -> Tensor:
    """Extremes of blocks of the last axes, one after the other."""
    ends = [range(0, n, block) for n, block in zip(x.shape[2:], blocks, strict=True)]
    found = []
    for corner in product(*ends):
        slices = tuple(slice(at, at + n) for at, n in zip(corner, blocks, strict=True))
        flat = x[(..., *slices)].flatten(2)
        if flat.dtype == torch.bool:
            found.append(flat.all(-1) if part == "least" else flat.any(-1))
        else:
            found.append(flat.amin(-1) if part == "least" else flat.amax(-1))
    return torch.stack(found, -1).unflatten(-1, [len(places) for places in ends])


@pytest.mark.parametrize("places", PLACES, ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_blocks(name: str, places: tuple[Any, Any]) -> None:
    inputs = arguments()
    dtypes = tuple(str(x.dtype).removeprefix("torch.") for x in inputs.values())
    moved = zip(("q_offset", "k_offset"), places, strict=True)
    per_batch = tuple(axis for axis, place in moved if isinstance(place, Tensor))
    found = made(f"{PARAMETERS}{MASKS[name]}\n", dtypes, *per_batch)
    if found.strategy != "lists":
        assert name == "two axes" and per_batch
        return
    check_blocks(found, inputs, places)


def check_blocks(
    found: KernelPlan, inputs: dict[str, Tensor], places: tuple[Any, Any] = (0, 0)
) -> None:
    numbers = {str(summary.number): summary for summary in found.summaries}
    for config, blocks in blocks_in(found, inputs, *places):
        assert blocks
        for label, got in blocks.items():
            _, number, part = label.split("_")
            summary = numbers[number]
            sizes = {"q": config.block_m, "k": config.block_n}
            own = tuple(sizes[axis] for axis in summary.axes)
            want = enumerated(summary, inputs, *places)
            if part == "signature":
                right = attn_signatures(want.long(), own[0])
            else:
                assert got.dtype == DTYPES[summary.kind]
                right = extreme(want, own, part)
            moves = {f"{axis}_offset" for axis in summary.axes} & set(found.request.per_batch)
            varies = summary.node.varies | ({"b"} if moves else set())
            shape = (2 if "b" in varies else 1, 4 if "h" in varies else 1)
            assert got.shape == (*shape, *right.shape[2:])
            torch.testing.assert_close(
                *torch.broadcast_tensors(got, right), rtol=0, atol=0, equal_nan=True
            )


def test_ends_of_numbers() -> None:
    """Ints of 64 bits at their ends, infinities, NaN, and a table whose rows lie apart."""
    text = (
        "attention f(doc: int[B, N], wide: int[N], edge: float[H, Nq], turned: float[Nk, Nq],\n"
        "            small: int[Nq, Nk]):\n"
        "    mask doc[b, q] == doc[b, k] or wide[q] < wide[k] or edge[h, q] < turned[k, q]\n"
        "    mask small[q, k] > -100 or edge[h, q] > 0\n"
    )
    source = torch.Generator().manual_seed(6)
    ends = torch.tensor([-(2**63), 2**63 - 1, 2**53 + 1, 2**53, 0, -1, 63, -64])
    floats = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -1e30, 2.5, 1e-40])

    def some(values: Tensor, *shape: int) -> Tensor:
        return values[torch.randint(0, len(values), shape, generator=source)]

    inputs = {
        "doc": some(ends, 2, 34),
        "wide": some(ends, 34),
        "edge": some(floats[1:], 4, 21),
        "turned": some(floats, 34, 21),
        "small": torch.randint(-128, 128, (21, 34), generator=source).to(torch.int8),
    }
    dtypes = ("int64", "int64", "float32", "float32", "int8")
    found = made(text, dtypes)
    assert {s.kind for s in found.summaries} >= {"int", "float"}
    assert {len(s.axes) for s in found.summaries} == {1, 2}
    check_blocks(found, inputs)


# -- what the host does ----------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Records the operations of torch that launch something."""

    FREE = (
        "empty",
        "new_empty",
        "empty_like",
        "view",
        "slice",
        "expand",
        "detach",
        "alias",
        "select",
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket.__name__ not in self.FREE:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def documents() -> tuple[KernelPlan, tuple[Any, ...]]:
    """packed_documents and the arguments of its functions behind query, key and value."""
    program = attndsl.compile(FOLDER / "packed_documents.attn").program
    found = plan(program, request_for(program, "sm_90", "bfloat16", 64, 64))
    doc = torch.zeros(2, 300, dtype=torch.int32)
    (dtype,) = found.request.tensor_dtypes
    return found, (1.0, 0, 0, None, (doc.to(getattr(torch, dtype)),), ())


def test_a_summary_is_one_launch_and_torch_has_none() -> None:
    found, rest = documents()
    launches = Launches(found, lambda name, given: None, with_summaries=False)
    query = torch.zeros(2, 2, 300, 64, dtype=torch.bfloat16)
    with Operations() as operations:
        out, raw, stat = launches.module.run_forward(query, query, query, *rest)
    assert operations.names == []
    summaries = ["summarise_0", "summarise_1"]
    assert launches.launched == [*summaries, "classify_rows", "forward"]
    launches.launched.clear()
    with Operations() as operations:
        launches.module.run_backward(out, out[..., 0], query, query, query, out, stat, *rest)
    assert not [n for n in operations.names if "copy" not in n and "clone" not in n]
    rows = [*summaries, "classify_rows", "backward_dq"]
    columns = [*summaries, "classify_columns", "backward_dkv"]
    assert launches.launched == ["backward_delta", *rows, *columns]


def test_lists_of_rows_are_freed_before_those_of_columns() -> None:
    found, rest = documents()
    held: dict[str, weakref.ref[Tensor]] = {}
    alive: list[str] = []

    def seen(name: str, given: dict[str, Any]) -> None:
        if name == "classify_rows":
            tensors = {n: x for n, x in given.items() if isinstance(x, Tensor)}
            held.update({n: weakref.ref(x) for n, x in tensors.items()})
        elif name == "classify_columns":
            alive.extend(n for n, ref in held.items() if ref() is not None)

    module = Launches(found, seen, with_summaries=False).module
    query = torch.zeros(2, 2, 300, 64, dtype=torch.bfloat16)
    out, raw, stat = module.run_forward(query, query, query, *rest)
    held.clear()
    module.run_backward(out, None, query, query, query, out, stat, *rest)
    assert held.keys() >= {"tile_counts", "tile_lists", "block_0_least"}
    assert alive == []


# -- compiled --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_kernels_compile(target: str) -> None:
    """Of ints, floats and bools, by one axis and by both."""
    text = (
        "attention f(doc: int[B, N], x: float[N], on: bool[N], near: float[Nq, Nk]):\n"
        "    mask doc[b, q] == doc[b, k] and x[q] < x[k] and on[k] and near[q, k] > 0\n"
    )
    program = compiled(text)
    found = plan(program, request_for(program, target, "bfloat16", 64, 64))
    specs = tuple(k for k in GENERATOR.kernels(found) if k.name.startswith("summarise"))
    assert len(specs) == len(found.summaries) > 4
    (kernels,) = compile_jobs([Job(GENERATOR.emit(found), specs, target)])
    assert all(kernel.spill_bytes == 0 for kernel in kernels)


def test_a_table_in_the_mask_does_not_double_the_softmax() -> None:
    """An exponential of the weights and one of the rescaling, in each of both loops."""
    program = attndsl.compile(FOLDER / "masked_cross.attn").program
    found = plan(program, request_for(program, "sm_90", "bfloat16", 64, 64))
    specs = tuple(k for k in GENERATOR.kernels(found) if k.name == "forward")
    ((kernel,),) = compile_jobs([Job(GENERATOR.emit(found), specs, "sm_90")])
    assert kernel.text("ttgir").count("math.exp2") == 4
