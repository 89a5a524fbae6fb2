"""The torch operators attndsl::forward and attndsl::backward.

A call carries its program as text, so a graph that torch.compile or torch.export records is
complete by itself. What differs between kernels is found from the arguments when they run.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.ir import text as ir_text
from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import Request
from attndsl.runtime import cache
from attndsl.runtime.arguments import (
    check_backend,
    check_call,
    check_values,
    input_sizes,
    unpack,
)
from attndsl.runtime.dims import bind_dims
from attndsl.runtime.order import is_boxable_once, order_of_call

PROGRAMS: dict[str, Program] = {}

OLDEST_CUDA = (8, 0)  # compute capability: Ampere
ALIGNMENT = 16  # bytes: one vector load or store


def register(program: Program) -> str:
    """The text form of a program; operators that are given it find this very program."""
    handle = ir_text.dump(program)
    PROGRAMS.setdefault(handle, program)
    return handle


def program_of(handle: str) -> Program:
    """The program of a text form, read if this process has not seen it (an exported graph)."""
    program = PROGRAMS.get(handle)
    if program is None:
        try:
            program = ir_text.parse(handle)
        except (ValueError, KeyError, IndexError, TypeError, AssertionError) as error:
            raise ArgumentError(f"program: not a program's text: {error}") from error
        program = PROGRAMS.setdefault(handle, program)
    return program


@torch.library.custom_op("attndsl::forward", mutates_args=())
def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tensors: Sequence[Tensor],
    ints: Sequence[int],
    floats: Sequence[float],
    scale: float,
    q_offset: int,
    k_offset: int,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    k_len: Tensor | None,
    numbers: Tensor | None,
    program: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out [B, H, Nq, Dv], raw, stat) as attndsl/backend.py describes them.

    ints and floats are the scalars in declared order, bools among the ints. `numbers`, where it is
    given, holds scale and the floats: numbers that a traced graph computes when it runs.
    """
    loaded = program_of(program)
    scale, floats = read_numbers(scale, floats, numbers)
    scalars = unpack(loaded, ints, floats)
    batch_ints = {"q_offset": q_offsets, "k_offset": k_offsets, "k_len": k_len}
    sizes = check_call(loaded, query, key, value, tensors, scalars, batch_ints)
    check_values(sizes, scalars, scale, batch_ints)
    shapes = forward_shapes(loaded, query, value)
    if not query.numel():
        return shapes
    offsets = (q_offset, k_offset)
    module = module_for(
        program, loaded, backend, query, key, value, tensors, batch_ints, (), scalars, offsets
    )
    with no_autocast(query):
        out, raw, stat = module.run_forward(
            query,
            key,
            value,
            scale,
            q_offset if q_offsets is None else q_offsets,
            k_offset if k_offsets is None else k_offsets,
            k_len,
            tuple(tensors),
            tuple(scalars.values()),
        )
    return out.contiguous(), raw.contiguous(), stat.contiguous()


@forward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tensors: Sequence[Tensor],
    ints: Sequence[int],
    floats: Sequence[float],
    scale: float,
    q_offset: int,
    k_offset: int,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    k_len: Tensor | None,
    numbers: Tensor | None,
    program: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    loaded = program_of(program)
    batch_ints = {"q_offset": q_offsets, "k_offset": k_offsets, "k_len": k_len}
    # No dimension depends on a float: where the graph computes them, any will do.
    scalars = unpack(loaded, ints, [0.0] * len(loaded.scalars) if numbers is not None else floats)
    check_call(loaded, query, key, value, tensors, scalars, batch_ints)
    check_backend(backend, query, value)
    return forward_shapes(loaded, query, value)


def read_numbers(
    scale: float, floats: Sequence[float], numbers: Tensor | None
) -> tuple[float, Sequence[float]]:
    """scale and floats, from the tensor that holds both where a graph computed them."""
    if numbers is None:
        return scale, floats
    scale, *floats = numbers.tolist()
    return scale, floats


