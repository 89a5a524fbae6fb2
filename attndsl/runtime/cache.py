"""Generated modules: made once, kept on disk by content hash and in the process by request.

A file ends with a line that holds the SHA-256 of everything before it. A file that does not match
its line is made again, never run. What is run is the bytes that were checked, not what the path
holds a moment later.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.metadata
import linecache
import os
import shutil
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from attndsl.backend import load, load_text
from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import Request

GENERATORS = "attndsl.codegen"
SEAL = "# attndsl sha256 "

LOADED: dict[tuple[str, Request], types.ModuleType] = {}
FIXED: dict[str, types.ModuleType] = {}
LOCK = threading.RLock()


class Counters:
    """How often this process has generated source text, and loaded a module."""

    generated = 0
    loaded = 0


COUNTERS = Counters()


def module_of(handle: str, program: Program, request: Request) -> types.ModuleType:
    """The generated module of a program (whose text form is `handle`) for a request."""
    module = LOADED.get((handle, request))
    if module is None:
        with LOCK:
            module = LOADED.get((handle, request))
            if module is None:
                module = obtain(handle, program, request)
                LOADED[handle, request] = module
    return module


def obtain(handle: str, program: Program, request: Request) -> types.ModuleType:
    """Load the module from disk, or generate it."""
    key = key_of(handle, program, request)
    path = directory() / f"{program.name}_{request.backend}_{key[:24]}.py"
    text = read_sealed(path)
    if text is None:
        text = seal(generate(program, request))
        path = write_atomically(path, text)
    return load_module(path, text)


def generate(program: Program, request: Request) -> str:
    """The text of the module for a request."""
    from attndsl.plan.planner import plan

    COUNTERS.generated += 1
    return load(GENERATORS, request.backend).emit(plan(program, request))


def fixed_module(name: str) -> types.ModuleType:
    """The module attndsl.codegen.<name> gives the text of, the same for all programs."""
    module = FIXED.get(name)
    if module is None:
        with LOCK:
            module = FIXED.get(name)
            if module is None:
                data = seal(load_text(GENERATORS, name))
                key = hashlib.sha256(data).hexdigest()
                path = directory() / f"{name.replace('.', '_')}_{key[:24]}.py"
                if read_sealed(path) != data:
                    path = write_atomically(path, data)
                module = FIXED[name] = load_module(path, data)
    return module


def key_of(handle: str, program: Program, request: Request) -> str:
    """A hash of everything that the generated text, or its meaning, depends on."""
    parts = [
        handle,
        program.text,  # comments of the generated text quote it
        program.doc,
        repr(request),
        compiler_hash(request.backend),
        torch.__version__,
        triton_version() if request.backend == "triton" else "",
    ]
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(encoded)}:".encode() + encoded)
    return digest.hexdigest()


@functools.cache
def compiler_hash(backend: str) -> str:
    """A hash of the compiler's and the generator's own sources: an edit invalidates every file."""
    generator = load(GENERATORS, backend)
    codegen = Path(str(getattr(generator, "__file__", ""))).parent.parent
    compiler = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for root in (compiler, codegen):
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def triton_version() -> str:
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm"):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def seal(text: str) -> bytes:
    """The text as bytes, with the line that vouches for it."""
    body = text.encode()
    if not body.endswith(b"\n"):
        body += b"\n"
    return body + f"{SEAL}{hashlib.sha256(body).hexdigest()}\n".encode()


def read_sealed(path: Path) -> bytes | None:
    """The bytes of a file, or None where there is none or it is not what was written."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    length = len(SEAL) + 64 + 1
    body, line = data[:-length], data[-length:]
    expected = f"{SEAL}{hashlib.sha256(body).hexdigest()}\n".encode()
    return data if line == expected else None


def write_atomically(path: Path, data: bytes) -> Path:
    """Write a file so that no reader ever sees a part of it; returns where it was written.

    Several processes may write the same file at once: each replaces it with the same bytes. Where
    the directory cannot be written, the file goes to a private temporary directory.
    """
    try:
        replace_file(path, data)
        return path
    except OSError as error:
        private = private_directory(f"{path.parent} cannot be written ({error.strerror})")
        replace_file(private / path.name, data)
        return private / path.name


def replace_file(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load_module(path: Path, data: bytes) -> types.ModuleType:
    """Run checked bytes as the module of a path.

    The module's lines are put into `linecache`, from where Triton reads its kernels, so that
    nothing is read from the disk a second time, and a file removed later does no harm.
    """
    text = data.decode()
    name = f"attndsl_generated.{path.stem}"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    linecache.cache[str(path)] = (len(data), None, text.splitlines(keepends=True), str(path))
    sys.modules[name] = module
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    COUNTERS.loaded += 1
    return module


def default_directory() -> Path:
    """The platform's place for what can be made again."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "attndsl"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "attndsl" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attndsl"


def directory() -> Path:
    """The directory of generated files, made with mode 0700 where it is missing.

    ATTNDSL_CACHE is taken as it is (a team may share one); the default must belong to this user
    and be closed to others. Where there is none, a private temporary directory serves.
    """
    chosen = os.environ.get("ATTNDSL_CACHE")
    try:
        place = Path(chosen).absolute() if chosen else default_directory()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = place.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        return private_directory(f"no cache directory ({error})")
    if not chosen and hasattr(os, "getuid"):
        if status.st_uid != os.getuid():
            return private_directory(f"{place} belongs to another user")
        if status.st_mode & 0o002:
            return private_directory(f"{place} can be written by anybody")
    return place


@functools.cache
def temporary_directory(process: int) -> Path:
    """A directory for this process alone, removed at its end."""
    place = Path(tempfile.mkdtemp(prefix="attndsl-"))  # made with mode 0700

    def remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(place, ignore_errors=True)

    atexit.register(remove)
    return place


@functools.cache
def warn_once(reason: str) -> None:
    warnings.warn(
        f"attndsl: {reason}; generated kernels are kept for this process only. "
        "Set ATTNDSL_CACHE to a directory of your own.",
        RuntimeWarning,
        stacklevel=2,
    )


def private_directory(reason: str) -> Path:
    warn_once(reason)
    return temporary_directory(os.getpid())


def release(handle: str, request: Request) -> None:
    """Drop one module of this process; its file stays."""
    with LOCK:
        module = LOADED.pop((handle, request), None)
        if module is not None:
            sys.modules.pop(module.__name__, None)
            linecache.cache.pop(str(module.__file__), None)


# What else is read from the directory and kept in the process.
ON_FORGET: list[Callable[[], None]] = []


def forget() -> None:
    """Drop what this process has read, so that the next call reads it from disk again."""
    with LOCK:
        LOADED.clear()
        FIXED.clear()
        for drop in ON_FORGET:
            drop()
