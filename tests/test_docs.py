"""README.md and docs/: programs agree with the oracle, Python runs, links lead somewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import attndsl
from attndsl.diagnostics import CODES
from attndsl.syntax import ast
from tests.oracle.compare import cast, difference, differentiate, is_softmax, oracle_function
from tests.oracle.examples import Random
from tests.oracle.expressions import Evaluator
from tests.oracle.parsing import parse_text
from tests.oracle.scopes import Frame, Scope, load_module

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[\w-]+)?\)")
B, H, Hk, Nq, Nk, D, Dv = 2, 4, 2, 19, 21, 8, 8


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str) -> list[Block]:
    found = []
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(page):
            if match[1] == language:
                line = page[: match.start()].count("\n") + 2
                found.append(Block(str(path.relative_to(ROOT)), line, language, match[2]))
    return found


def arguments_for(text: str, random: Random) -> dict[str, Any]:
    """Something plausible for every parameter that a program declares."""
    file = parse_text(text)
    (attention,) = (item for item in file.items if isinstance(item, ast.Attention))
    numbers: dict[str, Any] = {
        **{"B": B, "H": H, "Hk": Hk, "G": H // Hk, "Nq": Nq, "Nk": Nk, "D": D},
        **{"width": Dv, "N": max(Nq, Nk)},
    }
    given: dict[str, Any] = {}
    for parameter in attention.parameters:
        if parameter.dims is None:
            default = {"int": 3, "float": 0.5, "bool": True}[parameter.kind]
            value = parameter.default if parameter.default is not None else default
            numbers[parameter.name.name] = value
            if parameter.default is None:
                given[parameter.name.name] = value
    scope = Scope(load_module(file), inside_attention=True)
    evaluator = Evaluator(torch.empty(0), {}, numbers, None)
    point = Frame.full({"b": torch.zeros(1, dtype=torch.int64)})
    for parameter in attention.parameters:
        for dimension in parameter.dims or ():
            if isinstance(dimension, ast.Name):
                numbers.setdefault(dimension.name, 7)
        if parameter.dims is None:
            continue
        shape = [int(evaluator.evaluate(e, scope, point)[0]) for e in parameter.dims]
        if parameter.kind == "float":
            given[parameter.name.name] = random.floats(*shape)
        elif parameter.kind == "bool":
            given[parameter.name.name] = random.bools(0.7, *shape)
        else:
            given[parameter.name.name] = random.ints(0, 4, *shape)
    return given


@pytest.mark.parametrize("block", blocks("attn"), ids=str)
def test_program_agrees_with_oracle(block: Block) -> None:
    random = Random(block.line)
    inputs = {
        "query": random.floats(B, H, Nq, D),
        "key": random.floats(B, Hk, Nk, D),
        "value": random.floats(B, Hk, Nk, Dv),
        **arguments_for(block.text, random),
    }
    wants_lse = is_softmax(block.text)
    attention = attndsl.compile(text=block.text, backend="torch")

    def compiled(**given: Any) -> Any:
        result = attention(**given, return_lse=wants_lse)
        return result if wants_lse else (result, None)

    got = differentiate(compiled, {n: cast(x, torch.float64) for n, x in inputs.items()}, wants_lse)
    want = differentiate(oracle_function(block.text, "<text>", None, {}), inputs, wants_lse)
    wrong = difference(got, want, 1e-6, 1e-3)
    assert not wrong, f"{block}\n{wrong}"


@pytest.mark.parametrize("page", sorted({block.page for block in blocks("python")}))
def test_python_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after the other, in one namespace, in the project's folder."""
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    for block in blocks("python"):
        if block.page == page:
            padding = "\n" * (block.line - 1)  # so that a traceback names the page's line
            exec(compile(padding + block.text, page, "exec"), namespace)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name}: no {target}"


def test_every_statement_and_function_has_an_example() -> None:
    text = "\n".join(block.text for block in blocks("attn"))
    for word in ("let", "grid", "mask", "score", "weights", "output", "def", "from", "const"):
        assert re.search(rf"^\s*{word} |[:(] *{word} ", text, re.MULTILINE), f"no example of {word}"
    calls = set(re.findall(r"(\w+)\(", text))
    functions = (
        "abs min max clamp exp exp2 log log2 sqrt rsqrt sin cos tanh erf sigmoid relu softplus "
        "floor ceil round int float dot"
    )
    assert not set(functions.split()) - calls, "functions without an example"


def test_every_code_is_documented() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    listed = re.findall(r"^### ([EW]\d{3}): (.*)$", page, re.MULTILINE)
    assert dict(listed) == CODES


def test_every_name_of_std_is_documented() -> None:
    page = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "attndsl" / "std").glob("*.attn")):
        for item in parse_text(path.read_text(encoding="utf-8"), str(path)).items:
            if isinstance(item, ast.Define):
                parameters = ", ".join(name.name for name in item.parameters)
                shown = f"`{item.name.name}({parameters})`" if parameters else f"`{item.name.name}`"
                assert shown in page, f"docs/language.md: std's {shown} is missing"


def test_picture_of_the_readme_is_what_tiles_says() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    drawn = re.findall(r"((?:[·▓█] ){7}[·▓█])", page)
    attention = attndsl.compile(ROOT / "examples" / "gemma2_local.attn")
    tiles = attention.tiles(Nq=4096, Nk=4096, window=1024, block=(512, 512))[0, 0]
    assert drawn == [" ".join("·▓█"[tile] for tile in row) for row in tiles.tolist()]
