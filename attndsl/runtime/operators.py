"""The torch operators attndsl::forward and attndsl::backward.

A call carries its program as text, so a graph that torch.compile or torch.export records is
complete by itself; so does what was chosen for it (`runtime/settings.py`). What differs between
kernels is found from the arguments when they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError
from attndsl.ir import text as ir_text
from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import Request
from attndsl.runtime import cache, tuned
from attndsl.runtime.arguments import (
    check_backend,
    check_call,
    check_values,
    input_sizes,
    unpack,
)
from attndsl.runtime.dims import bind_dims
from attndsl.runtime.engines import engine_of, is_built
from attndsl.runtime.order import is_boxable_once, order_of_call
from attndsl.runtime.settings import Settings, parse
from attndsl.runtime.targets import target_of

Number = bool | int | float

PROGRAMS: dict[str, Program] = {}

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


# What both operators take; `numbers`, where it is given, holds scale and the floats: numbers that a
# traced graph computes when it runs.
SCHEMA = (
    "Tensor query, Tensor key, Tensor value, Tensor[] tensors, SymInt[] ints, float[] floats, "
    "float scale, SymInt q_offset, SymInt k_offset, Tensor? q_offsets, Tensor? k_offsets, "
    "Tensor? k_len, Tensor? numbers, str program, str settings"
)


class Call(NamedTuple):
    """The arguments of a call as operators take them, in the schema's order.

    ints and floats are the scalars in declared order, bools among the ints.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    tensors: Sequence[Tensor]
    ints: Sequence[int]
    floats: Sequence[float]
    scale: float
    q_offset: int
    k_offset: int
    q_offsets: Tensor | None
    k_offsets: Tensor | None
    k_len: Tensor | None
    numbers: Tensor | None
    program: str
    settings: str

    @property
    def loaded(self) -> Program:
        return program_of(self.program)

    @property
    def batch_ints(self) -> dict[str, Tensor | None]:
        return {"q_offset": self.q_offsets, "k_offset": self.k_offsets, "k_len": self.k_len}

    def arguments(self, scale: float, scalars: Mapping[str, Number]) -> tuple[object, ...]:
        """What follows the tensors of a generated function: see attndsl/backend.py."""
        return (
            scale,
            self.q_offset if self.q_offsets is None else self.q_offsets,
            self.k_offset if self.k_offsets is None else self.k_offsets,
            self.k_len,
            tuple(self.tensors),
            tuple(scalars.values()),
        )


class Operator(Protocol):
    """What torch.library makes of a function."""

    def __call__(self, *given: Any) -> Any: ...
    def register_fake(self, fn: Callable[..., Any], /) -> Callable[..., Any]: ...
    def register_autograd(
        self, backward: Callable[..., Any], /, *, setup_context: Callable[..., None]
    ) -> None: ...


def operator(name: str, schema: str) -> Callable[[Callable[..., Any]], Operator]:
    """A decorator that makes a torch operator, which changes none of its arguments."""

    def make(function: Callable[..., Any]) -> Operator:
        made: Operator = torch.library.custom_op(
            f"attndsl::{name}", function, mutates_args=(), schema=schema
        )
        return made

    return make


