"""Attention: a compiled program as a callable."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from attndsl.diagnostics import ArgumentError, Diagnostic
from attndsl.ir import text as ir_text
from attndsl.ir.program import Program, Scalar
from attndsl.ir.program import Tensor as TensorParameter
from attndsl.plan.kernel_plan import Request
from attndsl.reference import Call, attend
from attndsl.runtime import arguments, cache, operators, routing, views
from attndsl.runtime.engines import refusal_of
from attndsl.runtime.settings import DEFAULTS, Settings, check_choice, parse
from attndsl.transform.route import used_selects

TARGETS = re.compile(r"sm_(?:[89]\d|1\d\d)|gfx\w{3,4}|interpreter")
DTYPE_NAMES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
# Tables are taken to be as wide as they usually are: a learned one in float32, ids in int32.
TABLE_DTYPES = {"float": "float32", "int": "int32", "bool": "bool"}


class Taken(NamedTuple):
    """The arguments of a call: an offset is a number, or a tensor beside the number 0."""

    inputs: tuple[Tensor, Tensor, Tensor]
    tensors: dict[str, Tensor]
    scalars: dict[str, bool | int | float]
    factor: float
    q_number: int
    k_number: int
    q_offsets: Tensor | None
    k_offsets: Tensor | None
    k_len: Tensor | None


class Attention:
    """An attention program, ready to be called; made by `attndsl.compile`.

    Immutable: it can be shared by modules and threads, copied and pickled. Calls can be traced by
    torch.compile and torch.export.
    """

    def __init__(self, program: Program, settings: Settings | str = DEFAULTS) -> None:
        self.program = program
        self.settings = parse(settings) if isinstance(settings, str) else settings
        self.backend = self.settings.backend
        self._settings = self.settings.text
        self.name = program.name
        self.consts = dict(program.consts)
        self._handle = operators.register(program)
        self._slots = arguments.slots_of(program)
        self._const_names = tuple(self.consts)
        has_choices = bool(used_selects(program))
        self._readers = routing.readers_of(self._handle) if has_choices else None
        self._is_softmax = program.weights.form == "softmax"
        self.__doc__ = describe(program)

    @property
    def parameters(self) -> tuple[Scalar | TensorParameter, ...]:
        """The declared run-time parameters, in order."""
        return self.program.parameters

    @functools.cached_property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """What is odd though not wrong: lookups that may fall outside, a mask that is never true, a
        parameter without effect. Found when first asked for."""
        from attndsl.analysis.warnings import warnings_of

        return tuple(warnings_of(self.program))

    def __call__(
        self,
        /,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *more: object,
        scale: float | None = None,
        q_offset: int | Tensor = 0,
        k_offset: int | Tensor = 0,
        k_len: Tensor | None = None,
        return_lse: bool = False,
        **parameters: object,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of query [B, H, Nq, D] over key [B, Hk, Nk, D] and value [B, Hk, Nk, Dv].

        scale       factor of the dot product, 1 / sqrt(D) unless given
        q_offset, k_offset   position of the first row and column: int, or an int[B] tensor
        k_len       int[B]: how many keys each sequence has
        return_lse  also return the logarithm of the softmax denominator [B, H, Nq]
        parameters  the program's, by name

        Returns [B, H, Nq, Dv] in query's dtype. Raises ArgumentError.
        """
        taken = self._take((query, key, value, *more), scale, q_offset, k_offset, k_len, parameters)
        self._check_lse(return_lse)
        arguments.refuse_forward_mode(*taken.inputs, *taken.tensors.values())
        ints, floats = arguments.pack(self._slots, taken.scalars)
        factor, floats, numbers = arguments.keep_symbolic(taken.factor, floats)
        handle, tensors = self._handle, list(taken.tensors.values())
        numbered = (taken.q_number, taken.k_number)
        batched = (taken.q_offsets, taken.k_offsets, taken.k_len, numbers)
        if self._readers is not None:
            query, key, _ = taken.inputs
            parts = (query, key, tensors, ints, floats, *numbered, *batched)
            handle, tensors = routing.choose(self._readers, handle, *parts)
        out, _, stat = operators.forward(
            *taken.inputs,
            tensors,
            ints,
            floats,
            factor,
            *numbered,
            *batched,
            handle,
            self._settings,
        )
        return (out, stat) if return_lse else out

    def reference(
        self,
        /,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *more: object,
        scale: float | None = None,
        q_offset: int | Tensor = 0,
        k_offset: int | Tensor = 0,
        k_len: Tensor | None = None,
        return_lse: bool = False,
        **parameters: object,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What a call means: the same arguments and results, dense, eager and differentiable.

        Memory is O(B * H * Nq * Nk). Raises ArgumentError.
        """
        taken = self._take((query, key, value, *more), scale, q_offset, k_offset, k_len, parameters)
        self._check_lse(return_lse)
        batch_ints = {
            "q_offset": taken.q_offsets,
            "k_offset": taken.k_offsets,
            "k_len": taken.k_len,
        }
        tensors, scalars = taken.tensors, taken.scalars
        sizes = arguments.check_call(
            self.program, *taken.inputs, list(tensors.values()), scalars, batch_ints
        )
        arguments.check_values(sizes, scalars, taken.factor, batch_ints)
        call = Call(
            *taken.inputs,
            taken.factor,
            taken.q_number if taken.q_offsets is None else taken.q_offsets,
            taken.k_number if taken.k_offsets is None else taken.k_offsets,
            taken.k_len,
            sizes,
            scalars,
            tensors,
        )
        out, lse = attend(self.program, call)
        if not return_lse:
            return out
        assert lse is not None
        return out, lse

    def _take(
        self,
        inputs: tuple[object, ...],
        scale: object,
        q_offset: object,
        k_offset: object,
        k_len: object,
        parameters: Mapping[str, object],
    ) -> Taken:
        """The arguments of a call, each checked by itself."""
        query, key, value = arguments.check_inputs(*inputs)
        tensors, scalars = arguments.collect(self._slots, self._const_names, parameters)
        factor = arguments.take_scale(scale, query.shape[3])
        q_number, q_offsets = arguments.take_offset("q_offset", q_offset)
        k_number, k_offsets = arguments.take_offset("k_offset", k_offset)
        lengths = None if k_len is None else arguments.take_batch_ints("k_len", k_len)
        inputs = cast_for_autocast(query, key, value)
        return Taken(
            inputs, tensors, scalars, factor, q_number, k_number, q_offsets, k_offsets, lengths
        )

    def _check_lse(self, return_lse: object) -> None:
        if return_lse and not self._is_softmax:
            raise ArgumentError(
                f"return_lse: {self.name} has `weights {self.program.weights.form}`; only softmax "
                "has a logarithm of the denominator"
            )

    def select(
        self,
        /,
        query: Tensor | None = None,
        key: Tensor | None = None,
        *more: object,
        q_offset: int | Tensor = 0,
        k_offset: int | Tensor = 0,
        k_len: Tensor | None = None,
        **parameters: object,
    ) -> Tensor | dict[str, Tensor]:
        """What the program's select chooses, as a select with `given` takes it.

        query [B, H, Nq, D], key [B, Hk, Nk, D]; the rest as in a call. Returns int32
        [B, H or Hk, Ni, T]: for every block of queries of the call the indices of the chosen blocks
        of keys, rising, with -1 behind. A program with several selects gives a dict by name. It
        waits for the device where T depends on the ranks. Raises ArgumentError.
        """
        from attndsl.runtime.choosing.operator import chosen_blocks, inputs_of

        arguments.refuse_positional(more, "after query and key arguments are given by name")
        # Nothing is read of a value: the key stands for one.
        taken = self._take((query, key, key), None, q_offset, k_offset, k_len, parameters)
        inputs = inputs_of(
            self.program,
            *taken.inputs[:2],
            list(taken.tensors.values()),
            taken.scalars,
            taken.q_number if taken.q_offsets is None else taken.q_offsets,
            taken.k_number if taken.k_offsets is None else taken.k_offsets,
            taken.k_len,
        )
        return chosen_blocks(self.program, inputs)

    def mask(
        self,
        /,
        *more: object,
        Nq: int | None = None,
        Nk: int | None = None,
        B: int | None = None,
        H: int | None = None,
        Hk: int | None = None,
        D: int | None = None,
        q_offset: int | Tensor = 0,
        k_offset: int | Tensor = 0,
        k_len: Tensor | None = None,
        query: Tensor | None = None,
        key: Tensor | None = None,
        **parameters: object,
    ) -> Tensor:
        """Which pairs take part: bool [B or 1, H or 1, Nq, Nk], 1 where the mask does not vary.

        Sizes come from the tensors given, else from here; B, H, Hk and D are 1 unless given. The
        result is on the device of the tensors given, else on the CPU.
        query [B, H, Nq, D], key [B, Hk, Nk, D]   what selects choose from, where the mask has any
        Parameters that the mask does not read may be left out. Raises ArgumentError.
        """
        sizes = {"Nq": Nq, "Nk": Nk, "B": B, "H": H, "Hk": Hk, "D": D}
        call = (q_offset, k_offset, k_len, parameters, query, key)
        return views.mask_pairs(*self._view(more, sizes, *call))

    def tiles(
        self,
        /,
        *more: object,
        Nq: int | None = None,
        Nk: int | None = None,
        B: int | None = None,
        H: int | None = None,
        Hk: int | None = None,
        D: int | None = None,
        block: object = (128, 128),
        q_offset: int | Tensor = 0,
        k_offset: int | Tensor = 0,
        k_len: Tensor | None = None,
        query: Tensor | None = None,
        key: Tensor | None = None,
        **parameters: object,
    ) -> Tensor:
        """Which tiles take part: int8 [B or 1, H or 1, rows, columns]; 0 empty, 1 partial, 2 full.

        Takes what `mask` takes, and the tile's (rows, columns) as a pair; a number is the value of
        a parameter that the program calls `block`, and the tile then 128 by 128. Empty and full are
        proved from the mask's text and one pass over the tables that it reads; a tile that this
        cannot decide counts as partial. A short row of tiles (`Nq=128, q_offset=...`) of a very
        long sequence costs O(Nk). Raises ArgumentError.
        """
        from attndsl.runtime.tiles import classify_tiles, facts_of

        sizes = {"Nq": Nq, "Nk": Nk, "B": B, "H": H, "Hk": Hk, "D": D}
        if "block" in (p.name for p in self.parameters) and not isinstance(block, (tuple, list)):
            parameters["block"], block = block, (128, 128)
        extent = views.take_block(block)
        call = (q_offset, k_offset, k_len, parameters, query, key)
        program, seen = self._view(more, sizes, *call)
        return classify_tiles(facts_of(program, seen.is_aligned), seen, extent)

    def _view(
        self,
        more: tuple[object, ...],
        sizes: Mapping[str, object],
        q_offset: object,
        k_offset: object,
        k_len: object,
        parameters: Mapping[str, object],
        query: object,
        key: object,
    ) -> tuple[Program, views.View]:
        """The program without selects, and the call that its mask is evaluated on."""
        from attndsl.runtime.routed_views import routed_view

        arguments.refuse_positional(more, "sizes and parameters are given by name: Nq=..., Nk=...")
        call = (sizes, q_offset, k_offset, k_len, parameters, query, key)
        return routed_view(self.program, self._slots, *call)

    def source(
        self,
        kind: str = "forward",
        *,
        backend: str | None = None,
        dtype: str | torch.dtype = "bfloat16",
        head_dim: int = 128,
        value_dim: int | None = None,
        target: str = "sm_90",
    ) -> str:
        """The generated module as text that runs by itself, with torch (and triton) alone.

        kind "forward" is what a call runs; "backward" what its gradient runs, for every float
        tensor. Both hold `run_forward` and `run_backward`. `backend` is the attention's own, and
        "triton" where that is "auto". Raises ArgumentError.
        """
        if backend is None:
            backend = "triton" if self.backend == "auto" else self.backend
        check_choice("kind", kind, ("forward", "backward"))
        check_choice("backend", backend, ("triton", "torch", "cpp"))
        if not TARGETS.fullmatch(target):
            expected = '"sm_80", "sm_90" or a later one, or a "gfx942"'
            raise ArgumentError(f"target: expected {expected}; got {target!r}")
        name = str(dtype).removeprefix("torch.")
        name = DTYPE_NAMES.get(name, name)
        widths = tuple(DTYPE_NAMES.values())
        check_choice("dtype", name, widths[:3] if backend == "triton" else widths)
        width = head_dim if value_dim is None else value_dim
        for argument, extent in (("head_dim", head_dim), ("value_dim", width)):
            check_width(argument, extent, backend)
        item = arguments.DTYPES["float"][widths.index(name)].itemsize
        program = self.program
        if self._readers is not None:
            program = operators.program_of(self._readers.handles[()])
        if backend == "cpp" and (reason := refusal_of(program, max(head_dim, width))):
            raise ArgumentError(f'backend="cpp": {reason}; use backend="torch"')
        floats = tuple(t.name for t in program.tensors if t.kind == "float")
        request = Request(
            backend=backend,
            target=target if backend == "triton" else "cpu",
            dtype=name,
            head_dim=head_dim,
            value_dim=width,
            grads=floats if kind == "backward" else (),
            tensor_dtypes=tuple(TABLE_DTYPES[t.kind] for t in program.tensors),
            aligned=(head_dim * item) % 16 == 0 and (width * item) % 16 == 0,
            deterministic=self.settings.deterministic,
        )
        return cache.generate(program, request)

    def explain(self, /, *more: object, **given: object) -> str:
        """What will run for given sizes and parameters, and why, for a person.

        Takes what `mask` takes. Raises ArgumentError.
        """
        from attndsl.report.explain import explain

        arguments.refuse_positional(more, "sizes and parameters are given by name: Nq=..., Nk=...")
        return explain(self, **given)

    def __repr__(self) -> str:
        listed = ", ".join(
            f"{slot.name}: {slot.declared}"
            + ("" if slot.default is None else f" = {slot.default!r}")
            for slot in self._slots
        )
        consts = "".join(f", {name}={value!r}" for name, value in self.consts.items())
        return f"<attention {self.name}({listed}) {self.settings.shown}{consts}>"

    def __copy__(self) -> Attention:
        return self

    def __deepcopy__(self, memo: object) -> Attention:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        # Nodes are interned and cannot be pickled; the text form reads back to the same ones.
        return restore, (self._handle, self.program.doc, self.program.text, self._settings)


def restore(handle: str, doc: str, text: str, settings: str) -> Attention:
    """The attention that was pickled."""
    program = dataclasses.replace(ir_text.parse(handle), doc=doc, text=text)
    return Attention(program, settings)


def describe(program: Program) -> str:
    """The docstring of an attention: the program's, and its parameters."""
    rows = [program.doc.strip(), ""] if program.doc.strip() else []
    rows.append("Parameters:" if program.parameters else "No parameters.")
    for slot in arguments.slots_of(program):
        default = "" if slot.default is None else f" = {slot.default!r}"
        rows.append(f"    {slot.name}: {slot.declared}{default}")
    return "\n".join(rows)


def check_width(argument: str, width: object, backend: str) -> None:
    limit = arguments.TRITON_WIDTH if backend == "triton" else 2**20
    if not isinstance(width, int) or isinstance(width, bool) or not 1 <= width <= limit:
        raise ArgumentError(f"{argument}: expected an int from 1 to {limit}, got {width!r}")


def cast_for_autocast(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """query, key and value in autocast's dtype where it is on; parameters keep theirs, and float64
    is left alone, as torch does."""
    device = query.device.type
    if not torch.is_autocast_enabled(device):
        return query, key, value
    dtype = torch.get_autocast_dtype(device)
    return cast(query, dtype), cast(key, dtype), cast(value, dtype)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)
