"""Generated files: found again, never trusted when damaged, safe for many processes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import pytest
import torch

from attndsl.plan.kernel_plan import Request
from attndsl.runtime import cache
from tests.runtime.programs import attention, biased, inputs, windowed

ROOT = Path(__file__).resolve().parents[2]


def only_file(place: Path) -> Path:
    (path,) = place.iterdir()
    return path


def call_counting() -> tuple[torch.Tensor, int]:
    """The result of a call in a process that has nothing loaded, and how often it generated."""
    cache.forget()
    before = cache.COUNTERS.generated
    with torch.no_grad():
        out = windowed()(*inputs())
    assert isinstance(out, torch.Tensor)
    return out, cache.COUNTERS.generated - before


def test_a_file_is_found_again(own_cache: Path) -> None:
    first, generated = call_counting()
    assert generated == 1
    path = only_file(own_cache)
    assert path.name.startswith("hand_torch_")
    if os.name == "posix":
        assert stat.S_IMODE(own_cache.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second, generated = call_counting()
    assert generated == 0
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data.replace(b"import torch", b"import hashlib as torch", 1),
        lambda data: b"raise SystemExit('not mine')\n" + data,
        lambda data: data + b"raise SystemExit('not mine')\n",
        lambda data: bytes(len(data)),
        lambda data: os.urandom(4096),
    ],
)
def test_damage_is_made_good(own_cache: Path, damage: object) -> None:
    assert callable(damage)
    wanted, _ = call_counting()
    path = only_file(own_cache)
    good = path.read_bytes()
    path.write_bytes(damage(good))
    found, generated = call_counting()
    assert generated == 1 and path.read_bytes() == good
    torch.testing.assert_close(found, wanted)


def test_a_file_removed_while_it_is_in_use(own_cache: Path) -> None:
    wanted, _ = call_counting()
    only_file(own_cache).unlink()
    torch.testing.assert_close(windowed()(*inputs()).detach(), wanted)


def test_key_tells_requests_and_programs_apart() -> None:
    programs = [attention().program, windowed().program, biased().program]
    requests = [Request(), Request(dtype="float64"), Request(head_dim=32), Request(grads=("a",))]
    keys = {cache.key_of(str(p), p, r) for p in programs for r in requests}
    assert len(keys) == 12


def test_unwritable_directory_warns_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    monkeypatch.setenv("ATTNDSL_CACHE", str(blocked))
    cache.warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="kept for this process only"):
        call_counting()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call_counting()
    assert blocked.read_text() == "no directory"


def test_write_failure_goes_to_a_private_directory(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    real = cache.replace_file

    def full(path: Path, data: bytes) -> None:
        if path.parent == own_cache:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(cache, "replace_file", full)
    cache.warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="No space left"):
        call_counting()
    assert not list(own_cache.iterdir())


def test_failed_write_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError):
        cache.replace_file(tmp_path / "x.py", b"1")
    assert not list(tmp_path.iterdir())


def test_threads_generate_once() -> None:
    before = cache.COUNTERS.generated
    attn, x = windowed(), [t.detach() for t in inputs()]
    threads = [threading.Thread(target=attn, args=x) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.COUNTERS.generated - before == 1


WRITER = """
    import sys
    from pathlib import Path
    from attndsl.runtime.cache import read_sealed, seal, write_atomically
    path = Path(sys.argv[1])
    data = seal("# filler\\n" * 20000)
    for _ in range(20):
        assert write_atomically(path, data) == path
        assert read_sealed(path) == data, "a reader saw a part of a file"
"""


def test_processes_write_the_same_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "same.py"
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["same.py"]


def test_default_directory_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ATTNDSL_CACHE")
    monkeypatch.setattr(cache, "default_directory", lambda: tmp_path / "mine")
    assert cache.directory() == tmp_path / "mine"
    (tmp_path / "mine").chmod(0o777)
    cache.warn_once.cache_clear()
    if os.name == "posix":
        with pytest.warns(RuntimeWarning, match="can be written by anybody"):
            assert cache.directory() != tmp_path / "mine"
