"""The functions that a generated PyTorch module computes with, against plain PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
from attndsl.codegen.torch import library
from attndsl.codegen.torch.span_library import attn_chunks, attn_without
from hypothesis import given
from hypothesis import strategies as st

import attndsl

UNIT = 8
INF = float("inf")

Ranges = list[tuple[int, int]]


@st.composite
def spans(draw: st.DrawFn) -> tuple[Ranges, Ranges]:
    """Ranges of columns without overlap, in order; and parts of them."""
    ends = sorted(draw(st.sets(st.integers(0, 200), min_size=2, max_size=8)))
    reached = list(zip(ends[::2], ends[1::2], strict=False))
    kept = [draw(st.booleans()) for _ in reached]
    full = [(lo, (lo + hi + 1) // 2) for (lo, hi), keep in zip(reached, kept, strict=True) if keep]
    return reached, full


@given(spans(), st.integers(1, 6))
def test_chunks_cover_each_column_once(span: tuple[Ranges, Ranges], units: int) -> None:
    reached, full = span
    chunks = attn_chunks(span, units * UNIT, UNIT)
    columns = [at for first, end, _ in chunks for at in range(first, end)]
    assert len(columns) == len(set(columns))
    assert set(columns) >= {at for lo, hi in reached for at in range(lo, hi)}
    sure = {at for lo, hi in full for at in range(lo, hi)}
    for first, end, masked in chunks:
        assert 0 <= first < end <= first + units * UNIT
        assert {at for lo, hi in masked for at in range(lo, hi)} == {*range(first, end)} - sure
        assert masked == attn_without(first, end, full)
    added = len(columns) - sum(hi - lo for lo, hi in reached)
    assert added <= sum((hi - lo) // 8 for lo, hi in reached)


def test_chunks_get_a_common_width_where_it_is_cheap() -> None:
    assert attn_chunks(([(1, 64)], [(20, 30)]), 64, UNIT) == [(0, 64, [(0, 20), (30, 64)])]
    assert attn_chunks(([(0, 63)], []), 64, UNIT) == [(0, 63, [(0, 63)])]  # nothing before it
    assert attn_chunks(([(0, 4), (4, 67)], []), 64, UNIT)[1][:2] == (4, 67)  # taken already
    assert attn_chunks(([(50, 55)], []), 64, UNIT) == [(50, 55, [(50, 55)])]  # would cost much


def weighed(logits: torch.Tensor, cuts: list[int], unit: float) -> tuple[torch.Tensor, ...]:
    """Softmax of [rows, columns] and its logarithm of the denominator, chunk by chunk."""
    most = sums = None
    found: list[torch.Tensor] = []
    for chunk in logits.clone().tensor_split(cuts, -1):
        most, sums, factor = library.attn_weigh(chunk, most, sums, unit)
        if factor is not None:
            found = [weights * factor for weights in found]
        found.append(chunk)
    assert most is not None and sums is not None
    share = torch.where(sums == 0, 0.0, 1 / sums)
    return torch.cat(found, -1) * share, (most * (unit * math.log(2)) + torch.log(sums))[:, 0]


@pytest.mark.parametrize("cuts", [[], [5], [1, 4, 16]])
@pytest.mark.parametrize("unit", [1.0, math.log2(math.e)])
def test_weights_are_those_of_softmax(cuts: list[int], unit: float) -> None:
    logits = torch.randn(6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[0] *= 300
    logits[1, :10] = -INF  # a chunk without keys before one with some
    logits[2, 3:] = -INF
    logits[3] = torch.finfo(torch.float64).min  # all alike, and far away
    weights, lse = weighed(logits, cuts, unit)
    natural = logits * (unit * math.log(2)) if unit == 1.0 else logits
    torch.testing.assert_close(weights, torch.softmax(natural, -1), rtol=1e-11, atol=1e-300)
    torch.testing.assert_close(lse, torch.logsumexp(natural, -1), rtol=1e-13, atol=1e-13)


def test_a_row_without_keys_has_no_weight_and_nan_stays_in_its_row() -> None:
    logits = torch.zeros(3, 8)
    logits[0] = -INF
    logits[1, 2] = float("nan")
    weights, lse = weighed(logits, [4], 1.0)
    assert weights[0].eq(0).all() and lse[0] == -INF
    assert weights[1].isnan().all() and lse[1].isnan()
    assert weights[2].eq(1 / 8).all()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("rows, inner, columns", [(128, 64, 640), (128, 640, 80), (33, 17, 129)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products(
    monkeypatch: pytest.MonkeyPatch,
    fast: bool,
    rows: int,
    inner: int,
    columns: int,
    dtype: torch.dtype,
) -> None:
    if fast and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(library, "attn_has_fast_onednn", lambda: fast)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, rows, inner + 5, dtype=dtype, generator=random)[..., 2 : inner + 2]
    y = torch.randn(3, columns, inner, dtype=dtype, generator=random).transpose(1, 2)
    expected = x.double() @ y.double()
    found = library.attn_products(x, y).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    out = torch.full((3, rows, columns), float("nan"), dtype=dtype)
    library.attn_products(x, y, out)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("offset", [0, 77])
def test_masks_of_the_distance_are_kept_for_the_right_blocks(offset: int) -> None:
    """More patterns than are kept, a short last block, and rows shifted against columns."""
    text = "attention comb(step: int):\n    mask 0 <= q - k and (q - k) % step < 3\n"
    attention = attndsl.compile(text=text, backend="torch")
    random = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, 1500, 8, generator=random)
    key, value = (torch.randn(1, 2, 1500 + offset, 8, generator=random) for _ in range(2))
    out = attention(query, key, value, step=97, q_offset=offset)
    distance = torch.arange(1500)[:, None] + offset - torch.arange(1500 + offset)
    kept = (distance >= 0) & (distance % 97 < 3)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=kept)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
