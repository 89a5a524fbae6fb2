"""Binding of a call: names to values, and everything that can be wrong with them.

`collect` and `check_inputs` look at Python values and run while a call is traced; `check_call`
looks at sizes and runs inside the operator, also with symbolic sizes; `check_values` looks at
numbers and runs inside the operator when it really computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from attndsl.diagnostics import ArgumentError, did_you_mean
from attndsl.ir.ops import Kind
from attndsl.ir.program import Program, Scalar
from attndsl.runtime.dims import bind_dims, write_type

INT_LIMIT = 2**30 - 1  # run-time int scalars: one added to a position still fits in 32 bits
POSITION_LIMIT = 2**29  # positions and lengths: sums and doubles of them fit in 32 bits
TRITON_WIDTH = 256  # widest head that the Triton generator splits

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
DTYPES: dict[str, tuple[torch.dtype, ...]] = {"float": FLOATS, "int": INTS, "bool": (torch.bool,)}

OF_A_CALL = ("scale", "q_offset", "k_offset", "k_len", "return_lse")


@dataclass(frozen=True)
class Slot:
    """A parameter as a call sees it. `declared` is its type as the user wrote it."""

    name: str
    kind: Kind
    is_tensor: bool
    default: bool | int | float | None
    declared: str


def slots_of(program: Program) -> tuple[Slot, ...]:
    return tuple(
        Slot(p.name, p.kind, False, p.default, p.kind)
        if isinstance(p, Scalar)
        else Slot(p.name, p.kind, True, None, write_type(p))
        for p in program.parameters
    )


def describe(value: object) -> str:
    """What was given, for a message."""
    if isinstance(value, Tensor) and value.is_nested:
        return "a nested tensor"
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def collect(
    slots: tuple[Slot, ...],
    consts: tuple[str, ...],
    given: Mapping[str, object],
    needed: frozenset[str] | None = None,
) -> tuple[dict[str, Tensor], dict[str, bool | int | float]]:
    """Tensors and scalars by name, in declared order. Where `needed` is given, others may lack."""
    for name in given:
        if not any(slot.name == name for slot in slots):
            refuse_unknown(name, slots, consts)
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, bool | int | float] = {}
    missing: list[str] = []
    for slot in slots:
        if slot.name not in given:
            if slot.default is not None:
                scalars[slot.name] = take_scalar(slot.name, slot.kind, slot.default)
            elif needed is None or slot.name in needed:
                missing.append(f"{slot.name}: {slot.declared}")
        elif slot.is_tensor:
            tensors[slot.name] = take_tensor(slot, given[slot.name])
        else:
            scalars[slot.name] = take_scalar(slot.name, slot.kind, given[slot.name])
    if missing:
        raise ArgumentError(f"missing {', '.join(missing)}")
    return tensors, scalars


def refuse_unknown(name: str, slots: tuple[Slot, ...], consts: tuple[str, ...]) -> None:
    if name in consts:
        raise ArgumentError(
            f"{name} is const, a part of the kernel: give it to attndsl.compile(..., {name}=...)"
        )
    if name in OF_A_CALL:
        raise ArgumentError(f"{name} is an argument of a call, and not taken here")
    known = [slot.name for slot in slots]
    hint = did_you_mean(name, [*known, *OF_A_CALL])
    listed = ", ".join(f"{slot.name}: {slot.declared}" for slot in slots) or "no parameters"
    raise ArgumentError(
        f"unknown parameter {name}" + (f"; {hint}" if hint else f"; the program has {listed}")
    )


def from_numpy(value: object) -> object:
    """A NumPy scalar as a Python number; anything else (also an array) as it is."""
    if type(value).__module__ == "numpy" and type(value).__name__ != "ndarray":
        item = getattr(value, "item", None)
        return item() if item is not None else value
    return value


def take_tensor(slot: Slot, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise ArgumentError(
            f"{slot.name}: declared {slot.declared}, expected a torch.Tensor, got {describe(value)}"
        )
    check_layout(slot.name, value)
    if value.dtype not in DTYPES[slot.kind]:
        hint = {"bool": "; use .bool()", "int": "; use .long()", "float": "; use .float()"}
        raise ArgumentError(
            f"{slot.name}: declared {slot.declared}, got {describe(value)}{hint[slot.kind]}"
        )
    return value


def check_layout(name: str, value: Tensor) -> None:
    if value.is_nested:
        raise ArgumentError(f"{name}: expected a dense tensor, got a nested one; pad it")
    if value.layout != torch.strided:
        raise ArgumentError(
            f"{name}: expected a dense tensor, got one of layout {value.layout}; use .to_dense()"
        )
    if value.is_meta:
        raise ArgumentError(f"{name}: expected a tensor with data, got one on the meta device")


def take_scalar(name: str, kind: Kind, value: object) -> bool | int | float:
    """A run-time scalar of a declared kind; an int is a float, a bool is not a number."""
    value = from_numpy(value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if not isinstance(value, bool):
        if kind == "int" and isinstance(value, (int, torch.SymInt)):
            return within(name, value, INT_LIMIT)
        if kind == "float" and isinstance(value, (float, torch.SymFloat)):
            return value  # type: ignore[return-value]
        if kind == "float" and isinstance(value, (int, torch.SymInt)):
            return to_float(name, value)
    hint = ""
    if isinstance(value, Tensor):
        hint = "; a scalar is a Python number: use .item(), or declare " + f"{name}: {kind}[1]"
    raise ArgumentError(f"{name}: declared {kind}, got {describe(value)}{hint}")


def within(name: str, value: int | torch.SymInt, limit: int) -> int:
    if not -limit <= value <= limit:
        raise ArgumentError(f"{name}: expected an int within ±{limit}, got {describe(value)}")
    return value  # type: ignore[return-value]


def to_float(name: str, value: int | torch.SymInt) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ArgumentError(f"{name}: the int given does not fit a float") from error


def take_offset(name: str, value: object) -> tuple[int, Tensor | None]:
    """An offset as a number or as an int[B] tensor."""
    if isinstance(value, Tensor):
        return 0, take_batch_ints(name, value)
    value = from_numpy(value)
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return within(name, value, POSITION_LIMIT), None
    raise ArgumentError(f"{name}: expected an int or an int[B] tensor, got {describe(value)}")


def take_batch_ints(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype not in INTS or value.dim() != 1:
        hint = (
            "; use .reshape(1).expand(B)" if isinstance(value, Tensor) and not value.dim() else ""
        )
        raise ArgumentError(f"{name}: expected an int[B] tensor, got {describe(value)}{hint}")
    check_layout(name, value)
    return value


def take_scale(value: object, width: int) -> float:
    if value is None:
        return float(width**-0.5)
    return float(take_scalar("scale", "float", value))


def check_inputs(
    query: object, key: object, value: object, *more: object
) -> tuple[Tensor, Tensor, Tensor]:
    """query, key and value as tensors of four dimensions with a width; nothing else by position."""
    refuse_positional(more, "after query, key and value arguments are given by name")
    return (
        check_input("query", query, "[B, H, Nq, D]"),
        check_input("key", key, "[B, Hk, Nk, D]"),
        check_input("value", value, "[B, Hk, Nk, Dv]"),
    )


def refuse_positional(more: tuple[object, ...], rule: str) -> None:
    if more:
        raise ArgumentError(f"{rule}; got {describe(more[0])} by position")


def refuse_forward_mode(*tensors: Tensor) -> None:
    """Raises where a tensor carries a tangent: the operators would lose it without a word."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    tangent_of: Callable[[Tensor], Any] = forward_ad.unpack_dual
    if any(tangent_of(tensor).tangent is not None for tensor in tensors):
        raise ArgumentError(
            "attndsl has no forward-mode derivative (jvp): use backward, or attn.reference(...), "
            "which has both"
        )


