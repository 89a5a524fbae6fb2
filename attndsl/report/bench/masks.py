"""The attentions that are measured: as a program, and as users of FlexAttention write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attndsl.report.bench.neighborhoods import Problem, neighborhood
from attndsl.report.bench.shapes import Shape

PROGRAMS = """
from std import alibi, alibi_slope, causal, document, prefix, sliding_window, softcap
from std import strided_neighborhood

attention everything():
    mask true

attention causal_attention():
    mask causal

attention alibi_attention():
    mask causal
    score score + alibi(alibi_slope)

attention window_attention(window: int):
    mask sliding_window(window)

attention sink_attention(window: int, sink: float[H]):
    mask sliding_window(window)
    weights softmax(sink = sink[h])

attention prefix_attention(length: int):
    mask causal or prefix(length)

attention softcap_attention(cap: float):
    mask causal
    score softcap(score, cap)

attention documents_attention(doc: int[B, N]):
    mask document(doc[b, q], doc[b, k]) and causal

attention image_attention(
    height: int, width: int, window_y: int, window_x: int, stride_y: int, stride_x: int
):
    grid y = height, x = width
    mask strided_neighborhood(q.y, k.y, window_y, stride_y, height)
    mask strided_neighborhood(q.x, k.x, window_x, stride_x, width)

attention video_attention(
    frames: int, height: int, width: int,
    window_t: int, window_y: int, window_x: int,
    stride_t: int, stride_y: int, stride_x: int,
):
    grid t = frames, y = height, x = width
    mask strided_neighborhood(q.t, k.t, window_t, stride_t, frames)
    mask strided_neighborhood(q.y, k.y, window_y, stride_y, height)
    mask strided_neighborhood(q.x, k.x, window_x, stride_x, width)
"""
DOCUMENTS = 12  # of a sequence

Given = dict[str, Any]  # arguments of a program's call, by name
# Of batch, head, query and key; what it gives for tensors of them broadcasts.
MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# The same, after the score.
ScoreFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Mask:
    """An attention.

    program     its name in PROGRAMS
    given       parameters of a call of a shape, on the CPU; the seed is the number of the step
    kept        FlexAttention's mask_mod for them; None: all pairs
    scored      its score_mod; None: none
    adds        whether the score_mod only adds a bias, as a dense mask can
    is_causal   whether it is what SDPA calls `is_causal`, for as many queries as keys
    by_batch    whether sequences of a batch differ
    learned     tensors of `given` that want a gradient
    sink        one of them, that is a logit beside the keys' of every head
    """

    name: str
    program: str
    given: Callable[[Shape, int], Given]
    kept: Callable[[Given], MaskFunction] | None = None
    scored: Callable[[Given], ScoreFunction] | None = None
    adds: bool = False
    is_causal: bool = False
    by_batch: bool = False
    learned: tuple[str, ...] = ()
    sink: str | None = None


def nothing(shape: Shape, step: int) -> Given:
    return {}


def causal(given: Given) -> MaskFunction:
    def kept(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return q >= k

    return kept


def falls_with_distance(given: Given) -> ScoreFunction:
    slope: Tensor = given["slope"]  # of each head, which the program computes itself

    def scored(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + slope[h] * (k - q)

    return scored


def slopes(shape: Shape, step: int) -> Given:
    """What FlexAttention captures; a program is not given it."""
    return {"slope": torch.exp2(-8.0 * (torch.arange(shape.heads) + 1) / shape.heads)}


def capped(given: Given) -> ScoreFunction:
    cap: float = given["cap"]

    def scored(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return scored


def in_window(given: Given) -> MaskFunction:
    window: int = given["window"]

    def kept(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q - k < window)

    return kept


def in_prefix(given: Given) -> MaskFunction:
    length: int = given["length"]

    def kept(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k < length) | (q >= k)

    return kept


def in_document(given: Given) -> MaskFunction:
    doc: Tensor = given["doc"]

    def kept(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (doc[b, q] == doc[b, k]) & (q >= k)

    return kept


def documents(shape: Shape, step: int) -> Given:
    """Documents of random lengths, other ones in every sequence and at every step."""
    random = torch.Generator().manual_seed(1000 * shape.keys + step)
    length, count = shape.keys, min(DOCUMENTS, shape.keys)
    starts = torch.zeros(shape.batch, length, dtype=torch.int32)
    for row in starts:
        row[1 + torch.randperm(length - 1, generator=random)[: count - 1]] = 1
    return {"doc": starts.cumsum(1, dtype=torch.int32)}


def sinks(window: int) -> Callable[[Shape, int], Given]:
    def given(shape: Shape, step: int) -> Given:
        random = torch.Generator().manual_seed(shape.heads)
        return {"window": window, "sink": torch.randn(shape.heads, generator=random)}

    return given


def last_query(shape: Shape, step: int) -> Given:
    """The queries are the last tokens of the sequence."""
    return {"q_offset": shape.keys - shape.queries}


def ragged(shape: Shape, step: int) -> Given:
    """Sequences of half to all of the keys, the query the last token of each."""
    random = torch.Generator().manual_seed(shape.keys)
    low = max(1, shape.keys // 2)
    lengths = torch.randint(low, shape.keys + 1, (shape.batch,), generator=random)
    lengths = lengths.to(torch.int32)
    return {"k_len": lengths, "q_offset": lengths - 1}


def in_sequence(given: Given) -> MaskFunction:
    lengths: Tensor = given["k_len"]

    def kept(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k < lengths[b]

    return kept


def window_of(window: int) -> Mask:
    return Mask(
        f"window {window}", "window_attention", lambda shape, step: {"window": window}, in_window
    )


def prefix_of(length: int) -> Mask:
    return Mask(
        f"prefix {length}", "prefix_attention", lambda shape, step: {"length": length}, in_prefix
    )


def sinks_of(window: int) -> Mask:
    name = f"window {window}, sinks"
    return Mask(name, "sink_attention", sinks(window), in_window, learned=("sink",), sink="sink")


def near(problem: Problem) -> Mask:
    program = {2: "image_attention", 3: "video_attention"}[len(problem.grid)]
    return Mask(problem.name, program, lambda shape, step: problem.parameters, neighborhood)


NONE = Mask("no mask", "everything", nothing)
CAUSAL = Mask("causal", "causal_attention", nothing, causal, is_causal=True)
ALIBI = Mask("ALiBi", "alibi_attention", slopes, causal, falls_with_distance, adds=True)
SOFTCAP = Mask(
    "soft-cap 30", "softcap_attention", lambda shape, step: {"cap": 30.0}, causal, capped
)
PACKED = Mask("documents", "documents_attention", documents, in_document, by_batch=True)
DECODE = Mask("decode", "causal_attention", last_query)
RAGGED = Mask("decode, ragged", "causal_attention", ragged, in_sequence, by_batch=True)
