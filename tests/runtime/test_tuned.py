"""Measured sizes of kernels: stored, found again by calls, and measured by a call itself."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import attndsl
from attndsl.plan.budget import KERNELS
from attndsl.plan.candidates import candidates
from attndsl.plan.kernel_plan import Config, Request
from attndsl.plan.planner import plan, table_sizes
from attndsl.runtime import cache, measuring, operators, tuned
from attndsl.runtime.measuring import Contest, Session, session
from attndsl.runtime.settings import Settings, parse
from attndsl.runtime.tuned import Place, Winner

pytest.importorskip("triton")

TEXT = """
attention near(window: int = 9, bias: float[H]):
    mask 0 <= q - k < window
    score score + bias[h] * (k - q)
"""
BUCKET = (32, 32)  # of the lengths of `inputs`
BIAS = torch.tensor([0.1, -0.2])


def inputs(length: int = 20) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(length)
    return tuple(torch.randn(1, 2, length, 16, requires_grad=True) for _ in range(3))


def attention(**settings: Any) -> attndsl.Attention:
    return attndsl.compile(text=TEXT, backend="triton", **settings)


def place_of(attn: attndsl.Attention, **request: Any) -> Place:
    """Where calls of these tests look sizes up."""
    known: dict[str, Any] = {"head_dim": 16, "value_dim": 16, "tensor_dtypes": ("float32",)}
    found = Request(backend="triton", target="interpreter", **known | request)
    return Place(attn._handle, attn.program, found, torch.device("cpu"))


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests of the modules that run, in order."""
    found: list[Request] = []
    module_of = cache.module_of

    def seen(handle: str, program: Any, request: Request) -> Any:
        found.append(request)
        return module_of(handle, program, request)

    monkeypatch.setattr(cache, "module_of", seen)
    return found


OTHER = Config(16, 32, 1, 1)


def winner(config: Config = OTHER) -> Winner:
    return Winner(config, 1.0, 2.0)


# -- the store --------------------------------------------------------------------------------


def test_a_stored_winner_is_used_and_the_results_are_the_same(requests: list[Request]) -> None:
    attn, x = attention(), inputs()
    wanted = attn(*x, bias=BIAS)
    assert requests.pop().sizes is None
    tuned.remember(place_of(attn), BUCKET, {"forward": winner()})
    torch.testing.assert_close(attn(*x, bias=BIAS), wanted)
    sizes = requests.pop().sizes
    assert sizes is not None and sizes.forward == OTHER
    table = table_sizes(attn.program, place_of(attn).request)
    assert replace(sizes, forward=table.forward) == table


def test_a_backward_has_sizes_of_its_own(requests: list[Request]) -> None:
    attn, x = attention(), inputs()
    bias = BIAS.clone().requires_grad_()
    wanted = torch.autograd.grad(attn(*x, bias=bias).sum(), [*x, bias])
    requests.clear()
    found = {"backward_dq": winner(), "backward_dkv": winner(Config(32, 16, 1, 1))}
    tuned.remember(place_of(attn, grads=("bias",)), BUCKET, found)
    got = torch.autograd.grad(attn(*x, bias=bias).sum(), [*x, bias])
    torch.testing.assert_close(got, wanted)
    forward, backward = requests
    assert forward.sizes is None and backward.sizes is not None
    assert (backward.sizes.backward_dq, backward.sizes.backward_dkv) == (
        OTHER,
        Config(32, 16, 1, 1),
    )


@pytest.mark.parametrize("config", [None, Config(16, 16, 1, 1)], ids=["separate", "fused"])
def test_whether_the_backward_is_one_kernel_is_measured_too(
    config: Config | None, requests: list[Request]
) -> None:
    attn, x = attention(deterministic=False), inputs()
    wanted = torch.autograd.grad(attn(*x, bias=BIAS).sum(), x)
    table = table_sizes(attn.program, requests[-1])
    assert table.backward_fused not in (None, config)
    place = place_of(attn, deterministic=False)
    tuned.remember(place, BUCKET, {"backward_fused": Winner(config, 1.0, 2.0)})
    got = torch.autograd.grad(attn(*x, bias=BIAS).sum(), x)
    torch.testing.assert_close(got, wanted)
    sizes = requests[-1].sizes
    assert sizes is not None and sizes.backward_fused == config
    assert plan(attn.program, requests[-1]).backward_fused == config


def test_the_table_when_tuning_is_off(requests: list[Request]) -> None:
    attn = attention(tune="off")
    tuned.remember(place_of(attn), BUCKET, {"forward": winner()})
    attn(*inputs(), bias=BIAS)
    assert requests.pop().sizes is None


