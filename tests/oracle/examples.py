"""Inputs for the programs in examples/: what each needs, at any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "examples"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.attn")))


@dataclass(frozen=True)
class Sizes:
    """batch, query heads, key heads, length, head width and value width."""

    batch: int = 2
    heads: int = 4
    key_heads: int = 2
    length: int = 36
    width: int = 16
    value_width: int = 16


@dataclass
class Inputs:
    """Lengths (`Sizes.length` unless an example needs others), arguments of a call, and values for
    the `const` parameters that suit such lengths."""

    rows: int
    columns: int
    arguments: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    consts: dict[str, Any] = field(default_factory=dict)


class Random:
    """Random tensors of a seed: floats are float32 numbers, so every dtype starts from the same."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(torch.float64)

    def ints(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def bools(self, share: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) < share


def _square(sizes: Sizes) -> tuple[int, int, int]:
    """Height, width and number of pixels of an image of about `length` tokens."""
    height = max(1, int(sizes.length**0.5))
    width = max(1, sizes.length // height)
    return height, width, height * width


def _none(sizes: Sizes, random: Random) -> Inputs:
    return Inputs(sizes.length, sizes.length)


def _window(sizes: Sizes, random: Random) -> Inputs:
    return Inputs(sizes.length, sizes.length, {"window": max(1, sizes.length // 4)})


def _prefix_lm(sizes: Sizes, random: Random) -> Inputs:
    length = random.ints(0, sizes.length // 2 + 1, sizes.batch)
    return Inputs(sizes.length, sizes.length, {"length": length})


def _packed_documents(sizes: Sizes, random: Random) -> Inputs:
    doc = random.ints(0, 4, sizes.batch, sizes.length).sort(-1).values
    return Inputs(sizes.length, sizes.length, {"doc": doc})


def _t5(sizes: Sizes, random: Random) -> Inputs:
    bias = random.floats(sizes.heads, 32)
    return Inputs(sizes.length, sizes.length, {"bias": bias}, {"scale": sizes.width**-0.5})


def _gpt_oss(sizes: Sizes, random: Random) -> Inputs:
    window = max(1, sizes.length // 4)
    arguments = {"sink": random.floats(sizes.heads), "window": window}
    return Inputs(sizes.length, sizes.length, arguments)


def _swin(sizes: Sizes, random: Random) -> Inputs:
    height, width, pixels = _square(sizes)
    window = max(2, min(7, height // 2))
    bias = random.floats(sizes.heads, 2 * window - 1, 2 * window - 1)
    image = {"height": height, "width": width, "window": window, "shift": window // 2}
    return Inputs(pixels, pixels, {"bias": bias, **image})


def _neighborhood_2d(sizes: Sizes, random: Random) -> Inputs:
    height, width, pixels = _square(sizes)
    radius = max(0, min(3, (min(height, width) - 1) // 2 - 1))
    return Inputs(pixels, pixels, {"height": height, "width": width, "radius": radius})


def _gna(sizes: Sizes, random: Random) -> Inputs:
    height, width, pixels = _square(sizes)
    image = {"height": height, "width": width, "window": max(1, height // 2), "stride": 2}
    return Inputs(pixels, pixels, image)


def _neighborhood_3d(sizes: Sizes, random: Random) -> Inputs:
    frames, height, width = 2, 3, sizes.length // 6
    windows = {"window_t": 1, "window_y": 2, "window_x": max(1, width - 2)}
    strides = {"stride_t": 1, "stride_y": 2, "stride_x": 2}
    grid = {"frames": frames, "height": height, "width": width}
    return Inputs(6 * width, 6 * width, {**grid, **windows, **strides})


def _masked_cross(sizes: Sizes, random: Random) -> Inputs:
    rows = max(1, sizes.length // 3)
    allowed = random.bools(0.3, rows, sizes.length)
    allowed[0] = False  # a query that may read nothing
    return Inputs(rows, sizes.length, {"allowed": allowed})


def _music_transformer(sizes: Sizes, random: Random) -> Inputs:
    rel = random.floats(sizes.heads, max(1, sizes.length // 2), sizes.width)
    return Inputs(sizes.length, sizes.length, {"rel": rel})


def _gated(sizes: Sizes, random: Random) -> Inputs:
    gate = random.floats(sizes.batch, sizes.heads, sizes.length)
    return Inputs(sizes.length, sizes.length, {"gate": gate})


def _duo_heads(sizes: Sizes, random: Random) -> Inputs:
    retrieval = torch.arange(sizes.heads) % 2 == 0
    near = {"sinks": max(1, sizes.length // 12), "recent": max(1, sizes.length // 6)}
    return Inputs(sizes.length, sizes.length, {"retrieval": retrieval, **near})


def _pair_bias(sizes: Sizes, random: Random) -> Inputs:
    shape = (sizes.batch, sizes.heads, sizes.length)
    valid = torch.arange(sizes.length) < random.ints(0, sizes.length + 1, sizes.batch, 1)
    arguments = {
        "pair": random.floats(*shape, sizes.length),
        "gate": random.floats(*shape, sizes.value_width),
        "valid": valid,
    }
    return Inputs(sizes.length, sizes.length, arguments)


def _block_diffusion(sizes: Sizes, random: Random) -> Inputs:
    length = sizes.length // 2 * 2
    return Inputs(length, length, {"block": max(1, sizes.length // 9)})


def _blocks(length: int, block: int) -> int:
    return (length + block - 1) // block


def _moba(sizes: Sizes, random: Random) -> Inputs:
    consts = {"block": max(1, sizes.length // 6), "n": 2}
    return Inputs(sizes.length, sizes.length, consts=consts)


def _nsa_compressed(sizes: Sizes, random: Random) -> Inputs:
    stride = max(1, sizes.length // 8)
    columns = max(1, sizes.length // stride - 1)
    return Inputs(sizes.length, columns, {"length": 2 * stride, "stride": stride})


def _nsa_selected(sizes: Sizes, random: Random) -> Inputs:
    block = max(1, sizes.length // 8)
    shape = (sizes.batch, sizes.heads, sizes.length, _blocks(sizes.length, block))
    arguments = {"importance": random.floats(*shape).abs(), "n": 2}
    return Inputs(sizes.length, sizes.length, arguments, consts={"block": block})


def _seer(sizes: Sizes, random: Random) -> Inputs:
    block = max(1, sizes.length // 6)
    count = _blocks(sizes.length, block)
    gate = random.floats(sizes.batch, sizes.heads, count, count).softmax(-1)
    arguments = {"gate": gate.float().double(), "threshold": 0.125}
    return Inputs(sizes.length, sizes.length, arguments, consts={"block": block})


def _quest(sizes: Sizes, random: Random) -> Inputs:
    consts = {"page": max(1, sizes.length // 8)}
    return Inputs(sizes.length, sizes.length, {"n": 2}, consts=consts)


def _biformer(sizes: Sizes, random: Random) -> Inputs:
    consts = {"region": max(1, sizes.length // 6)}
    return Inputs(sizes.length, sizes.length, {"n": 2}, consts=consts)


def _sparge(sizes: Sizes, random: Random) -> Inputs:
    rows, columns = max(1, sizes.length // 5), max(1, sizes.length // 8)
    by_row = (sizes.batch, sizes.heads, _blocks(sizes.length, rows))
    by_column = (sizes.batch, sizes.key_heads, _blocks(sizes.length, columns))
    arguments = {
        "alike_rows": random.bools(0.8, *by_row),
        "alike_columns": random.bools(0.8, *by_column),
        "mass": 0.6,
    }
    consts = {"rows": rows, "columns": columns}
    return Inputs(sizes.length, sizes.length, arguments, consts=consts)


def _landmark(sizes: Sizes, random: Random) -> Inputs:
    block = max(2, sizes.length // 6)
    count = _blocks(sizes.length, block)
    landmark = random.floats(sizes.batch, sizes.key_heads, count, sizes.width)
    arguments = {"landmark": landmark, "n": 2}
    return Inputs(sizes.length, sizes.length, arguments, consts={"block": block})


def _longheads(sizes: Sizes, random: Random) -> Inputs:
    chunk = max(1, sizes.length // 8)
    count = _blocks(sizes.length, chunk)
    summary = random.floats(sizes.batch, sizes.key_heads, count, sizes.width)
    arguments = {"summary": summary, "budget": torch.arange(sizes.heads) % 4}
    return Inputs(sizes.length, sizes.length, arguments, consts={"chunk": chunk})


def _listed(sizes: Sizes, random: Random) -> Inputs:
    columns = max(1, sizes.length // 6)
    count = _blocks(sizes.length, columns)
    blocks = random.ints(-1, count, sizes.batch, sizes.key_heads, sizes.length, 3)
    return Inputs(sizes.length, sizes.length, {"blocks": blocks, "columns": columns})


MAKERS: dict[str, Callable[[Sizes, Random], Inputs]] = {
    "causal": _none,
    "mistral": _window,
    "gemma2_local": _window,
    "prefix_lm": _prefix_lm,
    "packed_documents": _packed_documents,
    "alibi": _none,
    "t5": _t5,
    "gpt_oss": _gpt_oss,
    "swin": _swin,
    "neighborhood_2d": _neighborhood_2d,
    "gna": _gna,
    "neighborhood_3d": _neighborhood_3d,
    "masked_cross": _masked_cross,
    "music_transformer": _music_transformer,
    "sigmoid": _none,
    "retention": _none,
    "gated": _gated,
    "duo_heads": _duo_heads,
    "pair_bias": _pair_bias,
    "block_diffusion": _block_diffusion,
    "moba": _moba,
    "nsa_compressed": _nsa_compressed,
    "nsa_selected": _nsa_selected,
    "nsa_window": _window,
    "seer": _seer,
    "quest": _quest,
    "biformer": _biformer,
    "sparge": _sparge,
    "landmark": _landmark,
    "longheads": _longheads,
    "listed": _listed,
}


def example_inputs(name: str, sizes: Sizes, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Inputs]:
    """query, key, value (float64 that hold float32 numbers) and the arguments of an example."""
    random = Random(seed)
    inputs = MAKERS[name](sizes, random)
    query = random.floats(sizes.batch, sizes.heads, inputs.rows, sizes.width)
    key = random.floats(sizes.batch, sizes.key_heads, inputs.columns, sizes.width)
    value = random.floats(sizes.batch, sizes.key_heads, inputs.columns, sizes.value_width)
    return query, key, value, inputs
