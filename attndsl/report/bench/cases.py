"""The cases of every suite: a mask on a shape, for a GPU and for a machine without one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from attndsl.report.bench.masks import (
    ALIBI,
    CAUSAL,
    DECODE,
    NONE,
    PACKED,
    RAGGED,
    SOFTCAP,
    Mask,
    near,
    prefix_of,
    sinks_of,
    window_of,
)
from attndsl.report.bench.neighborhoods import COSMOS, FLUX, HUNYUAN, SMALL
from attndsl.report.bench.shapes import Shape

PEERS = ("flex", "tuned", "sdpa", "dense")  # as a user names them


@dataclass(frozen=True)
class Case:
    """What is measured at a time.

    dtype       of query, key and value
    has_steps   whether every call has a mask of its own, so that preparing it counts
    backward    whether gradients are measured
    is_read     whether the time is that of reading keys and values: GB/s instead of TFLOP/s
    threads     of a CPU; None: all
    """

    mask: Mask
    shape: Shape
    dtype: str
    has_steps: bool = False
    backward: bool = True
    is_read: bool = False
    threads: int | None = None

    @property
    def text(self) -> str:
        """For a person."""
        threads = "" if self.threads is None else f", {plural(self.threads, 'thread')}"
        return f"{self.mask.name}: {self.shape.text}, {self.dtype}{threads}"


@dataclass(frozen=True)
class Wish:
    """What is asked for; None: what the suite has for the device.

    is_quick  the least that shows every mask of the suite
    masks     parts of names of masks
    peers     of PEERS
    ours      what of attndsl beside the default: of implementations.VARIANTS
    """

    device: str
    lengths: tuple[int, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    masks: tuple[str, ...] = ()
    peers: tuple[str, ...] = PEERS
    ours: tuple[str, ...] | None = None
    is_quick: bool = False

    @property
    def kind(self) -> str:
        """ "cpu" or "cuda"."""
        return self.device.partition(":")[0]

    @property
    def is_cpu(self) -> bool:
        return self.kind == "cpu"


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def quick(wish: Wish, first: int, *others: int) -> list[int]:
    """Lengths: one where it shall be quick."""
    return [first] if wish.is_quick else sorted((first, *others))


def squares(
    masks: Sequence[Mask], shape: Shape, lengths: Sequence[int], dtype: str
) -> Iterator[Case]:
    """Masks at lengths, with as many queries as keys."""
    for mask in masks:
        for length in lengths:
            yield Case(mask, replace(shape, queries=length, keys=length), dtype)


def core(wish: Wish) -> Iterator[Case]:
    """The matrices of attention-gym (flex_perf.py, examples/benchmark.py), and MagiAttention's."""
    masks = (NONE, CAUSAL, ALIBI, window_of(2048), PACKED)
    others = (CAUSAL, ALIBI, window_of(1024), prefix_of(1024), SOFTCAP)
    long = (NONE, CAUSAL, PACKED, window_of(1024))
    if wish.is_cpu:
        small = (NONE, CAUSAL, ALIBI, window_of(256), PACKED, prefix_of(256), SOFTCAP)
        yield from squares(small, Shape(1, 4, 2, 0, 0, 64), quick(wish, 512, 1024, 2048), "float32")
        return
    lengths = quick(wish, 8192, 2048, 4096, 16_384, 32_768)
    for width in (64, 128):
        for kv_heads in (4,) if wish.is_quick else (4, 16):
            yield from squares(masks, Shape(4, 16, kv_heads, 0, 0, width), lengths, "bfloat16")
    yield from squares(others, Shape(16, 16, 16, 0, 0, 64), (8192,), "float16")
    yield from squares((PACKED,), Shape(1, 16, 16, 0, 0, 64), (32_768,), "float16")
    lengths = quick(wish, 16_384, 1024, 2048, 4096, 8192, 32_768)
    yield from squares(long, Shape(1, 64, 8, 0, 0, 128), lengths, "bfloat16")