def test_the_nearest_lengths_serve(requests: list[Request]) -> None:
    attn = attention()
    tuned.remember(place_of(attn), (16, 16), {"forward": winner(Config(16, 16, 1, 1))})
    tuned.remember(place_of(attn), (128, 128), {"forward": winner()})
    for length, rows in ((5, 16), (16, 16), (40, 32), (2000, 32), (65, 32)):
        request = tuned.sized(place_of(attn), (length, length))
        assert request.sizes is not None
        assert request.sizes.forward.block_n == rows, length


def test_a_stored_winner_that_is_the_tables_makes_no_module(requests: list[Request]) -> None:
    attn = attention()
    table = table_sizes(attn.program, place_of(attn).request)
    tuned.remember(place_of(attn), BUCKET, {"forward": winner(table.forward)})
    attn(*inputs(), bias=BIAS)
    assert requests.pop().sizes is None


def test_calls_read_the_disk_once(monkeypatch: pytest.MonkeyPatch) -> None:
    attn, reads = attention(), []
    read = tuned.read
    monkeypatch.setattr(tuned, "read", lambda path: (reads.append(path), read(path))[1])
    for length in (20, 20, 30, 40):
        attn(*inputs(length), bias=BIAS)
    assert len(reads) == 1


def test_another_process_finds_it(requests: list[Request]) -> None:
    attn = attention()
    path = tuned.remember(place_of(attn), BUCKET, {"forward": winner()})
    tuned.forget()  # as a new process has read nothing
    attn(*inputs(), bias=BIAS)
    sizes = requests.pop().sizes
    assert sizes is not None and sizes.forward == OTHER
    record = json.loads(path.read_text())
    assert record["program"] == "near" and record["device"] == "cpu"
    assert record["measured"][0]["winners"]["forward"]["config"]["block_n"] == 32


def test_winners_are_kept_beside_each_other() -> None:
    attn = attention()
    place = place_of(attn)
    tuned.remember(place, BUCKET, {"forward": winner()})
    tuned.forget()
    tuned.remember(place, BUCKET, {"backward_dq": winner()})
    tuned.remember(place, (8, 32), {"forward": winner(Config(16, 16, 1, 1))})
    assert set(tuned.entry_of(place)[BUCKET]) == {"forward", "backward_dq"}
    assert set(tuned.entry_of(place)) == {BUCKET, (8, 32)}


