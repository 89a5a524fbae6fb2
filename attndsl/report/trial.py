"""Runs a program on random tensors, forward and backward, and compares with the reference."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.ir.nodes import find
from attndsl.ir.program import Program
from attndsl.ir.text import roots
from attndsl.reference import Call, Evaluation, Number, chosen_pairs
from attndsl.report.arguments import Parameter, Sizes, random_parameters
from attndsl.report.progress import Progress, progress
from attndsl.report.table import table

if TYPE_CHECKING:
    from attndsl.runtime.attention import Attention

# Pairs that the float64 reference holds at a time (some 30 arrays of 8 bytes each), and those that
# a whole comparison may take before it looks at a sample of the queries instead.
BLOCK_PAIRS = 1 << 21
ALL_PAIRS = 1 << 26

# ||ours - reference|| / ||reference||, by dtype of the inputs.
TOLERANCES = {"float64": 1e-6, "float32": 1e-3, "float16": 1e-2, "bfloat16": 4e-2}
# A gradient whose root mean square is below this is compared as if it were this large.
NOTHING = 1e-3


@dataclass(frozen=True)
class Result:
    """How far one output or gradient is from the reference."""

    name: str
    shape: tuple[int, ...]
    max_error: float
    relative_error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.relative_error <= self.tolerance  # false for NaN


@dataclass(frozen=True)
class Outcome:
    """A comparison; times in milliseconds, the median of several calls after a first one."""

    program: str
    backend: str
    device: str
    dtype: str
    sizes: Sizes
    parameters: dict[str, str]
    rows_compared: int
    results: tuple[Result, ...]
    first_ms: float
    forward_ms: float
    backward_ms: float

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)

    @property
    def record(self) -> dict[str, object]:
        """For JSON."""
        record = asdict(self)
        record["results"] = [{**asdict(r), "passed": r.passed} for r in self.results]
        return {**record, "passed": self.passed}

    @property
    def text(self) -> str:
        """For a person."""
        s = self.sizes
        rows = [
            [r.name, "x".join(map(str, r.shape)), r.max_error, r.relative_error, r.tolerance]
            + ["ok" if r.passed else "WRONG"]
            for r in self.results
        ]
        titles = ["", "shape", "largest error", "relative error", "allowed", ""]
        kv = "" if s.heads == s.kv_heads else f" ({s.kv_heads} of keys)"
        dims = str(s.head_dim) if s.head_dim == s.value_dim else f"{s.head_dim}/{s.value_dim}"
        chosen = ", ".join(f"{name} = {value}" for name, value in self.parameters.items())
        lines = [
            f"{self.program}: batch {s.batch}, heads {s.heads}{kv}, {s.nq} queries, {s.nk} keys, "
            f"head dimension {dims}, {self.dtype}, {self.backend} on {self.device}",
            *([f"with {chosen}"] if chosen else []),
            "",
            table(titles, rows),
            "",
            f"forward {self.forward_ms:.1f} ms, backward {self.backward_ms:.1f} ms "
            f"(the first call, which compiles: {self.first_ms:.0f} ms)",
        ]
        if self.rows_compared < s.nq:
            lines.append(
                f"compared on {self.rows_compared} of {s.nq} queries and their gradients: "
                "a dense float64 reference of all would take too long"
            )
        lines.append("agrees with the reference in float64" if self.passed else "DOES NOT AGREE")
        return "\n".join(lines)


def check_device(device: str) -> None:
    """ArgumentError where torch has no such device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"device: cannot use {device!r}: {error}") from error


def run(
    attention: Attention,
    sizes: Sizes,
    given: Mapping[str, Number] | None = None,
    *,
    dtype: str = "float32",
    device: str | None = None,
    seed: int = 0,
) -> Outcome:
    """Draws arguments, runs forward and backward, compares, and times both."""
    program = attention.program
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    trial = Trial(program, sizes, given or {}, getattr(torch, dtype), device, seed)
    blocks, rows = row_blocks(program, sizes)
    with progress(len(blocks) + 2) as line:
        line.step("first call")
        begin = time.perf_counter()
        ours = trial.gradients(lambda: trial.call(attention), rows)
        synchronize(device)
        first_ms = (time.perf_counter() - begin) * 1e3
        line.step("timing")
        forward_ms, backward_ms = trial.times(attention, patient=first_ms < 20_000)
        expected = trial.reference(blocks, line)
    results = compare(ours, expected, TOLERANCES[dtype], rows)
    return Outcome(
        program=program.name,
        backend=attention.backend if attention.backend != "auto" else trial.engine,
        device=device,
        dtype=dtype,
        sizes=sizes,
        parameters={n: str(v) for n, v in trial.parameters.items() if not isinstance(v, Tensor)},
        rows_compared=len(rows),
        results=results,
        first_ms=first_ms,
        forward_ms=forward_ms,
        backward_ms=backward_ms,
    )


