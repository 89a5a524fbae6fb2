"""Windows of pixels and of video: NATTEN's three problems, smaller ones, and their mask_mod."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

Extents = tuple[int, ...]
NAMES = {
    2: (("height", "width"), ("window_y", "window_x"), ("stride_y", "stride_x")),
    3: (
        ("frames", "height", "width"),
        ("window_t", "window_y", "window_x"),
        ("stride_t", "stride_y", "stride_x"),
    ),
}


@dataclass(frozen=True)
class Problem:
    """Extents along every axis, the slowest first. `stride` neighbours share a window."""

    model: str
    heads: int
    grid: Extents
    window: Extents
    stride: Extents

    @property
    def name(self) -> str:
        grid, window, stride = (
            "x".join(map(str, part)) for part in (self.grid, self.window, self.stride)
        )
        by = f" by {stride}" if prod(self.stride) > 1 else ""
        return f"{self.model} {grid}, {window}{by}"

    @property
    def tokens(self) -> int:
        return prod(self.grid)

    @property
    def parameters(self) -> dict[str, Any]:
        """Of the programs `image_attention` and `video_attention`."""
        given: dict[str, Any] = {}
        values = (self.grid, self.window, self.stride)
        for names, extents in zip(NAMES[len(self.grid)], values, strict=True):
            given |= dict(zip(names, extents, strict=True))
        return given


def both(
    model: str, heads: int, grid: Extents, window: Extents, stride: Extents
) -> tuple[Problem, Problem]:
    """Every query with a window of its own, and windows that move by a stride."""
    own = (1,) * len(grid)
    return Problem(model, heads, grid, window, own), Problem(model, heads, grid, window, stride)


# The problems of Hassani et al., "Generalized Neighborhood Attention", 2025: Cosmos-7B,
# HunyuanVideo, and FLUX.1-dev at 4K; the heads have 128 dimensions.
COSMOS = both("Cosmos", 32, (16, 44, 80), (16, 32, 48), (1, 8, 16))
HUNYUAN = both("Hunyuan", 24, (30, 48, 80), (18, 24, 24), (16, 8, 8))
FLUX = both("FLUX", 24, (256, 256), (80, 80), (16, 16))
# The same on a machine without a GPU, at about a 20th of the length.
SMALL = (
    *both("video", 2, (8, 16, 20), (8, 12, 12), (1, 4, 4)),
    *both("image", 2, (48, 48), (15, 15), (8, 8)),
)


def neighborhood(given: dict[str, Any]) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask_mod for positions that run through the grid row by row."""
    names = NAMES[3 if "frames" in given else 2]
    grid, windows, strides = ([given[name] for name in part] for part in names)

    def start(x: Tensor, extent: int, window: int, stride: int) -> Tensor:
        leader = torch.clamp(x // stride * stride + stride // 2, max=extent - 1)
        return torch.clamp(leader - window // 2, 0, max(extent - window, 0))

    def kept(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        inside = (q >= 0) & (k >= 0)
        step = 1
        for extent, window, stride in reversed(list(zip(grid, windows, strides, strict=True))):
            x, y = q // step % extent, k // step % extent
            first = start(x, extent, window, stride)
            inside = inside & (y >= first) & (y < first + window)
            step *= extent
        return inside

    return kept
