"""Tensors in kernels: addresses and descriptors of heads, loads of tiles, stores of results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from attndsl.plan.kernel_plan import Chunk, KernelPlan

from ..lines import Lines
from .arguments import elements_per_alignment
from .descriptors import descriptor_load, write_descriptors


class Tensors(ABC):
    """A kernel as far as it reads and writes tiles of tensors."""

    plan: KernelPlan
    lines: Lines
    is_described: bool  # tiles are read by descriptors

    @property
    def row_head(self) -> str:
        """The text of the number of the rows' head among those of all sequences: one for the tile,
        or [BLOCK_M] after `write_rows`."""
        return "row_head" if self.plan.packs_heads else "head"

    @property
    def precision(self) -> str:
        return ', input_precision="ieee"' if self.plan.request.dtype == "float32" else ""

    @property
    @abstractmethod
    def results(self) -> tuple[str, str, str]:
        """Of what a kernel stores for its rows: the index of its head, those of its rows, and the
        length of the axis."""

    def write_base(self, name: str, head: str) -> None:
        """Strides in elements, and the address of one head of query, key or value."""
        unit = elements_per_alignment(self.plan)
        times = f" * {unit}" if unit > 1 else ""
        self.lines.add(
            f"{name}_n = {name}_stride_n{times}",
            f"{name}_head = {name} + (b * {name}_stride_b + {head} * {name}_stride_h){times}",
        )
        if self.is_described:
            write_descriptors(self.lines, self.plan, name, f"{name}_n")

    def write_query_base(self) -> None:
        """The address of the rows' head of query: one, or [BLOCK_M, 1]."""
        self.write_base("query", "(first_h + member)[:, None]" if self.plan.packs_heads else "h")

    def write_query_rows(self) -> None:
        """The addresses of the rows of query, in the shape of `rows`."""
        if not self.plan.packs_heads:
            self.lines.add("query_rows = query_head + rows * query_n")
            return
        unit = elements_per_alignment(self.plan)
        times = f" * {unit}" if unit > 1 else ""
        self.lines.add(
            f"query_rows = query + (b * query_stride_b + h * query_stride_h){times} "
            "+ rows * query_n"
        )

    def write_row_base(self, name: str, width: int) -> None:
        """The address of the rows' head of a contiguous tensor [B, H, Nq, width]: one, or
        [BLOCK_M, 1]."""
        shape = "[:, None]" if self.plan.packs_heads else ""
        self.write_own_base(name, width, "Nq", f"{self.row_head}{shape}")
        if self.is_described:
            write_descriptors(self.lines, self.plan, name, str(width))

    def write_loads(
        self, name: str, index: str, chunks: Sequence[Chunk], limit: str | None
    ) -> None:
        """Loads a tile [block, width] of query, key or value for each chunk, of the rows `index`
        ([block]); from row `limit` on it is 0 (None: no test)."""
        if self.is_described:
            self.lines.add(*(descriptor_load(name, i, c) for i, c in enumerate(chunks)))
            return
        # Addresses are made where they are used: kept over a loop they would fill registers.
        stride = "" if self.plan.request.unit_stride else f" * {name}_stride_d"
        index = f"({index})[:, None]"
        for i, chunk in enumerate(chunks):
            tests = [f"({index} < {limit})"] if limit is not None else []
            element = f"({arange(chunk)}){stride}" if stride else arange(chunk)
            address = f"{name}_head + {index} * {name}_n + {element}"
            self.lines.add(f"{name}_{i} = " + load(address, tests + width_test(chunk), "0.0"))

    def own_address(self, name: str, width: int, index: str, chunk: Chunk) -> str:
        """Addresses of a tile of a contiguous tensor [B, H, length, width]; `index` is [block]."""
        return f"{name}_head + ({index})[:, None].to(tl.int64) * {width} + {arange(chunk)}"

    def write_own_base(self, name: str, width: int, length: str, owner: str = "head") -> None:
        self.lines.add(f"{name}_head = {name} + {owner}.to(tl.int64) * {length} * {width}")

    def write_own_loads(
        self,
        name: str,
        width: int,
        index: str,
        chunks: Sequence[Chunk],
        limit: str | None,
    ) -> None:
        """Loads a tile of a contiguous tensor, as `write_loads`."""
        if self.is_described:
            self.lines.add(*(descriptor_load(name, i, c) for i, c in enumerate(chunks)))
            return
        for i, chunk in enumerate(chunks):
            tests = [f"(({index})[:, None] < {limit})"] if limit is not None else []
            address = self.own_address(name, width, index, chunk)
            self.lines.add(f"{name}_{i} = " + load(address, tests + width_test(chunk), "0.0"))

    def write_own_stores(
        self,
        name: str,
        width: int,
        index: str,
        chunks: Sequence[Chunk],
        limit: str,
        value: Callable[[int], str],
    ) -> None:
        """Stores tiles of a contiguous tensor; `value` gives the text of a chunk."""
        self.write_own_base(name, width, limit)
        self.write_stores(name, width, index, chunks, limit, value)

    def write_results(
        self, name: str, width: int, chunks: Sequence[Chunk], value: Callable[[int], str]
    ) -> None:
        """Stores what the kernel has computed for its rows, as `write_own_stores`."""
        owner, index, limit = self.results
        self.write_own_base(name, width, limit, owner)
        self.write_stores(name, width, index, chunks, limit, value)

    def write_row_store(self, name: str, value: str) -> None:
        """Stores one number for each of the kernel's rows."""
        owner, index, limit = self.results
        self.lines.add(
            f"row = {index}",
            f"tl.store({name} + {owner}.to(tl.int64) * {limit} + row, {value}, mask=row < {limit})",
        )

    def write_stores(
        self,
        name: str,
        width: int,
        index: str,
        chunks: Sequence[Chunk],
        limit: str,
        value: Callable[[int], str],
    ) -> None:
        """Stores tiles of the rows `index` at an address that is known."""
        for i, chunk in enumerate(chunks):
            tests = [f"(({index})[:, None] < {limit})", *width_test(chunk)]
            address = self.own_address(name, width, index, chunk)
            self.lines.add(f"tl.store({address}, {value(i)}, mask={' & '.join(tests)})")

    def write_product(self, name: str, left: str, right: str, chunks: Sequence[Chunk]) -> None:
        """name = sum over chunks of left_i @ right_i^T."""
        for i in range(len(chunks)):
            onto = f", {name}" if i else ""
            self.lines.add(
                f"{name} = tl.dot({left}_{i}, tl.trans({right}_{i}){onto}{self.precision})"
            )


def elements(start: str, block: str) -> str:
    """The rows or columns of a tile, [block]."""
    return f"{start} + tl.arange(0, {block})"


def arange(chunk: Chunk) -> str:
    """The elements of a chunk of a head dimension, [1, width]."""
    plus = f"{chunk.start} + " if chunk.start else ""
    return f"{plus}tl.arange(0, {chunk.width})[None, :]"


def width_test(chunk: Chunk) -> list[str]:
    """The test that an element of a chunk is there; none where all are."""
    if chunk.valid == chunk.width:
        return []
    return [f"(tl.arange(0, {chunk.width})[None, :] < {chunk.valid})"]


def load(address: str, tests: Sequence[str], other: str) -> str:
    if not tests:
        return f"tl.load({address})"
    return f"tl.load({address}, mask={' & '.join(tests)}, other={other})"