def row_blocks(program: Program, sizes: Sizes) -> tuple[list[range], Tensor]:
    """Blocks of query rows to evaluate densely, and all their rows: every row, or, where that is
    too much, blocks spread evenly from the first to the last."""
    per_row = max(1, sizes.batch * sizes.heads * sizes.nk)
    cost = 1
    if any(find(root, "dot") for root in roots(program)):  # a row of the query for every pair
        cost = max(1, sizes.head_dim // 4)
    height = max(1, BLOCK_PAIRS // (cost * per_row))
    starts = list(range(0, sizes.nq, height)) or [0]
    most = max(2, ALL_PAIRS // (cost * per_row * height))
    if len(starts) > most:
        starts = [starts[i * (len(starts) - 1) // (most - 1)] for i in range(most)]
    blocks = [range(start, min(start + height, sizes.nq)) for start in starts]
    rows = torch.tensor([row for block in blocks for row in block], dtype=torch.int64)
    return blocks, rows


class Trial:
    """One set of arguments, with the gradients that flow into its results."""

    def __init__(
        self,
        program: Program,
        sizes: Sizes,
        given: Mapping[str, Number],
        dtype: torch.dtype,
        device: str,
        seed: int,
    ) -> None:
        self.program, self.sizes, self.device = program, sizes, device
        self.engine = "torch" if device == "cpu" else "triton"
        random = torch.Generator().manual_seed(seed + 1)
        s = sizes

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random).to(device=device, dtype=dtype)

        self.query = normal(s.batch, s.heads, s.nq, s.head_dim)
        self.key = normal(s.batch, s.kv_heads, s.nk, s.head_dim)
        self.value = normal(s.batch, s.kv_heads, s.nk, s.value_dim)
        self.grad_out = normal(s.batch, s.heads, s.nq, s.value_dim)
        self.grad_lse = normal(s.batch, s.heads, s.nq).float()
        self.parameters = random_parameters(
            program, sizes, given, seed=seed, dtype=dtype, device=device
        )
        self.has_lse = program.weights.form == "softmax"

    @property
    def learned(self) -> dict[str, Tensor]:
        """Everything that receives a gradient, by name."""
        floats = [t.name for t in self.program.tensors if t.kind == "float"]
        tables = {name: self.parameters[name] for name in floats}
        inputs = {"query": self.query, "key": self.key, "value": self.value}
        return inputs | {n: t for n, t in tables.items() if isinstance(t, Tensor)}

    def call(self, attention: Attention) -> tuple[Tensor, Tensor | None]:
        """The compiled function on these arguments: out and, of a softmax, lse."""
        given: dict[str, Any] = dict(self.parameters)
        result = attention(
            self.query,
            self.key,
            self.value,
            q_offset=self.sizes.q_offset,
            k_offset=self.sizes.k_offset,
            return_lse=self.has_lse,
            **given,
        )
        return (result, None) if isinstance(result, Tensor) else result

    def gradients(
        self, call: Callable[[], tuple[Tensor, Tensor | None]], rows: Tensor
    ) -> dict[str, Tensor]:
        """Results of a call and gradients of the loss over some query rows, by name."""
        learned = self.learned
        for tensor in learned.values():
            tensor.grad = None
            tensor.requires_grad_()
        out, lse = call()
        found = {"out": out.detach()}
        chosen = torch.zeros(self.sizes.nq, dtype=torch.bool, device=self.device)
        chosen[rows.to(self.device)] = True
        loss = self.loss(out, lse, chosen)
        if loss.requires_grad:
            torch.autograd.backward(loss)
        if lse is not None:
            found["lse"] = lse.detach()
        for name, tensor in learned.items():
            grad = tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
            found[f"grad {name}"] = grad
            tensor.grad = None
            tensor.requires_grad_(False)
        return found

    def loss(self, out: Tensor, lse: Tensor | None, chosen: Tensor) -> Tensor:
        """A random linear function of the results of the chosen rows."""
        loss = (out * self.grad_out.to(out.dtype) * chosen[:, None]).sum()
        if lse is not None:
            finite = torch.isfinite(lse) & chosen
            loss = loss + (torch.where(finite, lse, 0) * self.grad_lse.to(lse.dtype)).sum()
        return loss

    def times(self, attention: Attention, patient: bool) -> tuple[float, float]:
        """Medians of forward and backward, in milliseconds."""
        forward, backward = [], []
        learned = list(self.learned.values())
        for tensor in learned:
            tensor.requires_grad_()
        for _ in range(3 if patient else 1):
            synchronize(self.device)
            begin = time.perf_counter()
            out, _ = self.call(attention)
            synchronize(self.device)
            middle = time.perf_counter()
            if out.requires_grad:
                torch.autograd.grad(out, learned, self.grad_out, allow_unused=True)
            synchronize(self.device)
            forward.append((middle - begin) * 1e3)
            backward.append((time.perf_counter() - middle) * 1e3)
        for tensor in learned:
            tensor.requires_grad_(False)
        return median(forward), median(backward)

    def reference(self, blocks: list[range], line: Progress) -> dict[str, Tensor]:
        """What `gradients` should have found, in float64, one block of query rows at a time."""
        precise = {
            name: t.detach().clone().double().requires_grad_() for name, t in self.learned.items()
        }
        tensors = {
            name: precise.get(name, tensor)
            for name, tensor in self.parameters.items()
            if isinstance(tensor, Tensor)
        }
        call = self.reference_call(precise, tensors)
        outs, lses = [], []
        for block in blocks:
            line.step("reference")
            out, lse = Rows(self.program, call, block).run()
            part = slice(block.start, block.stop)
            loss = (out * self.grad_out[:, :, part].double()).sum()
            if lse is not None:
                lse = lse.view(out.shape[:3])
                lses.append(lse.detach())
                finite = torch.where(torch.isfinite(lse), lse, 0)
                loss = loss + (finite * self.grad_lse[:, :, part].double()).sum()
            if loss.requires_grad:
                torch.autograd.backward(loss)
            outs.append(out.detach())
        found = {"out": torch.cat(outs, 2)}
        if lses:
            found["lse"] = torch.cat(lses, 2)
        for name, tensor in precise.items():
            grad = tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
            found[f"grad {name}"] = grad
        return found

    def reference_call(self, precise: dict[str, Tensor], tensors: dict[str, Tensor]) -> Call:
        sizes = dict(self.sizes.named)
        for tensor in self.program.tensors:
            for dim, extent in zip(tensor.dims, tensors[tensor.name].shape, strict=True):
                if dim.op == "size":
                    sizes.setdefault(dim.name, extent)
        scalars = {n: v for n, v in self.parameters.items() if not isinstance(v, Tensor)}
        return Call(
            query=precise["query"],
            key=precise["key"],
            value=precise["value"],
            scale=self.sizes.head_dim**-0.5 if self.sizes.head_dim else 1.0,
            q_offset=self.sizes.q_offset,
            k_offset=self.sizes.k_offset,
            k_len=None,
            sizes=sizes,
            scalars=scalars,
            tensors=tensors,
        )


class Rows(Evaluation):
    """The reference for some query rows; the sizes that the program sees stay those of the call."""

    def __init__(self, program: Program, call: Call, block: range) -> None:
        part = self.part = slice(block.start, block.stop)
        self.whole = call
        super().__init__(program, replace(call, query=call.query[:, :, part]))
        self.q = self.q[:, part]
        batches, heads, _, keys = self.shape
        self.shape = (batches, heads, len(block), keys)
        self.rows = batches * heads * len(block)

    def chosen(self) -> dict[str, Tensor]:
        """Chosen from all rows: blocks of queries may reach beyond these."""
        return chosen_pairs(self.program, self.whole, self.part)


def compare(
    ours: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float, rows: Tensor
) -> tuple[Result, ...]:
    """Largest and relative error of each result; of out and lse, in the rows compared."""
    results = []
    for name, reference in expected.items():
        got = ours[name].double()
        if name in ("out", "lse"):
            got = got[:, :, rows.to(got.device)]
        same = got == reference  # equal infinities of lse differ by nothing
        difference = torch.where(same, 0, got - reference).abs()
        size = torch.where(torch.isfinite(reference), reference, 0).norm()
        size = torch.clamp(size, min=NOTHING * max(reference.numel(), 1) ** 0.5)
        results.append(
            Result(
                name=name,
                shape=tuple(ours[name].shape),
                max_error=float(difference.max()) if difference.numel() else 0.0,
                relative_error=float(difference.norm() / size),
                tolerance=tolerance,
            )
        )
    return tuple(results)


def synchronize(device: str) -> None:
    """Waits until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


__all__ = ["Outcome", "Parameter", "Result", "Sizes", "compare", "run"]
