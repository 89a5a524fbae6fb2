"""Programs that once went wrong, in both generators against the reference: values, gradients, NaN.

Each line is a corner: bare and constant weights, slopes that are infinite at a kink, rows without
a key below a steep epilogue, ints and floats out of range.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import attndsl

SIGNATURE = "(t: float[H], r: float[H, D], u: float[n], w: float[4, 9], x: float = 0.1)"
NAMES = ("query", "key", "value", "t", "r", "u", "w")
PROGRAMS = {
    "bare weight": "mask k <= q\n    weights score",
    "bare normalised weight": "mask k <= q\n    weights normalize(2.0 + score)",
    "constant logit": "score 0.0",
    "constant logit and sink": "score 0.5\n    mask k <= q\n    weights softmax(sink = t[h])",
    "parameter as logit": "score x",
    "folded logit": "score tanh(relu(1))",
    "masked logit": "score -inf",
    "logit of the head": "score abs(t[h])\n    weights score",
    "softplus of the head": "score softplus(t[h])\n    weights score",
    "number as weight": "weights 1.0 / 3.0",
    "parameter as weight": "weights x",
    "normalised number": "weights normalize(1.0)",
    "conditional sink": "weights softmax(sink = (pi / 4) if x > 0.0 else 1.1)",
    "root of relu": "score sqrt(relu(score))",
    "root of max": "score sqrt(max(score, 0.0))",
    "power of relu": "score relu(score) ** 0.5",
    "root of clamp": "weights sqrt(clamp(score, 0.0, 1.0))",
    "root of relu in output": "output sqrt(relu(out))",
    "output as it is": "output min(out, out)",
    "dot in sink": "mask k < q\n    weights softmax(sink = dot(query, r[h]))",
    "dot in output": "output out * dot(query, r[h])",
    "floor beyond int32": "score float(floor(score * 1e12)) * 1e-9",
    "int of infinity": "mask k < floor(inf) and q > int(-inf)",
    "int beyond 64 bits": "mask (q + 3000 - k) ** 6 < 1000",
    "index of the score": "score score + u[floor(score) + 2]",
    "index of the score and the distance": "score score + u[floor(score) + q - k]",
    "indices of the score, of the distance": "score score + w[floor(score) + 2, abs(q - k)]",
    "lookup by the score in a test": "score score if u[floor(score)] > 0 else 0.5",
    "power of zero": "mask k <= q\n    score score + u[5] ** (q - k) + u[2] ** (q - k)",
    "scores only of tables": "mask k <= q\n    score t[h] * float(q - k)",
}


def evaluate(program: str, engine: str, dtype: torch.dtype) -> dict[str, Tensor]:
    text = f"attention f{SIGNATURE}:\n    {program}\n"
    attn = attndsl.compile(text=text, backend="torch" if engine == "reference" else engine)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = [draw(1, 2, 19, 4).requires_grad_() for _ in range(3)]
    inputs += [draw(2).requires_grad_(), draw(2, 4).requires_grad_()]
    zeros = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0], dtype=dtype)
    inputs += [(draw(6) * zeros).requires_grad_(), draw(4, 9).requires_grad_()]
    call = attn.reference if engine == "reference" else attn
    out = call(*inputs[:3], **dict(zip(NAMES[3:], inputs[3:], strict=True)))
    grads = torch.autograd.grad(out, inputs, draw(*out.shape), allow_unused=True)
    found = {
        name: torch.zeros_like(x) if grad is None else grad
        for name, x, grad in zip(NAMES, inputs, grads, strict=True)
    }
    return {"out": out.detach(), **found}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy says what the interpreter divides
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(
    ("engine", "dtype", "tolerance"),
    [("torch", torch.float64, 1e-7), ("triton", torch.float32, 2e-3)],
    ids=["torch", "triton"],
)
def test_agrees_with_the_reference(
    name: str, engine: str, dtype: torch.dtype, tolerance: float
) -> None:
    expected = evaluate(PROGRAMS[name], "reference", torch.float64)
    for what, found in evaluate(PROGRAMS[name], engine, dtype).items():
        assert not found.isnan().any(), what
        error = (found.double() - expected[what]).norm() / (expected[what].norm() + 1e-6)
        assert error < tolerance, what


@pytest.mark.parametrize("engine", ["reference", "torch", "triton"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("output", ["abs(out) ** 0.5", "sqrt(out ** 2)", "log(out)"])
def test_rows_without_a_key_pass_nothing_through_an_output(engine: str, output: str) -> None:
    text = f"attention f:\n    mask k < q\n    output {output}\n"
    attn = attndsl.compile(text=text, backend="torch" if engine == "reference" else engine)
    query, key, value = (torch.rand(1, 1, 9, 4).add_(0.1).requires_grad_() for _ in range(3))
    call = attn.reference if engine == "reference" else attn
    call(query, key, value)[:, :, 1:].sum().backward()
    for x in (query, key, value):
        assert x.grad is not None and not x.grad.isnan().any()
    assert query.grad is not None and (query.grad[:, :, 0] == 0).all()


@pytest.mark.parametrize("engine", ["torch", "triton"])
def test_a_sink_that_diverged_is_seen(engine: str) -> None:
    text = "attention f(s: float[H]):\n    weights softmax(sink = s[h])\n"
    attn = attndsl.compile(text=text, backend=engine)
    x = torch.randn(1, 2, 5, 4)
    out = attn(x, x, x, s=torch.tensor([float("nan"), 0.0]))
    assert out[:, 0].isnan().all() and not out[:, 1].isnan().any()


@pytest.mark.parametrize(
    "mask", ["(q - k) ** 6 < 1000", "q * 2 ** 60 < k", "(q - k) ** 7 >= 0", "q ** 3 * k ** 4 < 5"]
)
@pytest.mark.parametrize("offset", [0, 3000, 100_000])
def test_tiles_of_ints_beyond_64_bits(mask: str, offset: int) -> None:
    attn = attndsl.compile(text=f"attention f:\n    mask {mask}\n")
    pairs = attn.mask(Nq=64, Nk=64, q_offset=offset)[0, 0].view(8, 8, 8, 8)
    tiles = attn.tiles(Nq=64, Nk=64, q_offset=offset, block=(8, 8))[0, 0]
    assert not ((tiles == 0) & pairs.any(3).any(1)).any()
    assert not ((tiles == 2) & ~pairs.all(3).all(1)).any()


@pytest.mark.parametrize("engine", ["reference", "torch", "triton"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("score", ["max(score, -50.0)", "min(score, 9.0)", "relu(score)"])
def test_nan_in_an_input_is_seen(engine: str, score: str) -> None:
    text = f"attention f:\n    mask k <= q\n    score {score}\n"
    attn = attndsl.compile(text=text, backend="torch" if engine == "reference" else engine)
    call = attn.reference if engine == "reference" else attn
    query = torch.randn(1, 1, 5, 4)
    query[0, 0, 3] = float("nan")
    x = torch.randn(1, 1, 5, 4)
    out, lse = call(query, x, x, return_lse=True)
    assert out[0, 0, 3].isnan().all() and lse[0, 0, 3].isnan()
    assert not out[0, 0, :3].isnan().any() and not lse[0, 0, :3].isnan().any()
