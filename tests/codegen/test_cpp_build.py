"""Compilers of the C++ engine: found, missing, failing; libraries that are kept and damaged."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from attndsl.codegen.cpp import build_library, failure

import attndsl
from attndsl.runtime import cache, engines, operators
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
    with pytest.raises(RuntimeError, match="no C.. compiler"):
        build_library.attn_build(SOURCE, Path("."), ())


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("true", "wrote no library"),
        ("false", "ended with 1 and said nothing"),
        ("nonsense", "CXX is 'nonsense', which names no program"),
    ],
)
def test_a_compiler_that_is_none(
    command: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ATTNDSL_CXX", raising=False)
    monkeypatch.setenv("CXX", command)
    with pytest.raises(RuntimeError, match=reason):
        build_library.attn_build(SOURCE, tmp_path, ())


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
    named(monkeypatch, script(tmp_path, "echo it is broken >&2; exit 1"))
    assert "generated source: it is broken" in failure(tmp_path)
    with pytest.raises(RuntimeError, match=r"command was\n.*-O3[\s\S]*it is broken"):
        build_library.attn_build(SOURCE, tmp_path, ())
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ["tool"]  # nothing half made
    attention = attndsl.compile(text=CAUSAL, backend="cpp")
    with pytest.raises(attndsl.ArgumentError, match="OpenMP.*it is broken"):
        attention(*inputs())


def test_a_compiler_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, script(tmp_path, "", start="\x7fELF"))
    assert "cannot be started" in failure(tmp_path)


def script(folder: Path, text: str, start: str = "#!/bin/sh") -> Path:
    """A program of the shell."""
    path = folder / "tool"
    path.write_text(f"{start}\n{text}\n")
    path.chmod(0o755)
    return path


def named(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    """Names a compiler."""
    monkeypatch.setenv("ATTNDSL_CXX", " ".join(str(word) for word in words))


def test_commands_of_several_words(
    compiler: tuple[str, ...],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Options behind the compiler, a launcher before it, a path with a space; each has libraries of
    its own."""
    (real,) = compiler
    folder = tmp_path / "my tools"
    folder.mkdir()
    launcher = script(tmp_path, 'exec "$@"')
    spaced = script(folder, f'exec {real} "$@"')
    commands = {
        f"{real} -O2": (real, "-O2"),
        f"{launcher} {real}": (str(launcher), real),
        str(spaced): (str(spaced),),
        f"'{spaced}' -O2": (str(spaced), "-O2"),
    }
    libraries = set()
    for text, words in commands.items():
        named(monkeypatch, text)
        assert build_library.attn_compiler() == words
        libraries.add(build_library.attn_build(SOURCE, tmp_path, ()))
    assert len(libraries) == len(commands)
    for text in ("/no/such/compiler", "/no/such -O2", "'g++", " "):
        named(monkeypatch, text)
        assert build_library.attn_compiler() == ()


def fails_beyond_the_trial(folder: Path, real: str) -> Path:
    """A compiler that builds the trial, and no source for float32."""
    refusal = "echo note >&2; echo module.cpp:7: error: out of luck >&2; exit 1"
    return script(folder, f'if ! grep -q BFloat16 module.cpp; then {refusal}; fi; exec {real} "$@"')


def test_auto_goes_on_with_torch_where_a_build_fails(
    compiler: tuple[str, ...],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one warning, which quotes the error; and "cpp" raises."""
    named(monkeypatch, fails_beyond_the_trial(tmp_path, *compiler))
    monkeypatch.setenv("ATTNDSL_CACHE", str(tmp_path))
    cache.forget()
    engines.warn_once.cache_clear()
    text = "attention a():\n    mask k <= q\n"
    given = tuple(tensor.requires_grad_() for tensor in inputs())
    attention = attndsl.compile(text=text)
    with pytest.warns(RuntimeWarning, match="PyTorch runs.*module.cpp:7: error: out of luck$") as w:
        for _ in range(2):
            found = attention(*given)
            gradients = torch.autograd.grad(found.square().sum(), given)
    assert len(w) == 1
    wanted = attention.reference(*given)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients, torch.autograd.grad(wanted.square().sum(), given))
    with pytest.raises(RuntimeError, match="out of luck"):
        attndsl.compile(text=text, backend="cpp")(*given)
    cache.forget()


@pytest.mark.usefixtures("compiler")
def test_a_cache_directory_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is built in a private one, and that is said."""
    real = tempfile.TemporaryDirectory

    def refuse(*given: Any, dir: Path, **named: Any) -> Any:
        if dir == tmp_path:
            raise OSError(30, "Read-only file system")
        return real(*given, dir=dir, **named)

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    monkeypatch.setenv("ATTNDSL_CACHE", str(tmp_path))
    cache.forget()
    cache.warn_once.cache_clear()
    engines._failure_of_trial.cache_clear()
    with pytest.warns(RuntimeWarning, match="cannot be written .Read-only") as w:
        assert has_compiler()
        given = inputs()
        found = attndsl.compile(text=CAUSAL, backend="cpp")(*given)
    assert len(w) == 2  # of the trial, and of the module, which lies in the directory
    torch.testing.assert_close(found, attndsl.compile(text=CAUSAL).reference(*given))
    assert not list(tmp_path.glob("*.so"))
    cache.forget()


@pytest.mark.usefixtures("compiler")
def test_libraries_are_kept_and_checked(tmp_path: Path) -> None:
    library = build_library.attn_build(SOURCE, tmp_path, ())
    made = library.stat().st_mtime_ns
    assert build_library.attn_build(SOURCE, tmp_path, ()) == library
    assert library.stat().st_mtime_ns == made
    assert build_library.attn_build(SOURCE + "// other\n", tmp_path, ()) != library
    assert build_library.attn_build(SOURCE, tmp_path, ("-fwrapv",)) != library
    library.write_bytes(library.read_bytes()[:-1])
    assert build_library.attn_build(SOURCE, tmp_path, ()) == library
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
