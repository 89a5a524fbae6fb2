"""Functions that a generated C++ module carries along: they find a compiler, build, and call.

Their source is copied verbatim. They use nothing but Python, torch, what the module imports, and
`FLAGS`, which a module sets. A built library is kept beside the module's own file, under a name
that holds the hash of its source, its compiler, its flags and the CPU.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable

import torch

FLAGS: tuple[str, ...] = ()  # a generated module sets its own
BUILDING = threading.Lock()


def attn_compiler() -> str | None:
    """The C++ compiler: ATTNDSL_CXX, else CXX, else the first found of c++, g++ and clang++; None
    where there is none, or ATTNDSL_CXX is empty."""
    chosen = os.environ.get("ATTNDSL_CXX", os.environ.get("CXX"))
    if os.environ.get("ATTNDSL_CXX") == "":
        return None
    names = [chosen] if chosen else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


@functools.cache
def attn_cpu() -> str:
    """What tells CPUs with other instructions apart."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    named = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")
    found = {line for line in lines if line.split("\t")[0].split(":")[0].strip() in named}
    return f"{platform.machine()} " + " ".join(sorted(found))


@functools.cache
def attn_version(compiler: str) -> str:
    """The first lines that a compiler says of itself, and when it was changed."""
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return f"{compiler} {os.stat(compiler).st_mtime_ns} {said.stdout}"


def attn_target_flags() -> tuple[str, ...]:
    """Flags that choose this CPU's instructions."""
    if platform.machine() in ("x86_64", "AMD64"):
        return ("-march=native", "-mprefer-vector-width=512")
    return ("-mcpu=native",)


def attn_build(source: str, folder: pathlib.Path) -> pathlib.Path:
    """The shared library of a source, built where it is not there yet. RuntimeError where there is
    no compiler, or it fails."""
    compiler = attn_compiler()
    if compiler is None:
        raise RuntimeError(
            "the C++ engine needs a C++ compiler and found none: install g++ or clang++, or name "
            'one in ATTNDSL_CXX; or compile the attention with backend="torch"'
        )
    flags = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fopenmp", *attn_target_flags(), *FLAGS)
    parts = (source, " ".join(flags), attn_version(compiler), attn_cpu())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    library, seal = folder / f"attn_{key[:32]}.so", folder / f"attn_{key[:32]}.sha256"
    if not attn_is_sealed(library, seal):
        attn_compile([compiler, *flags], source, library, seal)
    return library


def attn_is_sealed(library: pathlib.Path, seal: pathlib.Path) -> bool:
    """Whether a library is what was built: its seal holds its hash."""
    try:
        return hashlib.sha256(library.read_bytes()).hexdigest() == seal.read_text()
    except OSError:
        return False


def attn_compile(
    command: list[str], source: str, library: pathlib.Path, seal: pathlib.Path
) -> None:
    """Builds a library; nobody sees a part of it."""
    with tempfile.TemporaryDirectory(prefix="attn-", dir=library.parent) as place:
        text, built = pathlib.Path(place, "module.cpp"), pathlib.Path(place, "module.so")
        text.write_text(source)
        command = [*command, str(text), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = "\n".join((done.stderr or done.stdout).splitlines()[:40])
            raise RuntimeError(
                f"the C++ compiler failed on a generated source; the command was\n"
                f"    {' '.join(command)}\n{said}"
            )
        digest = pathlib.Path(place, "seal")
        digest.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
        os.replace(built, library)
        os.replace(digest, seal)


@functools.cache
def attn_private_folder(process: int) -> pathlib.Path:
    """A folder for this process alone."""
    return pathlib.Path(tempfile.mkdtemp(prefix="attn-"))


def attn_folder() -> pathlib.Path:
    """Where libraries are kept: beside the module where it is a file in a folder that can be
    written, else in a folder of this process."""
    beside = pathlib.Path(str(globals().get("__file__", ""))).parent
    if "__file__" in globals() and os.access(beside, os.W_OK):
        return beside
    return attn_private_folder(os.getpid())


@functools.cache
def attn_function(source: str, name: str) -> Callable[..., int]:
    """A function of a source, loaded."""
    with BUILDING:
        library = ctypes.CDLL(str(attn_build(source, attn_folder())))
    function: Callable[..., int] = getattr(library, name)
    return function


def attn_run(source: str, name: str, ints: tuple[int, ...], floats: tuple[float, ...]) -> None:
    """Calls a function of a source."""
    function = attn_function(source, name)
    given = (ctypes.c_int64 * len(ints))(*ints), (ctypes.c_double * len(floats))(*floats)
    if function(*given):
        raise MemoryError("no memory for the C++ engine's threads")


def attn_step(tensor: torch.Tensor, axis: int) -> int:
    """The stride of an axis, 0 where its one entry stands for all."""
    return tensor.stride(axis) if tensor.shape[axis] > 1 else 0


def attn_unit_stride(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy, with neighbours along the last axis side by side."""
    if tensor.dim() == 0 or tensor.shape[-1] == 1 or tensor.stride(-1) == 1:
        return tensor
    return tensor.contiguous()
