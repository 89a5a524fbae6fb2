"""The C++ engine against the oracle: results, the logarithm, and all gradients."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl
from attndsl.backend import load
from attndsl.plan.kernel_plan import Request
from attndsl.plan.planner import plan
from attndsl.semantics import analyse
from attndsl.source import Source
from attndsl.transform.simplify import simplify
from tests.codegen.cpp import compiler, quick, sanitised  # noqa: F401
from tests.oracle.compare import check_case, difference, differentiate
from tests.oracle.examples import NAMES, Sizes
from tests.oracle.random_programs import seeded
from tests.test_examples import check

pytestmark = pytest.mark.filterwarnings("ignore")  # what the compiler finds odd in a program

# Several tiles of rows and of columns, the last ones short, and widths that fill no vector.
SEVERAL = Sizes(batch=2, heads=4, key_heads=2, length=150, width=20, value_width=12)
# One for each kind of code: a sink, an epilogue, a table by distance, dots, pairs of a table, tiles
# told apart by summaries, weights that are no softmax, and powers by distance.
KINDS = ("gpt_oss", "t5", "music_transformer", "pair_bias", "packed_documents", "retention")

PROGRAM = """
attention a(bias: float[H, Nk], slope: float = 0.5):
    mask k <= q
    score 4.0 * tanh(score / 4.0) - slope * (q - k) + bias[h, k]
"""
DTYPES = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", KINDS)
def test_examples(name: str) -> None:
    check(name, "cpp", torch.float32, SEVERAL, 1e-3)


@pytest.mark.sweep
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_all_examples(name: str, dtype: torch.dtype) -> None:
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-3}.get(dtype, 5e-2)
    try:
        check(name, "cpp", dtype, SEVERAL, tolerance)
    except attndsl.ArgumentError as error:
        if "lists of blocks" not in str(error):
            raise


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", range(5))
def test_random_programs(seed: int) -> None:
    check_case(seeded(seed), "cpp", torch.float64, 1e-6)


@pytest.mark.sweep
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", range(3000, 3300))
def test_random_programs_sweep(seed: int) -> None:
    dtype = torch.float64 if seed % 2 else torch.float32
    check_case(seeded(seed), "cpp", dtype, 1e-6 if seed % 2 else 2e-3)


def inputs(dtype: torch.dtype, rows: int = 130, columns: int = 170) -> dict[str, Tensor]:
    """Stored as [batch, row, head, element], as a projection leaves them."""
    random = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    return {
        "query": normal(2, rows, 6, 36).transpose(1, 2),
        "key": normal(2, columns, 2, 36).transpose(1, 2),
        "value": normal(2, columns, 2, 20).transpose(1, 2),
        "bias": normal(6, columns),
    }


def compare(
    text: str, given: Mapping[str, Any], tolerance: float, **call: Any
) -> dict[str, Tensor]:
    """The results and gradients of the C++ engine, which are those of the reference in float64."""
    attention = attndsl.compile(text=text, backend="cpp")

    def engine(**tensors: Any) -> Any:
        return attention(**tensors, **call, return_lse=True)

    def reference(**tensors: Any) -> Any:
        return attention.reference(**tensors, **call, return_lse=True)

    got = differentiate(engine, given, True)
    wide = {n: x.double() if x.is_floating_point() else x for n, x in given.items()}
    wrong = difference(got, differentiate(reference, wide, True), tolerance, 0.1)
    assert not wrong, wrong
    return got


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    compare(PROGRAM, inputs(dtype), DTYPES[dtype], q_offset=40)


@pytest.mark.usefixtures("compiler")
def test_lengths_and_offsets_of_each_sequence() -> None:
    """Nothing from k_len on is read, though a tile reaches further; rows without a key give 0."""
    given = inputs(torch.float32)
    lengths = torch.tensor([0, 101])
    for name in ("key", "value"):
        given[name] = given[name].clone()
        given[name][1, :, 101:] = torch.nan
    call = {"k_len": lengths, "q_offset": torch.tensor([3, 40]), "k_offset": torch.tensor([0, 7])}
    attention = attndsl.compile(text=PROGRAM, backend="cpp")
    torch_engine = attndsl.compile(text=PROGRAM, backend="torch")
    clean = {n: torch.nan_to_num(x) for n, x in given.items()}

    def run(engine: Any) -> Any:
        return lambda **tensors: engine(**tensors, **call, return_lse=True)

    got = differentiate(run(attention), given, True)
    wrong = difference(got, differentiate(run(torch_engine), clean, True), 1e-4, 0.1)
    assert not wrong, wrong
    assert not got["out"][0].any() and not got["grad query"][0].any()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("rows", [1, 130])
def test_results_do_not_depend_on_threads(rows: int) -> None:
    """Bit for bit; few rows pack their keys for themselves, and agree too."""
    given = inputs(torch.float32, rows)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3, 2):
            torch.set_num_threads(threads)
            found.append(compare(PROGRAM, given, 1e-4, q_offset=170 - rows))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(x, other[name]) for name, x in found[0].items())


@pytest.mark.usefixtures("quick")
def test_tables_with_gradients_are_deterministic() -> None:
    """A table that all pairs read by an index of both: private sums, in a fixed order."""
    text = "attention a(t: float[7]):\n    score score + t[(q * 3 + k * 5) % 7]\n"
    given = inputs(torch.float32, 100, 60)
    del given["bias"]
    given["t"] = torch.linspace(-1, 1, 7)
    first, again = (compare(text, given, 1e-4) for _ in range(2))
    assert all(torch.equal(x, again[name]) for name, x in first.items())


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (1, 1)])
def test_nothing_and_almost_nothing(rows: int, columns: int) -> None:
    given = inputs(torch.float32, rows, columns)
    compare(PROGRAM, given, 1e-4, q_offset=1)


@pytest.mark.usefixtures("sanitised")
@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (1, 1), (50, 130)])
def test_nothing_undefined(rows: int, columns: int) -> None:
    """Nor where there is no key, no query, or a table is read outside."""
    given = inputs(torch.float32, rows, columns)
    given["t"] = torch.linspace(-1, 1, 7)
    text = """
        attention a(bias: float[H, Nk], t: float[7]):
            mask  k <= q
            score score + bias[h, k + 3] + t[(q * 3 + k * 5) % 9]
    """
    compare(text, given, 1e-4, q_offset=1)


@pytest.mark.usefixtures("quick")
def test_negative_and_zero_scale() -> None:
    given = inputs(torch.bfloat16)
    del given["bias"]
    for scale in (-0.3, 0.0):
        compare("attention a():\n    mask k <= q\n", given, 3e-2, q_offset=40, scale=scale)


@pytest.mark.usefixtures("quick")
def test_torch_compile() -> None:
    attention = attndsl.compile(text=PROGRAM, backend="cpp")
    given = inputs(torch.float32)
    traced = torch.compile(lambda **x: attention(**x, q_offset=40), backend="eager")
    assert torch.equal(traced(**given), attention(**given, q_offset=40))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_emits_the_same_valid_text(dtype: str) -> None:
    """Whatever the user's comments hold: a quote, a backslash at the end of a line."""
    text = (
        'attention a(t: float[H]):\n    # """ \\\n    mask k <= q  # \\\n    score score + t[h]\n'
    )
    program = simplify(analyse(Source("<text>", text), None, {}))
    request = Request(backend="cpp", dtype=dtype, grads=("t",), tensor_dtypes=("float32",))
    request = replace(request, head_dim=48, value_dim=80)
    generator = load("attndsl.codegen", "cpp")
    first, again = (generator.emit(plan(program, request)) for _ in range(2))
    assert first == again
    ast.parse(first)
    assert "attndsl" not in {
        name.name.split(".")[0]
        for node in ast.walk(ast.parse(first))
        if isinstance(node, ast.Import)
        for name in node.names
    }