def check_input(name: str, tensor: object, shape: str) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ArgumentError(f"{name}: expected a torch.Tensor {shape}, got {describe(tensor)}")
    check_layout(name, tensor)
    if tensor.dim() != 4:
        raise ArgumentError(f"{name}: expected four dimensions {shape}, got {describe(tensor)}")
    if tensor.shape[3] == 0:
        raise ArgumentError(f"{name}: the last dimension must not be 0, got {describe(tensor)}")
    if tensor.dtype not in FLOATS:
        raise ArgumentError(
            f"{name}: expected float16, bfloat16, float32 or float64, got {describe(tensor)}"
        )
    return tensor


def input_sizes(query: Tensor, key: Tensor, value: Tensor) -> dict[str, int]:
    """The sizes that query, key and value give; ArgumentError where they disagree."""
    batches, heads, queries, width = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise ArgumentError(
                f"{name}: expected query's dtype {query.dtype}, got {describe(tensor)}"
            )
        if tensor.device != query.device:
            raise ArgumentError(
                f"{name}: expected query's device {query.device}, got one on {tensor.device}"
            )
        if tensor.shape[0] != batches:
            raise ArgumentError(
                f"{name}: expected query's batch of {batches}, got {describe(tensor)}"
            )
    if key.shape[3] != width:
        raise ArgumentError(f"key: expected query's width D = {width}, got {describe(key)}")
    if value.shape[1] != key_heads or value.shape[2] != keys:
        raise ArgumentError(
            f"value: expected key's heads and length, [{batches}, {key_heads}, {keys}, Dv], got "
            f"{describe(value)}"
        )
    if heads == 0 or key_heads == 0:
        raise ArgumentError(f"query and key: expected at least one head, got {heads}, {key_heads}")
    if heads % key_heads != 0:
        raise ArgumentError(
            f"query: {heads} heads are no multiple of key's {key_heads}: {describe(query)}, "
            f"{describe(key)}"
        )
    return {
        "B": batches,
        "H": heads,
        "Hk": key_heads,
        "G": heads // key_heads,
        "Nq": queries,
        "Nk": keys,
        "D": width,
    }


