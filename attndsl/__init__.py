"""attndsl: a compiler for attention."""

from __future__ import annotations

from pathlib import Path as _Path

__version__ = "0.1.0"

# In a bare checkout `codegen/` and `grammar/` lie beside this package, not inside it; the root on
# the search path lets `attndsl.codegen` and `attndsl.grammar` be imported there as when installed.
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))

from attndsl.diagnostics import ArgumentError, Diagnostic, ProgramError  # noqa: E402
from attndsl.driver import compile  # noqa: E402
from attndsl.runtime.attention import Attention  # noqa: E402
from attndsl.runtime.merge import merge  # noqa: E402

__all__ = [
    "ArgumentError",
    "Attention",
    "Diagnostic",
    "ProgramError",
    "__version__",
    "compile",
    "merge",
]
