"""The text form reads back to the same nodes."""

import pytest

from attndsl.ir.nodes import OUT, SCORE, TRUE, constant, dot, index, lookup, make, scalar, size
from attndsl.ir.program import Grid, Program, Scalar, Tensor, Weights
from attndsl.ir.text import dump, parse
from attndsl.ir.verify import verify


def programs() -> list[Program]:
    q, k, h = index("q"), index("k"), index("h")
    window = scalar("window", "int")
    causal = Program("causal", (), make("le", k, q), SCORE, Weights(), None)
    bias = lookup("bias", "float", h, make("sub", q, k))
    full = Program(
        "full",
        (
            Scalar("window", "int", 4),
            Scalar("cap", "float", None),
            Scalar("on", "bool", True),
            Scalar("far", "float", float("inf")),
            Tensor("bias", "float", (size("H"), size("R"))),
            Tensor("rel", "float", (size("R"), size("D"))),
        ),
        make("lt", make("sub", q, k), window),
        make("add", SCORE, make("add", bias, dot("rel", h))),
        Weights("softmax", sink=make("mul", scalar("far", "float"), constant(1e-30))),
        make("mul", OUT, constant(-0.0)),
        Grid(("y", "x"), (constant(3), size("Nk")), constant(0)),
        consts=(("block", 64), ("ratio", 0.5), ("flag", True)),
    )
    other = Program(
        "other",
        (),
        TRUE,
        make("mul", SCORE, constant(float("inf"))),
        Weights("normalize", value=make("exp", SCORE)),
        None,
    )
    return [causal, full, other]


@pytest.mark.parametrize("program", programs(), ids=lambda p: p.name)
def test_round_trip(program: Program) -> None:
    verify(program)
    text = dump(program)
    again = parse(text)
    assert again == program
    assert again.mask is program.mask and again.score is program.score
    assert dump(again) == text


@pytest.mark.parametrize(
    "text",
    ["", "attndsl-ir 1", "attndsl-ir 1\nfoo\nend", "attndsl-ir 1\n%0 = nonsense\nend"],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_verify_finds_what_does_not_hold() -> None:
    bad = Program("bad", (), make("lt", scalar("w", "int"), index("q")), SCORE, Weights(), None)
    with pytest.raises(AssertionError, match="names no scalar"):
        verify(bad)
    bad = Program("bad", (), TRUE, OUT, Weights(), None)
    with pytest.raises(AssertionError, match="varies with more"):
        verify(bad)
