"""Masks compared: what is said of them is what enumeration says."""

from __future__ import annotations

import itertools

import pytest
import torch

import attndsl
from attndsl.diagnostics import ArgumentError, ProgramError
from attndsl.report.differences.difference import Comparison, Side, compare, compare_files
from attndsl.report.differences.search import Trial, reason, trials
from attndsl.report.differences.sides import check_alike, completed, settled
from attndsl.report.differences.verdict import describe

HEAD = "attention test(w: int, g: int, doc: int[B, N], full: bool[H]):\n"
MASKS = [
    "k <= q",
    "not q < k",
    "0 <= q - k < w",
    "abs(q - k) < w",
    "k <= q and (k < g or q - k < w)",
    "k <= q and doc[b, q] == doc[b, k]",
    "doc[b, k] == doc[b, q]",
    "k <= q and full[h]",
    "q // 4 == k // 4",
    "k <= q and k % 3 != 2",
    "k // w <= q // w",
]
PAIRS = list(itertools.combinations(MASKS, 2))


def side(mask: str) -> Side:
    return Side(mask, attndsl.compile(text=f"{HEAD}    mask {mask}\n").program)


def compared(x: str, y: str, sizes: dict[str, int] | None = None, **given) -> Comparison:  # type: ignore[no-untyped-def]
    return compare(side(x), side(y), sizes or {}, **given)


def check_pairs(found: Comparison) -> None:
    """Every pair that is shown is one that the one mask keeps and the other drops."""
    for inside, keeps, drops in (
        (found.a_in_b, found.a, found.b),
        (found.b_in_a, found.b, found.a),
    ):
        if inside.pair is not None:
            assert inside.pair.is_kept(keeps.program) and not inside.pair.is_kept(drops.program)


@pytest.mark.parametrize(("x", "y"), PAIRS)
def test_every_two_masks(x: str, y: str) -> None:
    found = compared(x, y, tries=120)
    check_pairs(found)
    # A search of its own: no call may contradict what is said.
    for trial in trials([found.a.program, found.b.program], {}, 60, seed=7):
        kept = [trial.pairs(one.program) for one in (found.a, found.b)]
        for inside, wrong in (
            (found.a_in_b, kept[0] & ~kept[1]),
            (found.b_in_a, kept[1] & ~kept[0]),
        ):
            assert not (inside.pair is None and wrong.any()), describe(found)


def test_equal_masks_are_proved_so() -> None:
    found = compared("k <= q", "not q < k")
    assert found.are_equal and found.a_in_b.basis == found.b_in_a.basis == "proof"
    assert "equal: proved for every call" in describe(found)


def test_one_inside_the_other() -> None:
    found = compared("0 <= q - k < w", "abs(q - k) < w")
    assert found.are_equal is False and found.a_in_b.basis == "proof"
    text = describe(found)
    assert "A lies inside B (proved for every call), and is smaller" in text
    assert "B keeps it:  line 2: `abs(q - k) < w`" in text


def test_what_is_not_known_is_said() -> None:
    found = compared("k <= q", "float(k) <= float(q)", tries=50)
    assert found.are_equal is None
    assert "no difference found: not proved, none found" in describe(found)
    assert "looked at 50 small random calls" in describe(found)


SIZES = {"B": 2, "H": 2, "Hk": 2, "Nq": 150, "Nk": 170, "q_offset": 3, "k_offset": 0}


@pytest.mark.parametrize(("x", "y"), PAIRS)
def test_at_given_sizes(x: str, y: str) -> None:
    given = {
        "w": 40,
        "g": 5,
        "doc": torch.randint(0, 4, (2, 180), generator=torch.Generator().manual_seed(3)),
        "full": torch.tensor([True, False]),
    }
    found = compared(x, y, SIZES, parameters=given)
    check_pairs(found)
    extents = {name: size for name, size in SIZES.items() if "offset" not in name} | {"D": 1}
    trial = Trial(extents, {"q_offset": 3, "k_offset": 0}, given)
    a, b = (trial.pairs(one.program) for one in (found.a, found.b))
    assert found.are_equal == bool((a == b).all())
    assert (found.a_in_b.pair is None) == (not (a & ~b).any())
    assert (found.b_in_a.pair is None) == (not (b & ~a).any())


