"""Host code of Triton modules never waits for the device: calls can be recorded in a CUDA graph.

Modules are made for a GPU and run on meta tensors, their kernels left out: reading a meta tensor
back raises, and so does every operation whose result has a size that data decide. `Watch` raises
where a tensor of the CPU meets one of the device. What such programs compute is held against the
oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from attndsl.codegen.library import attn_lookup, attn_scatter, attn_tensor
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import attndsl
from attndsl.analysis.grids import is_boxable
from attndsl.backend import load
from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import Request
from attndsl.plan.planner import plan
from attndsl.runtime import cache, routing
from attndsl.runtime.arguments import collect, pack, slots_of
from attndsl.runtime.operators import dtype_name, program_of, register
from tests.oracle.compare import cast, difference, differentiate, is_softmax, oracle_function
from tests.oracle.examples import FOLDER, NAMES, Sizes, example_inputs

META = torch.device("meta")
N = 20
WIDTH = 16
SIZES = Sizes(batch=2, heads=4, key_heads=2, length=36, width=WIDTH, value_width=WIDTH)
BATCHED = ("q_offset", "k_offset", "k_len")


class Watch(TorchDispatchMode):
    """Raises where an operation takes tensors of the CPU and of the device, or copies between."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        found = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if len({x.device for x in found}) > 1:
            raise AssertionError(f"{func} takes tensors of the CPU and of the device")
        return result


