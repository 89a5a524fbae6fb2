"""compare: are two masks equal, is one inside the other, and if not a pair where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from attndsl.analysis.implications import implies
from attndsl.diagnostics import ArgumentError
from attndsl.ir.program import SIZES, Program
from attndsl.report.arguments import Number, Parameter
from attndsl.report.differences.exact import Exact
from attndsl.report.differences.search import TRIES, Pair, Trial, first_pair, trials
from attndsl.report.differences.sides import Side, check_alike, completed, drawn, settled, sides_of

Basis = Literal["proof", "pairs", "part of the pairs", "search"]


@dataclass(frozen=True)
class Inside:
    """Whether the first mask of two lies inside the other.

    pair    one that the first keeps and the other drops; None: there is none, as `basis` says
    basis   what the answer rests on: "proof" for every call; "pairs" all compared at the given
            sizes; "part of the pairs" at these sizes; "search" among random calls
    """

    pair: Pair | None
    basis: Basis

    @property
    def is_decided(self) -> bool:
        return self.pair is not None or self.basis in ("proof", "pairs")


@dataclass(frozen=True)
class Comparison:
    """Two masks and whether each lies inside the other.

    looked_at   which calls, or pairs of one call, were evaluated; empty where all was proved
    is_general  whether what is proved holds for every call, not only for settled values
    """

    a: Side
    b: Side
    a_in_b: Inside
    b_in_a: Inside
    looked_at: str
    is_general: bool = True

    @property
    def are_equal(self) -> bool | None:
        """None where no difference was found, but not all was compared or proved."""
        both = (self.a_in_b, self.b_in_a)
        if any(inside.pair is not None for inside in both):
            return False
        return True if all(inside.is_decided for inside in both) else None


def compare_files(
    words: tuple[str, str],
    consts: Mapping[str, Number],
    sizes: Mapping[str, int],
    values: Sequence[Mapping[str, Number]],
    *,
    use_defaults: bool = False,
    tries: int = TRIES,
    seed: int = 0,
) -> Comparison:
    """Compares the masks of two files, each FILE or FILE:NAME.

    consts  values of const parameters, for the files that have them
    sizes   those that are settled: see `compare`; one length goes for both
    values  for each file the scalars and dimensions that are settled; with `use_defaults` the rest
            of the scalars has its defaults

    Raises ProgramError and ArgumentError.
    """
    a, b = sides_of(words, consts, values, use_defaults=use_defaults)
    known = completed(sizes)
    parameters: dict[str, Parameter] = {}
    if "Nq" in known:
        parameters = drawn(b.program, known, seed) | drawn(a.program, known, seed)
    return compare(a, b, known, parameters=parameters, tries=tries, seed=seed)


def compare(
    a: Side,
    b: Side,
    sizes: Mapping[str, int],
    *,
    parameters: Mapping[str, Parameter] | None = None,
    tries: int = TRIES,
    seed: int = 0,
) -> Comparison:
    """Compares the masks of two programs; parameters of the same name have the same value.

    sizes       of B, H, Hk, Nq, Nk, D, q_offset and k_offset those that are settled; with Nq and Nk
                the masks are compared pair by pair in that call, else in small random calls
    parameters  for that call: a value for every parameter that the masks read

    What is proved is not looked for. Raises ArgumentError where no call fits both programs.
    """
    check_alike(a.program, b.program)
    masks = [settled(side.program, sizes).mask for side in (a, b)]
    is_plain = sizes.get("q_offset") == sizes.get("k_offset") == 0
    proofs = [implies(x, y, without_offsets=is_plain) for x, y in (masks, masks[::-1])]
    pairs: list[Pair | None] = [None, None]
    rest: Basis = "search"
    looked_at = ""
    if not all(proofs):
        wanted = (not proofs[0], not proofs[1])
        if "Nq" in sizes and "Nk" in sizes:
            extents = {name: sizes.get(name, 1) for name in SIZES if name != "G"}
            offsets = {name: sizes.get(name, 0) for name in ("q_offset", "k_offset")}
            exact = Exact(a.program, b.program, Trial(extents, offsets, parameters or {}))
            pairs, looked_at = exact.find(wanted), exact.looked_at
            rest = "pairs" if exact.is_complete else "part of the pairs"
        else:
            pairs, looked_at = hunt((a.program, b.program), wanted, sizes, tries, seed)
    a_in_b, b_in_a = (
        Inside(pair, "proof" if proved else rest)
        for pair, proved in zip(pairs, proofs, strict=True)
    )
    return Comparison(a, b, a_in_b, b_in_a, looked_at, is_general=not sizes)


def hunt(
    programs: tuple[Program, Program],
    wanted: tuple[bool, bool],
    sizes: Mapping[str, int],
    tries: int,
    seed: int,
) -> tuple[list[Pair | None], str]:
    """Pairs that one mask keeps and the other drops, in small random calls; only in the directions
    that are `wanted`."""
    found: list[Pair | None] = [None, None]
    seen = 0
    for trial in trials(programs, dict(sizes), tries, seed):
        try:
            kept = [trial.pairs(program) for program in programs]
        except ArgumentError:  # a call that one of them refuses
            continue
        seen += 1
        for at in (0, 1):
            if wanted[at] and found[at] is None:
                found[at] = first_pair(trial, kept[at] & ~kept[1 - at])
        if all(found[at] is not None for at in (0, 1) if wanted[at]):
            break
    if not seen and tries:
        raise ArgumentError("no call fits both programs: their tables differ in shape")
    return found, "1 small random call" if seen == 1 else f"{seen} small random calls"