HUGE = (-1e8, -1e9, -3e10, 1e20, -1e20, torch.finfo(torch.float32).min)


@pytest.mark.usefixtures("compiler")
def test_logits_of_any_size() -> None:
    """A bias that is the same for all keys changes nothing, though logits have no digits left
    beside it: as where all of a row is padding."""
    given = inputs(torch.float32, 5, 40)
    query, key, value = (given[name].requires_grad_() for name in ("query", "key", "value"))
    text = "attention a(m: float[Nk]):\n    score score + m[k]\n"
    attend = attndsl.compile(text=text, backend="cpp")
    shown = attndsl.compile(text=text, backend="torch")
    for size in HUGE:
        m = torch.full((40,), size)
        results = [a(query, key, value, m=m, return_lse=True) for a in (attend, shown)]
        (out, lse), (wanted, wanted_lse) = results
        torch.testing.assert_close(out, wanted, msg=str(size))
        torch.testing.assert_close(lse, wanted_lse, msg=str(size))
        found, expected = (torch.autograd.grad(r[0].sum(), value)[0] for r in results)
        torch.testing.assert_close(found, expected, msg=str(size))


@pytest.mark.usefixtures("compiler")
def test_ints_at_their_ends() -> None:
    """They wrap around, and the least one has a quotient and a rest by -1."""
    given = inputs(torch.float32, 5, 40)
    text = """
        attention a(t: int[Nk], s: int):
            mask  t[k] + 1 < t[k] or k % 3 > 0
            score score + 1e-18 * (t[k] // s) + t[k] % s
    """
    t = torch.full((40,), 5)
    t[::7], t[::5] = -(2**63), 2**63 - 1
    query, key, value = given["query"], given["key"], given["value"]
    found, wanted = (
        attndsl.compile(text=text, backend=backend)(query, key, value, t=t, s=-1)
        for backend in ("cpp", "torch")
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.usefixtures("compiler")
def test_weights_with_a_tiny_sum() -> None:
    given = inputs(torch.float32, 5, 40)
    text = "attention a():\n    weights normalize(exp(0.01 * score - 95.0))\n"
    attend = attndsl.compile(text=text, backend="cpp")
    query, key, value = given["query"], given["key"], given["value"]
    wanted = attend.reference(query.double(), key.double(), value.double())
    torch.testing.assert_close(attend(query, key, value).double(), wanted, atol=1e-3, rtol=1e-3)
