"""The operators in autograd and under torch's tracers."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import attndsl
from attndsl.runtime import cache, operators
from attndsl.runtime.attention import Attention
from tests.runtime.programs import (
    attention,
    biased,
    biased_parameters,
    elementwise,
    inputs,
    windowed,
)


def tensors_of(parameters: dict[str, object]) -> list[torch.Tensor]:
    return [p for p in parameters.values() if isinstance(p, torch.Tensor) and p.requires_grad]


def compare(attn: Attention, x: tuple[torch.Tensor, ...], **parameters: Any) -> None:
    """A call and its gradients against the reference."""
    found = attn(*x, **parameters)
    wanted = attn.reference(*x, **parameters)
    found = found if isinstance(found, tuple) else (found,)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    wrt = [*x, *tensors_of(parameters)]
    grads = [torch.randn_like(w) for w in wanted]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(
        torch.autograd.grad(found, wrt, grads),
        torch.autograd.grad(wanted, wrt, grads),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients(dtype: torch.dtype) -> None:
    compare(windowed(), inputs(dtype=dtype))
    compare(windowed(), inputs(dtype=dtype), return_lse=True, window=2, q_offset=1)
    compare(elementwise(), inputs(dtype=dtype))
    compare(biased(), inputs(dtype=dtype), **biased_parameters(dtype=dtype))
    compare(biased(), inputs(dtype=dtype), return_lse=True, **biased_parameters(dtype=dtype))


def test_offsets_and_lengths_per_batch() -> None:
    compare(
        windowed(),
        inputs(),
        q_offset=torch.tensor([0, 2]),
        k_offset=torch.tensor([1, 0], dtype=torch.int32),
        k_len=torch.tensor([3, 5]),
        return_lse=True,
    )


@pytest.mark.parametrize(
    "sizes", [(0, 4, 2, 6, 6), (1, 4, 2, 0, 6), (1, 4, 2, 6, 0), (1, 1, 1, 1, 1)]
)
def test_sizes_of_zero_and_one(sizes: tuple[int, int, int, int, int]) -> None:
    x = inputs(*sizes)
    compare(windowed(), x, return_lse=True)
    compare(elementwise(), x)


def test_only_lse_is_differentiated() -> None:
    x = inputs()
    _, lse = windowed()(*x, return_lse=True)
    _, wanted = windowed().reference(*x, return_lse=True)
    a = torch.autograd.grad(lse.sum(), x[:2])
    b = torch.autograd.grad(wanted.sum(), x[:2])
    torch.testing.assert_close(a, b)


def test_expanded_gradient_and_strided_inputs() -> None:
    query, key, value = inputs(nq=6, nk=6)
    strided = [t.detach().transpose(1, 2).contiguous().transpose(1, 2) for t in (query, key, value)]
    for t in strided:
        t.requires_grad_()
    attn = windowed()
    attn(*strided).sum().backward()
    attn(query, key, value).sum().backward()
    for a, b in zip(strided, (query, key, value), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    flipped = [t.detach().transpose(-1, -2).contiguous().transpose(-1, -2) for t in strided]
    torch.testing.assert_close(attn(*flipped), attn(query, key, value))


def test_tables_without_grad_receive_none() -> None:
    x, parameters = inputs(), biased_parameters()
    parameters["gate"] = parameters["gate"].detach()  # type: ignore[attr-defined]
    compare(biased(), x, **parameters)


def arguments_of(
    attn: Attention, x: tuple[torch.Tensor, ...], **parameters: Any
) -> tuple[Any, ...]:
    """What the operator is called with."""
    from attndsl.runtime.arguments import collect, pack

    tensors, scalars = collect(attn._slots, (), parameters)
    ints, floats = pack(attn._slots, scalars)
    numbers = (ints, floats, 0.3, 1, 0, None, None, torch.tensor([4, 6]), None)
    return (*x, list(tensors.values()), *numbers, attn._handle, "torch")


@pytest.mark.parametrize("name", ["windowed", "biased", "elementwise"])
def test_opcheck(name: str) -> None:
    attn = {"windowed": windowed, "biased": biased, "elementwise": elementwise}[name]()
    parameters = biased_parameters() if name == "biased" else {}
    arguments = arguments_of(attn, inputs(), **parameters)
    torch.library.opcheck(operators.forward, arguments)
    with torch.no_grad():
        out, raw, stat = operators.forward(*arguments)
    kept = out if raw.numel() == 0 else raw
    grads = [t.requires_grad for t in arguments[3]]
    lse = torch.ones_like(stat) if name == "windowed" else None
    plain = [[t.detach() for t in a] if i == 3 else a for i, a in enumerate(arguments)]
    plain[:3] = [t.detach() for t in arguments[:3]]
    backward = (torch.ones_like(out), lse, kept, stat, *plain, grads)
    torch.library.opcheck(operators.backward, backward)


def test_compile_fullgraph_and_lengths_that_change() -> None:
    attn = windowed()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q, k, v, w: attn(q, k, v, window=w, q_offset=k.shape[2] - q.shape[2]),
        fullgraph=True,
        backend="aot_eager",
    )
    counts = []
    for n, window in ((6, 4), (9, 5), (11, 6), (17, 3)):
        x = inputs(nq=n - 1, nk=n)
        out = compiled(*x, window)
        wanted = attn.reference(*x, window=window, q_offset=1)
        torch.testing.assert_close(out, wanted)
        grad = torch.randn_like(out)
        a, b = torch.autograd.grad(out, x, grad), torch.autograd.grad(wanted, x, grad)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        counts.append(cache.COUNTERS.loaded)
    assert counts[0] == counts[-1]


def test_new_numbers_do_not_trace_again() -> None:
    attn = windowed()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(
        lambda q, k, v, **p: attn(q, k, v, **p), fullgraph=True, backend="aot_eager"
    )
    x = inputs()
    for i in range(2, 14):
        numbers: dict[str, Any] = {"cap": i + 0.5, "scale": i / 7, "window": i, "q_offset": i}
        out, wanted = compiled(*x, **numbers), attn.reference(*x, **numbers)
        torch.testing.assert_close(out, wanted)
        a, b = torch.autograd.grad(out.sum(), x), torch.autograd.grad(wanted.sum(), x)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_compile_with_tables() -> None:
    attn = biased()
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x, **p: attn(*x, **p), fullgraph=True, backend="aot_eager")
    for n in (6, 8, 12):
        x, parameters = inputs(nq=n, nk=n), biased_parameters(nq=n)
        out, lse = compiled(*x, return_lse=True, **parameters)
        wanted, wanted_lse = attn.reference(*x, return_lse=True, **parameters)
        torch.testing.assert_close((out, lse), (wanted, wanted_lse))
        wrt = [*x, *tensors_of(parameters)]
        a = torch.autograd.grad(out.sum() + lse.exp().sum(), wrt)
        b = torch.autograd.grad(wanted.sum() + wanted_lse.exp().sum(), wrt)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_export_carries_the_program() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = windowed()

        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = self.attend(q, k, v, window=3)
            assert isinstance(out, torch.Tensor)
            return out

    x = tuple(t.detach() for t in inputs(nq=8, nk=8))
    length = torch.export.Dim("length", min=2, max=4096)
    exported = torch.export.export(Layer(), x, dynamic_shapes=[{2: length}] * 3)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    operators.PROGRAMS.clear()
    loaded = torch.export.load(file).module()
    longer = tuple(t.detach() for t in inputs(nq=13, nk=13))
    torch.testing.assert_close(loaded(*longer), windowed().reference(*longer, window=3))


LISTS = """
attention lists(block: int, n: int):
    select near[i = q, j = k // block]:
        rank dot(query, mean(key))
        where j < i // block
        keep top n
    mask (near or k // block == q // block) and k <= q
"""
TABLE = """
attention table(block: const int = 4):
    select near[i = q // block, j = k // block]:
        rank dot(mean(query), mean(key))
        where j <= i
        keep mass 0.7
    mask near and k <= q
"""


@pytest.mark.parametrize("text", [LISTS, TABLE], ids=["lists", "table"])
def test_compile_with_a_select_traces_once(text: str) -> None:
    attn = attndsl.compile(text=text, backend="torch")
    numbers = {"block": 4, "n": 2} if text is LISTS else {}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(
        lambda *x, **p: attn(*x, **p), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for n in (20, 21, 33, 50):
        x = inputs(nq=n, nk=n)
        out, wanted = compiled(*x, **numbers), attn.reference(*x, **numbers)
        torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
        a, b = torch.autograd.grad(out.sum(), x), torch.autograd.grad(wanted.sum(), x)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("text", [LISTS, TABLE], ids=["lists", "table"])
def test_export_with_a_select(text: str, tmp_path: Path) -> None:
    """Of any length, and read by a process that has done nothing but import the package."""
    attn = attndsl.compile(text=text, backend="torch")
    numbers = {"block": 4, "n": 2} if text is LISTS else {}

    class Layer(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = attn(q, k, v, **numbers)
            assert isinstance(out, torch.Tensor)
            return out

    x = tuple(t.detach() for t in inputs(nq=20, nk=20))
    length = torch.export.Dim("length", min=9, max=4096)
    exported = torch.export.export(Layer(), x, dynamic_shapes=[{2: length}] * 3)
    torch.export.save(exported, tmp_path / "layer.pt2")
    longer = tuple(t.detach() for t in inputs(nq=33, nk=33))
    wanted = attn.reference(*longer, **numbers)
    torch.save((longer, wanted), tmp_path / "call.pt")
    read = """
import torch, attndsl
layer = torch.export.load("layer.pt2").module()
x, wanted = torch.load("call.pt")
torch.testing.assert_close(layer(*x), wanted)
"""
    paths = [str(Path(attndsl.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", read],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths))),
        check=True,
        timeout=120,
    )


def test_checkpointing() -> None:
    attn, x, parameters = biased(), inputs(), biased_parameters()
    wrt = [*x, *tensors_of(parameters)]
    out = checkpoint(lambda *a: attn(*a, **parameters).tanh(), *x, use_reentrant=False)
    wanted = attn(*x, **parameters).tanh()
    a, b = torch.autograd.grad(out.sum(), wrt), torch.autograd.grad(wanted.sum(), wrt)
    torch.testing.assert_close(a, b)


def test_autocast_casts_inputs_and_nothing_else() -> None:
    attn, x, parameters = biased(), inputs(), biased_parameters()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attn(*x, **parameters)
        wanted = attn.reference(*x, **parameters)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, wanted)
    out.float().sum().backward()
    assert x[0].grad is not None and x[0].grad.dtype == torch.float32
    assert parameters["bias"].grad.dtype == torch.float32  # type: ignore[attr-defined]
    double = inputs(dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert windowed()(*double).dtype == torch.float64
    # Products inside generated code are not autocast's business, in backward either.
    single = inputs()
    plain = windowed()(*single)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.autograd.grad(plain.sum(), single, retain_graph=True)
    torch.testing.assert_close(inside, torch.autograd.grad(plain.sum(), single))


def test_second_derivative_is_refused() -> None:
    x = inputs()
    out = windowed()(*x)
    (grad,) = torch.autograd.grad(out.square().sum(), x[0], create_graph=True)
    with pytest.raises(attndsl.ArgumentError, match="no second derivative"):
        grad.sum().backward()


def test_inference_and_no_grad() -> None:
    x = inputs()
    wanted = windowed()(*x).detach()
    with torch.inference_mode():
        torch.testing.assert_close(windowed()(*x), wanted)
    with torch.no_grad():
        assert not windowed()(*x).requires_grad


def test_nothing_is_generated_again() -> None:
    attn = biased()

    def step(n: int, reach: int, batch: int, seed: int) -> None:
        torch.manual_seed(seed)
        parameters = biased_parameters(batch=batch, nq=n)
        parameters |= {"R": reach, "bias": torch.randn(4, 2 * reach + 1, requires_grad=True)}
        out = attn(*inputs(batch=batch, nq=n, nk=n), q_offset=seed, **parameters)
        out.sum().backward()

    step(6, 2, 2, 0)
    before = cache.COUNTERS.generated, cache.COUNTERS.loaded
    for n, reach, batch, seed in ((7, 3, 1, 5), (1, 1, 3, 9), (33, 8, 2, 1)):
        step(n, reach, batch, seed)
    assert (cache.COUNTERS.generated, cache.COUNTERS.loaded) == before


def test_copies_and_pickles() -> None:
    attn, x, parameters = biased(), inputs(), biased_parameters()
    assert copy.deepcopy(attn) is attn and copy.copy(attn) is attn
    again = pickle.loads(pickle.dumps(attn))
    assert again.program == attn.program and again.__doc__ == attn.__doc__
    assert repr(again) == repr(attn) and again.backend == attn.backend
    torch.testing.assert_close(again(*x, **parameters), attn(*x, **parameters))

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = attn
            self.bias = torch.nn.Parameter(torch.zeros(4, 5))

    layer = copy.deepcopy(Layer())
    assert list(layer.state_dict()) == ["bias"]


def test_text_that_is_no_program() -> None:
    x = inputs()
    with pytest.raises(attndsl.ArgumentError, match="not a program's text"):
        operators.forward(*x, [], [], [], 1.0, 0, 0, None, None, None, None, "nonsense", "torch")


def test_operator_checks_shapes_by_itself() -> None:
    attn = biased()
    arguments = list(arguments_of(attn, inputs(), **biased_parameters()))
    arguments[3] = [t[:1] for t in arguments[3]]
    with pytest.raises(attndsl.ArgumentError, match="doc: declared"):
        operators.forward(*arguments)


def test_repr_and_docstring() -> None:
    attn = windowed()
    assert repr(attn) == (
        "<attention hand(window: int = 4, cap: float = 20.0) backend='auto', block=8>"
    )
    assert attn.__doc__ == ("By hand.\n\nParameters:\n    window: int = 4\n    cap: float = 20.0")
    assert [p.name for p in attn.parameters] == ["window", "cap"]
    assert attention().__doc__ == "By hand.\n\nNo parameters."


def test_forward_mode_is_refused() -> None:
    attn = attndsl.compile(text="attention f:\n    mask k <= q\n")
    x = torch.randn(1, 1, 4, 8)
    with pytest.raises(attndsl.ArgumentError, match="forward-mode"):
        torch.func.jvp(lambda query: attn(query, x, x), (x,), (torch.ones_like(x),))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(attndsl.ArgumentError, match="forward-mode"):
            attn(x, dual, x)
        assert attn(x, x, x).shape == x.shape  # no tangent, nothing lost