def check_call(
    program: Program,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tensors: Sequence[Tensor],
    scalars: Mapping[str, bool | int | float],
    batch_ints: Mapping[str, Tensor | None],
) -> dict[str, int]:
    """All sizes of a call by name; ArgumentError where anything does not fit.

    `batch_ints` are q_offset, k_offset and k_len where they are tensors.
    """
    sizes = input_sizes(query, key, value)
    for name, given in batch_ints.items():
        if given is None:
            continue
        check_device(name, given, query.device)
        if given.shape[0] != sizes["B"]:
            raise ArgumentError(f"{name}: expected int[{sizes['B']}], got {describe(given)}")
    named = {t.name: given for t, given in zip(program.tensors, tensors, strict=True)}
    for name, given in named.items():
        check_device(name, given, query.device)
    return bind_dims(program, {name: t.shape for name, t in named.items()}, sizes, scalars)


def check_device(name: str, given: Tensor, device: torch.device) -> None:
    if given.device != device:
        raise ArgumentError(f"{name}: expected query's device {device}, got {given.device}")


def check_backend(backend: str, query: Tensor, value: Tensor) -> None:
    """What the Triton generator does not take."""
    if backend != "triton":
        return
    if query.dtype == torch.float64:
        raise ArgumentError(
            "query: float64 runs only in the PyTorch generator; "
            'compile with backend="torch", or give float32'
        )
    for name, width in (("query", query.shape[3]), ("value", value.shape[3])):
        if width > TRITON_WIDTH:
            raise ArgumentError(
                f"{name}: the Triton generator takes widths up to {TRITON_WIDTH}, got {width}; "
                'compile with backend="torch"'
            )


def check_values(
    sizes: Mapping[str, int],
    scalars: Mapping[str, bool | int | float],
    scale: float,
    batch_ints: Mapping[str, Tensor | None],
) -> None:
    """Ranges of the numbers of a call; tensors on a device are not read back."""
    for name, number in scalars.items():
        if math.isnan(number):
            raise ArgumentError(f"{name}: expected a number, got NaN")
    if not math.isfinite(scale):
        raise ArgumentError(f"scale: expected a finite number, got {scale}")
    for name, length in (("query", sizes["Nq"]), ("key", sizes["Nk"])):
        if length > POSITION_LIMIT:
            raise ArgumentError(f"{name}: expected at most 2**29 rows, got {length}")
    for name, offset in batch_ints.items():
        if isinstance(offset, Tensor) and offset.device.type == "cpu" and offset.numel():
            extremes = [int(offset.min()), int(offset.max())]
            if max(abs(e) for e in extremes) > POSITION_LIMIT:
                raise ArgumentError(f"{name}: expected ints within ±2**29, got {extremes}")


def pack(
    slots: Iterable[Slot], scalars: Mapping[str, bool | int | float]
) -> tuple[list[int], list[float]]:
    """Scalars as the two lists of numbers that an operator takes."""
    ints: list[int] = []
    floats: list[float] = []
    for slot in slots:
        if slot.is_tensor:
            continue
        if slot.kind == "float":
            floats.append(scalars[slot.name])
        elif slot.kind == "bool":
            ints.append(1 if scalars[slot.name] else 0)
        else:
            ints.append(scalars[slot.name])  # type: ignore[arg-type]
    return ints, floats


def keep_symbolic(scale: float, floats: list[float]) -> tuple[float, list[float], Tensor | None]:
    """Numbers that torch.compile traces as variables, as a tensor [1 + floats] on the CPU.

    An operator's schema has no symbolic float: given as numbers they would become constants of the
    graph, and each new value would trace it again. Known numbers stay numbers.
    """
    if not torch.compiler.is_compiling():
        return scale, floats, None
    from torch.fx.experimental.symbolic_shapes import has_static_value

    both = [scale, *floats]
    if all(has_static_value(number) for number in both):
        return scale, floats, None
    one = torch.ones((), dtype=torch.float64, device="cpu")
    return 0.0, [], torch.stack([one * number for number in both])


def unpack(
    program: Program, ints: Sequence[int], floats: Sequence[float]
) -> dict[str, bool | int | float]:
    """Scalars by name, in declared order."""
    left_ints, left_floats = iter(ints), iter(floats)
    scalars: dict[str, bool | int | float] = {}
    for scalar in program.scalars:
        if scalar.kind == "float":
            scalars[scalar.name] = next(left_floats)
        elif scalar.kind == "bool":
            scalars[scalar.name] = next(left_ints) != 0
        else:
            scalars[scalar.name] = next(left_ints)
    return scalars
