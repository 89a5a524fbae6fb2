"""Routed attention beside dense causal attention of the same generator, forward and backward."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attndsl.report.bench.measurement import Report, summary
from attndsl.report.progress import Progress, progress
from attndsl.report.trial import TOLERANCES, check_device, synchronize
from attndsl.runtime import cache
from attndsl.runtime.arguments import collect, pack, slots_of
from attndsl.runtime.choosing.operator import choose
from attndsl.runtime.operators import register, request_of_call
from attndsl.transform.route import form_of, route

if TYPE_CHECKING:
    from attndsl.runtime.attention import Attention

LENGTHS = {"cpu": (8192, 16_384), "cuda": (16_384, 32_768, 65_536, 131_072)}
HEADS = {"cpu": (2, 1), "cuda": (16, 4)}  # of queries and of keys
REPEATS = {"cpu": 3, "cuda": 5}
LONG = 4.0  # seconds: such a call is timed once, for it is not the first one
WIDTH = 64
CHECKED = 2048  # tokens that are compared with the reference
BLOCK_SIZES = {"moba": 512, "nsa": 64, "seer": 64}
TILE = 128
OPEN = 0.9  # of the blocks, gates are below the threshold
TITLES = (
    "program",
    "length",
    "pass",
    "dense ms",
    "routed ms",
    "times",
    "choosing %",
    "sorting %",
    "attending %",
)
PROGRAMS = """
attention dense():
    mask k <= q

