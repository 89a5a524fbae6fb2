"""Programs that the tests of the binding use, built by hand."""

from __future__ import annotations

import torch

from attndsl.ir.nodes import OUT, SCORE, TRUE, Node, constant, index, lookup, make, scalar, size
from attndsl.ir.program import Program, Scalar, Tensor, Weights
from attndsl.runtime.attention import Attention

B, H, Q, K = index("b"), index("h"), index("q"), index("k")
CAUSAL = make("le", K, Q)
DISTANCE = make("sub", Q, K)


def attention(
    *parameters: Scalar | Tensor,
    mask: Node = CAUSAL,
    score: Node = SCORE,
    weights: Weights | None = None,
    output: Node | None = None,
    backend: str = "auto",
    consts: tuple[tuple[str, bool | int | float], ...] = (),
) -> Attention:
    program = Program(
        "hand", parameters, mask, score, weights or Weights(), output, consts=consts, doc="By hand."
    )
    return Attention(program, backend)


def windowed() -> Attention:
    """Causal window with a soft cap: an int and a float with defaults, and a const of the past."""
    mask = make("and", CAUSAL, make("lt", DISTANCE, scalar("window", "int")))
    cap = scalar("cap", "float")
    score = make("mul", cap, make("tanh", make("div", SCORE, cap)))
    return attention(
        Scalar("window", "int", 4),
        Scalar("cap", "float", 20.0),
        mask=mask,
        score=score,
        consts=(("block", 8),),
    )


def biased() -> Attention:
    """Every kind of parameter: a learned table of 2 * R + 1 distances per head, ids of documents,
    a switch, and a learned gate at the end."""
    same = make("eq", lookup("doc", "int", B, Q), lookup("doc", "int", B, K))
    offset = make("add", DISTANCE, scalar("R", "int"))
    bias = lookup("bias", "float", H, offset)
    score = make("where", scalar("flat", "bool"), SCORE, make("add", SCORE, bias))
    gate = make("sigmoid", lookup("gate", "float", B, H, Q))
    extent = make("add", make("mul", constant(2), scalar("R", "int")), constant(1))
    return attention(
        Scalar("R", "int", None),
        Scalar("flat", "bool", False),
        Tensor("doc", "int", (size("B"), size("N"))),
        Tensor("bias", "float", (size("H"), extent)),
        Tensor("gate", "float", (size("B"), size("H"), size("Nq"))),
        mask=make("and", CAUSAL, same),
        score=score,
        output=make("mul", OUT, gate),
    )


def elementwise() -> Attention:
    return attention(weights=Weights("elementwise", make("sigmoid", SCORE)), mask=TRUE)


def inputs(
    batch: int = 2,
    heads: int = 4,
    key_heads: int = 2,
    nq: int = 6,
    nk: int = 6,
    width: int = 8,
    value_width: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """query, key and value that require grad."""
    torch.manual_seed(0)
    wide = value_width or width
    shapes = (batch, heads, nq, width), (batch, key_heads, nk, width), (batch, key_heads, nk, wide)
    query, key, value = (torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes)
    return query, key, value


def biased_parameters(
    batch: int = 2, heads: int = 4, nq: int = 6, dtype: torch.dtype = torch.float32
) -> dict[str, object]:
    """Arguments for `biased`; bias and gate require grad."""
    torch.manual_seed(1)
    return {
        "R": 2,
        "doc": torch.randint(0, 2, (batch, nq)),
        "bias": torch.randn(heads, 5, dtype=dtype, requires_grad=True),
        "gate": torch.randn(batch, heads, nq, dtype=dtype, requires_grad=True),
    }
