"""Functions that a generated C++ module carries along: they find a compiler, build, and call.

Their source is copied verbatim. They use nothing but Python, torch, what the module imports, and
`FLAGS`, which a module sets. A built library is kept beside the module's own file, under a name
that holds the hash of its source, its compiler, its flags and the CPU.

What the compiler, or the machine's other means, cannot do is a RuntimeError; an OSError says that a
folder cannot be written.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable

import torch

FLAGS: tuple[str, ...] = ()  # a generated module sets its own
BUILDING = threading.Lock()


def attn_compiler() -> tuple[str, ...]:
    """The words of the C++ compiler's command, such as /usr/bin/ccache g++: ATTNDSL_CXX, else CXX,
    else the first found of c++, g++ and clang++; none where there is none, or ATTNDSL_CXX is
    empty."""
    chosen = os.environ.get("ATTNDSL_CXX", os.environ.get("CXX"))
    if os.environ.get("ATTNDSL_CXX") == "":
        return ()
    for name in [chosen] if chosen else ["c++", "g++", "clang++"]:
        if found := shutil.which(name):  # a path may have spaces
            return (os.path.abspath(found),)
    try:
        first, *rest = shlex.split(chosen or "")
    except ValueError:  # no words, or a quote that does not end
        return ()
    found = shutil.which(first)
    return (os.path.abspath(found), *rest) if found else ()


def attn_why_none() -> str:
    """Why there is no compiler."""
    for name in ("ATTNDSL_CXX", "CXX"):
        if name in os.environ:
            return f"{name} is {os.environ[name]!r}, which names no program"
    return "there is no c++, g++ or clang++"


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
def attn_version(compiler: tuple[str, ...]) -> str:
    """What a compiler says of itself, and when the programs of its command were changed."""
    programs = [found for word in compiler if (found := shutil.which(word))]
    changed = [os.stat(program).st_mtime_ns for program in programs]
    return f"{compiler} {changed} {attn_call([*compiler, '--version']).stdout}"


def attn_call(command: list[str], folder: str = ".") -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder to its end. RuntimeError where it cannot be started."""
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(f"the C++ compiler {command[0]} cannot be started: {error}") from error


def attn_target_flags() -> tuple[str, ...]:
    """Flags that choose this CPU's instructions."""
    if platform.machine() in ("x86_64", "AMD64"):
        return ("-march=native", "-mprefer-vector-width=512")
    return ("-mcpu=native",)


def attn_build(source: str, folder: pathlib.Path, flags: tuple[str, ...]) -> pathlib.Path:
    """The shared library of a source, built where it is not there yet. RuntimeError where there is
    no compiler, or it fails; OSError where the folder cannot be written."""
    compiler = attn_compiler()
    if not compiler:
        raise RuntimeError(f"no C++ compiler: {attn_why_none()}")
    flags = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fopenmp", *attn_target_flags(), *flags)
    parts = (source, " ".join(flags), attn_version(compiler), attn_cpu())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    library, seal = folder / f"attn_{key[:32]}.so", folder / f"attn_{key[:32]}.sha256"
    if not attn_is_sealed(library, seal):
        attn_compile([*compiler, *flags], source, library, seal)
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
        command = [*command, text.name, "-o", built.name]
        done = attn_call(command, place)
        if done.returncode:
            said = (done.stderr or done.stdout).splitlines()[:40]
            first = next((line for line in said if "error" in line.lower()), "".join(said[:1]))
            first = first.strip() or f"{command[0]} ended with {done.returncode} and said nothing"
            raise RuntimeError(
                f"the C++ compiler failed on a generated source: {first}\n"
                f"the command was\n    {shlex.join(command)}\n" + "\n".join(said)
            )
        if not built.is_file():
            raise RuntimeError(f"the C++ compiler {command[0]} wrote no library, and said it had")
        digest = pathlib.Path(place, "seal")
        digest.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
        os.replace(built, library)
        os.replace(digest, seal)


@functools.cache
def attn_private_folder(process: int) -> pathlib.Path:
    """A folder for this process alone, removed at its end."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="attn-"))

    def remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def attn_library(source: str) -> pathlib.Path:
    """The library of a source: beside the module where that is a file in a folder that can be
    written, else in a folder of this process."""
    if "__file__" in globals():
        beside = pathlib.Path(__file__).parent
        try:
            return attn_build(source, beside, FLAGS)
        except OSError as error:
            warnings.warn(
                f"attndsl: {beside} cannot be written ({error.strerror}); what is built of C++ is "
                "kept for this process only",
                RuntimeWarning,
                stacklevel=2,
            )
    return attn_build(source, attn_private_folder(os.getpid()), FLAGS)


@functools.cache
def attn_function(source: str, name: str) -> Callable[..., int]:
    """A function of a source, built and loaded. RuntimeError where that fails."""
    with BUILDING:
        library = attn_library(source)
        try:
            loaded = ctypes.CDLL(str(library))
        except OSError as error:
            raise RuntimeError(f"a library that was built cannot be loaded: {error}") from error
    function: Callable[..., int] = getattr(loaded, name)
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