def documents(wish: Wish) -> Iterator[Case]:
    """Other documents at every step: what preparing the mask takes counts on all sides."""
    shape, dtype = Shape(1, 64, 8, 0, 0, 128), "bfloat16"
    lengths = quick(wish, 8192, 4096, 16_384, 32_768, 65_536)
    if wish.is_cpu:
        shape, dtype = Shape(1, 4, 2, 0, 0, 64), "float32"
        lengths = quick(wish, 2048, 1024, 4096)
    for case in squares((PACKED,), shape, lengths, dtype):
        yield replace(case, has_steps=True)


def window(wish: Wish) -> Iterator[Case]:
    """A window of 128 with sinks, as gpt-oss has it, and one of 1024."""
    if wish.is_cpu:
        lengths = quick(wish, 1024, 4096)
        masks = (sinks_of(128), window_of(128), window_of(512))
        yield from squares(masks, Shape(1, 4, 1, 0, 0, 64), lengths, "float32")
        return
    lengths = quick(wish, 8192, 2048, 4096, 16_384, 32_768, 65_536)
    narrow = (sinks_of(128), window_of(128))
    yield from squares(narrow, Shape(1, 64, 8, 0, 0, 64), lengths, "bfloat16")
    yield from squares((window_of(1024),), Shape(1, 64, 8, 0, 0, 128), lengths, "bfloat16")


def neighborhood(wish: Wish) -> Iterator[Case]:
    """NATTEN's three problems, each with a window of its own for every token, and strided."""
    problems = SMALL if wish.is_cpu else (*COSMOS, *HUNYUAN, *FLUX)
    for problem in problems[:2] if wish.is_quick else problems:
        tokens, width = problem.tokens, 64 if wish.is_cpu else 128
        shape = Shape(1, problem.heads, problem.heads, tokens, tokens, width)
        yield Case(near(problem), shape, "float32" if wish.is_cpu else "bfloat16")


def decode(wish: Wish) -> Iterator[Case]:
    """One query for every sequence, and many keys."""
    heads, dtype = (64, 8, 128), "bfloat16"
    lengths = quick(wish, 8192, 32_768, 131_072)
    if wish.is_cpu:
        heads, dtype = (8, 2, 64), "float32"
        lengths = quick(wish, 2048, 8192)
    for batch in (1, 8):
        for length in lengths:
            for mask in (DECODE,) if batch == 1 else (DECODE, RAGGED):
                shape = Shape(batch, heads[0], heads[1], 1, length, heads[2])
                yield Case(mask, shape, dtype, backward=False, is_read=True)


def cpu(wish: Wish) -> Iterator[Case]:
    """What FlexAttention does on a CPU, with one thread and with all."""
    masks = (NONE, CAUSAL, ALIBI, window_of(256), prefix_of(256), PACKED, SOFTCAP)
    lengths = quick(wish, 2048, 1024, 4096)
    forms = ((8, 64), (2, 64), (8, 128), (2, 128))
    count = torch.get_num_threads()
    for threads in (1, count) if count > 1 else (1,):
        for dtype in ("float32", "bfloat16"):
            for kv_heads, width in forms[:1] if wish.is_quick else forms:
                for case in squares(masks, Shape(1, 8, kv_heads, 0, 0, width), lengths, dtype):
                    yield replace(case, threads=threads)


def chosen(cases: Iterator[Case], wish: Wish) -> list[Case]:
    """The cases that are wished for; other lengths and dtypes take the place of the suite's."""
    found: dict[Case, None] = {}
    for case in cases:
        name = case.mask.name.lower()
        if wish.masks and not any(part.lower() in name for part in wish.masks):
            continue
        for length in wish.lengths or (case.shape.keys,):
            queries = length if case.shape.queries == case.shape.keys else case.shape.queries
            shape = replace(case.shape, queries=queries, keys=length)
            for dtype in wish.dtypes or (case.dtype,):
                found[replace(case, shape=shape, dtype=dtype)] = None
    return list(found)
