"""Generated PyTorch modules whose tiles are boxes of a grid, against the oracle."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl
from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import Request
from attndsl.plan.planner import TORCH_BOX, plan
from attndsl.runtime import cache
from attndsl.runtime import order as runtime_order
from attndsl.runtime.order import Order
from tests.codegen.test_torch import TORCH, check, compiled, module_of, table, with_small_blocks

GRID = "    grid y = height, x = width\n"
EXAMPLES = Path(__file__).parents[2] / "examples"


def image(body: str, height: int, width: int, parameters: str = "") -> str:
    """A program over a grid whose extents are scalars."""
    return (
        f"from std import neighborhood, strided_neighborhood\n\n"
        f"attention f({parameters}height: int = {height}, width: int = {width}):\n{GRID}{body}"
    )


NEAR = (
    "    mask neighborhood(q.y, k.y, 2, height) and neighborhood(q.x, k.x, 3, width)\n"
    "    score 3.0 * tanh(score / 3.0)\n"
)
DISC = "    mask (q.y - k.y) ** 2 + (q.x - k.x) ** 2 <= 9\n"
IDS = torch.arange(1000) * 7 // 40 % 5
PROGRAMS: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "near": (image(NEAR, 10, 13), (10, 13), {}),
    "one row": (image(DISC, 1, 37), (1, 37), {}),
    "one column": (image(DISC, 37, 1), (37, 1), {}),
    "smaller than a box": (image(DISC, 3, 2), (3, 2), {}),
    "three axes": (
        "attention f(T: int = 5):\n    grid t = T, y = 6, x = 7\n"
        "    mask abs(q.t - k.t) <= 1 and abs(q.y - k.y) <= 2 and abs(q.x - k.x) <= 2\n",
        (5, 42),
        {},
    ),
    "strided": (
        image(
            "    mask strided_neighborhood(q.y, k.y, 8, 4, height)\n"
            "    mask strided_neighborhood(q.x, k.x, 8, 4, width)\n",
            16,
            12,
        ),
        (16, 12),
        {},
    ),
    "windows with bias": (
        image(
            "    mask (q.y - 2) // 3 == (k.y - 2) // 3 and (q.x - 2) // 3 == (k.x - 2) // 3\n"
            "    score score + bias[h, q.y - k.y + 2, q.x - k.x + 2]\n",
            9,
            10,
            "bias: float[H, 5, 5], ",
        ),
        (9, 10),
        {"bias": table(4, 5, 5)},
    ),
    "documents": (
        image(
            "    mask doc[b, q] == doc[b, k] and abs(q.y - k.y) <= 3\n",
            12,
            9,
            "doc: int[B, N], ",
        ),
        (12, 9),
        {"doc": IDS[:216].view(2, 108)},
    ),
    "valid": (
        image(
            DISC + "    mask valid[k] or q.x < radius[h]\n",
            9,
            11,
            "valid: bool[Nk], radius: int[H], ",
        ),
        (9, 11),
        {"valid": IDS[:99] > 2, "radius": torch.tensor([0, 3, 20, 1])},
    ),
    "dense": (
        image(
            DISC + "    mask allowed[q, k]\n    score score + bias[b, h, q, k]\n",
            8,
            9,
            "allowed: bool[Nq, Nk], bias: float[B, H, Nq, Nk], ",
        ),
        (8, 9),
        {
            "allowed": torch.rand(72, 72, generator=torch.Generator().manual_seed(2)) < 0.6,
            "bias": table(2, 4, 72, 72),
        },
    ),
    "rows and columns": (
        image(
            DISC + "    score score * x[h, q] + sin(y[b, k]) * z[h] + w[q.y, k.x]\n",
            8,
            10,
            "x: float[H, Nq], y: float[B, Nk], z: float[H], w: float[height, width], ",
        ),
        (8, 10),
        {"x": table(4, 80), "y": table(2, 80), "z": table(4), "w": table(8, 10)},
    ),
    "distance": (
        image(DISC + "    score score + exp(bias[q - k + R // 2])\n", 7, 9, "bias: float[R], "),
        (7, 9),
        {"bias": table(31)},
    ),
    "dots": (
        image(
            DISC + "    score score + dot(query, rel[q.y - k.y + 3, h]) * dot(query, u[h, q.x])\n"
            "    score score + dot(query, v[k])\n",
            8,
            9,
            "rel: float[6, H, D], u: float[H, width, D], v: float[Nk, D], ",
        ),
        (8, 9),
        {"rel": table(6, 4, 6), "u": table(4, 9, 6), "v": table(72, 6)},
    ),
    "sink and gate": (
        image(
            "    mask k.y < q.y - 1 and k.x <= q.x\n    weights softmax(sink = sink[h] * q.x)\n"
            "    output out * sigmoid(gate[b, h, q]) + w[h, d] * tanh(out)\n",
            9,
            8,
            "sink: float[H], gate: float[B, H, Nq], w: float[H, V], ",
        ),
        (9, 8),
        {"sink": table(4), "gate": table(2, 4, 72), "w": table(4, 5)},
    ),
    "normalize": (
        image("    mask k.x < q.x - 1\n    weights normalize(1 + score + score ** 2 / 2)\n", 7, 9),
        (7, 9),
        {},
    ),
    "elementwise": (
        image(
            DISC + "    weights score * sigmoid(decay[h]) ** abs(q.y - k.y)\n",
            7,
            9,
            "decay: float[H], ",
        ),
        (7, 9),
        {"decay": table(4)},
    ),
    "masked by score": (
        image(
            DISC + "    score -inf if bias[k] < -0.5 else score + log(bias[k] + 0.5)\n",
            7,
            9,
            "bias: float[Nk], ",
        ),
        (7, 9),
        {"bias": table(63)},
    ),
    "nothing": (image("    mask k.y < q.y - 100\n", 7, 9), (7, 9), {}),
    "everything": (image("", 7, 9), (7, 9), {}),
}
LENGTHS = torch.tensor([3, 61])


@pytest.mark.parametrize("small", [True, False], ids=["small boxes", "boxes as generated"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_agrees_with_oracle(name: str, small: bool) -> None:
    text, (height, width), arguments = PROGRAMS[name]
    n = height * width
    check(text, arguments, small, (2, 4, 2, n, n, 6, 5), order="boxes")


@pytest.mark.parametrize("lengths", [LENGTHS, torch.tensor([-1, 1000])], ids=str)
@pytest.mark.parametrize(
    "name", ["near", "three axes", "documents", "sink and gate", "elementwise", "everything"]
)
def test_lengths(name: str, lengths: Tensor) -> None:
    """Keys beyond a length lie among those before it, in the order of boxes."""
    text, (height, width), arguments = PROGRAMS[name]
    n = height * width
    check(text, arguments, True, (2, 4, 2, n, n, 6, 5), order="boxes", k_len=lengths)
    check(text, arguments, False, (2, 4, 2, n, n, 6, 5), order="boxes", k_len=lengths)


def test_one_module_serves_every_image() -> None:
    """Extents are arguments: the text has none of them."""
    text, _, _ = PROGRAMS["near"]
    made = plan(compiled(text), Request(order="boxes"))
    one, other = (make_run(made, height, width) for height, width in ((6, 5), (9, 31)))
    assert one.shape[2] == 30 and other.shape[2] == 279


def make_run(made: Any, height: int, width: int) -> Tensor:
    module = module_of(TORCH.emit(made))
    inputs = torch.randn(3, 1, 1, height * width, 64)
    out: Tensor
    out, _, _ = module["run_forward"](*inputs, 0.3, 0, 0, None, (), (height, width))
    assert out.isfinite().all()
    return out


def forced(monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    """Every call has this order."""
    monkeypatch.setattr(runtime_order, "order_of", lambda *_: Order(name, "by a test"))


def test_the_order_is_chosen_for_the_boxes_that_run() -> None:
    text = TORCH.emit(plan(compiled(PROGRAMS["near"][0]), Request(order="boxes")))
    rows, columns = TORCH_BOX
    assert rows == columns and f"ROWS = {rows}" in text


def test_calls_get_boxes_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward alike; not for a window as wide as a box."""
    attention = attndsl.compile(EXAMPLES / "neighborhood_2d.attn", backend="torch")
    found, seen = cache.module_of, []

    def module_of(handle: str, program: Program, request: Request) -> Any:
        seen.append(request.order)
        return found(handle, program, request)

    monkeypatch.setattr(cache, "module_of", module_of)
    inputs = torch.randn(3, 1, 1, 48 * 128, 8).requires_grad_()
    for radius in (9, 1):
        out = attention(*inputs, height=48, width=128, radius=radius)
        torch.autograd.backward(out, torch.ones(1, 1, 48 * 128, 8))
    assert seen == ["boxes", "boxes", "linear", "linear"]


