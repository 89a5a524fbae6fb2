"""Every wrong program of this folder gives the text beside it, character by character."""

from __future__ import annotations

from pathlib import Path

import pytest

from attndsl.diagnostics import CODES, Diagnostic
from attndsl.report.files import check_file

FOLDER = Path(__file__).parent
PROGRAMS = sorted(path.name for path in FOLDER.glob("*.attn"))


def diagnose(name: str) -> list[Diagnostic]:
    """What `attndsl check` says of a program, by its path as a user gives it; with `--causal` where
    the file's name says so."""
    return check_file(name, {}, causal="causal" in name)


@pytest.mark.parametrize("name", PROGRAMS)
def test_error_text(name: str, monkeypatch: pytest.MonkeyPatch, update_golden: bool) -> None:
    monkeypatch.chdir(FOLDER)
    found = diagnose(name)
    text = "\n\n".join(diagnostic.render() for diagnostic in found) + "\n"
    expected = FOLDER / f"{Path(name).stem}.err"
    if update_golden:
        expected.write_text(text, encoding="utf-8")
    assert text == expected.read_text(encoding="utf-8")
    code = name[:4].upper()
    assert code in {diagnostic.code for diagnostic in found}


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_pair(code: str) -> None:
    assert any(name.startswith(code.lower()) for name in PROGRAMS)


def test_no_expectation_without_a_program() -> None:
    assert {path.stem for path in FOLDER.glob("*.err")} == {name[:-5] for name in PROGRAMS}