def test_other_programs_requests_and_devices_have_places_of_their_own() -> None:
    attn = attention()
    place = place_of(attn)
    other = attndsl.compile(text=TEXT.replace("9", "8"), backend="triton")
    places = [place, place_of(other), place_of(attn, dtype="float16"), place_of(attn, head_dim=32)]
    places.append(place_of(attn, deterministic=False))
    assert len({tuned.path_of(p) for p in places}) == len(places)
    # Where a length or an offset comes from changes no size.
    assert tuned.path_of(place_of(attn, per_batch=("k_len",))) == tuned.path_of(place)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "edited": lambda data: data.replace(b'"block_n": 32', b'"block_n": 64'),
    "no record": lambda data: b"[1, 2]",
    "not utf-8": lambda data: b"\xff" + data,
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_file_is_not_used(damage: str, requests: list[Request]) -> None:
    attn = attention()
    path = tuned.remember(place_of(attn), BUCKET, {"forward": winner()})
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    tuned.forget()
    with pytest.warns(RuntimeWarning, match="is damaged"):
        attn(*inputs(), bias=BIAS)
    assert requests.pop().sizes is None
    tuned.remember(place_of(attn), BUCKET, {"forward": winner()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attn(*inputs(), bias=BIAS)
    assert requests.pop().sizes is not None


@pytest.mark.parametrize(
    "config",
    [
        Config(17, 32, 1, 1),
        Config(16, 0, 1, 1),
        Config(16, 4096, 1, 1),
        Config(16, 32, 3, 1),
        Config(16, 32, 1, 0),
        Config(16, True, 1, 1),
        Config(16, 32, 1, 1.0),  # type: ignore[arg-type]
        Config(16, 32, 1, 1, "sideways"),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_sizes_that_may_not_be_are_not_launched(config: Config, requests: list[Request]) -> None:
    attn = attention()
    tuned.remember(place_of(attn), BUCKET, {"forward": winner(config)})
    tuned.forget()
    with pytest.warns(RuntimeWarning, match="may not be launched"):
        attn(*inputs(), bias=BIAS)
    assert requests.pop().sizes is None


def test_sizes_beyond_a_cards_memory_are_not_launched() -> None:
    attn = attndsl.compile("examples/causal.attn")
    wide = {"dtype": "bfloat16", "head_dim": 128, "value_dim": 128, "tensor_dtypes": ()}
    found = Winner(Config(128, 128, 4, 3), 1.0, 2.0)
    for target, fits in (("sm_90", True), ("sm_80", False)):
        place = place_of(attn, **wide)._replace(
            request=replace(place_of(attn, **wide).request, target=target)
        )
        tuned.remember(place, BUCKET, {"forward": found})
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            sizes = tuned.sized(place, BUCKET).sizes
        assert (sizes is not None) is fits and bool(told) is not fits


# -- measuring ----------------------------------------------------------------------------------


class Clock:
    """A timer that says how long each configuration takes, and runs nothing."""

    def __init__(self, fast: Config | None = None) -> None:
        self.fast, self.calls = fast, 0
        self.now: tuple[str, Config | None] = ("", None)

    def __call__(self, call: Callable[[], object]) -> float:
        self.calls += 1
        return 1.0 if self.now[1] == self.fast else 2.0

    def session(self, **more: Any) -> Session:
        def step(kernel: str, config: Config | None, what: str) -> None:
            self.now = kernel, config

        return Session(timer=self, step=step, **more)


def test_the_first_call_measures_and_later_ones_do_not(requests: list[Request]) -> None:
    attn, x, clock = attention(tune="max"), inputs(), Clock(OTHER)
    wanted = attention(tune="off")(*x, bias=BIAS)
    with session(clock.session()):
        torch.testing.assert_close(attn(*x, bias=BIAS), wanted)
        sizes = requests[-1].sizes
        assert sizes is not None and sizes.forward == OTHER
        first = clock.calls
        assert first > 0
        torch.testing.assert_close(attn(*inputs(21), bias=BIAS), attn(*inputs(21), bias=BIAS))
        assert clock.calls == first
        attn(*inputs(40), bias=BIAS)  # lengths of another power of two
        assert clock.calls == 2 * first
    tuned.forget()
    attn(*x, bias=BIAS)  # nothing is left to be measured: no timer is asked for
    sizes = requests[-1].sizes
    assert sizes is not None and sizes.forward == OTHER


def test_few_queries_have_sizes_of_their_own(requests: list[Request]) -> None:
    """What is measured for many is none of theirs, and no measurement is made of them."""
    attn, clock = attention(tune="max"), Clock(OTHER)
    few = [x[:, :, :3].detach() for x in inputs()]
    with session(clock.session()):
        attn(*few, bias=BIAS)
        assert clock.calls == 0 and requests.pop().sizes is None
        attn(*inputs(), bias=BIAS)
        assert clock.calls > 0 and requests.pop().sizes is not None
        attn(*few, bias=BIAS)
        assert requests.pop().sizes is None


def test_a_backward_measures_its_two_kernels() -> None:
    attn, x, found = attention(tune="max"), inputs(), []

    def finished(place: Place, contest: Contest, path: Path) -> None:
        found.append((contest.kernel, contest.best.config, path.is_file()))

    with session(Clock(OTHER).session(finished=finished)):
        got = torch.autograd.grad(attn(*x, bias=BIAS).sum(), x)
    wanted = torch.autograd.grad(attention(tune="off")(*x, bias=BIAS).sum(), x)
    torch.testing.assert_close(got, wanted)
    assert found == [(kernel, OTHER, True) for kernel in KERNELS]


def test_a_gain_within_the_noise_is_none() -> None:
    results = tuple(
        measuring.Measured(Config(16, n, 1, 1), ms, 3) for n, ms in ((16, 1.0), (32, 0.99))
    )
    contest = Contest("forward", (40, 40), results)
    assert contest.best is contest.table
    better = replace(results[1], milliseconds=0.9)
    assert Contest("forward", (40, 40), (results[0], better)).best is better


def test_slower_halves_leave_and_the_table_stays() -> None:
    configs = [Config(16, 16, 1, n) for n in range(1, 10)]
    table, speed = configs[8], {config: n for n, config in enumerate(configs)}
    counts = dict.fromkeys(configs, 0)

    def time(config: Config, call: Callable[[], object]) -> float:
        counts[config] += 1
        return float(speed[config])

    found = measuring.halved({config: lambda: None for config in configs}, table, time)
    assert found[0].config == table and found[0].calls == max(counts.values())
    assert counts[configs[0]] == counts[table]
    assert counts[configs[7]] == measuring.FIRST_CALLS
    assert [result.milliseconds for result in found[1:]] == list(range(8))
    assert sum(counts.values()) + len(configs) == measuring.steps_of(len(configs))


def test_a_candidate_with_another_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    attn, x, found = attention(tune="max"), inputs(), []
    module_of = cache.module_of

    def wrong(handle: str, program: Any, request: Request) -> Any:
        module = module_of(handle, program, request)
        if request.sizes is not None and request.sizes.forward == OTHER:
            run = module.run_forward
            return type("Wrong", (), {"run_forward": lambda *a: [t + 0.1 for t in run(*a)]})
        return module

    monkeypatch.setattr(cache, "module_of", wrong)
    clock = Clock(OTHER)
    with session(clock.session(finished=lambda place, contest, path: found.append(contest))):
        with pytest.warns(RuntimeWarning, match="gives another result; it is left out"):
            attn(*x, bias=BIAS)
    (contest,) = found
    refused = [result for result in contest.results if result.refusal]
    assert [result.config for result in refused] == [OTHER]
    assert refused[0].milliseconds is None and contest.best is contest.table


def test_nan_and_infinity_agree_with_themselves_alone() -> None:
    x = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    assert measuring.agrees(x, x.clone(), 1e-6)
    for place in range(4):
        other = x.clone()
        other[place] = 2.0
        assert not measuring.agrees(other, x, 1e-3) and not measuring.agrees(x, other, 1e-3)


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_nothing_is_measured_without_a_gpu(backend: str) -> None:
    attn = attndsl.compile(text=TEXT, backend=backend, tune="max")
    where = "interpreter" if backend == "triton" else "on cpu"
    with pytest.raises(attndsl.ArgumentError, match=f"tune: .*{where}"):
        attn(*inputs(), bias=BIAS)


def test_candidates_of_the_interpreter_are_right() -> None:
    """Every example's tests run the table's sizes; this runs the others."""
    attn, x = attention(), inputs()
    place, table = place_of(attn), table_sizes(attn.program, place_of(attn).request)
    wanted = attn.reference(*x, bias=BIAS)
    for config in candidates(attn.program, place.request, "forward"):
        request = replace(place.request, sizes=replace(table, forward=config))
        module = cache.module_of(place.handle, place.program, request)
        out, *_ = module.run_forward(*x, 0.25, 0, 0, None, (BIAS,), (9,))
        torch.testing.assert_close(out, wanted)


# -- settings -----------------------------------------------------------------------------------

CHOSEN = {"backend": "triton", "tune": "off", "deterministic": False}


def test_settings_travel_with_a_pickle() -> None:
    attn = attention(tune="off", deterministic=False)
    again = pickle.loads(pickle.dumps(attn))
    assert again.settings == Settings("triton", "off", False) == parse(again.settings.text)
    assert repr(again) == repr(attn)
    assert "backend='triton', tune='off', deterministic=False" in repr(attn)


def test_settings_travel_with_an_exported_graph(tmp_path: Path, requests: list[Request]) -> None:
    attn = attention(tune="off", deterministic=False)
    tuned.remember(place_of(attn, deterministic=False), BUCKET, {"forward": winner()})

    class Layer(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = attn(q, k, v, bias=BIAS)
            assert isinstance(out, torch.Tensor)
            return out

    x = tuple(t.detach() for t in inputs())
    torch.export.save(torch.export.export(Layer(), x), tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    torch.testing.assert_close(loaded(*x), attn.reference(*x, bias=BIAS))
    assert requests[-1].sizes is None and requests[-1].deterministic is False


def test_deterministic_selects_the_module(requests: list[Request]) -> None:
    for deterministic in (True, False):
        attention(deterministic=deterministic)(*inputs(), bias=BIAS)
        assert requests.pop().deterministic is deterministic


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tune": "fast"}, "tune: unknown tune 'fast'; it is one of auto, off, max"),
        ({"tune": None}, "tune: unknown tune None"),
        ({"deterministic": 1}, "deterministic: expected True or False, got 1"),
        ({"tune": "max", "backend": "torch"}, 'tune: "max" measures Triton kernels on a GPU'),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(attndsl.ArgumentError, match=message):
        attndsl.compile(text=TEXT, **settings)


@pytest.mark.parametrize("text", ["triton tune", "triton tune=max pace=1", "none", ""])
def test_text_that_is_no_settings(text: str) -> None:
    x = inputs()
    numbers = ([BIAS], [9], [], 1.0, 0, 0, None, None, None, None)
    with pytest.raises(attndsl.ArgumentError):
        operators.forward(*x, *numbers, attention()._handle, text)
