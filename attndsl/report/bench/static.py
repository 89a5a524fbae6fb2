"""The inner loops of causal attention beside those of FlexAttention's templates: instructions, not
times, compiled for sm_90 without a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import attndsl
from attndsl.diagnostics import ArgumentError
from attndsl.plan.kernel_plan import Config
from attndsl.plan.planner import plan
from attndsl.report.bench.measurement import Report
from attndsl.report.compiled import peer
from attndsl.report.compiled.compile import CompiledKernel, compile_jobs, compile_kernels
from attndsl.report.compiled.loops import Loop, innermost, loops, read_sass, tile_loops
from attndsl.report.progress import progress
from attndsl.report.requests import request_for

TARGET, DTYPE = "sm_90", "bfloat16"
HEAD_DIMS = (64, 128)
GROUP = 128  # threads of a group of warps that issues one `wgmma`
CAUSAL = "attention causal():\n    mask k <= q\n"
# Matrix products of a tile in forward, dq, and dk with dv.
PRODUCTS = {"forward": 2, "backward_dq": 3, "backward_dkv": 4}
# Instructions by what they are for, by the first words of their names.
KINDS: dict[str, tuple[str, ...]] = {
    "ex2": ("MUFU.EX2",),
    "float": ("FFMA", "FMUL", "FADD", "FMNMX", "F2FP", "HFMA2", "HADD2", "HMUL2"),
    "select": ("FSEL", "SEL", "FSETP", "ISETP"),
    "shared": ("LDS", "STS", "LDSM", "STSM"),
    "copies": ("LDG", "LDGSTS", "UTMALDG", "LDGDEPBAR", "DEPBAR"),
    "waits": ("BAR", "SYNCS", "WARPGROUP", "WARPSYNC", "MEMBAR", "FENCE"),
    "wgmma": ("HGMMA",),
}
TITLES = (
    "D",
    "kernel",
    "whose",
    "tile",
    "warps",
    "registers",
    "spilled",
    "shared",
    "loop",
    "per pair",
    *KINDS,
    "other",
)
NOTES = (
    "tile: rows x columns, and stages. spilled, shared: bytes. loop: instructions in the loop over",
    "full tiles. per pair: what a thread issues for each of its pairs of a query and a key. The",
    "columns after it are parts of `loop`; other: addresses, moves, counters.",
    "FlexAttention: the templates of this torch for static shapes, in Inductor's default sizes.",
)


@dataclass(frozen=True)
class Counted:
    """A kernel's loop over full tiles; `products`: the matrix products that it does for a tile."""

    head_dim: int
    name: str
    whose: str
    tile: str
    kernel: CompiledKernel
    loop: Loop
    products: int

    @property
    def per_pair(self) -> float:
        """Instructions that a thread issues for each pair of the tile that is its own."""
        pairs = self.loop.multiply_adds / (self.products * self.head_dim)
        return self.loop.size * GROUP / pairs

    @property
    def row(self) -> tuple[object, ...]:
        kinds = [sum(kind_of(i.name) == kind for i in self.loop.instructions) for kind in KINDS]
        kernel = self.kernel
        return (
            self.head_dim,
            self.name,
            self.whose,
            self.tile,
            kernel.num_warps,
            kernel.registers,
            kernel.spill_bytes,
            kernel.shared_bytes,
            self.loop.size,
            self.per_pair,
            *kinds,
            self.loop.size - sum(kinds),
        )


def kind_of(name: str) -> str | None:
    """What an instruction is for.

    >>> kind_of("LDGSTS.E.BYPASS.LTC128B.128"), kind_of("LDG.E"), kind_of("IMAD.WIDE")
    ('copies', 'copies', None)
    """
    for kind, starts in KINDS.items():
        if any(name == start or name.startswith(f"{start}.") for start in starts):
            return kind
    return None


def static(head_dims: Sequence[int] = HEAD_DIMS) -> Report:
    """The suite. Raises ArgumentError where Triton or its disassembler is missing."""
    if importlib.util.find_spec("triton") is None:
        raise ArgumentError("static: it compiles with Triton, which is not installed")
    rows: list[tuple[object, ...]] = []
    with progress(2 * len(head_dims)) as line:
        for head_dim in head_dims:
            line.step(f"attndsl, D {head_dim}")
            found = [*own(head_dim)]
            line.step(f"FlexAttention, D {head_dim}")
            found += theirs(head_dim)
            order = list(PRODUCTS)
            rows += [c.row for c in sorted(found, key=lambda c: order.index(c.name))]
    about = f"inner loops of causal attention, {TARGET}, {DTYPE}, compiled without a GPU"
    return Report("static", about, TITLES, tuple(rows), NOTES)


def own(head_dim: int) -> Iterator[Counted]:
    """Our kernels, in the sizes of the table."""
    program = attndsl.compile(text=CAUSAL).program
    request = request_for(program, TARGET, DTYPE, head_dim, head_dim)
    made = plan(program, request)
    for kernel in compile_kernels(made):
        if kernel.name not in PRODUCTS:
            continue
        config = getattr(made, kernel.name)
        loop = tile_loops(*read_sass(kernel.text("sass"))).full
        assert loop is not None, kernel.name
        whose = "attndsl" if config.shape == "peeled" else f"attndsl, {config.shape}"
        tile = tile_text(config)
        yield Counted(head_dim, kernel.name, whose, tile, kernel, loop, PRODUCTS[kernel.name])


def tile_text(config: Config) -> str:
    return f"{config.block_m}x{config.block_n}, {config.num_stages}"


def theirs(head_dim: int) -> Iterator[Counted]:
    """FlexAttention's kernels. Its backward is one kernel with loops for dq and for dk and dv,
    which differ in the number of products."""
    jobs = [peer.flex_forward(head_dim), peer.flex_backward(head_dim)]
    (forward,), (backward,) = compile_jobs(jobs)
    for name, kernel, tiles in (
        ("forward", forward, peer.FORWARD[head_dim]),
        ("backward_dq", backward, peer.BACKWARD[head_dim]),
        ("backward_dkv", backward, peer.BACKWARD[head_dim]),
    ):
        found = loops(*read_sass(kernel.text("sass")))
        matrix = innermost([loop for loop in found if loop.matrix])
        work = sorted({loop.multiply_adds for loop in matrix})
        own_work = work[-1] if name == "backward_dkv" else work[0]
        full = min(
            (loop for loop in matrix if loop.multiply_adds == own_work), key=lambda loop: loop.size
        )
        rows, columns = tiles.rows, tiles.columns
        if name == "backward_dkv":
            rows, columns = columns, rows
        tile = f"{rows}x{columns}, {tiles.num_stages}"
        yield Counted(head_dim, name, "FlexAttention", tile, kernel, full, PRODUCTS[name])
