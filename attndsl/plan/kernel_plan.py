"""KernelPlan: everything that a code generator needs to know, decided before it writes a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attndsl.analysis.facts import Loss as Loss
from attndsl.analysis.facts import Segment as Segment
from attndsl.analysis.facts import TileFacts as TileFacts
from attndsl.analysis.summaries import Summary as Summary
from attndsl.ir.nodes import Node, topological
from attndsl.ir.program import Grid, Program, Routed
from attndsl.plan.shifts import Shift as Shift
from attndsl.plan.spans import Span as Span

Level = Literal["program", "row", "column", "pair"]
Strategy = Literal["ranges", "lists"]
Order = Literal["linear", "boxes"]
Shape = Literal["peeled", "described"]

# Tiles in a list of one tile of the other axis: memory grows with the length, not with its square.
# A tile with more of them visits all from the first to the last of them.
MOST_LISTED = 1024


@dataclass(frozen=True)
class Config:
    """Sizes of one kernel: rows and columns of a tile, warps, pipeline stages; and its shape.

    peeled     one loop over full tiles, one over those that test their pairs
    described  the same loops; keys and values (queries) come by descriptors. sm_90 only
    """

    block_m: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 2
    shape: Shape = "peeled"


@dataclass(frozen=True)
class Sizes:
    """The configurations of the kernels of a module.

    backward_fused  of the kernel that makes what backward_dq and backward_dkv make; None where
                    these two were measured to be faster
    """

    forward: Config
    backward_dq: Config
    backward_dkv: Config
    backward_fused: Config | None = None


@dataclass(frozen=True)
class Request:
    """What a call asks for besides the program: with it, it selects one generated module.

    A length, a parameter's value or a tensor's content is no part of it.

    backend        "triton", "torch" or "cpp"
    target         "cpu", "interpreter", "sm_90", "gfx942", ...
    dtype          "float16", "bfloat16", "float32" or "float64": query, key and value
    head_dim       D; value_dim  Dv
    grads          names of the tensors that receive gradients, in program order
    per_batch      those of "q_offset", "k_offset", "k_len" that are int[B] tensors
    tensor_dtypes  dtype names of the program's tensors, in program order
    order          "linear": a tile is a run of positions; "boxes": a box of the program's grid
    unit_stride    whether the last dimension of query, key and value is contiguous
    aligned        whether their other strides and addresses are multiples of 16 bytes
    deterministic  whether results are bitwise the same from run to run
    sizes          measured configurations; None: those of the table
    """

    backend: str = "torch"
    target: str = "cpu"
    dtype: str = "float32"
    head_dim: int = 64
    value_dim: int = 64
    grads: tuple[str, ...] = ()
    per_batch: tuple[str, ...] = ()
    tensor_dtypes: tuple[str, ...] = ()
    order: Order = "linear"
    unit_stride: bool = True
    aligned: bool = True
    deterministic: bool = True
    sizes: Sizes | None = None


@dataclass(frozen=True)
class Chunk:
    """A part of a head dimension: `start`, `width` (a power of two, at least 16) and how many of
    its `width` columns are really there (`valid` < `width` only in the last chunk)."""

    start: int
    width: int
    valid: int


@dataclass(frozen=True)
class Leaf:
    """An input of an expression that receives a gradient.

    node     a `lookup` of a float tensor, or a `dot`
    partial  derivative of the expression by it
    level    "row" if its index does not vary with k, "column" if not with q, else "pair"
    """

    node: Node
    partial: Node
    level: Level


def decides_by_float(node: Node) -> bool:
    """Whether a float becomes a truth value or an int here."""
    if node.op in ("lt", "le", "eq", "ne"):
        return node.args[0].kind == "float"
    return node.op in ("floor", "ceil", "round", "trunc")


@dataclass(frozen=True)
class Decode:
    """How calls of few queries run: tiles of few rows, whose keys are split among programs.

    tiles        configurations by how many rows a tile has, fewest first; all have as many keys.
                 A call has no more queries than the last of them has rows
    resident     programs that a multiprocessor should hold at once
    packs_heads  whether the heads of a group share tiles: rows are pairs of a query and a head
    knows_reach  whether the host can tell from shapes and scalars how many keys are reached
    windows      the tile of a program that goes over many sequences of one tile each; None where
                 programs have one
    """

    tiles: tuple[Config, ...]
    resident: int
    packs_heads: bool
    knows_reach: bool
    windows: Config | None = None

    @property
    def widest(self) -> Config:
        """The tile with the most rows."""
        return self.tiles[-1]


@dataclass(frozen=True)
class KernelPlan:
    """The decisions for one (program, request).

    value          per pair, in terms of the raw `score`: the finished logit where the weights are
                   softmax, else the weight itself
    logit          the finished logit; differs from `value` only where weights are not softmax. A
                   logit of -inf masks its pair
    may_be_masked_by_score   whether `logit` can be -inf for a finite raw score
    raw_partial    derivative of `value` by the raw score
    leaves         every dot of `value`, and the lookups of tensors in `request.grads`
    sink_partials, output_partials   the same for the sink and for `output`
    output_by_out  derivative of `output` by `out`; None where there is no `output`
    keys, queries  segments of keys for a tile of queries; of queries for a tile of keys
    key_span, query_span   where the mask is a run of keys for each row, or of queries for each
                   column: that run. None where it is not, or where tiles are no runs
    shift          where weights are softmax, `value` as the sum of what pairs compute and of what
                   is the same for all keys of a tile; None where there is nothing of the kind
    tile           tri-state facts of a rectangle, over its ends and the summaries
    summaries      what of the mask is computed per block of positions before the kernels run
    strategy       how a kernel finds its tiles: "ranges", from the segments alone; "lists", from
                   lists that are made of `tile` on the device, inside the segments
    losses         what of the mask costs the segments tightness, and why
    grid           the program's grid where tiles are boxes of it, else None: then the segments say
                   nothing, `tile` is over the ends of coordinates too (`analysis/grids.py`), and
                   the strategy is "lists"
    mask_varies    the indices of "b", "h", "q", "k" that the mask depends on
    routed         of a program with `routed`, the plan of the pairs that its lists add: the same
                   program with that mask and no lists, for the same request. The two masks are
                   disjoint: kernels compute each part, and merge the results
    gathered       of such a plan, what it was made of: its tiles hold the queries whose lists name
                   one block, and the keys of that block. The facts of a tile are over the ends of
                   both and have no summaries; a mask that holds for all that lists name is `true`
    packs_heads    of such a plan, or of one for few queries, whether the heads of a group share its
                   tiles: rows are pairs of a query and a head, so that "h" differs from row to row
    backward_fused   of the kernel that does the work of backward_dq and backward_dkv, where these
                   do not run; else None, and `separate_because` says why
    decode         how calls of few queries run; None where they run like all others
    """

    program: Program
    request: Request
    value: Node
    logit: Node
    may_be_masked_by_score: bool
    raw_partial: Node
    leaves: tuple[Leaf, ...]
    sink_partials: tuple[Leaf, ...]
    output_partials: tuple[Leaf, ...]
    output_by_out: Node | None
    keys: tuple[Segment, ...]
    queries: tuple[Segment, ...]
    tile: TileFacts
    summaries: tuple[Summary, ...]
    strategy: Strategy
    losses: tuple[Loss, ...]
    grid: Grid | None
    query_chunks: tuple[Chunk, ...]
    value_chunks: tuple[Chunk, ...]
    forward: Config
    backward_dq: Config
    backward_dkv: Config
    routed: KernelPlan | None = None
    gathered: Routed | None = None
    packs_heads: bool = False
    decode: Decode | None = None
    key_span: Span | None = None
    query_span: Span | None = None
    shift: Shift | None = None
    backward_fused: Config | None = None
    separate_because: str = ""

    @property
    def row_indices(self) -> frozenset[str]:
        """The indices that differ from row to row of a tile."""
        return frozenset(("q", "h") if self.packs_heads else ("q",))

    @property
    def mask_varies(self) -> frozenset[str]:
        return self.program.mask.varies

    @property
    def form(self) -> str:
        """ "softmax", "normalize" or "elementwise"."""
        return self.program.weights.form

    @property
    def configs(self) -> tuple[tuple[str, Config], ...]:
        """The kernels that loop over tiles of pairs, by name."""
        if self.backward_fused is not None:
            return ("forward", self.forward), ("backward_fused", self.backward_fused)
        kernels = ("backward_dq", self.backward_dq), ("backward_dkv", self.backward_dkv)
        return ("forward", self.forward), *kernels

    @property
    def may_fuse(self) -> bool:
        """Whether kernels may contract float products and sums (fused multiply-add).

        Not where a float decides the mask or an index: which product is fused differs from kernel
        to kernel, and forward and backward must decide alike.
        """
        values = (self.program.mask, self.value, self.program.weights.sink, self.program.output)
        roots = [root for root in values if root is not None]
        reads = [node for node in topological(*roots) if node.op in ("lookup", "dot")]
        indices = [index for node in reads for index in node.args]
        return not any(map(decides_by_float, topological(self.program.mask, *indices)))

    @property
    def accumulator(self) -> str:
        """The dtype of scores and sums."""
        return "float64" if self.request.dtype == "float64" else "float32"