def test_long_masks_are_compared_by_their_tiles() -> None:
    sizes = completed({"Nq": 1 << 16})
    given = {"w": 4096}
    found = compared("0 <= q - k < w", "k <= q and q - k <= w", sizes, parameters=given)
    assert found.are_equal is False and found.b_in_a.pair is not None
    assert found.b_in_a.pair.q - found.b_in_a.pair.k == 4096
    same = compared("k <= q", "float(k) <= float(q)", sizes)
    assert same.are_equal and same.b_in_a.basis == "pairs"


def test_tiles_are_read_until_a_pair_is_found() -> None:
    sizes = completed({"Nq": 1 << 16})
    found = compared("0 <= q - k < w", "0 <= q - k <= w", sizes, parameters={"w": 5})
    assert found.a_in_b.basis == "proof"
    assert found.b_in_a.pair is not None and found.b_in_a.pair.q < 1 << 12
    assert found.looked_at == "1,048,576 tiles of 64 x 64; read 512 of 2,047 undecided ones"


def test_no_random_calls() -> None:
    found = compared("k <= q", "k <= q + w", tries=0)
    assert found.are_equal is None and found.looked_at == "0 small random calls"


def test_settled_values() -> None:
    program = settled(side("0 <= q - k < w").program, {"w": 5})
    found = compare(Side("a", program), side("0 <= q - k <= 4"), {})
    assert found.are_equal
    assert "w" not in {node.name for node in _names(program)}
    with pytest.raises(ArgumentError, match="expected a value of kind int"):
        settled(program, {"w": 1.5})
    with pytest.raises(ArgumentError, match="beyond"):
        settled(program, {"w": 2**31})


def _names(program):  # type: ignore[no-untyped-def]
    from attndsl.ir.nodes import find

    return find(program.mask, "scalar")


def test_parameters_of_one_name_are_of_one_kind() -> None:
    texts = ["attention a(t: int[B, N]):\n    mask t[b, k] > 0\n"]
    texts.append("attention a(t: bool[B, N]):\n    mask t[b, k]\n")
    programs = [attndsl.compile(text=text).program for text in texts]
    with pytest.raises(ArgumentError, match="another kind of parameter"):
        check_alike(*programs)


def test_the_part_that_decides() -> None:
    one, other = side("k <= q and (k < g or q - k < w)"), side("k <= q")
    found = compare(one, other, {})
    assert found.b_in_a.pair is not None
    part = reason(one.program, found.b_in_a.pair)
    assert part.op == "or"  # neither of its parts keeps the pair


FILE = """\
attention one(window: int = 8):
    mask 0 <= q - k < window

attention two(window: int = 8, size: const int = 4):
    mask k <= q and q - k <= window - 1
"""


def test_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "masks.attn"
    path.write_text(FILE)
    words = (f"{path}:one", f"{path}:two")
    assert compare_files(words, {"size": 3}, {}, [{}, {}]).are_equal
    found = compare_files(words, {}, {}, [{"window": 3}, {"window": 4}])
    assert found.are_equal is False and found.a_in_b.basis == "proof"
    assert found.a.label.endswith("with window = 3")
    both = compare_files((words[0], words[0]), {}, {"Nq": 64}, [{}, {}], use_defaults=True)
    assert both.are_equal
    with pytest.raises(ArgumentError, match="did you mean `window`"):
        compare_files(words, {}, {}, [{"wndow": 3}, {}])
    with pytest.raises(ArgumentError, match="neither program has a const `sze`"):
        compare_files(words, {"sze": 3}, {}, [{}, {}])
    with pytest.raises(ProgramError):
        compare_files((str(path), words[0]), {}, {}, [{}, {}])
