"""The arguments of a kernel: types, what a launch promises of them, what the host passes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attndsl.backend import KernelSpec
from attndsl.ir.nodes import Node, find
from attndsl.ir.program import SIZES
from attndsl.plan.kernel_plan import Config, KernelPlan

from ..lines import Lines
from ..scope import size_name

POINTER_TYPES = {
    "float16": "*fp16",
    "bfloat16": "*bf16",
    "float32": "*fp32",
    "float64": "*fp64",
    "bool": "*i1",
    "uint8": "*u8",
    "uint16": "*u16",
    "uint32": "*u32",
    "uint64": "*u64",
    "int8": "*i8",
    "int16": "*i16",
    "int32": "*i32",
    "int64": "*i64",
}
ANNOTATIONS = {"i32": "tl.int32", "i64": "tl.int64", "fp32": "tl.float32"}
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
INPUT_AXES = ("b", "h", "n", "d")
ALIGNMENT = 16  # bytes


def elements_per_alignment(plan: KernelPlan) -> int:
    """How many elements of query fill 16 bytes: the unit of strides where they are aligned."""
    return ALIGNMENT // BYTES[plan.request.dtype] if plan.request.aligned else 1


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel.

    type     Triton's name, such as "*bf16" or "i64"
    host     the text that the host function passes
    aligned  whether every launch passes an address that is a multiple of 16 bytes
    """

    name: str
    type: str
    host: str
    aligned: bool = False


