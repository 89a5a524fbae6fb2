"""attndsl.compile: its arguments, and a program from its text to its results."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import attndsl

ROOT = Path(__file__).resolve().parents[2]

TEXT = '''"""A file."""

attention near(window: int = 3, block: const int = 2):
    """Near keys."""
    mask 0 <= q - k < window and q // block == k // block
'''


def test_from_text_to_results() -> None:
    attn = attndsl.compile(text=TEXT, block=4)
    x = [torch.randn(1, 2, 9, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    out, wanted = attn(*x, window=2), attn.reference(*x, window=2)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(out.sum(), x), torch.autograd.grad(wanted.sum(), x)
    )
    assert attn.name == "near" and attn.consts == {"block": 4}
    i, j = torch.arange(9)[:, None], torch.arange(9)[None]
    near = (i - j >= 0) & (i - j < 2) & (i // 4 == j // 4)
    assert torch.equal(attn.mask(Nq=9, Nk=9, window=2)[0, 0], near)


def test_from_a_path(tmp_path: Path) -> None:
    file = tmp_path / "near.attn"
    file.write_text(TEXT)
    for path in (file, str(file)):
        assert attndsl.compile(path).name == "near"
        assert attndsl.compile(path, "near", backend="torch").backend == "torch"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either a path or text="),
        ({"path": "a.attn", "text": TEXT}, "give either a path or text=, not both"),
        ({"text": 3}, "text: expected a str, got int"),
        ({"text": b"x"}, "text: expected a str, got bytes"),
        ({"path": 3}, "path: expected a str or PathLike, got int"),
        ({"path": b"x.attn"}, "path: expected a str"),
        ({"text": TEXT, "name": 3}, "name: expected a str"),
        ({"text": TEXT, "backend": "tritn"}, "backend: unknown backend 'tritn'; did you mean"),
        ({"text": TEXT, "backend": None}, "backend: unknown backend None; it is one of"),
        ({"text": TEXT, "backend": []}, "backend: unknown backend"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(attndsl.ArgumentError, match=message):
        attndsl.compile(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"text": ""},
        {"text": "nonsense"},
        {"text": TEXT, "name": "nar"},
        {"text": TEXT, "block": 1.5},
        {"text": TEXT, "block": None},
        {"text": TEXT, "block": torch.tensor(1)},
        {"text": TEXT, "blck": 4},
        {"text": TEXT, "window": 4},
        {"path": "there/is/none.attn"},
        {"path": "."},
        {"path": "a\0b"},
        {"path": ""},
    ],
)
def test_wrong_programs(arguments: dict[str, Any]) -> None:
    with pytest.raises((attndsl.ProgramError, attndsl.ArgumentError)):
        attndsl.compile(**arguments)


def test_source_runs_by_itself() -> None:
    attn = attndsl.compile(text=TEXT)
    for kind in ("forward", "backward"):
        text = attn.source(kind, backend="torch", dtype="float32", head_dim=4)
        assert "import attndsl" not in text and "from attndsl" not in text
        module: dict[str, Any] = {}
        exec(text, module)
        x = [torch.randn(1, 2, 9, 4) for _ in range(3)]
        out, *_ = module["run_forward"](*x, 0.5, 0, 0, None, (), (3,))
        torch.testing.assert_close(out, attn.reference(*x, scale=0.5))
    assert attn.source(backend="torch") == attn.source("forward", backend="torch")
    compiled = attndsl.compile(text=TEXT, backend="torch")
    assert compiled.source() == attn.source(backend="torch") != attn.source()


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "sideways"},
        {"backend": "auto"},
        {"dtype": "int8"},
        {"dtype": "float64"},
        {"head_dim": 0},
        {"head_dim": 300},
        {"value_dim": 2.0},
        {"target": "sm_70"},
        {"target": "nonsense"},
    ],
)
def test_wrong_source(arguments: dict[str, Any]) -> None:
    with pytest.raises(attndsl.ArgumentError):
        attndsl.compile(text=TEXT).source(**arguments)


def test_compile_is_fast_when_warm() -> None:
    examples = sorted((ROOT / "examples").glob("*.attn"))
    attndsl.compile(examples[0])
    for example in examples:
        start = time.perf_counter()
        attndsl.compile(example)
        assert time.perf_counter() - start < 2.0, example  # a benchmark states the real figure


def test_import_brings_only_torch() -> None:
    code = (
        "import sys, attndsl; "
        "print([m for m in ('lark', 'triton', 'sympy', 'networkx') if m in sys.modules])"
    )
    probe = code.replace("attndsl", "torch")
    results = [
        subprocess.run([sys.executable, "-c", c], cwd=ROOT, capture_output=True, text=True)
        for c in (code, probe)
    ]
    assert results[0].returncode == 0, results[0].stderr
    assert results[0].stdout == results[1].stdout


@pytest.mark.parametrize("name", ["backend", "tune", "deterministic"])
def test_a_const_has_no_name_that_compile_takes(name: str) -> None:
    text = f"attention a({name}: const int = 3):\n    mask q - k < {name}\n"
    with pytest.raises(attndsl.ProgramError, match="E102"):
        attndsl.compile(text=text)
