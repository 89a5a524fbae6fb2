"""What selects become: which form, under which names, and what bounds a list."""

from __future__ import annotations

import pytest

import attndsl
from attndsl.ir import text as ir_text
from attndsl.ir.nodes import FALSE, TRUE, constant, find, is_const
from attndsl.ir.program import Program
from attndsl.ir.verify import verify
from attndsl.transform.route import form_of, most_of, route
from attndsl.transform.simplify import simplified

SELECT = """
attention f({parameters}):
    select s[i = {i}, j = k // 8]{group}:
        rank  dot({query}, mean(key))
        where j <= i
        keep  {keep}
    mask {mask}
"""


def program(
    keep: str = "top n",
    mask: str = "s and k <= q",
    i: str = "q",
    group: str = "",
    parameters: str = "n: int, m: int, x: float, t: int[H]",
) -> Program:
    query = "query" if i == "q" else "mean(query)"
    text = SELECT.format(keep=keep, mask=mask, i=i, group=group, query=query, parameters=parameters)
    return attndsl.compile(text=text).program


@pytest.mark.parametrize(
    ("keep", "mask", "i", "form"),
    [
        ("top n", "s and k <= q", "q", "lists"),
        ("top n", "(s or q - k < 4) and k <= q", "q // 1", "lists"),
        ("top n", "s if k <= q else false", "q", "lists"),
        ("top min(t[h], n)", "s", "q", "lists"),
        ("top t[h]", "s", "q", "table"),
        ("above x", "s", "q", "table"),
        ("mass x", "s", "q", "table"),
        ("top n", "s", "q // 8", "table"),
        ("top n", "s", "q // m", "table"),
        ("top n", "not s", "q", "table"),
        ("top n", "s == (k <= q)", "q", "table"),
        ("top n", "k <= q if s else k <= q - 3", "q", "table"),
    ],
)
def test_form(keep: str, mask: str, i: str, form: str) -> None:
    assert form_of(program(keep, mask, i)) == form


@pytest.mark.parametrize(
    ("keep", "bound"),
    [
        ("top n", "n"),
        ("top min(t[h], 5)", "5"),
        ("top min(t[h], n, 5)", "min(n, 5)"),
        ("top max(min(t[h], 5), n)", "max(5, n)"),
        ("top (min(t[h], 5) if h == 0 else n)", "max(5, n)"),
        ("top min(t[h], i)", ""),
        ("top max(t[h], 5)", ""),
        ("top min(t[h], 5) + 1", ""),
        ("top t[0]", ""),
    ],
)
def test_bound_of_a_list(keep: str, bound: str) -> None:
    limit = program(keep).selects[0].limit
    assert limit is not None
    found = most_of(limit)
    if not bound:
        assert found is None
    else:
        assert found is not None and not found.varies and not find(found, "lookup")
        assert simplified(found) is program(f"top {bound}").selects[0].limit


def test_lists_split_the_mask() -> None:
    """What the mask has without the choice is no part of what the lists add."""
    routed = route(program(mask="(s or q == k) and k <= q"), "lists")
    assert routed.routed is not None and not find(routed.mask, "chosen")
    assert not find(routed.routed.mask, "chosen") and not routed.selects
    alone = route(program(mask="s"), "lists")
    assert alone.mask is FALSE and alone.routed is not None and alone.routed.mask is TRUE
    assert is_const(alone.routed.columns, 8)
    assert verify(routed) is routed


@pytest.mark.parametrize("shifted", [(), ("q_offset",), ("q_offset", "k_offset")])
@pytest.mark.parametrize("form", ["lists", "table"])
def test_names_are_new(form: str, shifted: tuple[str, ...]) -> None:
    """What is added is named apart from the user's own, and the text of the program keeps it."""
    own = "n: int, s_T: int, s_Ni: int[H], s_sums: float, t: int[s_Nj]"
    found = program("top n", parameters=own, group=" per group")
    routed = route(found, form, shifted)  # type: ignore[arg-type]
    names = [p.name for p in routed.parameters]
    assert len(set(names)) == len(names) and names[: len(found.parameters)] == [
        p.name for p in found.parameters
    ]
    added = len(names) - len(found.parameters)
    assert added == (1 if form == "lists" else 2 + len(shifted))
    assert len(set(routed.bound_dims)) == len(routed.bound_dims)
    assert ir_text.parse(ir_text.dump(routed)) == routed and verify(routed) is routed


def test_a_select_that_no_mask_names_adds_nothing() -> None:
    routed = route(program(mask="k <= q"), "table")
    assert not routed.selects and not routed.counted
    assert [p.name for p in routed.parameters] == ["n", "m", "x", "t"]


def test_where_is_kept_for_the_analysis() -> None:
    found = route(program(i="q // 16"), "table").counted[0].where
    assert found.varies == {"q", "k"} and constant(16) in find(found, "const")
