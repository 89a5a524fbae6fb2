"""attndsl.merge: parts of the keys, merged, are the whole; in values, lse and gradients."""

from __future__ import annotations

import pytest
import torch

import attndsl
from attndsl import ArgumentError

CAUSAL = "attention causal():\n    mask k <= q\n"
WINDOW = "attention window(w: int):\n    mask 0 <= q - k < w\n"
REST = "attention rest(w: int):\n    mask q - k >= w\n"


def inputs_of(queries, keys, *, heads=4, key_heads=2, width=8, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    shapes = [(2, heads, queries, width), (2, key_heads, keys, width), (2, key_heads, keys, 6)]
    return [
        torch.randn(s, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
        for s in shapes
    ]


def gradients_of(out, lse, inputs):
    """Of a function that reads every value and every finite lse."""
    factors = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    finite = lse.masked_fill(lse == -torch.inf, 0.0)
    return torch.autograd.grad((out * factors).sum() + finite.sin().sum(), inputs)


def check_whole(merged, whole, inputs, tolerance=1e-12):
    for got, expected in zip(merged, whole, strict=True):
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    got = gradients_of(*merged, inputs)
    expected = gradients_of(*whole, inputs)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("cuts", [(0, 13, 30, 37), (0, 0, 37), (0, 1, 2, 36, 37)])
def test_shards_of_keys_are_the_whole(cuts):
    """A shard is empty for some queries, for all, or in itself."""
    inputs = query, key, value = inputs_of(21, 37)
    attn = attndsl.compile(text=CAUSAL, backend="torch")
    parts = [
        attn(query, key[:, :, a:b], value[:, :, a:b], q_offset=8, k_offset=a, return_lse=True)
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    check_whole(attndsl.merge(parts), attn(*inputs, q_offset=8, return_lse=True), inputs)


@pytest.mark.parametrize("width", [0, 1, 5, 100])
def test_a_window_and_the_rest_are_causal(width):
    inputs = inputs_of(33, 33)
    window, rest, causal = (
        attndsl.compile(text=text, backend="torch") for text in (WINDOW, REST, CAUSAL)
    )
    parts = [attn(*inputs, w=width, return_lse=True) for attn in (window, rest)]
    check_whole(attndsl.merge(parts), causal(*inputs, return_lse=True), inputs)


def test_a_sink_is_a_branch_of_its_own():
    text = "attention sunk(sink: float[H]):\n    mask k <= q\n    weights softmax(sink = sink[h])\n"
    query, key, value = inputs_of(9, 9)
    sink = torch.linspace(-1, 2, 4, dtype=torch.float64, requires_grad=True)
    whole = attndsl.compile(text=text, backend="torch")(
        query, key, value, sink=sink, return_lse=True
    )
    out, lse = attndsl.compile(text=CAUSAL, backend="torch")(query, key, value, return_lse=True)
    merged = attndsl.merge([(out, lse), (torch.zeros_like(out), sink[:, None].expand_as(lse))])
    check_whole(merged, whole, [query, key, value, sink])


def test_rows_without_keys_anywhere():
    lses = [torch.full((2, 3), -torch.inf, requires_grad=True) for _ in range(3)]
    outs = [torch.zeros(2, 3, 4, requires_grad=True) for _ in range(3)]
    out, lse = attndsl.merge(list(zip(outs, lses, strict=True)))
    assert torch.equal(out, torch.zeros(2, 3, 4))
    assert torch.equal(lse, torch.full((2, 3), -torch.inf))
    for gradient in torch.autograd.grad([out.sum() + lse.sum()], [*outs, *lses]):
        assert not gradient.any()


@pytest.mark.parametrize("fill", [0.0, torch.inf, torch.nan])
def test_an_empty_part_changes_nothing(fill):
    """Also where its out is no number: an epilogue may divide by what it was given."""
    out = torch.randn(5, 4, requires_grad=True)
    lse = torch.randn(5, requires_grad=True)
    empty = torch.full((5, 4), fill, requires_grad=True)
    nothing = torch.full((5,), -torch.inf, requires_grad=True)
    for parts in ([(out, lse), (empty, nothing)], [(empty, nothing), (out, lse)]):
        merged = attndsl.merge(parts)
        assert torch.equal(merged[0], out)
        assert torch.equal(merged[1], lse)
        found = torch.autograd.grad(
            [(merged[0] * out.detach()).sum() + merged[1].sum()], [out, lse, empty, nothing]
        )
        assert torch.equal(found[0], out.detach())
        torch.testing.assert_close(found[1], torch.ones(5), rtol=1e-6, atol=1e-6)
        assert not found[2].any()
        assert not found[3].any()


def test_large_and_distant_denominators():
    out = torch.tensor([[1.0], [2.0]])
    for low, high in ((-2e4, -1e4), (1e4, 2e4), (-3e38, 3e38)):
        merged, lse = attndsl.merge([(out, torch.full((2,), low)), (-out, torch.full((2,), high))])
        assert torch.equal(merged, -out)
        assert torch.equal(lse, torch.full((2,), high))


def test_derivatives_by_differences():
    """First and second ones, with a row that has no key in one part, and one that has none."""
    random = torch.Generator().manual_seed(3)
    outs = [torch.randn(4, 3, generator=random, dtype=torch.float64) for _ in range(3)]
    lses = [torch.randn(4, generator=random, dtype=torch.float64) for _ in range(3)]
    given = [t.requires_grad_() for pair in zip(outs, lses, strict=True) for t in pair]
    is_empty = torch.zeros(3, 4, dtype=torch.bool)
    is_empty[1, 0] = is_empty[:, 2] = True

    def merged(*tensors):
        parts = [
            (out, lse.masked_fill(empty, -torch.inf))
            for out, lse, empty in zip(tensors[::2], tensors[1::2], is_empty, strict=True)
        ]
        out, lse = attndsl.merge(parts)
        return out, lse.masked_fill(lse == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(merged, given)
    assert torch.autograd.gradgradcheck(merged, given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    outs = [torch.randn(3, 5).to(dtype) for _ in range(2)]
    lses = [torch.randn(3) for _ in range(2)]
    out, lse = attndsl.merge(list(zip(outs, lses, strict=True)))
    exact, exact_lse = attndsl.merge(
        [(out.double(), lse.double()) for out, lse in zip(outs, lses, strict=True)]
    )
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(out, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    torch.testing.assert_close(lse, exact_lse.float())


def test_a_single_pair_is_returned_as_it_is():
    out, lse = torch.randn(3, 2), torch.randn(3)
    merged = attndsl.merge([(out, lse)])
    assert merged[0] is out
    assert merged[1] is lse


def test_it_can_be_compiled():
    parts = [(torch.randn(6, 4), torch.randn(6)) for _ in range(3)]
    compiled = torch.compile(attndsl.merge, backend="aot_eager", fullgraph=True)
    for got, expected in zip(compiled(parts), attndsl.merge(parts), strict=True):
        torch.testing.assert_close(got, expected)


OUT, LSE = torch.zeros(2, 3, 4), torch.zeros(2, 3)
WRONG = {
    "none": ([], r"outputs: expected \[\(out, lse\), ...\].* got none"),
    "no list": (OUT, r"outputs: .*got a tensor of float32\[2, 3, 4\]"),
    "one tensor": ([OUT, OUT], r"outputs\[0\]: expected a pair .*return_lse=True"),
    "three": ([(OUT, LSE), (OUT, LSE, LSE)], r"outputs\[1\]: expected a pair"),
    "no tensor": ([(OUT, LSE), (OUT, None)], r"outputs\[1\].lse: expected a torch.Tensor"),
    "lse's shape": ([(OUT, LSE), (OUT, LSE[:1])], r"outputs\[1\].lse: expected the shape \[2, 3\]"),
    "shapes": (
        [(OUT, LSE), (OUT[:1], LSE[:1])],
        r"outputs\[1\].out: expected a tensor like outputs\[0\].out.*\[2, 3, 4\].*\[1, 3, 4\]",
    ),
    "dtypes": ([(OUT, LSE), (OUT.half(), LSE)], r"outputs\[1\].out: .*float32.*float16"),
    "lse's dtypes": ([(OUT, LSE), (OUT, LSE.double())], r"outputs\[1\].lse: .*float32.*float64"),
    "half lse": ([(OUT, LSE.half())], r"outputs\[0\].lse: expected float32 or float64"),
    "ints": ([(OUT.int(), LSE)], r"outputs\[0\].out: expected float16"),
    "meta": ([(OUT.to("meta"), LSE)], r"outputs\[0\].out: .*meta device"),
    "no dimension": ([(OUT.sum(), LSE)], r"outputs\[0\].out: expected \[..., Nq, Dv\]"),
}


@pytest.mark.parametrize("outputs, message", WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named(outputs, message):
    with pytest.raises(ArgumentError, match=message):
        attndsl.merge(outputs)
