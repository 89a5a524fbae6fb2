"""Programs and the nodes that they become."""

from pathlib import Path

import pytest

from attndsl.ir.nodes import SCORE, TRUE, index, make, scalar
from attndsl.ir.program import Program, Scalar

from .programs import program

CASES = (Path(__file__).parent / "fixtures" / "lowering.txt").read_text().split("\n====\n")


def parts(of: Program) -> str:
    """The statements' nodes, those that say nothing left out."""
    rows = [
        ("mask", None if of.mask is TRUE else of.mask),
        ("score", None if of.score is SCORE else of.score),
        ("weights", of.weights.value),
        ("sink", of.weights.sink),
        ("output", of.output),
    ]
    return "\n".join(f"{name} {node!r}" for name, node in rows if node is not None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.partition("\n")[0])
def test_lowering(case: str) -> None:
    given, _, expected = case.strip().partition("\n----\n")
    body, *rest = [part.strip() for part in given.split("|")]
    parameters = rest[0] if rest else ""
    head = "\n".join(rest[1].split("; ")) if len(rest) > 1 else ""
    assert parts(program(body, parameters, head)) == expected


def test_const_parameters_become_constants() -> None:
    found = program("mask q - k < w", "w: const int = 8, cap: float = 2")
    assert found.mask.args[1].value == 8 and found.consts == (("w", 8),)
    assert found.parameters == (Scalar("cap", "float", 2.0),)
    assert program("mask q - k < w", "w: const int", w=5).consts == (("w", 5),)


def test_origins_point_at_the_users_lines() -> None:
    found = program("mask near(3) and k <= w", "w: int", "def near(n) = q - k < n")
    lines = {span.text for span in found.origins[found.mask.args[0]]}
    assert lines == {"near(3)", "q - k < n"}
    assert [span.text for span in found.origins[scalar("w", "int")]] == ["w: int", "w"]
    assert found.origins[make("le", index("k"), scalar("w", "int"))][0].text == "k <= w"


def test_definitions_expand_once() -> None:
    """Sixty levels of doubling are sixty nodes, not 2**60."""
    rows = ["def a0 = score"] + [f"def a{i} = a{i - 1} + a{i - 1}" for i in range(1, 61)]
    found = program("score a60", head="\n".join(rows))
    assert found.score.op == "add" and found.score.args[0] is found.score.args[1]


def test_long_chains_are_balanced() -> None:
    found = program("mask " + " or ".join(f"k == {i}" for i in range(700)))
    assert found.mask.op == "or"