class WatchCopies(TorchFunctionMode):
    """Raises where Python numbers are copied to the device: that is no operation of its own."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and result.device == META:
            raise AssertionError(f"{func.__name__} copies to the device")
        return result


@contextmanager
def watched() -> Iterator[None]:
    """Also with the device as the default: what is meant for the CPU has to say so."""
    with torch.device("meta"), Watch(), WatchCopies():
        yield


class NoKernel:
    """Stands for a kernel: launches do nothing."""

    def __getitem__(self, grid: tuple[int, ...]) -> NoKernel:
        assert all(type(size) is int for size in grid)
        return self

    def __call__(self, *args: Any, **options: Any) -> None:
        pass


def on_device(given: Any) -> Any:
    return given.to(META) if isinstance(given, Tensor) else given


def record(
    monkeypatch: pytest.MonkeyPatch,
    program: Program,
    inputs: tuple[Tensor, Tensor, Tensor],
    arguments: dict[str, Any],
    per_batch: tuple[str, ...] = (),
    order: Any = "linear",
) -> None:
    """Runs forward and backward of a module for sm_90 on meta tensors."""
    query, key, value = (on_device(x.bfloat16()) for x in inputs)
    given, scalars = collect(slots_of(program), (), arguments)
    tensors = tuple(on_device(cast(x, torch.float32)) for x in given.values())
    request = Request(
        backend="triton",
        target="sm_90",
        dtype="bfloat16",
        head_dim=query.shape[3],
        value_dim=value.shape[3],
        grads=tuple(t.name for t in program.tensors if t.kind == "float"),
        per_batch=per_batch,
        tensor_dtypes=tuple(dtype_name(t.dtype) for t in tensors),
        order=order,
    )
    module = cache.module_of(register(program), program, request)
    for kernel in load("attndsl.codegen", "triton").kernels(plan(program, request)):
        monkeypatch.setattr(module, kernel.name, NoKernel())
    ints = {name: torch.zeros(len(query), dtype=torch.int32, device=META) for name in per_batch}
    offsets = [ints.get("q_offset", 0), ints.get("k_offset", 0), ints.get("k_len")]
    rest = (0.25, *offsets, tensors, tuple(scalars.values()))
    with watched():
        out, raw, stat = module.run_forward(query, key, value, *rest)
        kept = raw if raw.numel() else out
        grad_lse = torch.empty_like(stat) if program.weights.form == "softmax" else None
        grads = module.run_backward(out, grad_lse, query, key, value, kept, stat, *rest)
    shaped = [query, key, value, *(x for x in tensors if x.is_floating_point())]
    assert [x.shape for x in grads] == [x.shape for x in shaped]


def with_choices(
    program: Program,
    inputs: tuple[Tensor, Tensor, Tensor],
    arguments: dict[str, Any],
    per_batch: tuple[str, ...],
) -> tuple[Program, dict[str, Any]]:
    """A program without selects, and the arguments with what they choose."""
    if not program.selects:
        return program, arguments
    query, key, _ = (x.float() for x in inputs)
    slots = slots_of(program)
    given, scalars = collect(slots, (), arguments)
    ints = {name: torch.zeros(len(query), dtype=torch.int32) for name in per_batch}
    place = (0, 0, *(ints.get(name) for name in BATCHED), None)
    tensors = [cast(x, torch.float32) for x in given.values()]
    parts = (query, key, tensors, *pack(slots, scalars), *place)
    original = register(program)
    handle, found = routing.choose(routing.readers_of(original), original, *parts)
    routed = program_of(handle)
    return routed, dict(zip((t.name for t in routed.tensors), found, strict=True)) | scalars


def orders_of(program: Program, per_batch: tuple[str, ...]) -> tuple[str, ...]:
    moved = {"q_offset", "k_offset"} & set(per_batch)
    return ("linear", "boxes") if is_boxable(program) and not moved else ("linear",)


@pytest.mark.parametrize("per_batch", [(), BATCHED, ("k_len",)], ids=["plain", "batched", "k_len"])
@pytest.mark.parametrize("name", NAMES)
def test_examples(monkeypatch: pytest.MonkeyPatch, name: str, per_batch: tuple[str, ...]) -> None:
    query, key, value, inputs = example_inputs(name, SIZES)
    program = attndsl.compile(FOLDER / f"{name}.attn", **inputs.consts).program
    for order in orders_of(program, per_batch):
        reader, arguments = with_choices(program, (query, key, value), inputs.arguments, per_batch)
        record(monkeypatch, reader, (query, key, value), arguments, per_batch, order)


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def ints(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(2))


FLAG, HEAD_FLAG = ints(2, N) == 0, torch.tensor([True, False, True, False])
DOC, WHICH, KIND, OTHER = ints(3, 3, N), torch.tensor([2]), ints(2, N), ints(3, N)
GATE, TABLE, BY_HEAD = floats(3, WIDTH), floats(4, 3), floats(4)

# Body -> the parameters it needs and their values. Every line has a number, a parameter or one
# element of a table where a value by position is expected.
PROGRAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "mask doc[0, q] == doc[0, k]": ("doc: int[M, N]", {"doc": DOC}),
    "mask doc[p, q] == doc[p, k]": ("doc: int[M, N], p: int", {"doc": DOC, "p": 1}),
    "mask doc[p, q] >= doc[p, k]": ("doc: int[M, N], p: int", {"doc": DOC, "p": 7}),
    "mask doc[w[0], q] == doc[w[0], k]": ("doc: int[M, N], w: int[1]", {"doc": DOC, "w": WHICH}),
    "mask doc[w[0] % M, q] == k % 3": ("doc: int[M, N], w: int[1]", {"doc": DOC, "w": WHICH}),
    "mask k <= q + w[w[0] - 2]": ("w: int[1]", {"w": WHICH}),
    "mask k <= q\n    score score * t[w[0] % 4, 1]": (
        "t: float[H, M], w: int[1]",
        {"t": TABLE, "w": WHICH},
    ),
    "mask (1 if f[q] else 0) == kind[k]": ("f: bool[N], kind: int[N]", {"f": FLAG, "kind": KIND}),
    "mask (1 if f[q] else kind[q]) == kind[k]": (
        "f: bool[N], kind: int[N]",
        {"f": FLAG, "kind": KIND},
    ),
    "mask (x[q] if p else 1) == x[k]": ("x: int[N], p: bool", {"x": OTHER, "p": True}),
    "mask (f[q] if p else f[k]) and k <= q": ("f: bool[N], p: bool", {"f": FLAG, "p": False}),
    "mask x[q] >= floor(exp(s)) or k == 0": ("x: int[N], s: float", {"x": OTHER, "s": 0.5}),
    "mask (exp(s) < 3.0 and f[q]) or k <= q": ("f: bool[N], s: float", {"f": FLAG, "s": 1.0}),
    "grid y = floor(sqrt(Nq)), x = ceil(s)\n    mask abs(q.x - k.x) <= 1": (
        "s: float",
        {"s": 4.5},
    ),
    "weights softmax(sink = s[h, 0])": ("s: float[H, M]", {"s": TABLE}),
    "weights softmax(sink = s[1, 0] + s[1, 2])": ("s: float[H, M]", {"s": TABLE}),
    "weights softmax(sink = s[h] * (2.0 if f[h] else 0.5))": (
        "s: float[H], f: bool[H]",
        {"s": BY_HEAD, "f": HEAD_FLAG},
    ),
    "weights softmax(sink = s[h] if p else 0.0)": (
        "s: float[H], p: bool",
        {"s": BY_HEAD, "p": True},
    ),
    "weights softmax(sink = s[h] * exp(x) + min(x, y) / y)": (
        "s: float[H], x: float, y: float",
        {"s": BY_HEAD, "x": 0.5, "y": 3.0},
    ),
    "weights softmax(sink = max(s[floor(x)], log(x)))": (
        "s: float[H], x: float",
        {"s": BY_HEAD, "x": 1.5},
    ),
    "weights softmax(sink = dot(query, g[0]))": ("g: float[M, D]", {"g": GATE}),
    "output out * g[0, d]": ("g: float[M, Dv]", {"g": GATE}),
    "output out * g[w[0], d] + g[p, 0]": (
        "g: float[M, Dv], w: int[1], p: int",
        {"g": GATE, "w": WHICH, "p": 1},
    ),
    "output out * g[h] * (2.0 if f[q] else exp(x))": (
        "g: float[H], f: bool[N], x: float",
        {"g": BY_HEAD, "f": FLAG, "x": 0.3},
    ),
    "output out * (g[h] if f[q] else 1.0)": (
        "g: float[H], f: bool[N]",
        {"g": BY_HEAD, "f": FLAG},
    ),
    "output out * dot(query, g[p])": ("g: float[M, D], p: int", {"g": GATE, "p": 2}),
    "score score + g[h, 0] * 2.0": ("g: float[H, M]", {"g": TABLE}),
    "score score + g[0, q % 16] * k": ("g: float[M, D]", {"g": GATE}),
    "score score + dot(query, g[0])": ("g: float[M, D]", {"g": GATE}),
    "score score + dot(query, g[w[0]])": ("g: float[M, D], w: int[1]", {"g": GATE, "w": WHICH}),
    "score score + dot(query, g[x[q]])": ("g: float[M, D], x: int[N]", {"g": GATE, "x": OTHER}),
    "score score + g[h, min(abs(q - k), 2)]": ("g: float[H, M]", {"g": TABLE}),
}


def text_of(body: str) -> str:
    return f"attention f({PROGRAMS[body][0]}):\n    {body}\n"


def inputs_of() -> tuple[Tensor, Tensor, Tensor]:
    return floats(2, 4, N, WIDTH), floats(2, 2, N, WIDTH), -floats(2, 2, N, WIDTH)


@pytest.mark.parametrize("body", PROGRAMS)
def test_numbers_and_single_elements(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    program = attndsl.compile(text=text_of(body)).program
    for per_batch in ((), BATCHED):
        for order in orders_of(program, per_batch):
            record(monkeypatch, program, inputs_of(), PROGRAMS[body][1], per_batch, order)


def test_more_tiles_than_a_list_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    program = attndsl.compile(FOLDER / "packed_documents.attn").program
    long = torch.empty(1, 1, 200_000, WIDTH, device=META)
    doc = torch.empty(1, 200_000, dtype=torch.int32, device=META)
    with monkeypatch.context() as patch:  # collect refuses meta tensors, as a call does
        patch.setattr("attndsl.runtime.arguments.check_layout", lambda name, value: None)
        record(monkeypatch, program, (long, long, long), {"doc": doc})


def check_values(body: str, backend: str, dtype: torch.dtype, tolerance: float) -> None:
    text, arguments = text_of(body), PROGRAMS[body][1]
    attention = attndsl.compile(text=text, backend=backend)
    wants_lse = is_softmax(text)

    def compiled(**given: Any) -> Any:
        result = attention(**given, return_lse=wants_lse)
        return result if wants_lse else (result, None)

    query, key, value = inputs_of()
    given = {"query": query, "key": key, "value": value, **arguments}
    got = differentiate(compiled, {n: cast(x, dtype) for n, x in given.items()}, wants_lse)
    oracle = oracle_function(text, "<text>", None, {})
    wrong = difference(got, differentiate(oracle, given, wants_lse), tolerance, 0.1)
    assert not wrong, wrong


@pytest.mark.parametrize("body", PROGRAMS)
def test_values(body: str) -> None:
    check_values(body, "torch", torch.float64, 1e-6)
    check_values(body, "triton", torch.float32, 2e-3)


DEVICE = torch.empty(3, 4, device=META)
WAITS: dict[str, Callable[[], Any]] = {
    "an index without dimensions": lambda: DEVICE[torch.zeros((), dtype=torch.int64)],
    "one of them": lambda: DEVICE[torch.arange(3), torch.zeros((), dtype=torch.int64)],
    "a number of the CPU": lambda: torch.where(DEVICE > 0, torch.tensor(1.0, device="cpu"), 0.0),
    "a copy": lambda: torch.tensor(1.0, device="cpu").to(META),
    "a copied number": lambda: torch.tensor([1.0]),
    "item": lambda: DEVICE.sum().item(),
    "list": lambda: DEVICE.tolist(),
    "a decision": lambda: bool(DEVICE.any()),
    "an index of bools": lambda: DEVICE[DEVICE > 0],
    "what is not zero": lambda: DEVICE.nonzero(),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_seen(name: str) -> None:
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError)), watched():
        WAITS[name]()


def test_a_number_is_rounded_before_it_is_written_to_a_device() -> None:
    for number in (1e300, -1e300, float("inf"), 0.1, 3, True):
        written = attn_tensor(number, torch.device("cpu"))
        assert written.dim() == 0 and torch.equal(written, attn_tensor(number))
    assert attn_tensor(2.0, META).device == META


def test_a_number_too_large_for_a_tensor_is_an_index_outside() -> None:
    table, grad, index = torch.ones(3, 2), torch.zeros(3, 2), torch.arange(2)
    for number in (-1, 3, 2**90):
        assert torch.equal(attn_lookup(table, (number, index), (0,)), torch.zeros(2))
        assert attn_lookup(table, (1, number), (0, 1)) == 0
        attn_scatter(grad, torch.ones(2), (number, index))
    assert torch.equal(grad, torch.zeros(3, 2))


def test_numbers_of_a_traced_graph_stay_on_the_cpu() -> None:
    attention = attndsl.compile(text="attention f(x: float):\n    score score * x\n")
    query = floats(1, 2, 8, 4)

    @torch.compile(backend="eager", dynamic=True, fullgraph=True)
    def traced(x: float) -> Any:
        return attention(query, query, query, x=x, scale=x * 0.5)

    for x in (1.5, 2.5):
        with torch.device("meta"):
            found = traced(x)
        assert torch.equal(found, attention(query, query, query, x=x, scale=x * 0.5))
