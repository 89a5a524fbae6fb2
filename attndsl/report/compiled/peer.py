"""FlexAttention's Triton templates for a causal mask, rendered as Inductor does, without a GPU.

The templates are those of the installed torch. Sizes and strides are constants, as in a graph of
static shapes: the best case of the peer, which compiles again for another length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from attndsl.backend import KernelSpec
from attndsl.diagnostics import ArgumentError
from attndsl.report.compiled.compile import Job

# The call for which the templates are rendered; a length that is a multiple of all blocks.
BATCH, HEADS, LENGTH = 4, 16, 8192
BLOCK = 128  # rows and columns of a block of the block mask: the default


@dataclass(frozen=True)
class Tiles:
    """Rows and columns of a tile in forward and dq; in dk/dv they are the other way round."""

    rows: int
    columns: int
    num_stages: int
    num_warps: int


# What Inductor takes on sm_90 in 16 bits when it does not measure (torch 2.11 to 2.13:
# `h100_default_flex_config` and `get_flex_attn_bwd_configs`).
FORWARD = {64: Tiles(128, 128, 3, 4), 128: Tiles(128, 64, 3, 8)}
BACKWARD = {64: Tiles(128, 64, 3, 8), 128: Tiles(128, 64, 3, 8)}

# Arguments of the templates: dtype, and shape in letters (bf16: [B, H, N, D]).
SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "LSE": ("fp32", (BATCH, HEADS, LENGTH)),
    "MAX": ("fp32", (BATCH, HEADS, LENGTH)),
    "DELTA": ("fp32", (BATCH, HEADS, LENGTH)),
    **{
        f"{full}{axis}_NUM_BLKS": ("i32", (1, 1, LENGTH // BLOCK))
        for full in ("", "FULL_")
        for axis in ("Q", "KV")
    },
    **{
        f"{full}{axis}_IDX": ("i32", (1, 1, LENGTH // BLOCK, LENGTH // BLOCK))
        for full in ("", "FULL_")
        for axis in ("Q", "KV")
    },
}
# What becomes of the user's functions, by the name that a template asks for.
MODIFICATIONS = {
    "post_mod_scores": "{name} = ({score})",
    "mask_mod_output": "{name} = ({m}) >= ({n})",
    "grad_scores": "{name} = ({grad_score_mod})",
    None: "",  # gradients of captured tensors: there are none
}
IMPORTS = """\
import triton
import triton.language as tl
from torch._inductor.runtime.triton_helpers import math as tl_math
"""


def flex_forward(head_dim: int, tiles: Tiles | None = None) -> Job:
    """The forward kernel for sm_90 in bf16; `tiles` other than the default of 64 and 128."""
    tiles = tiles or FORWARD[head_dim]
    options = {"BLOCK_M": tiles.rows, "BLOCK_N": tiles.columns}
    return _job("forward", head_dim, tiles, options)


def flex_backward(head_dim: int, tiles: Tiles | None = None) -> Job:
    """The backward kernel, one for dq and for dk and dv, as `flex_forward`."""
    tiles = tiles or BACKWARD[head_dim]
    options = {
        "BLOCK_M1": tiles.columns,
        "BLOCK_N1": tiles.rows,
        "BLOCK_M2": tiles.rows,
        "BLOCK_N2": tiles.columns,
    }
    return _job("backward", head_dim, tiles, options)


def _job(name: str, head_dim: int, tiles: Tiles, blocks: dict[str, int]) -> Job:
    options: dict[str, object] = {
        "FLOAT32_PRECISION": "'ieee'",
        "PRESCALE_QK": False,
        "ROWS_GUARANTEED_SAFE": False,
        "BLOCKS_ARE_CONTIGUOUS": False,
        "WRITE_DQ": True,
        "OUTPUT_LOGSUMEXP": True,
        "OUTPUT_MAX": False,
        "IS_DIVISIBLE": True,
        "SM_SCALE": head_dim**-0.5,
        "GQA_SHARED_HEADS": 1,
        "HAS_FULL_BLOCKS": True,
        "QK_HEAD_DIM": head_dim,
        "QK_HEAD_DIM_ROUNDED": head_dim,
        "V_HEAD_DIM": head_dim,
        "V_HEAD_DIM_ROUNDED": head_dim,
        "SAFE_HEAD_DIM": True,
        "USE_TMA": False,
        "SPARSE_Q_BLOCK_SIZE": BLOCK,
        "SPARSE_KV_BLOCK_SIZE": BLOCK,
        "INDEX_DTYPE": "tl.int32",
        **blocks,
    }
    writer = _Writer(name, head_dim, options)
    source = writer.render()
    signature = {argument: f"*{dtype}" for argument, dtype in writer.arguments.items()}
    spec = KernelSpec(
        name=name,
        signature=signature,
        constants={},
        attributes=dict.fromkeys(signature, 16),  # torch allocates so
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        may_fuse=True,
    )
    return Job(source, (spec,), "sm_90")


class _Writer:
    """What a template calls while it is rendered. `arguments` are those of the kernel, in order."""

    def __init__(self, name: str, head_dim: int, options: dict[str, object]) -> None:
        self.name = name
        self.shape = (BATCH, HEADS, LENGTH, head_dim)
        self.options = options
        self.arguments: dict[str, str] = {}
        self.renames: list[str] = []

    def render(self) -> str:
        template = _template(self.name)
        functions: dict[str, Callable[..., str]] = {
            "def_kernel": self.def_kernel,
            "gen_argdefs": lambda: "<ARGUMENTS>",
            "gen_defines": lambda: "\n".join(self._defines()),
            "size": lambda name, index: str(self._shape(name)[index]),
            "stride": self.stride,
            "modification": self.modification,
            "store_output": self.store_output,
        }
        text: str = template.render(**functions, **self.options)
        # The output is known only when all else is written.
        return IMPORTS + text.replace("<ARGUMENTS>", ", ".join(self.arguments))

    def _shape(self, name: str) -> tuple[int, ...]:
        return SHAPES[name][1] if name in SHAPES else self.shape

    def _defines(self) -> list[str]:
        return [f"{name} : tl.constexpr = {value}" for name, value in self.options.items()]

    def def_kernel(self, *names: str) -> str:
        for name in names:
            self.arguments[f"arg_{name}"] = SHAPES[name][0] if name in SHAPES else "bf16"
        body = [*self._defines(), *(f"{name} = arg_{name}" for name in names)]
        lines = "".join(f"\n    {line}" for line in body)
        return f"@triton.jit\ndef {self.name}(<ARGUMENTS>):{lines}"

    def stride(self, name: str, index: int | None = None) -> str:
        strides: list[int] = []
        step = 1
        for extent in reversed(self._shape(name)):
            strides.insert(0, step)
            step *= extent
        return ", ".join(map(str, strides)) if index is None else str(strides[index])

    def modification(self, subgraph_number: int, output_name: str | None, **given: object) -> str:
        return MODIFICATIONS[output_name].format(name=output_name, **given)

    def store_output(self, indices: tuple[str, ...], value: str, mask: str, **_: object) -> str:
        self.arguments["out_ptr0"] = "bf16"
        strides = self.stride("OUT").split(", ")
        index = " + ".join(f"{i} * {s}" for i, s in zip(indices, strides, strict=True))
        return f"tl.store(out_ptr0 + tl.broadcast_to({index}, {value}.shape), {value}, {mask})"


def _template(name: str):  # type: ignore[no-untyped-def]  # of jinja, which has no types here
    try:
        from torch._inductor.kernel.flex import flex_attention as templates
    except ImportError as error:
        raise ArgumentError(f"this torch has no templates of FlexAttention: {error}") from error
    found = {
        "forward": templates.flex_attention_template,
        "backward": templates.flex_attention_backward_template,
    }
    if found[name].template is None:
        raise ArgumentError("FlexAttention's templates need jinja2: install it")
    return found[name].template
