"""The table of how tight tiles are, on a few masks."""

from __future__ import annotations

import attndsl
from attndsl.report.bench.sparsity import IMAGE, MASKS, TITLES, Case, cases, row_of
from tests.oracle.examples import FOLDER
from tests.report.conftest import GiveTiles


def row(case: Case) -> dict[str, object]:
    return dict(zip(TITLES, row_of(case), strict=True))


def mask(name: str, length: int = 4096) -> Case:
    text = f"attention mask():\n    {MASKS[name]}\n"
    return Case(name, attndsl.compile(text=text), length=length)


def test_runs_are_as_tight_as_tiles_can_be(give_tiles: GiveTiles) -> None:
    give_tiles(*((128, 128),) * 3)
    found = row(mask("global + window"))
    assert (found["order"], found["tiles by"], found["lost"]) == ("linear", "ranges", 0)
    # Of 32 x 32 tiles, those at most 2 beside the diagonal, and the rest of a row and of a column;
    # for two heads.
    band = 32 + 2 * 31 + 2 * 30
    tiles = 2 * (band + 2 * (32 - 3))
    assert found["times"] == 1 and found["visited"] == found["needed"] == tiles


def test_boxes_are_chosen_where_they_pay() -> None:
    found = row(mask("shifted windows of 16 in 128 x 128", IMAGE))
    assert (found["order"], found["tiles by"]) == ("boxes", "lists")
    assert found["times"] == 1 and found["visited"] == found["needed"]
    pixels = row(Case("near", attndsl.compile(FOLDER / "neighborhood_2d.attn"), length=3136))
    assert pixels["order"] == "linear"


def test_programs_with_selects_are_left_out() -> None:
    found = [case.name for case in cases([FOLDER / "moba.attn", FOLDER / "causal.attn"])]
    assert "causal" in found and "moba" not in found
