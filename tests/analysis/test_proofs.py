"""What is proved about programs, what it assumes, and that it holds in calls that are tried."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import attndsl
from attndsl.analysis.proofs import AT_A_KEY, NO_LENGTHS, Proof, proofs_of
from attndsl.analysis.ranges import solve_keys
from attndsl.ir.nodes import FALSE, chosen, substitute
from attndsl.ir.program import Program
from attndsl.report.differences.search import trials

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.attn"))


def program(mask: str, parameters: str = "w: int, n: int, t: bool[B, Nk]") -> Program:
    text = f"attention test({parameters}):\n    mask {mask}\n"
    return attndsl.compile(text=text).program


def of(found: Program, subject: str) -> list[Proof]:
    keys = solve_keys(found.mask).segments
    return [proof for proof in proofs_of(found, keys) if proof.subject == subject]


ROWS = {
    "k <= q": (AT_A_KEY,),
    "0 <= q - k < w": (AT_A_KEY, "while w >= 1"),
    "abs(q - k) <= w": (AT_A_KEY, "while w >= 0"),
    "k <= q or t[b, k]": (AT_A_KEY,),
    "q // w == k // w": (AT_A_KEY,),
    "true": ("while Nk >= 1",),
    "k < n": ("while k_offset is 0", "while Nk >= 1", "while n >= 1"),
}


@pytest.mark.parametrize("mask", ROWS)
def test_every_row_has_a_key(mask: str) -> None:
    (proof,) = of(program(mask), "rows")
    assert proof.assumes == (*ROWS[mask], NO_LENGTHS)


def test_a_mask_counted_from_the_end() -> None:
    assert of(program("k - Nk <= q - Nq"), "rows")


@pytest.mark.parametrize("mask", ["k < q", "t[b, k]", "k % 3 == w", "k == n", "q < n and k <= q"])
def test_a_row_may_be_empty(mask: str) -> None:
    assert not of(program(mask), "rows")


def accepts(proof: Proof, trial) -> bool:  # type: ignore[no-untyped-def]
    """Whether a call meets what a proof assumes."""
    sizes, offsets = trial.sizes, trial.offsets
    first, last = offsets["q_offset"], offsets["q_offset"] + sizes["Nq"] - 1
    key = offsets["k_offset"]
    known = {
        AT_A_KEY: key <= first and last < key + sizes["Nk"],
        NO_LENGTHS: True,
        "while q_offset is 0": first == 0,
        "while k_offset is 0": key == 0,
        "while Nq <= Nk": sizes["Nq"] <= sizes["Nk"],
        "while Nk >= 1": sizes["Nk"] >= 1,
    }
    for text in proof.assumes:
        if text in known:
            if not known[text]:
                return False
        elif ">=" in text:
            name, least = text.removeprefix("while ").split(" >= ")
            if trial.parameters[name] < int(least):
                return False
        elif "grid" in text:
            cells = trial.parameters["height"] * trial.parameters["width"]
            if first < 0 or last >= cells or min(cells, trial.parameters["height"]) < 1:
                return False
        else:
            raise AssertionError(text)
    return True


SEARCHED = {path.stem: attndsl.compile(path).program for path in EXAMPLES} | {
    mask: program(mask) for mask in ROWS
}


def without_choices(found: Program) -> Program:
    """The program where nothing is chosen: what is proved holds then too."""
    nothing = {chosen(select.name): FALSE for select in found.selects}
    return replace(found, mask=substitute(found.mask, nothing), selects=())


@pytest.mark.parametrize("name", SEARCHED)
def test_rows_that_are_proved_to_have_a_key_have_one(name: str) -> None:
    proofs = of(SEARCHED[name], "rows")
    found = without_choices(SEARCHED[name])
    tried = 0
    for trial in trials([found], {}, 160):
        for proof in proofs:
            if accepts(proof, trial):
                tried += 1
                assert trial.pairs(found).any(3).all(), (proof, trial.text(found))
    assert tried or not proofs or "grid" in str(proofs[0])


def test_the_edge() -> None:
    """Full tiles of causal and of windows end at the query."""
    for mask in ("k <= q", "0 <= q - k < w"):
        (proof,) = of(program(mask), "edge")
        assert proof.assumes == (AT_A_KEY,)
    assert not of(program("true"), "edge")
    assert not of(program("k >= q - w"), "edge")


def test_what_a_mask_depends_on() -> None:
    assert of(program("k <= q"), "batch")[0].what.endswith("batch and head")
    assert not of(program("t[b, k]"), "batch")
    assert of(program("t[b, k]"), "head")
    both = program("t[b, k] or s[h]", "t: bool[B, Nk], s: bool[H]")
    assert not of(both, "batch") and not of(both, "head")


def test_lookups_and_integers() -> None:
    found = program("t[b, k] and u[h]", "t: bool[B, Nk], u: bool[H]")
    first, second = of(found, "lookups")
    assert "`t`" in first.what and first.assumes == ("while k_offset is 0",)
    assert "`u`" in second.what and not second.assumes
    assert of(program("k <= q"), "integers")
    assert not of(program("k * q <= w"), "integers")


def test_a_mask_that_nothing_meets() -> None:
    (proof,) = proofs_of(program("k < q and q < k"))
    assert proof.subject == "mask"


def test_text_of_a_proof() -> None:
    proof = Proof("rows", "it holds", ("while Nk >= 1", "while w >= 1", NO_LENGTHS))
    assert str(proof) == "it holds, while Nk >= 1, w >= 1 and no k_len is given"
    assert str(Proof("rows", "it holds")) == "it holds"