def forward_shapes(program: Program, query: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty results of the forward's shapes and dtypes."""
    batches, heads, queries, _ = query.shape
    out = query.new_empty((batches, heads, queries, value.shape[3]))
    raw = query.new_empty((0,)) if program.output is None else torch.empty_like(out)
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    rows = (0,) if program.weights.form == "elementwise" else (batches, heads, queries)
    return out, raw, query.new_empty(rows, dtype=dtype)


@torch.library.custom_op("attndsl::backward", mutates_args=())
def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    raw: Tensor,
    stat: Tensor,
    tensors: Sequence[Tensor],
    ints: Sequence[int],
    floats: Sequence[float],
    scale: float,
    q_offset: int,
    k_offset: int,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    k_len: Tensor | None,
    numbers: Tensor | None,
    program: str,
    backend: str,
    grads: Sequence[bool],
) -> list[Tensor]:
    """Gradients of query, key, value and of the tensors that `grads` marks, contiguous."""
    loaded = program_of(program)
    scale, floats = read_numbers(scale, floats, numbers)
    scalars = unpack(loaded, ints, floats)
    marked = marked_tensors(loaded, tensors, grads)
    if not query.numel():
        return [
            torch.zeros_like(t, memory_format=torch.contiguous_format)
            for t in (query, key, value, *marked.values())
        ]
    batch_ints = {"q_offset": q_offsets, "k_offset": k_offsets, "k_len": k_len}
    offsets = (q_offset, k_offset)
    wanted = tuple(marked)
    module = module_for(
        program, loaded, backend, query, key, value, tensors, batch_ints, wanted, scalars, offsets
    )
    with no_autocast(query):
        found = module.run_backward(
            readable(grad_out),
            None if grad_lse is None else grad_lse.contiguous(),
            query,
            key,
            value,
            raw,
            stat,
            scale,
            q_offset if q_offsets is None else q_offsets,
            k_offset if k_offsets is None else k_offsets,
            k_len,
            tuple(tensors),
            tuple(scalars.values()),
        )
    return [gradient.contiguous() for gradient in found]


@backward.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    raw: Tensor,
    stat: Tensor,
    tensors: Sequence[Tensor],
    ints: Sequence[int],
    floats: Sequence[float],
    scale: float,
    q_offset: int,
    k_offset: int,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    k_len: Tensor | None,
    numbers: Tensor | None,
    program: str,
    backend: str,
    grads: Sequence[bool],
) -> list[Tensor]:
    marked = marked_tensors(program_of(program), tensors, grads)
    return [t.new_empty(t.shape) for t in (query, key, value, *marked.values())]


def marked_tensors(
    program: Program, tensors: Sequence[Tensor], grads: Sequence[bool]
) -> dict[str, Tensor]:
    """The tensors that receive gradients, by name, in program order."""
    return {
        declared.name: given
        for declared, given, wanted in zip(program.tensors, tensors, grads, strict=True)
        if wanted
    }


def readable(grad_out: Tensor) -> Tensor:
    """The gradient in a layout that every kernel loads well: it may be an expanded number."""
    return grad_out if has_unit_stride(grad_out) and is_aligned(grad_out) else grad_out.contiguous()


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value, tensors, ints, floats, scale, q_offset, k_offset, *rest = inputs
    q_offsets, k_offsets, k_len, numbers, program, backend = rest
    out, raw, stat = output
    loaded = program_of(program)
    kept = out if loaded.output is None else raw
    ctx.save_for_backward(
        query, key, value, kept, stat, q_offsets, k_offsets, k_len, numbers, *tensors
    )
    ctx.scalars = (list(ints), list(floats), scale, q_offset, k_offset)
    ctx.program, ctx.backend = program, backend
    ctx.has_lse = loaded.weights.form == "softmax"
    ctx.set_materialize_grads(False)


def differentiate(
    ctx: Any, grad_out: Tensor | None, grad_raw: Tensor | None, grad_stat: Tensor | None
) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    query, key, value, raw, stat, q_offsets, k_offsets, k_len, numbers, *tensors = saved
    ints, floats, scale, q_offset, k_offset = ctx.scalars
    grads = [bool(needed) for needed in ctx.needs_input_grad[3]]
    if grad_out is None:
        grad_out = raw.new_zeros(raw.shape)
    found = iter(
        backward(
            grad_out,
            grad_stat if ctx.has_lse else None,
            query,
            key,
            value,
            raw,
            stat,
            tensors,
            ints,
            floats,
            scale,
            q_offset,
            k_offset,
            q_offsets,
            k_offsets,
            k_len,
            numbers,
            ctx.program,
            ctx.backend,
            grads,
        )
    )
    inputs = [next(found), next(found), next(found)]
    of_tensors = [next(found) if wanted else None for wanted in grads]
    # torch pairs the result with the inputs by structure, where an empty list of numbers is a list.
    of_ints: list[None] | None = None if ints else []
    of_floats: list[None] | None = None if floats else []
    return (*inputs, of_tensors, of_ints, of_floats, *([None] * 9))