@operator("forward", f"({SCHEMA}) -> (Tensor, Tensor, Tensor)")
def forward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(out [B, H, Nq, Dv], raw, stat) of a Call, as attndsl/backend.py describes them."""
    call = Call(*given)
    loaded = call.loaded
    scale, floats = read_numbers(call.scale, call.floats, call.numbers)
    scalars = unpack(loaded, call.ints, floats)
    inputs = (call.query, call.key, call.value)
    sizes = check_call(loaded, *inputs, call.tensors, scalars, call.batch_ints)
    check_values(sizes, scalars, scale, call.batch_ints)
    if not call.query.numel():
        return forward_shapes(loaded, call.query, call.value)
    arguments = (*inputs, *call.arguments(scale, scalars))
    with no_autocast(call.query):
        module = module_of_call(call, (), scalars, "run_forward", arguments)
        out, raw, stat = module.run_forward(*arguments)
    return out.contiguous(), raw.contiguous(), stat.contiguous()


@forward.register_fake
def _(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*given)
    loaded = call.loaded
    # No dimension depends on a float: where the graph computes them, any will do.
    unknown = [0.0] * len(loaded.scalars)
    scalars = unpack(loaded, call.ints, call.floats if call.numbers is None else unknown)
    check_call(loaded, call.query, call.key, call.value, call.tensors, scalars, call.batch_ints)
    backend = engine_of(parse(call.settings), loaded, call.query, call.value)
    check_backend(backend, call.query, call.value)
    return forward_shapes(loaded, call.query, call.value)


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


@operator(
    "backward",
    "(Tensor grad_out, Tensor? grad_lse, Tensor raw, Tensor stat, "
    f"{SCHEMA}, bool[] grads) -> Tensor[]",
)
def backward(
    grad_out: Tensor, grad_lse: Tensor | None, raw: Tensor, stat: Tensor, *given: Any
) -> list[Tensor]:
    """Gradients of query, key, value and of the tensors that `grads`, the last argument, marks;
    contiguous. `raw` is what the forward gave, or `out` where the program has no `output`."""
    *parts, grads = given
    call = Call(*parts)
    loaded = call.loaded
    scale, floats = read_numbers(call.scale, call.floats, call.numbers)
    scalars = unpack(loaded, call.ints, floats)
    marked = marked_tensors(loaded, call.tensors, grads)
    inputs = (call.query, call.key, call.value)
    if not call.query.numel():
        return [
            torch.zeros_like(t, memory_format=torch.contiguous_format)
            for t in (*inputs, *marked.values())
        ]
    incoming = (readable(grad_out), None if grad_lse is None else grad_lse.contiguous())
    arguments = (*incoming, *inputs, raw, stat, *call.arguments(scale, scalars))
    with no_autocast(call.query):
        module = module_of_call(call, tuple(marked), scalars, "run_backward", arguments)
        found = module.run_backward(*arguments)
    return [gradient.contiguous() for gradient in found]


@backward.register_fake
def _(
    grad_out: Tensor, grad_lse: Tensor | None, raw: Tensor, stat: Tensor, *given: Any
) -> list[Tensor]:
    *parts, grads = given
    call = Call(*parts)
    marked = marked_tensors(call.loaded, call.tensors, grads)
    return [t.new_empty(t.shape) for t in (call.query, call.key, call.value, *marked.values())]


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
    call = Call(*inputs)
    out, raw, stat = output
    kept = out if call.loaded.output is None else raw
    batched = (call.q_offsets, call.k_offsets, call.k_len, call.numbers)
    ctx.save_for_backward(call.query, call.key, call.value, kept, stat, *batched, *call.tensors)
    ctx.scalars = (list(call.ints), list(call.floats), call.scale, call.q_offset, call.k_offset)
    ctx.texts = (call.program, call.settings)
    ctx.has_lse = call.loaded.weights.form == "softmax"
    ctx.set_materialize_grads(False)


def differentiate(
    ctx: Any, grad_out: Tensor | None, grad_raw: Tensor | None, grad_stat: Tensor | None
) -> tuple[Any, ...]:
    query, key, value, raw, stat, *saved = ctx.saved_tensors
    batched, tensors = saved[:4], saved[4:]
    ints, floats, *_ = ctx.scalars
    grads = [bool(needed) for needed in ctx.needs_input_grad[3]]
    if grad_out is None:
        grad_out = raw.new_zeros(raw.shape)
    grad_lse = grad_stat if ctx.has_lse else None
    call = (query, key, value, tensors, *ctx.scalars, *batched, *ctx.texts)
    found = iter(backward(grad_out, grad_lse, raw, stat, *call, grads))
    inputs = [next(found), next(found), next(found)]
    of_tensors = [next(found) if wanted else None for wanted in grads]
    # torch pairs the result with the inputs by structure, where an empty list of numbers is a list.
    of_ints: list[None] | None = None if ints else []
    of_floats: list[None] | None = None if floats else []
    rest = [None] * (len(Call._fields) - 6)
    return (*inputs, of_tensors, of_ints, of_floats, *rest)


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


def module_of_call(
    call: Call,
    grads: tuple[str, ...],
    scalars: Mapping[str, Number],
    function: tuned.Function,
    arguments: tuple[Any, ...],
) -> ModuleType:
    """The generated module that runs a function of it on these arguments, with the sizes that were
    measured for calls like it."""
    settings = parse(call.settings)
    query = call.query
    request = request_of_call(
        call.loaded,
        settings,
        *(query, call.key, call.value),
        call.tensors,
        call.batch_ints,
        grads,
        scalars,
        (call.q_offset, call.k_offset),
    )
    place = tuned.Place(call.program, call.loaded, request, query.device)
    lengths = (query.shape[2], call.key.shape[2])
    if settings.tune == "max":
        from attndsl.runtime.measuring import measure_call

        measure_call(place, lengths, function, arguments)
    if settings.tune != "off" and request.backend == "triton":
        found = tuned.sized(place, lengths)
        if found != request and not tuned.has_few_queries(place, lengths, function):
            request = found
    module = cache.module_of(call.program, call.loaded, request)
    if settings.backend == "auto" and request.backend == "cpp" and not is_built(module, function):
        return cache.module_of(call.program, call.loaded, replace(request, backend="torch"))
    return module


def request_of_call(
    program: Program,
    settings: Settings,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tensors: Sequence[Tensor],
    batch_ints: Mapping[str, Tensor | None],
    grads: tuple[str, ...],
    scalars: Mapping[str, Number],
    offsets: tuple[int, int],
) -> Request:
    """What a call on real tensors asks for; `offsets` of queries and keys where no tensor has
    them. ArgumentError where the backend cannot run it."""
    backend = engine_of(settings, program, query, value)
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
        deterministic=settings.deterministic,
    )
    if request.target == "interpreter" and "bfloat16" in (request.dtype, *request.tensor_dtypes):
        raise ArgumentError(
            "Triton's interpreter computes wrongly with bfloat16 (NumPy has no such type); give "
            'float16 or float32 tensors, or compile with backend="torch"'
        )
    if program.grid is not None and is_boxable_once(program):
        shapes = {t.name: given.shape for t, given in zip(program.tensors, tensors, strict=True)}
        sizes = bind_dims(program, shapes, input_sizes(query, key, value), scalars)
        request = ordered(program, request, settings, sizes, scalars, offsets)
    return request


def ordered(
    program: Program,
    request: Request,
    settings: Settings,
    sizes: Mapping[str, int],
    scalars: Mapping[str, Number],
    offsets: tuple[int, int],
) -> Request:
    """The request with the order of its positions. The C++ engine has runs of positions only:
    where boxes are the better tiles and nobody has asked for it, PyTorch runs the call."""
    if settings.backend == "cpp":
        return request
    on_cpu = replace(request, backend="torch") if request.backend == "cpp" else request
    order = order_of_call(program, on_cpu, sizes, scalars, offsets)
    return request if order.name == "linear" else replace(on_cpu, order=order.name)


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
