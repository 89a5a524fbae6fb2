"""Short ways to analyse a text in tests."""

from attndsl.diagnostics import Diagnostic, ProgramError
from attndsl.ir.program import Program
from attndsl.ir.verify import verify
from attndsl.semantics import analyse, check_all
from attndsl.source import Source


def program(
    body: str, parameters: str = "", head: str = "", **consts: bool | int | float
) -> Program:
    """The program of an attention with these statements (separated by `;`)."""
    statements = "\n".join(f"    {line.strip()}" for line in body.split(";"))
    text = f"{head}\nattention a({parameters}):\n{statements}\n"
    return verify(analyse(Source("<text>", text), consts=consts))


def errors(text: str) -> list[Diagnostic]:
    """Everything that is wrong with a text."""
    try:
        check_all(Source("<text>", text))
    except ProgramError as error:
        return list(error.diagnostics)
    return []


def codes(body: str, parameters: str = "", head: str = "") -> list[str]:
    statements = "\n".join(f"    {line.strip()}" for line in body.split(";"))
    return [d.code for d in errors(f"{head}\nattention a({parameters}):\n{statements}\n")]