forward.register_autograd(differentiate, setup_context=setup_context)


def refuse_second_derivative(ctx: Any, *grads: Any) -> None:
    raise ArgumentError(
        "attndsl has no second derivative: a gradient of attention was differentiated again. "
        "Use attn.reference(...), which is differentiable any number of times"
    )


backward.register_autograd(refuse_second_derivative, setup_context=lambda ctx, inputs, output: None)


def no_autocast(query: Tensor) -> torch.autocast:
    """Generated code has chosen its dtypes: autocast must not change the products inside."""
    return torch.autocast(query.device.type, enabled=False)


def module_for(
    handle: str,
    program: Program,
    backend: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tensors: Sequence[Tensor],
    batch_ints: Mapping[str, Tensor | None],
    grads: tuple[str, ...],
    scalars: Mapping[str, bool | int | float],
    offsets: tuple[int, int],
) -> types.ModuleType:
    """The generated module for real tensors; `offsets` of queries and keys where no tensor has
    them."""
    check_backend(backend, query, value)
    inputs = (query, key, value)
    request = Request(
        backend=backend,
        target=target_of(backend, query.device),
        dtype=dtype_name(query.dtype),
        head_dim=query.shape[3],
        value_dim=value.shape[3],
        grads=grads,
        per_batch=tuple(name for name, given in batch_ints.items() if given is not None),
        tensor_dtypes=tuple(dtype_name(t.dtype) for t in tensors),
        unit_stride=all(has_unit_stride(t) for t in inputs),
        aligned=all(is_aligned(t) for t in inputs),
    )
    if request.target == "interpreter" and "bfloat16" in (request.dtype, *request.tensor_dtypes):
        raise ArgumentError(
            "Triton's interpreter computes wrongly with bfloat16 (NumPy has no such type); give "
            'float16 or float32 tensors, or compile with backend="torch"'
        )
    if program.grid is not None and is_boxable_once(program):
        shapes = {t.name: given.shape for t, given in zip(program.tensors, tensors, strict=True)}
        sizes = bind_dims(program, shapes, input_sizes(query, key, value), scalars)
        order = order_of_call(program, request, sizes, scalars, offsets)
        request = replace(request, order=order.name)
    return cache.module_of(handle, program, request)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def has_unit_stride(tensor: Tensor) -> bool:
    return tensor.shape[-1] == 1 or tensor.stride(-1) == 1


def is_aligned(tensor: Tensor) -> bool:
    """Whether every row starts at a multiple of 16 bytes."""
    size = tensor.element_size()
    return tensor.data_ptr() % ALIGNMENT == 0 and all(
        stride * size % ALIGNMENT == 0
        for extent, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
        if extent > 1
    )


def target_of(backend: str, device: torch.device) -> str:
    """What the kernels are compiled for; ArgumentError where the backend cannot run there."""
    if backend == "triton":
        if is_interpreting():
            return "interpreter"
        if device.type != "cuda":
            raise ArgumentError(
                f'backend="triton" cannot run on {device.type} tensors; use backend="torch", or '
                "set TRITON_INTERPRET=1 before Triton is imported to run in its interpreter"
            )
        if not torch.version.hip and torch.cuda.get_device_capability(device) < OLDEST_CUDA:
            raise ArgumentError(
                "the Triton kernels need a GPU of compute capability 8.0 or newer; "
                'compile with backend="torch"'
            )
    return architecture(device) if device.type == "cuda" else "cpu"


@functools.cache
def architecture(device: torch.device) -> str:
    """Such as sm_90 or gfx942."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@functools.cache
def is_interpreting() -> bool:
    """Whether Triton runs in its interpreter; its own functions decide when they are imported."""
    if importlib.util.find_spec("triton") is None:
        raise ArgumentError(
            'backend="triton" needs Triton, which is not installed; use backend="torch"'
        )
    if os.environ.get("TRITON_INTERPRET") != "1":
        return False
    import triton.language
    from triton.runtime.jit import JITFunction

    return not isinstance(triton.language.cdiv, JITFunction)
