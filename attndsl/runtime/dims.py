"""Dimensions of tensor parameters: their values in a call, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attndsl.diagnostics import ArgumentError
from attndsl.ir.nodes import Node, topological
from attndsl.ir.program import SIZES, Program, Tensor
from attndsl.transform.fold import FOLD

SYMBOLS: dict[str, tuple[str, int]] = {
    "add": ("+", 1),
    "sub": ("-", 1),
    "mul": ("*", 2),
    "div": ("/", 2),
    "floordiv": ("//", 2),
    "floordiv_float": ("//", 2),
    "floormod": ("%", 2),
    "floormod_float": ("%", 2),
}


def write_dim(node: Node) -> str:
    """An expression as a user writes it.

    >>> from attndsl.ir.nodes import constant, make, scalar
    >>> write_dim(make("add", make("mul", constant(2), scalar("R", "int")), constant(1)))
    '2 * R + 1'
    """
    written: dict[Node, tuple[str, int]] = {}
    for item in topological(node):
        texts = [written[arg] for arg in item.args]
        if item.op == "const":
            written[item] = (repr(item.value), 9)
        elif not item.args:
            written[item] = (str(item.attr), 9)
        elif item.op in SYMBOLS:
            symbol, level = SYMBOLS[item.op]
            (left, left_level), (right, right_level) = texts
            left = left if left_level >= level else f"({left})"
            right = right if right_level > level else f"({right})"
            written[item] = (f"{left} {symbol} {right}", level)
        elif item.op in ("to_float", "bool_to_int"):
            written[item] = texts[0]
        else:
            written[item] = (f"{item.op}({', '.join(text for text, _ in texts)})", 9)
    return written[node][0]


def write_type(tensor: Tensor) -> str:
    """The declared type, such as `float[H, 2 * R + 1]`."""
    return f"{tensor.kind}[{', '.join(write_dim(dim) for dim in tensor.dims)}]"


def compute_dim(
    node: Node, sizes: Mapping[str, int], scalars: Mapping[str, bool | int | float]
) -> int:
    """The value of a dimension. `sizes` has the bound names too."""
    if node.op == "size":
        return sizes[node.name]
    values: dict[Node, bool | int | float] = {}
    for item in topological(node):
        if item.op == "const":
            values[item] = item.value
        elif item.op == "size":
            values[item] = sizes[item.name]
        elif item.op == "scalar":
            values[item] = scalars[item.name]
        else:
            try:
                values[item] = FOLD[item.op](*(values[arg] for arg in item.args))
            except (ArithmeticError, ValueError) as error:
                raise ArgumentError(
                    f"the dimension {write_dim(node)} has no value: {error}"
                ) from error
    found = values[node]
    # int() of a size that a traced graph leaves open would fix it there.
    return int(found) if isinstance(found, (bool, float)) else found


def is_binding(dim: Node) -> bool:
    """Whether a dimension is a new name, bound by the tensor that is given."""
    return dim.op == "size" and dim.name not in SIZES


def bind_dims(
    program: Program,
    shapes: Mapping[str, Sequence[int]],
    sizes: Mapping[str, int],
    scalars: Mapping[str, bool | int | float],
) -> dict[str, int]:
    """The sizes with every bound name; ArgumentError where a shape is not the declared one.

    `shapes` are those of the tensors given; a tensor that is left out binds and is held to nothing.
    """
    bound: dict[str, int] = dict(sizes)
    binder: dict[str, str] = {}
    given = [tensor for tensor in program.tensors if tensor.name in shapes]
    for tensor in given:
        shape = shapes[tensor.name]
        if len(shape) != len(tensor.dims):
            raise ArgumentError(
                f"{tensor.name}: declared {write_type(tensor)}, which has {len(tensor.dims)} "
                f"dimensions, but the tensor given has shape {list(shape)}"
            )
        for dim, extent in zip(tensor.dims, shape, strict=True):
            if not is_binding(dim):
                continue
            if dim.name not in bound:
                bound[dim.name], binder[dim.name] = extent, tensor.name
            elif bound[dim.name] != extent:
                raise ArgumentError(
                    f"{tensor.name}: declared {write_type(tensor)} where {dim.name} is "
                    f"{bound[dim.name]} (from {binder.get(dim.name, 'the call')}), but the tensor "
                    f"given has shape {list(shape)}"
                )
    for tensor in given:
        check_shape(tensor, shapes[tensor.name], bound, scalars)
    return bound


def check_shape(
    tensor: Tensor,
    shape: Sequence[int],
    sizes: Mapping[str, int],
    scalars: Mapping[str, bool | int | float],
) -> None:
    for dim, extent in zip(tensor.dims, shape, strict=True):
        if is_binding(dim):
            continue
        expected = compute_dim(dim, sizes, scalars)
        if extent != expected:
            wanted = [compute_dim(d, sizes, scalars) for d in tensor.dims]
            raise ArgumentError(
                f"{tensor.name}: declared {write_type(tensor)}, which is {wanted} here "
                f"({write_dim(dim)} = {expected}), but the tensor given has shape {list(shape)}"
            )
