"""Finds the loops of a compiled kernel: natural loops of its machine code, and what is in them.

A loop is what control flow says, not what the text of the program looks like: blocks that a
compiler moved out of line (slow paths at the end of a function that jump back) are backward
branches and no loops. Counts are static: each instruction of a loop once, whichever branch runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LABEL = re.compile(r"^\s*(\.?[\w$.]+):")
SASS_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);")
SASS_LABEL = re.compile(r"\.L_[\w.]+")
AMDGCN_LINE = re.compile(r"^\s+([a-z]\w+)\b([^;/]*)")
AMDGCN_LABEL = re.compile(r"\.LBB\w+")
# Matrix instructions of all targets.
MATRIX = re.compile(r"[HQIBDO]?G?MMA\b|UTC\w*MMA\b|v_s?mfmac?_")
# Instructions that read or write what did not fit into registers.
SPILLED = re.compile(r"(?:LDL|STL)\b|scratch_")
SHAPE = re.compile(r"GMMA\.(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name with modifiers, the labels it may jump to, and whether the one
    after it may follow it."""

    name: str
    targets: tuple[str, ...] = ()
    falls_through: bool = True

    @property
    def stem(self) -> str:
        """The name without modifiers.

        >>> Instruction("HGMMA.64x128x16.F32.BF16").stem
        'HGMMA'
        """
        return self.name.partition(".")[0]

    @property
    def is_matrix(self) -> bool:
        return MATRIX.match(self.name) is not None


@dataclass(frozen=True)
class Loop:
    """A natural loop: the numbers of its instructions in the program, ascending, and these."""

    numbers: tuple[int, ...]
    instructions: tuple[Instruction, ...]

    @property
    def size(self) -> int:
        """Instructions without those that only fill space."""
        return sum(1 for i in self.instructions if i.stem not in ("NOP", "s_nop"))

    @property
    def matrix(self) -> int:
        """Matrix instructions."""
        return sum(1 for i in self.instructions if i.is_matrix)

    @property
    def spilled(self) -> int:
        """Instructions that read or write what did not fit into registers."""
        return sum(1 for i in self.instructions if SPILLED.match(i.name))

    @property
    def mix(self) -> Counter[str]:
        """Instructions by the stems of their names."""
        return Counter(i.stem for i in self.instructions)

    @property
    def multiply_adds(self) -> int:
        """What the `wgmma` of the loop multiply and add: per group of 4 warps and iteration."""
        shapes = (SHAPE.search(i.name) for i in self.instructions)
        return sum(int(s[1]) * int(s[2]) * int(s[3]) for s in shapes if s)


@dataclass(frozen=True)
class TileLoops:
    """The loops over tiles of an attention kernel; None where it has no such loop.

    full      over tiles whose pairs all take part; or the only one, where a kernel has one loop
    partial   over those that test their pairs
    """

    full: Loop | None = None
    partial: Loop | None = None


def tile_loops(instructions: Sequence[Instruction], labels: dict[str, int]) -> TileLoops:
    """The loops of a kernel that has these instructions.

    Tiles are multiplied in the innermost loops with matrix instructions. Those over full tiles are
    the shorter ones, whatever their order: a partial tile takes all that a full one does, and
    tests. `full` is the shortest and `partial` the longest.
    """
    matrix = innermost([loop for loop in loops(instructions, labels) if loop.matrix])
    if not matrix:
        return TileLoops()
    full = min(matrix, key=lambda loop: loop.size)
    rest = [loop for loop in matrix if loop is not full]
    return TileLoops(full, max(rest, key=lambda loop: loop.size) if rest else None)


def size_of(loop: Loop | None) -> int | None:
    return None if loop is None else loop.size


def innermost(found: Sequence[Loop]) -> list[Loop]:
    """Loops that contain no other of them."""
    sets = [frozenset(loop.numbers) for loop in found]
    return [
        loop for loop, own in zip(found, sets, strict=True) if not any(part < own for part in sets)
    ]


# -- natural loops ---------------------------------------------------------------------------------


def loops(instructions: Sequence[Instruction], labels: dict[str, int]) -> list[Loop]:
    """The natural loops, in the order of their heads; `labels` gives numbers of instructions.

    >>> code = [Instruction("MOV"), Instruction("ADD"), Instruction("BRA", ("a",))]
    >>> [loop.numbers for loop in loops(code, {"a": 1})]
    [(1, 2)]
    """
    starts, after = _blocks(instructions, labels)
    ends = [*starts[1:], len(instructions)]
    dominators = _dominators(after)
    before: list[list[int]] = [[] for _ in after]
    for block, following in enumerate(after):
        for successor in following:
            before[successor].append(block)
    bodies: dict[int, set[int]] = {}
    for block, following in enumerate(after):
        for head in following:
            if head in dominators[block]:
                bodies.setdefault(head, set()).update(_body(head, block, before))
    found = []
    for _, body in sorted(bodies.items()):
        numbers = [i for block in sorted(body) for i in range(starts[block], ends[block])]
        found.append(Loop(tuple(numbers), tuple(instructions[i] for i in numbers)))
    return found


