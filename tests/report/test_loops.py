"""Loops of machine code: what belongs to them, which are over full tiles, and what is no loop."""

from __future__ import annotations

from textwrap import dedent

import pytest

from attndsl.report.compiled.loops import loops, read_amdgcn, read_sass, tile_loops


def sass(text: str) -> str:
    """Instructions as `nvdisasm -c` prints them, from lines without addresses."""
    lines = []
    for number, line in enumerate(dedent(text).strip().splitlines()):
        is_label = line.endswith(":")
        lines.append(line if is_label else f"        /*{16 * number:04x}*/    {line.strip()} ;")
    return "\n".join(lines)


def names(text: str) -> list[list[str]]:
    """The instructions of each loop."""
    return [[i.name for i in loop.instructions] for loop in loops(*read_sass(sass(text)))]


PRODUCT = "HGMMA.64x128x16.F32.BF16 R24, R184, gdesc[UR16], R24"


def test_a_loop_is_what_can_come_back() -> None:
    text = """
        MOV R1, c[0x0][0x28]
    .L_x_0:
        IADD3 R0, R0, 0x1, RZ
        @P0 BRA `(.L_x_0)
        EXIT
    .L_x_1:
        BRA `(.L_x_1)
    """
    assert names(text)[0] == ["IADD3", "BRA"]
    assert len(names(text)) == 1  # nothing leads to the end, which jumps to itself


def test_a_slow_path_at_the_end_belongs_to_its_loop() -> None:
    """It jumps back, and is no loop of its own; the two ways to wait are each counted once."""
    text = """
    .L_x_0:
        SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R2
        @!P1 BRA `(.L_x_2)
    .L_x_1:
        FADD R0, R0, R1
        @P0 BRA `(.L_x_0)
        EXIT
    .L_x_2:
        SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R2
        @!P1 BRA `(.L_x_2)
        BRA `(.L_x_1)
    """
    wait = "SYNCS.PHASECHK.TRANS64.TRYWAIT"
    whole, inner = names(text)
    assert whole == [wait, "BRA", "FADD", "BRA", wait, "BRA", "BRA"]
    assert inner == [wait, "BRA"]


def test_a_barrier_of_threads_serves_twice() -> None:
    """Where threads meet is said by the `BSSY` before, not by another of the same barrier."""
    text = """
        BSSY B0, `(.L_x_1)
        @P0 BRA `(.L_x_0)
        FADD R0, R0, R1
    .L_x_0:
        BSYNC B0
    .L_x_1:
        MOV R2, R3
    .L_x_2:
        BSSY B0, `(.L_x_4)
        @P0 BRA `(.L_x_3)
        FMUL R0, R0, R1
    .L_x_3:
        BSYNC B0
    .L_x_4:
        @P1 BRA `(.L_x_2)
        EXIT
    """
    assert names(text) == [["BSSY", "BRA", "FMUL", "BSYNC", "BRA"]]


@pytest.mark.parametrize("branch", ["BRA.U UP0, `(.L_x_1)", "BRA.DIV UR4, `(.L_x_1)"])
def test_conditions_among_operands(branch: str) -> None:
    text = f"""
    .L_x_0:
        {branch}
        FADD R0, R0, R1
    .L_x_1:
        @P0 BRA `(.L_x_0)
        EXIT
    """
    assert [len(found) for found in names(text)] == [3]


def test_a_jump_into_the_middle_makes_no_natural_loop() -> None:
    text = """
        @P0 BRA `(.L_x_1)
    .L_x_0:
        FADD R0, R0, R1
    .L_x_1:
        @P1 BRA `(.L_x_0)
        EXIT
    """
    assert names(text) == []


def test_full_tiles_are_the_shorter_loop_in_either_order() -> None:
    full = ["FADD R0, R0, R1"]
    partial = ["ISETP.GE.AND P2, PT, R3, R4, PT", "FSEL R0, R0, -INF , P2"]
    for first, second in ((full, partial), (partial, full)):
        lines = [".L_x_0:", PRODUCT, *first, "@P0 BRA `(.L_x_0)"]
        lines += [".L_x_1:", PRODUCT, *second, "@P1 BRA `(.L_x_1)", "EXIT"]
        found = tile_loops(*read_sass(sass("\n".join(lines))))
        assert found.full is not None and found.partial is not None
        assert (found.full.size, found.partial.size) == (3, 4)
        assert found.full.multiply_adds == 64 * 128 * 16


def test_loops_around_loops_do_not_count() -> None:
    text = f"""
    .L_x_0:
        MOV R0, R1
    .L_x_1:
        {PRODUCT}
        NOP
        @P0 BRA `(.L_x_1)
        @P1 BRA `(.L_x_0)
        EXIT
    """
    found = tile_loops(*read_sass(sass(text)))
    assert found.full is not None and found.partial is None
    assert found.full.size == 2  # without what fills space


def test_amdgcn() -> None:
    text = """
forward:                                ; @forward
; %bb.0:
	s_load_dwordx2 s[0:1], s[4:5], 0x0
.LBB0_1:                                ; %inner
	v_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1], v[2:3], a[0:15]
	s_cbranch_scc1 .LBB0_1
; %bb.2:
	s_branch .LBB0_3
.LBB0_3:
	s_endpgm
"""
    found = tile_loops(*read_amdgcn(text))
    assert found.full is not None
    assert [i.name for i in found.full.instructions] == [
        "v_mfma_f32_32x32x8_bf16_1k",
        "s_cbranch_scc1",
    ]


def test_what_is_spilled_in_a_loop() -> None:
    text = f"""
        STL [R1], R2
    .L_x_0:
        LDL R4, [R1+0x8]
        {PRODUCT}
        LDSM.16.M88.4 R8, [R3]
        @P0 BRA `(.L_x_0)
        EXIT
    """
    full = tile_loops(*read_sass(sass(text))).full
    assert full is not None and full.spilled == 1
