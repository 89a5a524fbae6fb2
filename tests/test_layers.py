"""Imports point down the list of stages, never up; `codegen` is reached by name alone."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the lowest; a module may import from its own layer and from those before it.
LAYERS = (
    ("source",),
    ("diagnostics",),
    ("syntax",),
    ("ir",),
    ("transform",),
    ("semantics",),
    ("analysis",),
    ("plan",),
    ("backend",),
    ("reference",),
    ("runtime", "report"),  # Attention.explain asks report, when it is called
    ("driver", "options"),
    ("cli", "__main__", "__init__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imported(path: Path) -> set[str]:
    """The absolute names of the modules that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "attndsl").with_suffix("").parts
    return parts[0]


def test_every_module_has_a_layer() -> None:
    found = {layer_of(path) for path in (ROOT / "attndsl").rglob("*.py")}
    assert found == set(RANK)


def test_imports_point_down() -> None:
    wrong = []
    for path in sorted((ROOT / "attndsl").rglob("*.py")):
        own = layer_of(path)
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "attndsl" and len(parts) > 1 and RANK.get(parts[1], -1) > RANK[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_the_compiler_does_not_name_the_generators() -> None:
    for path in (ROOT / "attndsl").rglob("*.py"):
        assert not any(name.startswith("attndsl.codegen") for name in imported(path)), path


def test_generators_import_no_runtime() -> None:
    for path in (ROOT / "codegen").rglob("*.py"):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "attndsl" and len(parts) > 1:
                assert RANK[parts[1]] <= RANK["backend"], f"{path} imports {name}"
