"""Names of a program: modules with definitions, scopes with values, frames of points."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

import attndsl
from attndsl.syntax import ast
from tests.oracle.parsing import parse_text

STD = Path(attndsl.__file__).parent / "std"


@dataclass(eq=False)
class Module:
    """The `def`s that a file makes or imports, each with the module where its body is read."""

    definitions: dict[str, tuple[ast.Define, Module]] = field(default_factory=dict)


def load_module(file: ast.File) -> Module:
    """The module of a parsed file, with its imports followed."""
    module = Module()
    for item in file.items:
        if isinstance(item, ast.Define):
            module.definitions[item.name.name] = (item, module)
        elif isinstance(item, ast.Import):
            other = _imported(item, file)
            for there, here in item.names:
                module.definitions[here.name] = other.definitions[there.name]
    return module


def _imported(item: ast.Import, file: ast.File) -> Module:
    if item.is_path:
        path = Path(file.source.name).parent / item.module
        return load_module(parse_text(path.read_text(encoding="utf-8"), str(path)))
    assert item.module == "std"
    merged = Module()
    for path in sorted(STD.glob("*.attn")):
        merged.definitions.update(
            load_module(parse_text(path.read_text(encoding="utf-8"), str(path))).definitions
        )
    return merged


@dataclass(eq=False)
class Closure:
    """An expression with the scope that it is read in; `score` as it was where a `let` stands."""

    expression: ast.Expression
    scope: Scope
    score: Tensor | None = None


@dataclass(eq=False)
class Scope:
    """Names that an expression sees: closures, and the definitions of its module.

    `inside_attention` tells whether parameters and dimension names are seen too.
    """

    module: Module
    closures: dict[str, Closure] = field(default_factory=dict)
    inside_attention: bool = False

    def with_closure(self, name: str, closure: Closure) -> Scope:
        return replace(self, closures={**self.closures, name: closure})


@dataclass(eq=False)
class Frame:
    """Points at which expressions are evaluated.

    `base` holds a 1-D vector per index (`b h q k d row`) and for `score` and `out`; `ids` picks the
    points of `base` that are meant.
    """

    base: dict[str, Tensor]
    ids: Tensor

    @staticmethod
    def full(base: dict[str, Tensor]) -> Frame:
        return Frame(base, torch.arange(len(base["b"])))

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: str) -> bool:
        return name in self.base

    def __getitem__(self, name: str) -> Tensor:
        return self.base[name].index_select(0, self.ids)

    def at(self, chosen: Tensor) -> Frame:
        """The points where `chosen` (positions in this frame) are."""
        return Frame(self.base, self.ids[chosen])

    def with_score(self, score: Tensor) -> Frame:
        return Frame({**self.base, "score": score}, self.ids)