@pytest.mark.parametrize("example", ["neighborhood_2d", "neighborhood_3d", "gna", "swin"])
def test_examples_in_both_orders(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results, lse and gradients come in the user's order, whichever the tiles have."""
    attention = attndsl.compile(EXAMPLES / f"{example}.attn", backend="torch")
    sizes = {"height": 20, "width": 28}
    if example == "neighborhood_3d":
        sizes |= {"frames": 3, "height": 10, "width": 11}
    n = prod(sizes.values())
    given: dict[str, Any] = dict(sizes)
    if example == "swin":
        given |= {"bias": torch.randn(4, 13, 13, requires_grad=True), "shift": 3}
    if example == "gna":
        given |= {"window": 8, "stride": 4}
    inputs = torch.randn(2, 4, n, 16).requires_grad_(), *torch.randn(2, 2, 2, n, 16)
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    leaves = (*inputs, *(x for x in given.values() if isinstance(x, Tensor)))
    found = {}
    for order in ("linear", "boxes"):
        forced(monkeypatch, order)
        out, lse = attention(*inputs, return_lse=True, **given)
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
        grads = torch.autograd.grad((out * weights).sum() + lse.sin().sum(), leaves)
        found[order] = (out, lse, *grads)
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_gradients_have_the_same_bits_each_time() -> None:
    text, (height, width), given = PROGRAMS["windows with bias"]
    program = compiled(text)
    wanted = Request(
        head_dim=8, value_dim=8, grads=("bias",), tensor_dtypes=("float32",), order="boxes"
    )
    module = module_of(with_small_blocks(TORCH.emit(plan(program, wanted))))
    inputs = torch.randn(3, 2, 4, height * width, 8)
    rest = (0.3, 0, 0, None, (given["bias"].float(),), (height, width))
    out, _, stat = module["run_forward"](*inputs, *rest)

    def gradients() -> list[Tensor]:
        return list(module["run_backward"](torch.ones_like(out), None, *inputs, out, stat, *rest))

    assert all(torch.equal(x, y) for x, y in zip(gradients(), gradients(), strict=True))
