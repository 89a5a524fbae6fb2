"""Every example in the configurations that tuning can choose, against the float64 reference; and
tuning itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl
from attndsl.plan.candidates import candidates
from attndsl.plan.kernel_plan import Config, Request
from attndsl.plan.planner import table_sizes
from attndsl.report.arguments import Sizes as CallSizes
from attndsl.report.tuning.tune import tune
from attndsl.runtime import cache, tuned
from attndsl.runtime.tuned import KERNELS, Kernel, Place
from tests.gpu.run import TOLERANCES, errors
from tests.oracle.compare import cast, differentiate, is_softmax
from tests.oracle.examples import FOLDER, NAMES, Sizes, example_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 is set"
    ),
]
SAMPLES = 5  # configurations of each kernel, where not all of them are run


def nth(place: Place, kernel: Kernel, part: float) -> Config | None:
    """The configuration that lies so far in the list of candidates; the table's where it is empty.

    Lists are in order of shape, tile, warps and stages: equal parts meet all shapes.
    """
    found = candidates(place.program, place.request, kernel)
    if kernel == "backward_fused" and place.request.deterministic or not found:
        table: Config | None = getattr(table_sizes(place.program, place.request), kernel)
        return table
    return found[min(int(part * len(found)), len(found) - 1)]


def use_sizes(monkeypatch: pytest.MonkeyPatch, part: float) -> list[Request]:
    """Every call runs with such configurations; returns the requests that will be made."""
    made: list[Request] = []

    def sized(place: Place, lengths: tuple[int, int]) -> Request:
        sizes = table_sizes(place.program, place.request)
        for kernel in KERNELS:
            sizes = tuned.with_kernel(sizes, kernel, nth(place, kernel, part))
        made.append(replace(place.request, sizes=sizes))
        return made[-1]

    monkeypatch.setattr(tuned, "sized", sized)
    return made


def check(
    name: str, dtype: torch.dtype, sizes: Sizes, device: str, deterministic: bool = True
) -> dict[str, float]:
    """Errors of an example, relative to the largest value of what is compared: see run.py."""
    path = FOLDER / f"{name}.attn"
    query, key, value, inputs = example_inputs(name, sizes)
    rounded = {n: cast(x, dtype) for n, x in (("query", query), ("key", key), ("value", value))}
    rounded |= {n: cast(x, torch.float32) for n, x in inputs.arguments.items()}
    given = {n: x.to(device) if isinstance(x, Tensor) else x for n, x in rounded.items()}
    exact = {n: cast(x, torch.float64) for n, x in given.items()}
    wants_lse = is_softmax(path.read_text(encoding="utf-8"))
    attention = attndsl.compile(
        path, backend="triton", deterministic=deterministic, **inputs.consts
    )

    def adapt(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            result = function(**arguments, **inputs.call, return_lse=wants_lse)
            return result if wants_lse else (result, None)

        return call

    got = differentiate(adapt(attention), given, wants_lse)
    return errors(got, differentiate(adapt(attention.reference), exact, wants_lse))


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("sample", range(SAMPLES))
@pytest.mark.parametrize("name", NAMES)
def test_some_configurations(
    name: str, sample: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = use_sizes(monkeypatch, sample / (SAMPLES - 1))
    for deterministic in (True, False):
        found = check(
            name, torch.bfloat16, Sizes(2, 4, 2, 500, width, width), "cuda", deterministic
        )
        assert max(found.values()) <= TOLERANCES[torch.bfloat16], (found, made[-1].sizes)


@pytest.mark.sweep
@pytest.mark.parametrize("width", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_configuration(
    name: str, dtype: torch.dtype, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 41  # no kernel has more candidates
    for number in range(count):
        made = use_sizes(monkeypatch, number / count)
        found = check(name, dtype, Sizes(2, 4, 2, 500, width, width), "cuda", number % 2 == 0)
        assert max(found.values()) <= TOLERANCES[dtype], (found, made[-1].sizes)


@pytest.mark.parametrize("name", ["causal", "t5", "packed_documents", "moba"])
def test_tuning_refuses_no_candidate(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them launches and gives the result of the table's sizes, and a later call runs the
    winners."""
    monkeypatch.setenv("ATTNDSL_CACHE", str(tmp_path))
    cache.forget()
    attention = attndsl.compile(FOLDER / f"{name}.attn", backend="triton")
    found = tune(attention, CallSizes(1, 4, 2, 2048, 2048, 64, 64))
    assert found.passed, found.text
    assert all(path.is_file() for path in found.files)


def test_the_first_call_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNDSL_CACHE", str(tmp_path))
    cache.forget()
    attention = attndsl.compile(FOLDER / "causal.attn", tune="max")
    x = [torch.randn(1, 2, 600, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(attndsl.ArgumentError, match="make the call once before"):
        with torch.cuda.graph(graph):
            attention(*x)
    out = attention(*x)
    torch.testing.assert_close(out, attention.reference(*x), rtol=2e-2, atol=2e-2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attention(*x)
    graph.replay()
    torch.testing.assert_close(captured, out, rtol=0, atol=0)
