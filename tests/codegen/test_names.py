"""Names of a program that generated sources could take for their own."""

from __future__ import annotations

import pytest
import torch

import attndsl
from attndsl.backend import load
from attndsl.plan.kernel_plan import Order, Request
from attndsl.plan.planner import plan
from attndsl.semantics import analyse
from attndsl.source import Source
from attndsl.transform.simplify import simplify
from tests.codegen.cpp import compiler, quick  # noqa: F401

# The width of a value, the size of a table whose gradient is added up, the sizes of a tile that is
# a box, and a prefix of each.
DIMENSIONS = ("Dv", "of_t0", "m_y", "n_x", "size_Dv", "dim_B")
TABLES = ", ".join(f"t{at}: float[H, {name}]" for at, name in enumerate(DIMENSIONS))
LOOKUPS = " + ".join(
    f"t{at}[h, (q * 3 + k * 5) % {name}] * {name}" for at, name in enumerate(DIMENSIONS)
)
TEXT = f"""\
attention a({TABLES}):
    grid y = 4, x = 5
    mask  abs(q.y - k.y) <= 3 and q.x <= k.x + Dv
    score score + {LOOKUPS}
"""


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_dimensions(backend: str) -> None:
    attention = attndsl.compile(text=TEXT, backend=backend)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    tables = {f"t{at}": normal(2, 2 + at) for at in range(len(DIMENSIONS))}
    query, value = normal(1, 2, 20, 8), normal(1, 2, 20, 5)
    found = attention(query, query, value, **tables)
    wanted = attention.reference(query, query, value, **tables)
    torch.testing.assert_close(found, wanted)
    gradients = [
        torch.autograd.grad(out.square().sum(), list(tables.values())) for out in (found, wanted)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("order", ["linear", "boxes"])
def test_dimensions_in_kernels(order: Order) -> None:
    """No two arguments of a kernel have one name."""
    program = simplify(analyse(Source("<text>", TEXT), None, {}))
    request = Request(
        backend="triton",
        grads=tuple(t.name for t in program.tensors),
        tensor_dtypes=("float32",) * len(DIMENSIONS),
        order=order,
    )
    text = load("attndsl.codegen", "triton").emit(plan(program, request))
    compile(text, "<generated>", "exec")  # refuses arguments of one name
