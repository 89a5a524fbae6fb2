"""The CPU engine beside FlexAttention compiled for the CPU, and SDPA with a dense mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.report.bench.measurement import REPEATS, Report, milliseconds, summary
from attndsl.report.progress import Progress, progress

AGREES = 1e-4  # largest difference, of float32 results of about 1
DOCUMENTS = 8
PROGRAM = """
attention window_causal(window: int = 512):
    mask 0 <= q - k < window

attention documents(doc: int[N]):
    mask doc[q] == doc[k] and k <= q
"""

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Problem:
    """One mask on one set of inputs: what is timed by name; all must agree with `dense`."""

    name: str
    calls: dict[str, Call]
    dense: Call


def cpu(length: int = 4096, heads: int = 8, width: int = 64, window: int = 512) -> Report:
    """A causal window, and documents whose mask is made anew for every call."""
    random = torch.Generator().manual_seed(0)
    shape = (1, heads, length, width)
    inputs = [torch.randn(shape, generator=random) for _ in range(3)]
    titles = ("mask", "forward", "median ms", "spread ms", "ratio", "largest difference")
    rows: list[tuple[object, ...]] = []
    notes: list[str] = []
    found = list(problems(inputs, window))
    with progress(len(found) * (3 + REPEATS)) as line, torch.no_grad():
        for problem in found:
            some_rows, some_notes = measured(problem, line)
            rows += some_rows
            notes += some_notes
    about = (
        f"length {length}, {heads} heads of {width}, float32, {torch.get_num_threads()} threads; "
        f"median of {REPEATS}"
    )
    return Report("cpu", about, titles, tuple(rows), tuple(notes), passed=not notes)


def measured(problem: Problem, line: Progress) -> tuple[list[tuple[object, ...]], list[str]]:
    """Rows of the table, and what does not agree and was not timed."""
    expected = problem.dense()
    differences: dict[str, float] = {}
    times: dict[str, list[float]] = {}
    for name, call in problem.calls.items():
        line.step(f"{problem.name}, {name}: checking")
        differences[name] = float((call() - expected).abs().max())
    agreeing = {n: call for n, call in problem.calls.items() if differences[n] < AGREES}
    for _ in range(REPEATS):  # in turns, so that what else the machine does falls on all alike
        line.step(f"{problem.name}: timing")
        for name, call in agreeing.items():
            times.setdefault(name, []).extend(milliseconds(call, 1))
    first = summary(next(iter(times.values())))[0]
    rows: list[tuple[object, ...]] = []
    for name, taken in times.items():
        middle, spread = summary(taken)
        rows.append((problem.name, name, middle, spread, middle / first, differences[name]))
    wrong = problem.calls.keys() - agreeing.keys()
    return rows, [
        f"{problem.name}: {name} differs by {differences[name]:.2g}: not timed" for name in wrong
    ]


def problems(inputs: list[Tensor], window: int) -> Iterator[Problem]:
    import attndsl

    length = inputs[0].shape[2]
    place = torch.arange(length)
    ids = place * DOCUMENTS // length
    ours = attndsl.compile(text=PROGRAM, name="window_causal", backend="torch")
    packed = attndsl.compile(text=PROGRAM, name="documents", backend="torch")

    def in_window(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q - k < window)

    def in_document(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (ids[q] == ids[k]) & (q >= k)

    def dense(kept: MaskFunction) -> Call:
        def call() -> Tensor:
            return sdpa(inputs, kept(place, place, place[:, None], place[None, :]))

        return call

    pairs = in_window(place, place, place[:, None], place[None, :])
    flex = flex_attention(in_window, length)
    flex_documents = flex_attention(in_document, length, anew=True)
    yield Problem(
        f"causal window of {window}",
        {
            "attndsl": lambda: result(ours(*inputs, window=window)),
            "FlexAttention, compiled": lambda: flex(inputs),
            "SDPA, dense mask": lambda: sdpa(inputs, pairs),
        },
        dense(in_window),
    )
    yield Problem(
        f"{DOCUMENTS} documents, causal, mask made anew",
        {
            "attndsl": lambda: result(packed(*inputs, doc=ids)),
            "FlexAttention, compiled": lambda: flex_documents(inputs),
            "SDPA, dense mask": dense(in_document),
        },
        dense(in_document),
    )


def result(out: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    assert isinstance(out, Tensor)
    return out


def sdpa(inputs: list[Tensor], kept: Tensor) -> Tensor:
    query, key, value = inputs
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=kept)


def flex_attention(
    kept: MaskFunction, length: int, anew: bool = False
) -> Callable[[list[Tensor]], Tensor]:
    """Compiled FlexAttention with a mask; `anew`: create_block_mask runs in every call."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)  # C++ of dynamic lengths fails to build
    prepared = create_block_mask(kept, None, None, length, length, device="cpu")

    def call(inputs: list[Tensor]) -> Tensor:
        mask = prepared
        if anew:
            mask = create_block_mask(kept, None, None, length, length, device="cpu")
        query, key, value = inputs
        out: Tensor = compiled(query, key, value, block_mask=mask)
        return out

    return call
