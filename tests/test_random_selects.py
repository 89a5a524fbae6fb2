"""Random programs with selects: reference and both generators against the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl
from attndsl.ir.nodes import TRUE, chosen, make
from attndsl.ir.program import Program
from attndsl.reference import Call, Choice, Evaluation, attend, choices
from attndsl.transform.route import form_of, route, used_selects
from tests.oracle.compare import check_case, difference, differentiate, is_softmax, oracle_function
from tests.oracle.random_programs import Case
from tests.oracle.random_selects import select_case, select_cases

pytestmark = pytest.mark.filterwarnings("ignore")  # what the compiler finds odd in random programs


def check_reference(case: Case) -> bool:
    """Whether a row has a key at all; raises where the reference differs from the oracle."""
    attention = attndsl.compile(text=case.text, **case.consts)
    wants_lse = is_softmax(case.text)
    inputs = {"query": case.query, "key": case.key, "value": case.value, **case.arguments}

    def reference(**given: Any) -> Any:
        result = attention.reference(**given, **case.call, return_lse=wants_lse)
        return result if wants_lse else (result, None)

    oracle = oracle_function(case.text, "<text>", None, case.call)
    want = differentiate(lambda **given: oracle(**given, **case.consts), inputs, wants_lse)
    wrong = difference(differentiate(reference, inputs, wants_lse), want, 1e-6, 1e-3)
    assert not wrong, f"{wrong}\n{case!r}"
    return bool((want["out"] != 0).any())


@pytest.mark.parametrize("part", range(4))
def test_reference(part: int) -> None:
    cases = select_cases(50, part)
    assert sum(check_reference(case) for case in cases) > 25


def call_of(case: Case, program: Program) -> Call:
    """The call of a case, for the reference."""
    batches, heads, rows, width = case.query.shape
    key_heads, columns = case.key.shape[1:3]
    sizes = {"B": batches, "H": heads, "Hk": key_heads, "G": heads // key_heads}
    sizes |= {"Nq": rows, "Nk": columns, "D": width}
    tensors = {t.name: case.arguments[t.name] for t in program.tensors}
    for tensor in program.tensors:
        for dim, extent in zip(tensor.dims, tensors[tensor.name].shape, strict=True):
            if dim.op == "size":
                sizes.setdefault(dim.name, extent)
    scalars = {s.name: case.arguments[s.name] for s in program.scalars}
    place = [case.call.get(name, 0) for name in ("q_offset", "k_offset")]
    scale = case.call.get("scale", width**-0.5)
    floats = (case.query, case.key, case.value)
    return Call(*floats, scale, *place, case.call.get("k_len"), sizes, scalars, tensors)


def tensors_of(routed: Program, choice: Choice, at: int) -> dict[str, Tensor]:
    """What a routed program reads for one select: its table and first blocks, or its lists."""
    table = choice.chosen
    if routed.routed is not None:
        numbers = torch.where(table, torch.arange(table.shape[3]), -1)
        row = choice.rows.number[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[3])
        return {routed.routed.lists: numbers.gather(2, row)}
    name, sums = routed.counted[at].table, routed.counted[at].sums
    counts = torch.nn.functional.pad(table.int().cumsum(2).cumsum(3), (1, 0, 1, 0))
    firsts = {f"{name}_i0": choice.rows.first, f"{name}_j0": choice.columns.first}
    return {name: table, sums: counts, **firsts}


@pytest.mark.parametrize("part", range(4))
def test_routed_programs_mean_the_same(part: int) -> None:
    """Selects, and the tensors that `route` puts in their place, by the reference."""
    forms = set()
    for case in select_cases(40, 50 + part):
        program = attndsl.compile(text=case.text, **case.consts).program
        call = call_of(case, program)
        want, _ = attend(program, call)
        made = [c for c in choices(program, call).values() if c.select in used_selects(program)]
        for form in {form_of(program), "table"}:
            forms.add(form)
            shifted = ("q_offset", "k_offset")
            routed = route(program, form, shifted)
            tensors = dict(call.tensors)
            for at, choice in enumerate(made):
                tensors |= tensors_of(routed, choice, at)
            found, _ = attend(routed, replace(call, tensors=tensors))
            assert torch.equal(found, want), f"{form}\n{case!r}"
    assert forms == {"lists", "table"}


def test_where_holds_for_all_that_is_chosen() -> None:
    """`Counted.where` and `Routed.where`, by which tiles are left out."""
    seen = 0
    for case in select_cases(60, 60):
        program = attndsl.compile(text=case.text, **case.consts).program
        call = call_of(case, program)
        for name, choice in choices(program, call).items():
            alone = replace(program, mask=chosen(name), routed=None)
            for form in {form_of(alone), "table"}:
                routed = route(alone, form, ("q_offset", "k_offset"))
                tensors = {**call.tensors, **tensors_of(routed, choice, 0)}
                where = (routed.routed or routed.counted[0]).where
                outside = replace(routed, mask=make("and", routed.mask, make("not", where)))
                if routed.routed is not None:
                    mask = make("and", routed.routed.mask, make("not", where))
                    outside = replace(outside, routed=replace(routed.routed, mask=mask))
                assert not Evaluation(outside, replace(call, tensors=tensors)).kept().any()
                seen += where is not TRUE
    assert seen > 20


@pytest.mark.parametrize("part", range(8))
def test_torch_generator(part: int) -> None:
    for case in select_cases(10, 100 + part):
        check_case(case, "torch", torch.float64, 1e-6)


@pytest.mark.parametrize("seed", range(24))
def test_triton_generator(seed: int) -> None:
    check_case(select_case(seed), "triton", torch.float32, 2e-3)


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(40))
def test_reference_sweep(part: int) -> None:
    for case in select_cases(100, 1000 + part):
        check_reference(case)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_torch_generator_sweep(seed: int) -> None:
    check_case(select_case(seed), "torch", torch.float64, 1e-6)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(2000, 2200))
def test_triton_generator_sweep(seed: int) -> None:
    check_case(select_case(seed), "triton", torch.float32, 2e-3)
