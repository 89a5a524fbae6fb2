"""`check --causal`: what is refuted is refuted by a real pair, at the part that lets it through."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attndsl.report.differences.future import check_causal
from attndsl.report.files import check_file
from attndsl.semantics import check_all
from attndsl.source import Source
from attndsl.transform.simplify import simplify

EXAMPLES = Path(__file__).parents[2] / "examples"
CAUSAL = {
    "alibi", "causal", "duo_heads", "gated", "gemma2_local", "gpt_oss", "mistral",
    "music_transformer", "packed_documents", "retention", "sigmoid",
    "landmark", "listed", "longheads", "moba", "nsa_selected", "nsa_window",
    "quest", "seer", "sparge",
}  # fmt: skip
HEAD = "attention test(w: int, t: bool[B, Nk], length: int[B]):\n"


def verdict(*masks: str):  # type: ignore[no-untyped-def]
    source = Source("test.attn", HEAD + "".join(f"    mask {mask}\n" for mask in masks))
    (program,) = check_all(source)
    return check_causal(simplify(program), source)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.attn")), ids=lambda path: path.stem)
def test_examples(path: Path) -> None:
    codes = {d.code for d in check_file(str(path), {}, causal=True)} - {"W201"}
    chooses = re.search(r"^ +select ", path.read_text(), re.MULTILINE)
    wrong = {"W205"} if chooses else {"E201"}  # what is chosen differs from call to call
    assert codes == (set() if path.stem in CAUSAL else wrong)


PARTS = {
    ("k <= q or k < length[b]",): "k < length[b]",
    ("k <= q or t[b, k]", "k < 100"): "t[b, k]",
    ("(k <= q or t[b, k] or k == 3) and k < 100",): "t[b, k]",
    ("k <= q + w",): "k <= q + w",
    ("k <= q or q > 5000",): "q > 5000",
    ("k <= q or Nk > 100",): "Nk > 100",
}


@pytest.mark.parametrize("masks", PARTS)
def test_the_part_that_lets_it_through(masks: tuple[str, ...]) -> None:
    found = verdict(*masks)
    assert found.code == "E201"
    assert found.span.text == PARTS[masks]


def test_proved_refuted_and_neither() -> None:
    assert verdict("k <= q", "t[b, k] or t[b, q]") is None
    assert verdict("t[b, k]").code == "E201"
    open_one = verdict("float(k) <= float(q)")
    assert open_one.code == "W205" and "400 small random calls" in open_one.notes[0]
