"""Lists of blocks in the Triton generator, in Triton's interpreter, against the oracle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl
from attndsl.backend import load
from attndsl.ir.nodes import FALSE, TRUE, Node, constant, scalar
from attndsl.ir.program import Program, Routed
from attndsl.plan.kernel_plan import KernelPlan, Request
from attndsl.plan.planner import plan
from attndsl.report.compiled.compile import Job, compile_jobs
from attndsl.runtime import cache
from attndsl.runtime.operators import forward, register
from tests.codegen.test_capture import BATCHED, record
from tests.oracle.compare import cast, difference, differentiate, is_softmax, oracle_function

OWN = "k <= q and k // 8 == q // 8"
PAST = "k // 8 < q // 8"
REST = "k <= q and not (k // 8 == q // 8)"


@dataclass
class Case:
    """A call: sizes (batch, heads, key heads, Nq, Nk, D, Dv), and the program's parts.

    base, rest  the masks of the base and of what lists add; they are never both true
    where       what is known of all that lists hold
    columns     keys of a block, by default of 8
    slots       entries of a list; about a third of them are none
    is_past     whether lists hold only blocks before the one of the row, as `PAST` says
    scalar      whether the size of a block is a parameter of the call
    body        what follows the mask
    """

    base: str = OWN
    rest: str = REST
    where: str = "true"
    body: str = ""
    sizes: tuple[int, ...] = (1, 2, 1, 33, 33, 16, 16)
    columns: int = 8
    slots: int = 3
    per_group: bool = False
    parameters: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    q_offset: Any = 0
    k_offset: Any = 0
    k_len: Tensor | None = None
    lists: Tensor | None = None
    is_past: bool = False
    scalar: bool = False
    dtype: torch.dtype = torch.float32
    tolerance: float = 2e-3


def floats(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, key_heads, rows, columns, width, value_width = case.sizes
    return (
        floats(batch, heads, rows, width, seed=3),
        floats(batch, key_heads, columns, width, seed=4),
        floats(batch, key_heads, columns, value_width, seed=5),
    )


def starts_of(case: Case, offset: Any) -> Tensor:
    """The first position of each sequence."""
    starts: Tensor = torch.zeros(case.sizes[0], dtype=torch.int64) + offset
    return starts


def block_count(case: Case) -> int:
    """One more than there can be, so that lists also name a block without keys."""
    return case.sizes[4] // case.columns + 2


def lists_of(case: Case) -> Tensor:
    """Random lists: none twice, in any order, none anywhere."""
    if case.lists is not None:
        return case.lists
    batch, heads, key_heads, rows, *_ = case.sizes
    count = max(block_count(case), case.slots)
    shape = (batch, key_heads if case.per_group else heads, rows, count)
    numbers = floats(*shape, seed=6).argsort(-1)[..., : case.slots]
    is_none = (floats(*numbers.shape, seed=7) > 0.4) | (numbers >= block_count(case))
    if case.is_past:
        is_none |= numbers >= (torch.arange(rows) // case.columns)[:, None]
    return torch.where(is_none, -1, numbers).int()


def listed(case: Case, lists: Tensor) -> Tensor:
    """Whether the list of a row holds the block of a column: bool [B, H, Nq, Nk]."""
    _, heads, _, _, length, _, _ = case.sizes
    shift = starts_of(case, case.k_offset) % case.columns
    block = (torch.arange(length) + shift[:, None]) // case.columns
    found = (lists[..., None, :] == block[:, None, None, :, None]).any(-1)
    return found.repeat_interleave(heads // found.shape[1], 1)


def mask_of(case: Case, text: str) -> Node:
    program = attndsl.compile(text=f"attention f({case.parameters}):\n    mask {text}\n").program
    return program.mask


def program_of(case: Case) -> Program:
    heads = "Hk" if case.per_group else "H"
    parameters = ", ".join(
        part for part in (case.parameters, f"near: int[B, {heads}, Nq, T]") if part
    )
    text = f"attention f({parameters}):\n    mask {case.base}\n{case.body}"
    rest, where = mask_of(case, case.rest), mask_of(case, case.where)
    routed = Routed("near", constant(case.columns), rest, case.per_group, where)
    if case.scalar:
        routed = replace(routed, columns=scalar("n", "int"))
    return replace(attndsl.compile(text=text).program, routed=routed)


def oracle_of(case: Case) -> Any:
    parts = (case.parameters, "listed: bool[B, H, Nq, Nk]", "first_q: int[B]", "first_k: int[B]")
    text = (
        f"attention f({', '.join(part for part in parts if part)}):\n"
        f"    mask ({case.base}) or (({case.rest}) and "
        f"listed[b, h, q - first_q[b], k - first_k[b]])\n{case.body}"
    )
    call = {"q_offset": case.q_offset, "k_offset": case.k_offset, "k_len": case.k_len}
    return oracle_function(text, "<text>", None, {k: v for k, v in call.items() if v is not None})


def run(program: Program, case: Case, *inputs: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    """(out, stat) of the operator that a call reaches."""
    query, key, value = inputs
    lists = lists_of(case)
    offsets = (case.q_offset, case.k_offset)
    out, _, stat = forward(
        query,
        key,
        value,
        [given.get(t.name, lists) for t in program.tensors],
        [given[s.name] for s in program.scalars],
        [],
        query.shape[3] ** -0.5,
        *(x if isinstance(x, int) else 0 for x in offsets),
        *(None if isinstance(x, int) else x for x in offsets),
        case.k_len,
        None,
        register(program),
        "triton",
    )
    return out, stat


def check(case: Case) -> None:
    query, key, value = inputs_of(case)
    program, wants_lse = program_of(case), is_softmax(case.body)

    def compiled(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Any:
        out, stat = run(program, case, query, key, value, **given)
        return out, stat if wants_lse else None

    given = {"query": query, "key": key, "value": value, **case.arguments}
    given = {n: cast(cast(x, case.dtype), torch.float64) for n, x in given.items()}
    got = differentiate(compiled, {n: cast(x, case.dtype) for n, x in given.items()}, wants_lse)
    oracle = oracle_of(case)
    fixed = {
        "listed": listed(case, lists_of(case)),
        "first_q": starts_of(case, case.q_offset),
        "first_k": starts_of(case, case.k_offset),
    }
    want = differentiate(lambda **inputs: oracle(**inputs, **fixed), given, wants_lse)
    wrong = difference(got, want, case.tolerance, 0.1)
    assert not wrong, wrong


THREE = (3, 2, 1, 17, 33, 16, 16)
ALIBI = "    score score - slope[h] * (q - k)\n"
GATE = "    output out * sigmoid(gate[b, h, q]) + shift[d]\n"
SINK = "    weights softmax(sink = sink[h] + 0.1 * q)\n"
NORMALIZE = "    weights normalize(1 + score + decay[h] * score ** 2 / 2)\n"
ELEMENTWISE = "    weights sigmoid(score - gain[k]) * gain[q]\n"
TABLES = "    score score * bias[place[q]] + bias[place[k]] + near_by[h, min(abs(q - k), 6)]\n"
DOTS = "    score score + dot(query, rel[h, min(q - k, 4)]) + dot(query, own[q % 3])\n"
CASES = {
    "plain": Case(),
    "proved": Case(where=PAST, is_past=True),
    "no base": Case("false", "true"),
    "no base, no proof": Case("false", "k <= q"),
    "nothing routed": Case(rest="false"),
    "empty lists": Case(lists=torch.full((1, 2, 33, 3), -1, dtype=torch.int32)),
    "no slots": Case(lists=torch.zeros((1, 2, 33, 0), dtype=torch.int32)),
    "one slot": Case(slots=1, sizes=(2, 2, 2, 33, 49, 16, 16)),
    "all blocks": Case("false", "true", slots=7),
    "blocks of three": Case("false", "k <= q", columns=3, slots=4),
    "blocks of one": Case("false", "true", columns=1, slots=4, sizes=(1, 2, 1, 5, 17, 16, 16)),
    "one block": Case("false", "k <= q", columns=100, slots=1),
    "blocks of 20": Case("false", "true", columns=20, slots=2, sizes=(1, 1, 1, 33, 70, 16, 16)),
    "a parameter's blocks": Case(
        columns=5,
        scalar=True,
        parameters="n: int",
        arguments={"n": 5},
        body="    score score * n\n",
    ),
    "groups of two": Case(per_group=True),
    "groups of three": Case(sizes=(2, 6, 2, 17, 33, 16, 16), per_group=True),
    "heads of three": Case(sizes=(1, 3, 1, 17, 33, 16, 16)),
    "widths": Case(sizes=(1, 2, 1, 33, 33, 24, 72)),
    "decode": Case("false", "k <= q", sizes=(2, 4, 2, 1, 70, 16, 32), q_offset=69, slots=4),
    "decode in groups": Case(
        "k > q - 5", "k <= q - 5", sizes=(2, 4, 2, 3, 70, 16, 16), q_offset=67, per_group=True
    ),
    "offsets": Case("false", "k <= q", q_offset=13, k_offset=5),
    "negative offsets": Case(q_offset=-7, k_offset=-13),
    "offsets of each sequence": Case(
        "false",
        "k <= q",
        sizes=THREE,
        q_offset=torch.tensor([16, -2, 40]),
        k_offset=torch.tensor([0, 5, -3]),
    ),
    "lengths of each sequence": Case(sizes=THREE, k_len=torch.tensor([33, 0, 18])),
    "lengths, nothing to test": Case(
        "false", "true", sizes=THREE, k_len=torch.tensor([33, 0, 18]), k_offset=3
    ),
    "listed base": Case(
        "doc[q] == doc[k] and k // 8 == q // 8",
        "doc[q] == doc[k] and not (k // 8 == q // 8)",
        parameters="doc: int[N]",
        arguments={"doc": torch.arange(33) // 7},
    ),
    "negative scale in a score": Case(body="    score -score * 2.0\n"),
    "alibi": Case(body=ALIBI, parameters="slope: float[H]", arguments={"slope": floats(2)}),
    "gate": Case(
        body=GATE,
        parameters="gate: float[B, H, Nq], shift: float[Dv]",
        arguments={"gate": floats(1, 2, 33), "shift": floats(20)},
        sizes=(1, 2, 1, 33, 33, 16, 20),
    ),
    "sink": Case(body=SINK, parameters="sink: float[H]", arguments={"sink": floats(2)}),
    "sink and gate": Case(
        "k == 0",
        "k > 0",
        body=SINK + "    output out * sigmoid(dot(query, w[h]))\n",
        parameters="sink: float[H], w: float[H, D]",
        arguments={"sink": floats(2), "w": floats(2, 16)},
    ),
    "sink, rows without keys": Case(
        "false",
        "k < q",
        body=SINK + "    output out + 1 / (abs(out) + 1e-9)\n",
        parameters="sink: float[H]",
        arguments={"sink": floats(2)},
    ),
    "normalize": Case(
        body=NORMALIZE, parameters="decay: float[H]", arguments={"decay": floats(2).abs()}
    ),
    "elementwise": Case(
        body=ELEMENTWISE, parameters="gain: float[N]", arguments={"gain": floats(33)}
    ),
    "tables": Case(
        body=TABLES,
        parameters="bias: float[N], place: int[N], near_by: float[H, 7]",
        arguments={
            "bias": floats(33),
            "place": torch.arange(33) * 7 % 33,
            "near_by": floats(2, 7),
        },
    ),
    "dots": Case(
        body=DOTS,
        parameters="rel: float[H, M, D], own: float[M, D]",
        arguments={"rel": floats(2, 5, 16), "own": floats(5, 16)},
        sizes=(1, 2, 1, 17, 17, 16, 16),
    ),
    "scores of -inf": Case(body="    score (-inf if (q + k) % 3 == 0 else score)\n"),
    "only scores of -inf": Case(body="    score -inf\n"),
    "float16": Case(dtype=torch.float16, tolerance=1e-2),
}


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize(
    ("name", "room"),
    [
        ("groups of three", 9000),
        ("tables", 3000),
        ("sink and gate", 9000),
    ],
)
def test_parts_of_lists(monkeypatch: pytest.MonkeyPatch, name: str, room: int) -> None:
    """Launches for a few lists, and for a few rows of one, give the same."""
    check_parts(monkeypatch, CASES[name], room)


def check_parts(monkeypatch: pytest.MonkeyPatch, case: Case, room: int) -> None:
    module_of = cache.module_of
    seen: list[Any] = []

    def with_little_room(*arguments: Any) -> Any:
        module = module_of(*arguments)
        monkeypatch.setattr(module, "ROUTED_BYTES", room)
        seen.append(module)
        return module

    monkeypatch.setattr(cache, "module_of", with_little_room)
    check(case)
    lists = lists_of(case).flatten(0, 1)
    parts = [part for *_, part in seen[0].attn_list_parts(lists, 16, 1)]
    assert sum(part.numel() for part in parts) == lists.numel() and len(parts) > 1
    assert all(part.numel() * 16 * 4 <= max(room, 16 * 4 * case.slots) for part in parts)


def test_launches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    module, *_ = module_for(CASES["plain"])
    lists = torch.zeros((7, 4, 2), dtype=torch.int32)
    monkeypatch.setattr(module, "MOST_PROGRAMS", 100)
    parts = list(module.attn_list_parts(lists, 16, 30))
    assert [(first, len(part)) for first, _, part in parts] == [(0, 3), (3, 3), (6, 1)]
    assert len(list(module.attn_list_parts(lists, 16, 1000))) == 7


def test_tiles_are_as_wide_as_blocks() -> None:
    module, *_ = module_for(CASES["plain"])
    widths = [module.attn_width(n, 16, 128) for n in (1, 16, 17, 64, 100, 128, 129, 2**30)]
    assert widths == [16, 16, 32, 64, 128, 128, 128, 128]


def test_results_are_the_same_bits_each_time() -> None:
    check_repeats(CASES["plain"])


def check_repeats(case: Case) -> None:
    program = program_of(case)
    inputs = [x.float().requires_grad_() for x in inputs_of(case)]
    given = {n: cast(x, torch.float32) for n, x in case.arguments.items()}
    inputs += [x.requires_grad_() for x in given.values() if x.is_floating_point()]
    results = [run(program, case, *inputs[:3], **given) for _ in range(2)]
    grads = [torch.autograd.grad(out.square().sum(), inputs) for out, _ in results]
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(x, y) for x, y in zip(*grads, strict=True))


def test_the_order_of_a_list_is_no_matter() -> None:
    case = CASES["proved"]
    program, inputs = program_of(case), [x.float() for x in inputs_of(case)]
    out, _ = run(program, case, *inputs)
    turned, _ = run(program, replace(case, lists=lists_of(case).flip(-1)), *inputs)
    assert torch.allclose(out, turned, atol=1e-6)


@pytest.mark.parametrize("k_len", [None, torch.tensor([19])])
def test_other_blocks_are_not_read(k_len: Tensor | None) -> None:
    """Whatever stands in blocks that nobody named, and behind the last key, does not show."""
    named = torch.tensor([1, 2, -1], dtype=torch.int32).expand(1, 2, 33, 3)
    case = Case("false", "k <= q", sizes=(1, 2, 1, 33, 49, 16, 16), lists=named, k_len=k_len)
    program = program_of(case)
    results = []
    for filler in (0.0, float("nan")):
        query, key, value = (x.float().clone() for x in inputs_of(case))
        last = 19 if k_len is not None else 24
        for x in (key, value):
            x[:, :, :8], x[:, :, last:] = filler, filler
        leaves = [x.requires_grad_() for x in (query, key, value)]
        out, stat = run(program, case, *leaves)
        grads = torch.autograd.grad(out.square().sum(), leaves)
        results.append((out, stat, *grads))
    assert not any(torch.isnan(x).any() for x in results[1])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_numbers_of_no_block_are_none() -> None:
    case = CASES["no base"]
    program, inputs = program_of(case), [x.float() for x in inputs_of(case)]
    lists = lists_of(case)
    wild = torch.where(lists < 0, torch.arange(33, dtype=torch.int32)[:, None] * 99991 + 77, lists)
    out, stat = run(program, replace(case, lists=lists), *inputs)
    again, stat_again = run(program, replace(case, lists=wild), *inputs)
    assert torch.equal(out, again) and torch.equal(stat, stat_again)


def module_for(case: Case, target: str = "interpreter") -> tuple[Any, Program, Request]:
    program = program_of(case)
    *_, width, value_width = case.sizes
    request = Request(
        backend="triton",
        target=target,
        dtype="float32" if target == "interpreter" else "bfloat16",
        head_dim=width,
        value_dim=value_width,
        grads=tuple(t.name for t in program.tensors if t.kind == "float"),
        tensor_dtypes=tuple(
            {"float": "float32", "int": "int32", "bool": "bool"}[t.kind] for t in program.tensors
        ),
    )
    return cache.module_of(register(program), program, request), program, request


@pytest.mark.parametrize(
    ("lists", "blocks", "size"),
    [
        ((2, 9, 3), 4, 4),
        ((1, 1, 5), 40, 16),
        ((3, 50, 2), 1, 16),
        ((1, 7, 0), 3, 16),
        ((2, 3, 2), 0, 4),
    ],
)
def test_tiles_hold_every_entry_once(lists: tuple[int, ...], blocks: int, size: int) -> None:
    module, *_ = module_for(CASES["plain"])
    part = torch.randint(-2, blocks + 2, lists, generator=torch.Generator().manual_seed(1)).int()
    numbers, order, starts = module.attn_sorted_entries(part, blocks)
    entries = lists[1] * lists[2]
    tiles = module.attn_entry_tiles(starts, entries, size)
    for which in range(lists[0]):
        found = []
        for block, first, last in tiles[which].tolist():
            assert last - first <= size
            own = order[which, first:last].tolist()
            assert own == sorted(own) and all(numbers[which, e] == block for e in own)
            found += own
        want = [e for e in range(entries) if 0 <= part[which].flatten()[e] < blocks]
        assert sorted(found) == want


def test_a_mask_that_lists_imply_is_not_tested() -> None:
    proved, tested = (load_plan(CASES[name]) for name in ("proved", "plain"))
    assert proved.program.mask is TRUE and tested.program.mask is not TRUE
    assert tested.tile.certain is not FALSE


def load_plan(case: Case) -> KernelPlan:
    _, program, request = module_for(case)
    found = plan(program, request).routed
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["groups of three", "tables", "dots", "decode", "listed base"])
@pytest.mark.parametrize("per_batch", [(), BATCHED], ids=["plain", "batched"])
def test_nothing_waits_for_the_device(
    monkeypatch: pytest.MonkeyPatch, name: str, per_batch: tuple[str, ...]
) -> None:
    case = replace(CASES[name], lists=None)
    arguments = {**case.arguments, "near": lists_of(case)}
    record(monkeypatch, program_of(case), inputs_of(case), arguments, per_batch)


@pytest.mark.parametrize(
    ("rows", "width"), [(0, 0), (16, 0), (0, 16)], ids=["dense", "sparse", "narrow"]
)
def test_gathered_kernels_compile(rows: int, width: int) -> None:
    """The sizes of tiles for Hopper: the higher ones keep wgmma, and nothing spills."""
    case = Case(columns=64, per_group=True, sizes=(1, 2, 1, 33, 33, 64, 64))
    _, program, request = module_for(case, "sm_90")
    decided, generator = plan(program, request), load("attndsl.codegen", "triton")
    kernels = [k for k in generator.kernels(decided) if k.name.startswith("routed_")]
    sized = ("routed_forward", "routed_backward_dq")
    if rows:
        kernels = [
            replace(k, constants={**k.constants, "BLOCK_M": rows}, num_warps=4)
            for k in kernels
            if k.name in sized
        ]
    if width:
        kernels = [
            replace(k, constants={**k.constants, "BLOCK_N": width})
            for k in kernels
            if k.name in sized
        ]
    (compiled,) = compile_jobs([Job(generator.emit(decided), tuple(kernels), "sm_90")])
    products = {"routed_forward", "routed_backward_dq", "routed_backward_dkv"}
    for kernel in compiled:
        assert kernel.spill_bytes == 0, kernel
        if kernel.name in products and not rows:
            assert kernel.wgmma > 0 and kernel.mma == 0, kernel