class Arguments:
    """The arguments of one kernel in order, its two block sizes last."""

    def __init__(self, plan: KernelPlan, name: str, config: Config) -> None:
        self.plan, self.name, self.config = plan, name, config
        self.arguments: list[Argument] = []
        self._wide: dict[str, set[int]] = {}

    def add(self, name: str, type: str, host: str | None = None, aligned: bool = False) -> None:
        self.arguments.append(Argument(name, type, host or name, aligned))

    def add_input(self, name: str) -> None:
        """A pointer to query, key or value; its strides come with `add_strides`."""
        self.add(name, POINTER_TYPES[self.plan.request.dtype], aligned=self.plan.request.aligned)

    def add_own(self, name: str, dtype: str, host: str | None = None) -> None:
        """A pointer to a contiguous tensor that the host function made."""
        self.add(name, POINTER_TYPES[dtype], host, aligned=True)

    def add_strides(self, *names: str) -> None:
        """The strides of inputs, in units of 16 bytes where the request says they are aligned."""
        unit = elements_per_alignment(self.plan)
        divided = f" // {unit}" if unit > 1 else ""
        for name in names:
            for axis, letter in enumerate(INPUT_AXES):
                if letter == "d" and self.plan.request.unit_stride:
                    continue
                whole = "" if letter == "d" else divided
                self.add(f"{name}_stride_{letter}", "i64", f"{name}.stride({axis}){whole}")

    def add_call(self) -> None:
        """Sizes, scale, offsets and lengths of the call."""
        for name in ("H", "Hk", "Nq", "Nk"):
            self.add(name, "i32", f"size_{name}")
        self.add("scale", "fp32")
        for name in ("q_offset", "k_offset", "k_len"):
            if name in self.plan.request.per_batch:
                self.add(name, "*i64")
            elif name != "k_len":
                self.add(name, "i32")

    def add_leaves(self, roots: Iterable[Node]) -> None:
        """Everything of the program that the roots name: sizes, scalars, tensors."""
        roots = tuple(roots)
        program, request = self.plan.program, self.plan.request
        names: dict[str, set[str]] = {"size": set(), "scalar": set(), "tensor": set()}
        for root in roots:
            for node in find(root, "size", "scalar", "lookup", "dot"):
                kind = node.op if node.op in names else "tensor"
                names[kind].add(node.name)
        if "B" in names["size"]:
            self.add("B", "i32", "size_B")
        for bound in program.bound_dims:
            if bound in names["size"]:
                self.add(size_name(bound), "i32")
        for scalar in program.scalars:
            if scalar.name in names["scalar"]:
                name = f"p_{scalar.name}"
                type = "fp32" if scalar.kind == "float" else "i32"
                self.add(name, type, f"int({name})" if scalar.kind == "bool" else name)
        for tensor, dtype in zip(program.tensors, request.tensor_dtypes, strict=True):
            if tensor.name in names["tensor"]:
                self.add(f"t_{tensor.name}", POINTER_TYPES[dtype])
                self.add_dims(tensor.name, len(tensor.dims))
        for node in dict.fromkeys(n for root in roots for n in find(root, "lookup", "dot")):
            self.add_wide(node)
        assert all(size in SIZES or size in program.bound_dims for size in names["size"])

    def add_dims(self, tensor: str, rank: int) -> None:
        """Extents and strides of a program's tensor; its last stride is 1."""
        for axis in range(rank):
            self.add(f"d{axis}_{tensor}", "i32", f"t_{tensor}.shape[{axis}]")
        for axis in range(rank - 1):
            self.add(f"s{axis}_{tensor}", "i64", f"t_{tensor}.stride({axis})")

    def add_wide(self, node: Node) -> None:
        """Whether offsets along the axes that vary with rows or columns need int64."""
        axes = self._wide.setdefault(node.name, set())
        walked = self.plan.row_indices | {"k", "d", "out"}
        axes |= {a for a, index in enumerate(node.args) if index.varies & walked}

    def wide_axes(self) -> dict[str, tuple[int, ...]]:
        """The axes of each tensor over which the kernel walks."""
        return {name: tuple(sorted(axes)) for name, axes in self._wide.items()}

    def has(self, name: str) -> bool:
        return any(argument.name == name for argument in self.arguments)

    def write_header(self, lines: Lines) -> None:
        """Decorator and signature of the kernel: nothing but types and alignment is specialised."""
        fixed = [a.name for a in self.arguments if not a.aligned]
        lines.add("@triton.jit(")
        with lines.indented():
            lines.add("do_not_specialize=[")
            with lines.indented():
                for name in fixed:
                    lines.add(f'"{name}",')
            lines.add("]")
        lines.add(")")
        lines.add(f"def {self.name}(")
        with lines.indented():
            for argument in self.arguments:
                annotation = ANNOTATIONS.get(argument.type)
                lines.add(f"{argument.name}: {annotation}," if annotation else f"{argument.name},")
            for name in self._wide:
                lines.add(f"wide_{name}: tl.constexpr,")
            lines.add("BLOCK_M: tl.constexpr,", "BLOCK_N: tl.constexpr,")
        lines.add("):")

    def write_launch(
        self,
        lines: Lines,
        grid: str,
        config: Config | None = None,
        block_m: str = "",
        block_n: str = "",
        num_warps: str = "",
        num_stages: str = "",
    ) -> None:
        """The launch, by the host function; `grid` is the text of the number of programs, `config`
        has other sizes than the kernel's own; `block_m`, `block_n`, `num_warps` and `num_stages`
        are the texts of sizes that the host chooses."""
        lines.add(f"{self.name}[({grid},)](")
        with lines.indented():
            for argument in self.arguments:
                lines.add(f"{argument.host},")
            for name, axes in self.wide_axes().items():
                lines.add(f"wide_{name}=attn_is_wide(t_{name}, {axes}),")
            config = config or self.config
            lines.add(f"BLOCK_M={block_m or config.block_m},")
            lines.add(f"BLOCK_N={block_n or config.block_n},")
            warps, stages = num_warps or config.num_warps, num_stages or config.num_stages
            lines.add(f"num_warps={warps},", f"num_stages={stages},")
            lines.add(f"enable_fp_fusion={self.plan.may_fuse},")
        lines.add(")")

    def spec(self) -> KernelSpec:
        config = self.config
        signature = {a.name: a.type for a in self.arguments}
        signature |= {f"wide_{name}": "constexpr" for name in self._wide}
        signature |= {"BLOCK_M": "constexpr", "BLOCK_N": "constexpr"}
        return KernelSpec(
            name=self.name,
            signature=signature,
            constants={
                **{f"wide_{name}": False for name in self._wide},
                "BLOCK_M": config.block_m,
                "BLOCK_N": config.block_n,
            },
            attributes={a.name: ALIGNMENT for a in self.arguments if a.aligned},
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            may_fuse=self.plan.may_fuse,
        )
