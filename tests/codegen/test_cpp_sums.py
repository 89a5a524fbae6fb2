"""The C++ engine's sums for keys: items hand them on, and add them up in one order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attndsl.codegen.cpp import backward as cpp_backward
from torch import Tensor

import attndsl
from attndsl.runtime import cache
from tests.codegen.cpp import compiler, quick, sanitised  # noqa: F401
from tests.oracle.compare import Function, difference, differentiate

pytestmark = pytest.mark.filterwarnings("ignore")  # what the compiler finds odd in a program

# Keys of items that follow each other: all, later ones, with a gap, earlier ones, none for most.
MASKS = {
    "all": "true",
    "window": "k <= q and q - k < 30",
    "ends": "k < 5 or abs(q - k) < 20",
    "mirrored": "abs(q + k - 240) < 30",
    "last rows": "q >= 200 and k < 40",
}


def text_of(mask: str) -> str:
    return f"attention a():\n    mask {mask}\n"


def inputs(heads: int, key_heads: int, rows: int = 250) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(7)
    shapes = {
        "query": (heads, rows, 20),
        "key": (key_heads, 233, 20),
        "value": (key_heads, 233, 12),
    }
    return {
        name: torch.randn((1, *shape), generator=random, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def of_results(attention: Callable[..., Tensor]) -> Function:
    return lambda **tensors: (attention(**tensors), None)


def of_threads(text: str, given: dict[str, Tensor], *threads: int) -> list[dict[str, Tensor]]:
    """Results and gradients with so many threads."""
    attention = attndsl.compile(text=text, backend="cpp")
    before, found = torch.get_num_threads(), []
    try:
        for number in threads:
            torch.set_num_threads(number)
            found.append(differentiate(of_results(attention), given, False))
    finally:
        torch.set_num_threads(before)
    return found


@pytest.mark.usefixtures("sanitised")
@pytest.mark.parametrize("mask", MASKS)
def test_sums_of_items(mask: str) -> None:
    """Groups of 1, 3, 5 and 8 heads, each head in 6, 2 or 1 parts; bit for bit the same with any
    number of threads: with few, items take over what others have left."""
    text = text_of(MASKS[mask])
    reference = attndsl.compile(text=text, backend="cpp").reference
    for heads, key_heads in ((1, 1), (8, 8), (3, 1), (8, 1), (20, 4)):
        given = inputs(heads, key_heads)
        first, *others = of_threads(text, given, 1, 2, 5, 2)
        wrong = difference(first, differentiate(of_results(reference), given, False), 1e-9, 0.1)
        assert not wrong, (heads, key_heads, wrong)
        for other in others:
            assert all(torch.equal(x, other[name]) for name, x in first.items()), (heads, key_heads)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("threads", "few"), [(1, 1), (3, 1), (1, 2)])
def test_no_memory(threads: int, few: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For the sums of more than `few` items: the call says so, and the next one works. One thread
    needs those of two of the sixteen items."""
    place = "if (posix_memalign("
    assert cpp_backward.SHARING.count(place) == 1
    refused = f"if (size_Nq == 250 && shared.waiting < all_items() - {few} || posix_memalign("
    monkeypatch.setattr(cpp_backward, "SHARING", cpp_backward.SHARING.replace(place, refused))
    monkeypatch.setenv("ATTNDSL_CACHE", str(tmp_path))
    cache.forget()
    text, given = text_of("k <= q"), inputs(8, 2)
    if few == 2:
        of_threads(text, given, threads)
        return
    with pytest.raises(MemoryError, match="no memory"):
        of_threads(text, given, threads)
    of_threads(text, inputs(8, 2, rows=240), threads)
