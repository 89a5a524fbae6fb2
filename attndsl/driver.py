"""From text to a callable: the stages of the compiler, one a line."""

from __future__ import annotations

import os
import textwrap

from attndsl.diagnostics import ArgumentError
from attndsl.runtime.attention import Attention
from attndsl.runtime.settings import checked
from attndsl.source import Source


def compile(
    path: str | os.PathLike[str] | None = None,
    name: str | None = None,
    *,
    text: str | None = None,
    backend: str = "auto",
    tune: str = "auto",
    deterministic: bool = True,
    **consts: bool | int | float,
) -> Attention:
    """The attention of a program.

    path     an .attn file; or text, the program itself
    name     which attention, where the program has several
    backend  "triton", "torch", "cpp", or "auto": triton for CUDA tensors; for others cpp where
             there is a compiler and the engine takes the call (docs/cpu.md), else torch
    tune     how the sizes of Triton's kernels are chosen. "auto": those that `attndsl tune` has
             stored for this program and device, else those of a table; "off": those of the table;
             "max": the first call that needs them measures candidates on its own arguments, and
             stores the fastest
    deterministic  whether results are bitwise the same from run to run; False allows what is
             faster and is not
    consts   values of const parameters

    Raises ProgramError where the program is wrong, ArgumentError where the arguments are.
    """
    # Imported here, for `import attndsl` brings no parser.
    from attndsl.semantics import analyse
    from attndsl.transform.simplify import simplify

    settings = checked(backend, tune, deterministic)
    check_name(name)
    source = read(path, text)
    program = analyse(source, name, consts)
    program = simplify(program)
    return Attention(program, settings)


def read(path: str | os.PathLike[str] | None, text: str | None) -> Source:
    """The program's text, from one of the two places."""
    from attndsl.syntax.parser import load_source

    if (path is None) == (text is None):
        raise ArgumentError("give either a path or text=, " + ("not both" if path else "got none"))
    if text is not None:
        if not isinstance(text, str):
            raise ArgumentError(f"text: expected a str, got {type(text).__name__}")
        return Source("<text>", textwrap.dedent(text))  # text may stand indented in a Python file
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentError(f"path: expected a str or PathLike, got {type(path).__name__}")
    place = os.fspath(path)
    if not isinstance(place, str):
        raise ArgumentError(f"path: expected a str, got {type(place).__name__}")
    return load_source(place)


def check_name(name: object) -> None:
    if name is not None and not isinstance(name, str):
        raise ArgumentError(f"name: expected a str, got {type(name).__name__}")
