"""Compilers of the C++ engine: found, missing, failing; libraries that are kept and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attndsl.codegen.cpp import build_library, is_ready

import attndsl
from attndsl.runtime import cache, operators
from attndsl.runtime.engines import has_compiler
from tests.codegen.cpp import compiler, quick  # noqa: F401

SOURCE = 'extern "C" int attn_trial() { return 7; }\n'
CAUSAL = "attention a():\n    mask k <= q\n"


def inputs() -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(1, 2, 9, 8) for _ in range(3))


def engine_of_call(text: str, query: torch.Tensor) -> str:
    """The backend that "auto" takes."""
    attention = attndsl.compile(text=text)
    request = operators.request_of_call(
        *(attention.program, attention.settings, query, query, query, [], {}, ()),
        {s.name: s.default for s in attention.program.scalars},
        (0, 0),
    )
    return request.backend


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNDSL_CXX", "")
    assert not has_compiler()
    attention = attndsl.compile(text=CAUSAL, backend="cpp")
    with pytest.raises(attndsl.ArgumentError, match='needs a C\\+\\+ compiler.*backend="torch"'):
        attention(*inputs())
    assert engine_of_call(CAUSAL, inputs()[0]) == "torch"
    with pytest.raises(RuntimeError, match="found none"):
        build_library.attn_build(SOURCE, Path("."))


@pytest.mark.usefixtures("compiler")
def test_auto_takes_it_where_it_can() -> None:
    query = inputs()[0]
    assert engine_of_call(CAUSAL, query) == "cpp"
    assert engine_of_call(CAUSAL, torch.randn(1, 1, 2, 1025)) == "torch"


@pytest.mark.usefixtures("compiler")
def test_boxes_are_left_to_torch() -> None:
    text = (
        "attention a():\n    grid y = 256, x = 256\n"
        "    mask abs(q.y - k.y) <= 3 and abs(q.x - k.x) <= 3\n"
    )
    assert engine_of_call(text, torch.zeros(1, 1, 256 * 256, 16)) == "torch"


@pytest.mark.usefixtures("compiler")
def test_lists_are_refused() -> None:
    text = Path(__file__).parents[2].joinpath("examples", "moba.attn").read_text(encoding="utf-8")
    attention = attndsl.compile(text=text, backend="cpp", block=16, n=1)
    query = torch.randn(1, 1, 64, 16)
    with pytest.raises(attndsl.ArgumentError, match='lists of blocks.*backend="torch"'):
        attention(query, query, query)
    with pytest.raises(attndsl.ArgumentError, match='lists of blocks.*backend="torch"'):
        attention.source(backend="cpp")


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("ATTNDSL_CXX", str(broken))
    assert not is_ready(tmp_path)
    with pytest.raises(RuntimeError, match=r"command was\n.*-O3[\s\S]*it is broken"):
        build_library.attn_build(SOURCE, tmp_path)
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ["c++"]  # nothing half made


def test_libraries_are_kept_and_checked(compiler: str, tmp_path: Path) -> None:  # noqa: F811
    library = build_library.attn_build(SOURCE, tmp_path)
    made = library.stat().st_mtime_ns
    assert build_library.attn_build(SOURCE, tmp_path) == library
    assert library.stat().st_mtime_ns == made
    assert build_library.attn_build(SOURCE + "// other\n", tmp_path) != library
    library.write_bytes(library.read_bytes()[:-1])
    assert build_library.attn_build(SOURCE, tmp_path) == library
    assert build_library.attn_is_sealed(library, library.with_suffix(".sha256"))


@pytest.mark.usefixtures("quick")
def test_a_module_runs_by_itself(tmp_path: Path) -> None:
    """The text alone, and from its place in the cache: without a second build."""
    attention = attndsl.compile(text=CAUSAL, backend="cpp")
    given = inputs()
    want = attention.reference(*given)
    text = attention.source(backend="cpp", dtype="float32", head_dim=8)
    names: dict[str, object] = {"__file__": str(tmp_path / "module.py")}
    exec(compile(text, "<generated>", "exec"), names)
    run = names["run_forward"]
    assert callable(run)
    out, _, _ = run(*given, 8**-0.5, 0, 0, None, (), ())
    assert torch.allclose(out, want, atol=1e-5)
    built = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.so")}
    assert len(built) == 1
    again: dict[str, object] = {"__file__": str(tmp_path / "module.py")}
    exec(compile(text, "<generated>", "exec"), again)
    run = again["run_forward"]
    assert callable(run) and torch.equal(run(*given, 8**-0.5, 0, 0, None, (), ())[0], out)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.so")} == built
    cache.forget()