def _blocks(
    instructions: Sequence[Instruction], labels: dict[str, int]
) -> tuple[list[int], list[list[int]]]:
    """First instructions of basic blocks, and the blocks that may follow each."""
    heads = {0} | {number for number in labels.values() if number < len(instructions)}
    for number, instruction in enumerate(instructions[:-1]):
        if instruction.targets or not instruction.falls_through:
            heads.add(number + 1)
    starts = sorted(heads)
    block_at = {start: block for block, start in enumerate(starts)}
    after = []
    for block in range(len(starts)):
        end = starts[block + 1] if block + 1 < len(starts) else len(instructions)
        last = instructions[end - 1]
        following = [block_at[labels[t]] for t in last.targets if labels.get(t) in block_at]
        if last.falls_through and end in block_at:
            following.append(block_at[end])
        after.append(following)
    return starts, after


def _dominators(after: list[list[int]]) -> list[frozenset[int]]:
    """For each block those that every way to it passes, itself among them; none where there is no
    way."""
    found = [frozenset[int]()] * len(after)
    found[0] = frozenset((0,))
    waiting = [0]
    while waiting:
        block = waiting.pop()
        for successor in after[block]:
            known = found[successor]
            joint = (found[block] & known if known else found[block]) | {successor}
            if joint != known:
                found[successor] = joint
                waiting.append(successor)
    return found


def _body(head: int, tail: int, before: list[list[int]]) -> set[int]:
    """The blocks from which `tail` can be reached without passing `head`, and `head`."""
    body, waiting = {head}, [tail]
    while waiting:
        block = waiting.pop()
        if block not in body:
            body.add(block)
            waiting += before[block]
    return body


# -- readers ---------------------------------------------------------------------------------------


def read_sass(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of a kernel's SASS, as `nvdisasm -c` prints it, and where its labels are."""
    meetings: dict[int, str] = {}  # instruction that waits for parted threads -> its barrier
    announced: dict[int, tuple[str, str]] = {}  # that says where -> barrier and label
    count = 0

    def read(line: str) -> Instruction | None:
        nonlocal count
        found = SASS_LINE.search(line)
        if found is None:
            return None
        predicate, name, operands = found.groups()
        if name.startswith("BSSY"):
            barrier, label = re.findall(r"\bB\d+|\.L_[\w.]+", operands)
            announced[count] = barrier, label
        elif name.startswith("BSYNC"):
            meetings[count] = re.findall(r"\bB\d+", operands)[0]
        count += 1
        return _sass(name, predicate is not None, operands)

    instructions, labels = _read(text, read)
    return _resolve(instructions, labels, announced, meetings), labels


def _sass(name: str, may_skip: bool, operands: str) -> Instruction:
    """An instruction by its name and operands; `may_skip`: it has a predicate."""
    stem = name.partition(".")[0]
    targets = tuple(SASS_LABEL.findall(operands))
    if stem in ("BRA", "BRX", "BRXU", "JMP", "JMX"):
        # `BRA.U UP0, label` and `BRA.DIV UR4, label` have their condition among the operands.
        return Instruction(name, targets, may_skip or (stem == "BRA" and "," in operands))
    if stem in ("EXIT", "RET", "KILL"):
        return Instruction(name, (), may_skip)
    if stem == "WARPSYNC":  # jumps where threads of a warp have parted
        return Instruction(name, targets)
    return Instruction(name)  # a call comes back


def _resolve(
    instructions: list[Instruction],
    labels: dict[str, int],
    announced: dict[int, tuple[str, str]],
    meetings: dict[int, str],
) -> list[Instruction]:
    """Gives every `BSYNC` the places to which the `BSSY` that may come before it send it: there are
    few barriers, and each serves many times."""
    known: dict[int, frozenset[tuple[str, str]]] = {}
    waiting = [(0, frozenset[tuple[str, str]]())]
    while waiting:
        number, given = waiting.pop()
        if number >= len(instructions) or (number in known and given <= known[number]):
            continue
        places = known[number] = known.get(number, frozenset()) | given
        instruction = instructions[number]
        if number in announced:
            barrier = announced[number][0]
            places = frozenset(p for p in places if p[0] != barrier) | {announced[number]}
        targets = instruction.targets
        if number in meetings:
            targets = _labels_of(places, meetings[number])
        waiting += [(labels[label], places) for label in targets if label in labels]
        if instruction.falls_through and not (number in meetings and targets):
            waiting.append((number + 1, places))
    resolved = list(instructions)
    for number, barrier in meetings.items():
        targets = _labels_of(known.get(number, frozenset()), barrier)
        resolved[number] = Instruction(instructions[number].name, targets, not targets)
    return resolved


def _labels_of(places: frozenset[tuple[str, str]], barrier: str) -> tuple[str, ...]:
    return tuple(sorted(label for name, label in places if name == barrier))


def read_amdgcn(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of a kernel's amdgcn assembly, and where its labels are."""

    def read(line: str) -> Instruction | None:
        found = AMDGCN_LINE.match(line)
        if found is None:
            return None
        name, operands = found.groups()
        targets = tuple(AMDGCN_LABEL.findall(operands))
        if name == "s_branch":
            return Instruction(name, targets, False)
        if name.startswith("s_cbranch"):
            return Instruction(name, targets)
        return Instruction(name, (), name != "s_endpgm")

    return _read(text, read)


def _read(
    text: str, read: Callable[[str], Instruction | None]
) -> tuple[list[Instruction], dict[str, int]]:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        label = LABEL.match(line)
        if label:
            labels[label[1]] = len(instructions)
            continue
        instruction = read(line)
        if instruction is not None:
            instructions.append(instruction)
    return instructions, labels
