"""Every wrong program of this folder gives the text beside it, character by character."""

from __future__ import annotations

from pathlib import Path

import pytest

from attndsl.diagnostics import CODES, Diagnostic, ProgramError
from attndsl.semantics import check_all
from attndsl.syntax.parser import load_source

FOLDER = Path(__file__).parent
PROGRAMS = sorted(path.name for path in FOLDER.glob("*.attn"))


def diagnose(name: str) -> tuple[Diagnostic, ...]:
    """What the front end says of a program, by its path as a user gives it."""
    try:
        check_all(load_source(name))
    except ProgramError as error:
        return error.diagnostics
    return ()


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


@pytest.mark.parametrize("code", [code for code in CODES if code.startswith("E")])
def test_every_code_has_a_pair(code: str) -> None:
    assert any(name.startswith(code.lower()) for name in PROGRAMS)


def test_no_expectation_without_a_program() -> None:
    assert {path.stem for path in FOLDER.glob("*.err")} == {name[:-5] for name in PROGRAMS}