attention moba(block: const int = 512, n: const int = 3):
    select routed[i = q, j = k // block]:
        rank  dot(query, mean(key))
        where j < i // block
        keep  top n
    mask (routed or k // block == q // block) and k <= q

attention nsa(block: const int = 64, n: const int = 16):
    select picked[i = q, j = k // block] per group:
        rank  dot(query, mean(key))
        where j < i // block
        keep  top n
    mask (picked or k // block == q // block) and k <= q

attention seer(gate: float[B, H, Ni, Nj], open: float, block: const int = 64):
    select opened[i = q // block, j = k // block]:
        rank  gate[b, h, i, j]
        where j < i
        keep  above open
    mask (opened or k // block == q // block) and k <= q
"""


@dataclass(frozen=True)
class Case:
    """A program and the parameters of a call of so many tokens."""

    name: str
    parameters: Callable[[tuple[int, ...], str], dict[str, Any]]


def nothing(shape: tuple[int, ...], device: str) -> dict[str, Any]:
    return {}


def gates(shape: tuple[int, ...], device: str) -> dict[str, Any]:
    """Random gates, and the threshold that leaves a tenth of them open."""
    batches, heads, length, _ = shape
    blocks = -(-length // BLOCK_SIZES["seer"])
    random = torch.Generator().manual_seed(length)
    gate = torch.rand((batches, heads, blocks, blocks), generator=random)
    return {"gate": gate.to(device), "open": OPEN}


CASES = (Case("moba", nothing), Case("nsa", nothing), Case("seer", gates))


@dataclass(frozen=True)
class Problem:
    """Attention on one set of inputs, with the gradient that flows into its result."""

    attention: Attention
    inputs: tuple[Tensor, Tensor, Tensor]
    given: dict[str, Any]
    grad_out: Tensor

    def times(self, repeats: int, device: str) -> dict[str, list[float]]:
        """Milliseconds of forward and backward, of several calls after one that does not count; of
        one call where that is long."""
        found: dict[str, list[float]] = {"forward": [], "backward": []}
        for number in range(repeats + 1):
            synchronize(device)
            begin = time.perf_counter()
            out = self.attention(*self.inputs, **self.given)
            synchronize(device)
            middle = time.perf_counter()
            assert isinstance(out, Tensor)
            torch.autograd.grad(out, self.inputs, self.grad_out)
            synchronize(device)
            end = time.perf_counter()
            is_long = end - begin > LONG
            if number or is_long:
                found["forward"].append((middle - begin) * 1e3)
                found["backward"].append((end - middle) * 1e3)
            if is_long:
                break
        return found


def routing(lengths: Sequence[int] | None = None, device: str | None = None) -> Report:
    """Programs with selects at several lengths; those of the device unless they are given."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    kind = device.partition(":")[0]
    lengths = LENGTHS[kind] if lengths is None else tuple(lengths)
    rows: list[tuple[object, ...]] = []
    wrong: list[str] = []
    with progress(len(CASES) + len(lengths) * (len(CASES) + 1)) as line:
        problem_of(None, CHECKED, device).times(1, device)  # the first call makes kernels
        fine = []
        for case in CASES:
            line.step(f"{case.name}: checking")
            error = error_of(case, device)
            if error > tolerance(kind):
                wrong.append(f"{case.name} differs from its reference by {error:.2g}: not timed")
            else:
                fine.append(case)
        for length in lengths:
            rows += rows_at(length, fine, device, line)
    heads, key_heads = HEADS[kind]
    threads = f"{torch.get_num_threads()} threads" if kind == "cpu" else device
    about = (
        f"{heads} heads of {WIDTH}, {key_heads} of keys, {dtype_of(kind)}, {threads}; median of "
        f"{REPEATS[kind]}; times: dense by routed"
    )
    notes = (
        "dense: `mask k <= q`, the same generator, inputs and run.",
        "choosing: means, ranks, the best. sorting: from blocks to the queries that chose them, or",
        "from a table to tiles, where that is told apart. attending: everything else.",
    )
    return Report("routing", about, TITLES, tuple(rows), (*notes, *wrong), passed=not wrong)


def dtype_of(kind: str) -> str:
    return "float32" if kind == "cpu" else "bfloat16"


def tolerance(kind: str) -> float:
    return TOLERANCES[dtype_of(kind)]


def problem_of(case: Case | None, length: int, device: str) -> Problem:
    """A case, or dense causal attention, on the same random inputs."""
    import attndsl

    kind = device.partition(":")[0]
    backend = "torch" if kind == "cpu" else "triton"
    name = "dense" if case is None else case.name
    heads, key_heads = HEADS[kind]
    random = torch.Generator().manual_seed(0)
    dtype = getattr(torch, dtype_of(kind))
    query, key, value, grad_out = (
        torch.randn((1, count, length, WIDTH), generator=random).to(device=device, dtype=dtype)
        for count in (heads, key_heads, key_heads, heads)
    )
    given = {} if case is None else case.parameters((1, heads, length, WIDTH), device)
    inputs = (query.requires_grad_(), key.requires_grad_(), value.requires_grad_())
    attention = attndsl.compile(text=PROGRAMS, name=name, backend=backend)
    return Problem(attention, inputs, given, grad_out)


def error_of(case: Case, device: str) -> float:
    """How far a call is from the reference, as a part of it, in the result and in gradients."""
    problem = problem_of(case, CHECKED, device)
    errors = []
    found: list[list[Tensor]] = []
    for call in (problem.attention, problem.attention.reference):
        out = call(*problem.inputs, **problem.given)
        assert isinstance(out, Tensor)
        gradients = torch.autograd.grad(out, problem.inputs, problem.grad_out)
        found.append([out.detach().float(), *(gradient.float() for gradient in gradients)])
    for got, expected in zip(*found, strict=True):
        errors.append(float((got - expected).norm() / expected.norm()))
    return max(errors)


def rows_at(
    length: int, cases: Sequence[Case], device: str, line: Progress
) -> Iterator[tuple[object, ...]]:
    """The rows of the table for one length."""
    repeats = REPEATS[device.partition(":")[0]]
    line.step(f"dense at {length}")
    dense = problem_of(None, length, device).times(repeats, device)
    for case in cases:
        line.step(f"{case.name} at {length}")
        problem = problem_of(case, length, device)
        routed = problem.times(repeats, device)
        choosing, sorting = parts_of(problem, repeats, device)
        for name, times in routed.items():
            whole, before = summary(times)[0], summary(dense[name])[0]
            chosen = 100 * (choosing if name == "forward" else 0.0) / whole
            sort = None if sorting is None else 100 * sorting / whole
            figures = (before, whole, before / whole, chosen, sort, 100 - chosen - (sort or 0.0))
            yield case.name, length, name, *figures


def parts_of(problem: Problem, repeats: int, device: str) -> tuple[float, float | None]:
    """Milliseconds of choosing, which a forward does, and of sorting, which a backward does again:
    by the functions that they call. None where a Triton module lists tiles among its launches."""
    program = problem.attention.program
    form = form_of(program)
    routed = route(program, form)
    slots = slots_of(program)
    tensors, scalars = collect(slots, (), problem.given)
    ints, floats = pack(slots, scalars)
    handles = (register(program), form, register(routed) if form == "lists" else "")
    query, key, value = (tensor.detach() for tensor in problem.inputs)
    nowhere = (0, 0, None, None, None, None)

    def chosen() -> list[Tensor]:
        found: list[Tensor] = choose(
            query, key, list(tensors.values()), ints, floats, *nowhere, *handles, False, False
        )
        return found

    made = chosen()
    every = (*tensors.values(), *made)
    request = request_of_call(
        *(routed, problem.attention.settings, query, key, value, every, {}, (), scalars, (0, 0))
    )
    module = cache.module_of(register(routed), routed, request)
    call = (query, key, value, 1.0, 0, 0, None, every, tuple(scalars.values()))

    choosing = time_of(chosen, repeats, device)
    blocks = -(-key.shape[2] // BLOCK_SIZES[program.name])
    for name, sort in (
        ("run_routes", lambda: module.run_routes(*call)),
        ("attn_sorted_entries", lambda: sort_by_blocks(module, made[0], blocks)),
        ("run_spans", lambda: module.run_spans(*call)),
    ):
        if hasattr(module, name):
            return choosing, time_of(sort, repeats, device)
    return choosing, None


def time_of(call: Callable[[], object], repeats: int, device: str) -> float:
    """The median of several calls after one that does not count, in milliseconds."""
    times = []
    for number in range(repeats + 1):
        synchronize(device)
        begin = time.perf_counter()
        call()
        synchronize(device)
        if number:
            times.append((time.perf_counter() - begin) * 1e3)
    return summary(times)[0]


def sort_by_blocks(module: ModuleType, lists: Tensor, blocks: int) -> None:
    """What a Triton module's host functions do with lists before they launch."""
    for _, _, part in module.attn_list_parts(lists.flatten(0, 1), WIDTH + 1):
        _, order, starts = module.attn_sorted_entries(part, blocks)
        module.attn_entry_tiles(starts, order.shape[1], TILE)
