"""Run a program as compiled and as its oracle says; compare results and all gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import attndsl
from tests.oracle.attention import Oracle
from tests.oracle.parsing import parse_text
from tests.oracle.random_programs import Case

Function = Callable[..., Any]
Results = dict[str, Tensor]  # out, lse, and "grad NAME" of every float input


def differentiate(
    function: Function, inputs: Mapping[str, Any], wants_lse: bool, seed: int = 7
) -> Results:
    """Call `function(**inputs)`, which gives (out, lse or None), and pull random gradients back.

    Every float tensor of `inputs` is differentiated. The gradients that are pulled back are the
    same numbers in every dtype; where lse is -inf nothing is pulled back through it.
    """
    leaves = {
        name: given.detach().requires_grad_()
        for name, given in inputs.items()
        if isinstance(given, Tensor) and given.is_floating_point()
    }
    out, lse = function(**{**inputs, **leaves})
    random = torch.Generator().manual_seed(seed)

    def weigh(x: Tensor) -> Tensor:
        factors = torch.randn(x.shape, generator=random).to(x.device, x.dtype)
        return (x * factors).sum()

    loss = weigh(out)
    results = {"out": out.detach()}
    if wants_lse:
        results["lse"] = lse.detach()
        loss = loss + weigh(torch.where(lse == -torch.inf, torch.zeros_like(lse), lse))
    grads: list[Tensor | None] = [None] * len(leaves)
    if loss.requires_grad:
        grads = list(torch.autograd.grad(loss, list(leaves.values()), allow_unused=True))
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        results[f"grad {name}"] = torch.zeros_like(leaf) if grad is None else grad
        assert results[f"grad {name}"].dtype == leaf.dtype, f"grad {name}: dtype"
    return results


def difference(got: Results, want: Results, tolerance: float, floor: float) -> str:
    """What differs, or an empty text: each result against its largest value (at least `floor`)."""
    wrong = []
    for name, expected in want.items():
        found, expected = got[name].to("cpu", torch.float64), expected.to("cpu", torch.float64)
        if found.shape != expected.shape:
            wrong.append(f"{name}: shape {[*found.shape]}, not {[*expected.shape]}")
            continue
        if torch.isnan(found).any() or torch.isnan(expected).any():
            wrong.append(f"{name}: NaN")
            continue
        infinite = torch.isinf(expected)
        if not torch.equal(infinite, torch.isinf(found)):
            wrong.append(f"{name}: not -inf at the same places")
            continue
        gap = torch.where(infinite, torch.zeros_like(found), found - expected).abs()
        finite = torch.where(infinite, torch.zeros_like(expected), expected).abs()
        largest = max(float(finite.max()) if finite.numel() else 0.0, floor)
        error = float(gap.max()) / largest if gap.numel() else 0.0
        if not error <= tolerance:
            at = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
            wrong.append(
                f"{name}{list(at)}: {float(found[at]):.9g}, not {float(expected[at]):.9g} "
                f"(error {error:.2g} of {largest:.3g})"
            )
    return "\n".join(wrong)


def cast(given: Any, dtype: torch.dtype) -> Any:
    """A float tensor in another dtype; anything else as it is."""
    return given.to(dtype) if isinstance(given, Tensor) and given.is_floating_point() else given


def is_softmax(text: str) -> bool:
    return "weights" not in text or "weights softmax" in text


def oracle_function(text: str, file: str, name: str | None, call: Mapping[str, Any]) -> Function:
    """(query, key, value, **arguments) -> (out, lse), by the oracle."""
    tree = parse_text(text, file)

    def run(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Any:
        return Oracle(tree, name, query, key, value, arguments=arguments, **call).run()

    return run


def check_case(case: Case, backend: str, dtype: torch.dtype, tolerance: float) -> None:
    """Compile a random case, run it, and raise with its text where it differs from the oracle."""
    try:
        wants_lse = is_softmax(case.text) and len(case.text) % 3 != 0
        attention = attndsl.compile(text=case.text, backend=backend, **case.consts)
        inputs = {"query": case.query, "key": case.key, "value": case.value, **case.arguments}

        def compiled(**given: Any) -> Any:
            result = attention(**given, **case.call, return_lse=wants_lse)
            return result if wants_lse else (result, None)

        got = differentiate(
            compiled, {name: cast(given, dtype) for name, given in inputs.items()}, wants_lse
        )
        call = dict(case.call)
        oracle = oracle_function(case.text, "<text>", None, call)
        want = differentiate(lambda **given: oracle(**given, **case.consts), inputs, wants_lse)
        wrong = difference(got, want, tolerance, 1e-3 if dtype == torch.float64 else 0.1)
    except Exception as error:
        error.add_note(repr(case))
        raise
    assert not wrong, f"{wrong}\n{case!r}"
