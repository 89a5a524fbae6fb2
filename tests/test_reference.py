"""The reference against plain PyTorch, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from attndsl.ir.nodes import (
    OUT,
    SCORE,
    TRUE,
    Node,
    constant,
    dot,
    index,
    lookup,
    make,
    scalar,
    size,
)
from attndsl.ir.program import Program, Scalar, Tensor, Weights
from attndsl.reference import Values, evaluate, floordiv, floormod
from attndsl.runtime.attention import Attention

Q, K, H, B = index("q"), index("k"), index("h"), index("b")
CAUSAL = make("le", K, Q)
NEVER = make("lt", Q, make("neg", Q))


def attention(
    mask: Node = TRUE,
    score: Node = SCORE,
    weights: Weights | None = None,
    output: Node | None = None,
    parameters: tuple[Scalar | Tensor, ...] = (),
) -> Attention:
    return Attention(Program("p", parameters, mask, score, weights or Weights(), output))


def inputs(
    batch: int = 2, heads: int = 4, key_heads: int = 2, nq: int = 5, nk: int = 7, width: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    shapes = ((batch, heads, nq, width), (batch, key_heads, nk, width), (batch, key_heads, nk, 2))
    query, key, value = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    return query, key, value


def plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    group = query.shape[1] // key.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(group, 1), value.repeat_interleave(group, 1), attn_mask=mask
    )


def test_causal_is_what_sdpa_computes() -> None:
    query, key, value = inputs()
    mask = torch.ones(5, 7, dtype=torch.bool).tril(2)
    wanted = plain(query, key, value, mask)
    found = attention(CAUSAL).reference(query, key, value, q_offset=2)
    torch.testing.assert_close(found, wanted)
    grad = torch.randn_like(wanted)
    for a, b in zip(
        torch.autograd.grad(found, (query, key, value), grad),
        torch.autograd.grad(wanted, (query, key, value), grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_lse_and_its_gradient() -> None:
    query, key, value = inputs()
    _, lse = attention().reference(query, key, value, return_lse=True)
    scores = query @ key.repeat_interleave(2, 1).transpose(-1, -2) / math.sqrt(3)
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    grad = torch.randn_like(lse)
    torch.testing.assert_close(
        torch.autograd.grad(lse, query, grad, retain_graph=True),
        torch.autograd.grad(scores.logsumexp(-1), query, grad),
    )


def test_empty_rows_give_zero_also_with_a_sink() -> None:
    query, key, value = inputs()
    sink = Weights("softmax", sink=lookup("s", "float", H))
    attn = attention(
        make("lt", K, Q), weights=sink, parameters=(Tensor("s", "float", (size("H"),)),)
    )
    s = torch.randn(4, dtype=torch.float64, requires_grad=True)
    out, lse = attn.reference(query, key, value, s=s, return_lse=True)
    assert (out[:, :, 0] == 0).all() and (lse[:, :, 0] == -math.inf).all()
    first = torch.autograd.grad(
        (out[:, :, 0].sum(), lse[:, :, 0].sum()), (query, s), retain_graph=True
    )
    assert all((g == 0).all() for g in first)
    everything = torch.autograd.grad(out.sum(), (query, key, value, s))
    assert all(g.isfinite().all() for g in everything)


def test_sink_joins_the_denominator() -> None:
    query, key, value = inputs()
    attn = attention(weights=Weights("softmax", sink=constant(0.5)))
    out, lse = attn.reference(query, key, value, return_lse=True)
    scores = query @ key.repeat_interleave(2, 1).transpose(-1, -2) / math.sqrt(3)
    wanted = torch.cat([scores, torch.full_like(scores[..., :1], 0.5)], -1)
    torch.testing.assert_close(lse, wanted.logsumexp(-1))
    torch.testing.assert_close(out, wanted.softmax(-1)[..., :-1] @ value.repeat_interleave(2, 1))


def test_minus_infinity_is_a_masked_pair() -> None:
    query, key, value = inputs()
    score = make("where", CAUSAL, SCORE, constant(-math.inf))
    torch.testing.assert_close(
        attention(score=score).reference(query, key, value),
        attention(CAUSAL).reference(query, key, value),
    )
    out = attention(score=score, weights=Weights("elementwise", constant(1.0)))
    both = out.reference(query, key, value, k_offset=3)
    assert (both[:, :, :3] == 0).all()


def test_branch_not_taken_leaves_no_nan() -> None:
    query, key, value = inputs()
    distance = make("to_float", make("sub", Q, K))
    far = make("lt", constant(0.0), distance)
    scores = make("where", far, make("add", SCORE, make("log", distance)), SCORE)
    root = make("sqrt", make("sub", SCORE, SCORE))
    scores = make("where", make("lt", distance, constant(-99.0)), root, scores)
    out = attention(score=scores).reference(query, key, value)
    grads = torch.autograd.grad(out.sum(), (query, key, value))
    assert out.isfinite().all() and all(g.isfinite().all() for g in grads)


def test_lookup_outside_gives_zero_and_no_gradient() -> None:
    query, key, value = inputs()
    bias = lookup("bias", "float", H, make("sub", Q, K))
    parameter = Tensor("bias", "float", (size("H"), size("R")))
    attn = attention(score=make("add", SCORE, bias), parameters=(parameter,))
    table = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    found = attn.reference(query, key, value, bias=table)
    i, j = torch.arange(5)[:, None], torch.arange(7)[None]
    inside = (i - j >= 0) & (i - j < 2)
    added = torch.where(inside, table[:, (i - j).clamp(0, 1)], 0)
    wanted = plain(query, key, value, added)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), table, retain_graph=True),
        torch.autograd.grad(wanted.square().sum(), table),
    )


def test_empty_table_reads_zero() -> None:
    query, key, value = inputs()
    parameter = Tensor("t", "float", (size("R"),))
    attn = attention(score=make("add", SCORE, lookup("t", "float", K)), parameters=(parameter,))
    torch.testing.assert_close(
        attn.reference(query, key, value, t=torch.zeros(0)),
        attention().reference(query, key, value),
    )


def test_dot_of_the_query() -> None:
    query, key, value = inputs()
    relative = dot("rel", H, make("add", make("sub", Q, K), constant(6)))
    parameter = Tensor("rel", "float", (size("H"), size("R"), size("D")))
    attn = attention(score=make("add", SCORE, relative), parameters=(parameter,))
    table = torch.randn(4, 11, 3, dtype=torch.float64, requires_grad=True)
    found = attn.reference(query, key, value, rel=table, q_offset=1, k_offset=1)
    i, j = torch.arange(5)[:, None], torch.arange(7)[None]
    added = torch.einsum("bhid,hijd->bhij", query, table[:, i - j + 6])
    wanted = plain(query, key, value, added)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), (query, table)),
        torch.autograd.grad(wanted.square().sum(), (query, table)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_normalize_with_a_sum_of_zero() -> None:
    query, key, value = inputs()
    weight = make("where", make("eq", Q, constant(0)), constant(0.0), make("mul", SCORE, SCORE))
    out = attention(weights=Weights("normalize", weight)).reference(query, key, value)
    scores = query @ key.repeat_interleave(2, 1).transpose(-1, -2) / math.sqrt(3)
    square = scores.square()
    wanted = square / square.sum(-1, keepdim=True) @ value.repeat_interleave(2, 1)
    torch.testing.assert_close(out[:, :, 1:], wanted[:, :, 1:])
    assert (out[:, :, 0] == 0).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (query, key, value)))


def test_output_sees_the_width() -> None:
    query, key, value = inputs()
    gate = lookup("gate", "float", B, H, Q)
    epilogue = make("mul", make("add", OUT, make("to_float", index("d"))), gate)
    parameter = Tensor("gate", "float", (size("B"), size("H"), size("Nq")))
    attn = attention(NEVER, output=epilogue, parameters=(parameter,))
    table = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    out = attn.reference(query, key, value, gate=table)
    torch.testing.assert_close(out, table[..., None] * torch.arange(2.0, dtype=torch.float64))
    assert (torch.autograd.grad(out.sum(), query)[0] == 0).all()


def test_k_len_and_offsets_per_batch() -> None:
    query, key, value = inputs()
    lengths = torch.tensor([3, 0])
    out = attention(CAUSAL).reference(
        query, key, value, k_len=lengths, q_offset=torch.tensor([0, 1], dtype=torch.int32)
    )
    assert (out[1] == 0).all()
    mask = torch.ones(5, 3, dtype=torch.bool).tril()
    wanted = plain(query[:1], key[:1, :, :3], value[:1, :, :3], mask)
    torch.testing.assert_close(out[:1], wanted)


def test_memory_beyond_k_len_is_not_read() -> None:
    query, key, value = inputs()
    with torch.no_grad():
        key[:, :, 4:] = math.nan
        value[:, :, 4:] = math.nan
    out = attention().reference(query, key, value, k_len=torch.tensor([4, 4]))
    grads = torch.autograd.grad(out.sum(), (query, key, value))
    assert out.isfinite().all() and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("shape", [(0, 2, 2, 3, 4), (1, 2, 2, 0, 4), (1, 2, 1, 3, 0)])
def test_lengths_of_zero(shape: tuple[int, int, int, int, int]) -> None:
    query, key, value = inputs(*shape)
    out, lse = attention(CAUSAL).reference(query, key, value, return_lse=True)
    assert out.shape == (*query.shape[:3], 2) and (out == 0).all()
    assert lse.shape == query.shape[:3] and (lse == -math.inf).all()


def test_half_is_computed_in_float32() -> None:
    query, key, value = (x.detach().bfloat16() for x in inputs())
    attn = attention(CAUSAL)
    out, lse = attn.reference(query, key, value, return_lse=True)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    single = attn.reference(query.float(), key.float(), value.float())
    torch.testing.assert_close(out, single.bfloat16())


def test_second_derivative_exists() -> None:
    query, key, value = inputs(1, 1, 1, 2, 3, 2)
    attn = attention(CAUSAL, make("tanh", SCORE))
    assert torch.autograd.gradgradcheck(lambda *x: attn.reference(*x), (query, key, value))


def test_division_of_ints_is_pythons_and_total() -> None:
    numbers = range(-5, 6)
    a = torch.tensor([x for x in numbers for _ in numbers])
    b = torch.tensor([y for _ in numbers for y in numbers])
    pairs = [(x, y) for x in numbers for y in numbers]
    assert floordiv(a, b).tolist() == [x // y if y else 0 for x, y in pairs]
    assert floormod(a, b).tolist() == [x % y if y else 0 for x, y in pairs]


def test_deep_expressions_need_no_recursion() -> None:
    node = make("scalar", attr="x", kind="float")
    for _ in range(20000):
        node = make("add", make("sin", node), constant(1.0))
    values = Values(torch.float64, torch.device("cpu"), {}, {"x": 0.5}, {}, {})
    assert evaluate(node, values).isfinite()


def test_bool_scalar_chooses_a_branch() -> None:
    query, key, value = inputs()
    score = make("where", scalar("hard", "bool"), make("mul", SCORE, constant(2.0)), SCORE)
    attn = attention(score=score, parameters=(Scalar("hard", "bool", False),))
    torch.testing.assert_close(
        attn.reference(query, key, value, hard=True),
        attention().reference(query * 2, key, value),
    )
