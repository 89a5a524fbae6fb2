"""Every wrong call is an ArgumentError that names the argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import attndsl
from attndsl.runtime.attention import Attention
from attndsl.runtime.dims import write_type
from tests.runtime.programs import (
    attention,
    biased,
    biased_parameters,
    elementwise,
    inputs,
    windowed,
)

Change = dict[str, Any]


def call(attn: Attention, change: Change, parameters: Change | None = None) -> Any:
    query, key, value = inputs()
    arguments: Change = {"query": query, "key": key, "value": value, **(parameters or {})}
    for name, new in change.items():
        arguments[name] = new(arguments[name]) if callable(new) else new
    return attn(**arguments)


WRONG_INPUTS: list[tuple[Change, str]] = [
    ({"query": None}, "query: expected a torch.Tensor"),
    ({"key": [[1.0]]}, "key: expected a torch.Tensor"),
    ({"value": np.zeros((2, 2, 6, 8))}, "value: expected a torch.Tensor"),
    ({"query": lambda x: x[0]}, "query: expected four dimensions"),
    ({"query": lambda x: x[..., :0]}, "query: the last dimension must not be 0"),
    ({"value": lambda x: x[..., :0]}, "value: the last dimension must not be 0"),
    ({"key": lambda x: x[..., :4]}, "key: expected query's width D = 8"),
    ({"key": lambda x: x[:1]}, "key: expected query's batch of 2"),
    ({"value": lambda x: x[:, :, :5]}, "value: expected key's heads and length"),
    ({"query": lambda x: x[:, :3]}, "3 heads are no multiple of key's 2"),
    ({"query": lambda x: x[:, :0]}, "expected at least one head"),
    ({"key": lambda x: x.double()}, "key: expected query's dtype torch.float32"),
    ({"query": lambda x: x.detach().long()}, "query: expected float16"),
    ({"query": lambda x: x.to(torch.complex64)}, "query: expected float16"),
    ({"query": lambda x: x.detach().to_sparse()}, "query: expected a dense tensor"),
    ({"value": lambda x: x.to("meta")}, "value: expected a tensor with data"),
    ({"scale": "1"}, "scale: declared float"),
    ({"scale": True}, "scale: declared float"),
    ({"scale": math.nan}, "scale: expected a finite number"),
    ({"scale": math.inf}, "scale: expected a finite number"),
    ({"scale": torch.tensor(1.0)}, "scale: declared float"),
    ({"q_offset": 1.0}, "q_offset: expected an int or an int"),
    ({"q_offset": True}, "q_offset: expected an int or an int"),
    ({"q_offset": 2**29 + 1}, "q_offset: expected an int within"),
    ({"k_offset": torch.tensor(1)}, "k_offset: expected an int.*reshape"),
    ({"k_offset": torch.tensor([1.0, 2.0])}, "k_offset: expected an int"),
    ({"k_offset": torch.tensor([1, 2, 3])}, r"k_offset: expected int\[2\]"),
    ({"q_offset": torch.tensor([0, 2**40])}, r"q_offset: expected ints within"),
    ({"k_len": 3}, "k_len: expected an int"),
    ({"k_len": torch.tensor([1])}, r"k_len: expected int\[2\]"),
    ({"k_len": torch.tensor([1, 2], device="meta")}, "k_len: expected a tensor with data"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_INPUTS)
@pytest.mark.parametrize("method", ["call", "reference"])
def test_wrong_inputs(change: Change, message: str, method: str) -> None:
    attn = windowed()
    target: Callable[..., Any] = attn if method == "call" else attn.reference
    with pytest.raises(attndsl.ArgumentError, match=message):
        call(target, change)  # type: ignore[arg-type]


WRONG_PARAMETERS: list[tuple[Change, str]] = [
    ({"R": 2.0}, "R: declared int, got float 2.0"),
    ({"R": True}, "R: declared int, got bool True"),
    ({"R": "2"}, "R: declared int, got str"),
    ({"R": None}, "R: declared int, got NoneType"),
    ({"R": torch.tensor(2)}, r"R: declared int.*\.item\(\)"),
    ({"R": 2**31}, "R: expected an int within"),
    ({"R": 10**100}, "R: expected an int within"),
    ({"flat": 1}, "flat: declared bool, got int 1"),
    ({"doc": [[1, 2]]}, r"doc: declared int\[B, N\], expected a torch.Tensor"),
    ({"doc": lambda x: x.float()}, r"doc: declared int\[B, N\], got a tensor of float32"),
    ({"doc": lambda x: x.bool()}, r"doc: declared int\[B, N\], got a tensor of bool"),
    ({"doc": lambda x: x[0]}, "doc: declared .* which has 2 dimensions"),
    ({"doc": lambda x: x[:1]}, r"doc: declared int\[B, N\], which is \[2, 6\]"),
    ({"bias": lambda x: x.int()}, r"bias: declared float\[H, 2 \* R \+ 1\], got"),
    ({"bias": lambda x: x[:, :4]}, r"bias: .*\[4, 5\] here \(2 \* R \+ 1 = 5\).*\[4, 4\]"),
    ({"R": 3}, r"bias: .*\(2 \* R \+ 1 = 7\)"),
    ({"gate": lambda x: x.to("meta")}, "gate: expected a tensor with data"),
    ({"baïs": 1}, "unknown parameter"),
    ({"bais": 1}, "unknown parameter bais; did you mean `bias`?"),
    ({"qoffset": 1}, "unknown parameter qoffset; did you mean `q_offset`?"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_PARAMETERS)
def test_wrong_parameters(change: Change, message: str) -> None:
    parameters = {"flat": False, **biased_parameters()}
    with pytest.raises(attndsl.ArgumentError, match=message):
        call(biased(), change, parameters)


def test_missing_parameters_are_listed_together() -> None:
    with pytest.raises(attndsl.ArgumentError, match=r"missing R: int, doc: int\[B, N\], bias"):
        call(biased(), {})


def test_const_belongs_to_compile() -> None:
    with pytest.raises(attndsl.ArgumentError, match="block is const.*attndsl.compile"):
        call(windowed(), {"block": 4})


def test_select_takes_what_plays_a_part() -> None:
    text = "attention a():\n    select s[i = q, j = k]:\n        rank dot(query, key)\n"
    attention = attndsl.compile(text=text + "        keep top 1\n    mask s\n")
    query = torch.zeros(1, 1, 2, 4)
    with pytest.raises(attndsl.ArgumentError, match="scale is an argument of a call"):
        attention.select(query, query, scale=2.0)
    with pytest.raises(attndsl.ArgumentError, match="after query and key arguments are given by"):
        attention.select(query, query, query)


@pytest.mark.parametrize("number", [math.nan, np.float32("nan")])
def test_nan_is_no_number(number: Any) -> None:
    with pytest.raises(attndsl.ArgumentError, match="cap: expected a number, got NaN"):
        call(windowed(), {"cap": number})


def test_int_too_large_for_a_float() -> None:
    with pytest.raises(attndsl.ArgumentError, match="cap: the int given does not fit"):
        call(windowed(), {"cap": 10**400})


@pytest.mark.parametrize("number", [3, np.int64(3), np.uint8(3)])
def test_ints_of_numpy_are_ints(number: Any) -> None:
    torch.testing.assert_close(
        call(windowed(), {"window": number}), call(windowed(), {"window": 3})
    )


@pytest.mark.parametrize("number", [30, np.float32(30), np.float64(30), np.int32(30)])
def test_ints_are_taken_for_floats(number: Any) -> None:
    torch.testing.assert_close(call(windowed(), {"cap": number}), call(windowed(), {"cap": 30.0}))


def test_names_bound_by_two_tensors_must_agree() -> None:
    from attndsl.ir.nodes import SCORE, index, lookup, make, size
    from attndsl.ir.program import Tensor

    both = make("add", lookup("s", "float", index("q")), lookup("t", "float", index("k")))
    attn = attention(
        Tensor("s", "float", (size("N"),)),
        Tensor("t", "float", (size("N"),)),
        score=make("add", SCORE, both),
    )
    with pytest.raises(
        attndsl.ArgumentError, match=r"t: declared float\[N\] where N is 6 \(from s\)"
    ):
        call(attn, {}, {"s": torch.zeros(6), "t": torch.zeros(7)})


def test_lse_is_of_softmax() -> None:
    with pytest.raises(attndsl.ArgumentError, match="return_lse: hand has `weights elementwise`"):
        call(elementwise(), {"return_lse": True})


def test_backend_triton_needs_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from attndsl.runtime import targets

    monkeypatch.setattr(targets, "is_interpreting", lambda: False)
    with pytest.raises(attndsl.ArgumentError, match="TRITON_INTERPRET=1"):
        call(attention(backend="triton"), {})


def test_triton_takes_no_float64_and_no_wide_heads() -> None:
    attn = attention(backend="triton")
    with pytest.raises(attndsl.ArgumentError, match='float64 .*backend="torch"'):
        attn(*inputs(dtype=torch.float64))
    with pytest.raises(attndsl.ArgumentError, match="query: .* widths up to 256, got 257"):
        attn(*inputs(width=257, value_width=8))
    with pytest.raises(attndsl.ArgumentError, match="value: .* widths up to 256, got 300"):
        attn(*inputs(value_width=300))


def test_nested_tensors_are_refused() -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2, 3, 4)], layout=torch.jagged)
    with pytest.raises(attndsl.ArgumentError, match="query: expected a dense tensor, got a nested"):
        attention()(nested, nested, nested)


def test_types_are_written_as_the_user_wrote_them() -> None:
    assert [write_type(t) for t in biased().program.tensors] == [
        "int[B, N]",
        "float[H, 2 * R + 1]",
        "float[B, H, Nq]",
    ]
