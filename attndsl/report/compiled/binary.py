"""Reads compiled kernels: registers, spills and instructions, with the tools of Triton's wheel."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from attndsl.diagnostics import ArgumentError
from attndsl.report.compiled.loops import TileLoops, read_amdgcn, read_sass, tile_loops

# Families of instructions, as they are spelled in SASS and in PTX.
SASS: dict[str, str] = {
    "wgmma": r"\b[HQIB]GMMA\b",
    "mma": r"\b[HQIDO]MMA\b",
    "tcgen05": r"\bUTC[A-Z]*MMA\b",
    "tma": r"\bUTMA(?:LDG|STG|REDG)\b",
    "cp_async": r"\bLDGSTS\b",
}
PTX: dict[str, str] = {
    "wgmma": r"\bwgmma\.mma_async\b",
    "mma": r"(?<!w)\bmma\.sync\b",
    "tcgen05": r"\btcgen05\.mma\b",
    "tma": r"\bcp\.(?:reduce\.)?async\.bulk\.tensor\b",
    "cp_async": r"\bcp\.async\.c[ag]\b",
}
AMDGCN: dict[str, str] = {
    "mfma": r"^\s*v_s?mfmac?_\w+",
    "cp_async": r"^\s*(?:buffer|global)_load_lds_\w+|^\s*buffer_load_\w+ .*\blds\b",
}
FAMILIES = ("wgmma", "mma", "tcgen05", "mfma", "tma", "cp_async")


def read_cubin(cubin: bytes, ptx: str) -> tuple[dict[str, int], TileLoops]:
    """Registers, spilled bytes and instruction counts of an NVIDIA kernel, and its tile loops.

    Where the wheel has no disassembler, instructions are counted in the PTX, and no loop is found.
    """
    with tempfile.TemporaryDirectory(prefix="attndsl-") as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _run("cuobjdump", "-res-usage", str(path))
        sass = _run("nvdisasm", "-c", str(path)) if _has("nvdisasm") else ""
    used = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if used is None:
        raise ArgumentError(f"cuobjdump printed no resource usage:\n{usage}")
    registers, stack = (int(figure) for figure in used.groups())
    counted = _count(sass, SASS) if sass else _count(ptx, PTX)
    figures = {
        "registers": registers,
        # Triton puts nothing else on the stack; without one nothing can have been spilled.
        "spill_bytes": max(_stored_bytes(sass), stack) if stack else 0,
        **counted,
    }
    return figures, tile_loops(*read_sass(sass)) if sass else TileLoops()


def read_assembly(text: str) -> tuple[dict[str, int], TileLoops]:
    """The same of an AMD kernel, from its assembly's metadata: vector registers, bytes per lane."""

    def figure(name: str) -> int:
        found = re.search(rf"^\s*\.{name}:\s*(\d+)", text, re.MULTILINE)
        return int(found[1]) if found else 0

    figures = {
        "registers": figure("vgpr_count"),
        "spill_bytes": max(4 * figure("vgpr_spill_count"), figure("private_segment_fixed_size")),
        **_count(text, AMDGCN),
    }
    return figures, tile_loops(*read_amdgcn(text))


def disassemble(cubin: bytes) -> str:
    """The SASS of a cubin, with the source lines that Triton recorded.

    Raises ArgumentError where Triton's wheel has no `nvdisasm`.
    """
    with tempfile.TemporaryDirectory(prefix="attndsl-") as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return _run("nvdisasm", "-c", str(path))


def _count(text: str, patterns: dict[str, str]) -> dict[str, int]:
    counted = dict.fromkeys(FAMILIES, 0)
    for family, pattern in patterns.items():
        counted[family] = len(re.findall(pattern, text, re.MULTILINE))
    return counted


def _stored_bytes(sass: str) -> int:
    """Bytes per thread that SASS stores to local memory.

    >>> _stored_bytes("STL [R1], R2 ;\\nSTL.128 [R1+0x10], R4 ;")
    20
    """
    width_of = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
    modifiers = (found.split(".") for found in re.findall(r"\bSTL((?:\.\w+)*)", sass))
    return sum(next((width_of[m] for m in words if m in width_of), 4) for words in modifiers)


def _has(tool: str) -> bool:
    return _path(tool) is not None


def _path(tool: str) -> str | None:
    from triton import knobs

    try:
        found: str = getattr(knobs.nvidia, tool).path
    except (AttributeError, RuntimeError):  # this release of Triton does not know or find it
        return None
    return found


def _run(tool: str, *arguments: str) -> str:
    path = _path(tool)
    if path is None:
        raise ArgumentError(
            f"Triton's wheel brings no `{tool}` and none is installed: set "
            f"TRITON_{tool.upper()}_PATH to the one of a CUDA toolkit"
        )
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ArgumentError(f"`{tool}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
