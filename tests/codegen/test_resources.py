"""The static gate: all examples on sm_90 with `wgmma`, no spill in loops, as short as recorded."""

import warnings
from dataclasses import replace

import pytest

pytest.importorskip("triton")

from tests.codegen import resources
from tests.codegen.compilers import Compilers
from tests.codegen.resources import (
    GROUPS,
    RECORD,
    VERSION,
    Group,
    compare,
    faults,
    group_of,
    read_record,
    record_of,
)

# CI compiles all examples at a head dimension of 64 in the sizes of the table, and of the others
# these, which stand for closed forms, lists, tables and selects. The rest is in the sweep.
ALSO = {
    "table": ("causal", "packed_documents", "t5", "quest"),
    "peeled": ("causal",),
}


def is_in_ci(group: Group) -> bool:
    is_first = (group.head_dim, group.variant) == (64, "table")
    return is_first or group.example in ALSO[group.variant]


@pytest.mark.parametrize(
    "group",
    [
        pytest.param(group, id=group.key(""), marks=[] if is_in_ci(group) else [pytest.mark.sweep])
        for group in GROUPS
    ],
)
def test_gate(group: Group, compilers: Compilers) -> None:
    job = group.job
    kernels = compilers.compile_jobs([job])[0] if job else []
    if job:
        assert list(faults(group, kernels)) == []
    record = read_record().get(VERSION)
    if record is None:
        warnings.warn(f"nothing is recorded for Triton {VERSION}: not compared", stacklevel=1)
        return
    wrong = compare(record_of(group, kernels), record, group)
    assert not wrong, "\n".join([*wrong, "If that is meant: make record, and why in the commit."])


def test_record_is_of_the_examples() -> None:
    tables = {group for group in GROUPS if group.variant == "table"}
    for version, record in read_record().items():
        found = {group_of(key) for key in record}
        assert tables <= found <= set(GROUPS), version
    assert RECORD.read_text(encoding="utf-8") == resources.text_of(read_record()) + "\n"


A = Group("a", 64, "table")
FORWARD = {"registers": 200, "shared_bytes": 1024, "wgmma": 16, "tma": 4, "full_loop": 600}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"full_loop": 618, "registers": 255}, None),  # 3 % more
        ({"full_loop": 619}, "619 instructions in the loop over full tiles, recorded 600"),
        ({"full_loop": 500}, None),
        ({"wgmma": 0}, "no wgmma, recorded 16"),
        ({"tma": 0}, "no tma, recorded 4"),
        ({"full_loop": 0}, "no loop over full tiles, recorded 600 instructions"),
    ],
)
def test_what_a_kernel_may_lose(change: dict[str, int], complaint: str | None) -> None:
    now = {"a d64 forward": FORWARD | change}
    wrong = compare(now, {"a d64 forward": FORWARD}, A)
    assert wrong == ([f"a d64 forward: {complaint}"] if complaint else [])


def test_kernels_come_and_go_with_a_record() -> None:
    record = {"a d64 forward": FORWARD, "a d128 forward": FORWARD, "b d64 forward": FORWARD}
    assert compare({"a d64 dq": FORWARD}, record, A) == [
        "a d64 dq: no record",
        "a d64 forward: recorded, and there is no such kernel",
    ]


def test_faults_of_a_kernel(compilers: Compilers) -> None:
    group = Group("causal", 64, "table")
    assert group.job is not None
    ((*kernels,),) = compilers.compile_jobs([group.job])
    assert list(faults(group, kernels)) == []
    forward = next(kernel for kernel in kernels if kernel.name == "forward")
    others = [kernel for kernel in kernels if kernel is not forward]
    worse = {
        "spills 72 bytes": {"spill_bytes": 72},
        "spills in its loop over full tiles": {"loop_spills": 2, "spill_bytes": 8},
        "takes 232449 bytes of shared memory": {"shared_bytes": 227 * 1024 + 1},
        "has no wgmma": {"wgmma": 0},
        "leaves 4 products to mma.sync": {"mma": 4},
    }
    for fault, figures in worse.items():
        assert list(faults(group, [*others, replace(forward, **figures)])) == [f"forward: {fault}"]
    without = [kernel for kernel in kernels if kernel.name != "backward_dq"]
    assert list(faults(group, without)) == ["backward_dq: there is no such kernel"]


def test_recording_says_what_changes(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(resources, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(resources, "GROUPS", [A, Group("b", 64, "table")])
    figures = FORWARD

    def measure(groups, processes):
        return {group.key("forward"): figures for group in groups}

    monkeypatch.setattr(resources, "measure", measure)
    resources.main([])
    assert "+ a d64 forward: {'registers': 200" in capsys.readouterr().out
    figures = FORWARD | {"full_loop": 500}
    resources.main(["b"])
    assert capsys.readouterr().out == "~ b d64 forward: full_loop 600 -> 500\n"
    resources.main(["b"])
    assert capsys.readouterr().out == "nothing has changed\n"
    assert resources.read_record()[VERSION]["a d64 forward"] == FORWARD
