"""What every kernel of the examples takes on sm_90: recorded figures, and what may not get worse.

    python tests/codegen/resources.py [--processes N] [name ...]

writes `resources.json` anew for the examples named, or all (`make record`), and prints what has
changed. It needs no GPU. Figures belong to the version of Triton that compiled them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script

from attndsl.plan.budget import KERNELS  # noqa: E402
from attndsl.plan.kernel_plan import KernelPlan  # noqa: E402
from attndsl.plan.planner import peeled_sizes, plan, table_sizes  # noqa: E402
from attndsl.report.compiled.compile import CompiledKernel, Job, KernelError  # noqa: E402
from tests.codegen.compilers import (  # noqa: E402
    EXAMPLES,
    HEAD_DIMS,
    SHARED_LIMITS,
    Compilers,
    job_of,
    matrix_kernels,
    plan_of,
)

VERSION = metadata.version("triton")
FOLDER = Path(__file__).parents[2] / "examples"
RECORD = Path(__file__).with_suffix(".json")
# Bytes of a thread outside its loop over full tiles, moved once: Triton 3.9 has 24, 3.6 has 64.
MOST_SPILLED = 64
GROWTH = 1.03  # times the recorded count of instructions in the loop over full tiles
NARROW = "decode"  # kernels with tiles of 16 rows, where `wgmma` takes 64
FIGURES = ("registers", "shared_bytes", "wgmma", "tma", "full_loop", "partial_loop")
Figures = dict[str, int]  # those of a kernel that has no such loop are missing
Record = dict[str, Figures]  # by key: example, head dimension, kernel, and the variant


@dataclass(frozen=True)
class Group:
    """Kernels of an example at one head dimension that are compiled together.

    variant  "table": all, in the sizes of the tables; "peeled": those that the tables describe, as
             they are where a call's tensors allow no descriptors
    """

    example: str
    head_dim: int
    variant: str

    @cached_property
    def plan(self) -> KernelPlan | None:
        """None where the variant has no kernel."""
        made = plan_of(FOLDER / f"{self.example}.attn", "sm_90", self.head_dim)
        if self.variant == "peeled":
            sizes = peeled_sizes(made.program, made.request)
            made = plan(made.program, replace(made.request, sizes=sizes))
            return made if self.kernels(made) else None
        return made

    def kernels(self, made: KernelPlan) -> set[str] | None:
        """The names of its kernels; None: all."""
        if self.variant == "peeled":
            sizes = table_sizes(made.program, made.request)
            return {name for name in KERNELS if getattr(sizes, name).shape == "described"}
        return None

    @property
    def job(self) -> Job | None:
        return None if self.plan is None else job_of(self.plan, self.kernels(self.plan))

    def key(self, kernel: str) -> str:
        words = [self.example, f"d{self.head_dim}", kernel]
        return " ".join(words if self.variant == "table" else [*words, self.variant])


def group_of(key: str) -> Group:
    example, head_dim, _, *variant = key.split(" ")
    return Group(example, int(head_dim[1:]), variant[0] if variant else "table")


GROUPS = [
    Group(path.stem, head_dim, variant)
    for path in EXAMPLES
    for head_dim in HEAD_DIMS
    for variant in ("table", "peeled")
]


def figures_of(kernel: CompiledKernel) -> Figures:
    found = kernel.resources()
    return {name: value for name in FIGURES if isinstance(value := found[name], int)}


def record_of(group: Group, kernels: Sequence[CompiledKernel]) -> Record:
    return {group.key(kernel.name): figures_of(kernel) for kernel in kernels}


# -- what must hold --------------------------------------------------------------------------------


def faults(group: Group, kernels: Sequence[CompiledKernel]) -> Iterator[str]:
    """What no kernel may do on sm_90, recorded or not."""
    made = group.plan
    assert made is not None
    names = {kernel.name for kernel in kernels}
    products = group.kernels(made) or matrix_kernels(kernels)
    for name in sorted(products - names):
        yield f"{name}: there is no such kernel"
    for kernel in kernels:
        if kernel.loop_spills:
            yield f"{kernel.name}: spills in its loop over full tiles"
        if kernel.spill_bytes > MOST_SPILLED:
            yield f"{kernel.name}: spills {kernel.spill_bytes} bytes"
        if kernel.shared_bytes > SHARED_LIMITS[kernel.target]:
            yield f"{kernel.name}: takes {kernel.shared_bytes} bytes of shared memory"
        if kernel.name in products and not kernel.wgmma:
            yield f"{kernel.name}: has no wgmma"
        if kernel.mma and not kernel.name.startswith(NARROW):
            yield f"{kernel.name}: leaves {kernel.mma} products to mma.sync"


def losses(now: Figures, before: Figures) -> Iterator[str]:
    """What a kernel has lost against its record."""
    for name in ("wgmma", "tma"):
        if before.get(name) and not now.get(name):
            yield f"no {name}, recorded {before[name]}"
    new, old = now.get("full_loop"), before.get("full_loop")
    if old and not new:
        yield f"no loop over full tiles, recorded {old} instructions"
    if old and new and new > GROWTH * old:
        yield f"{new} instructions in the loop over full tiles, recorded {old}"


def compare(found: Record, record: Record, group: Group) -> list[str]:
    """What is wrong with the figures of a group of kernels, by a record of all."""
    wrong = [f"{key}: no record" for key in found if key not in record]
    gone = [key for key in record if group_of(key) == group and key not in found]
    wrong += [f"{key}: recorded, and there is no such kernel" for key in gone]
    for key in found.keys() & record.keys():
        wrong += [f"{key}: {loss}" for loss in losses(found[key], record[key])]
    return sorted(wrong)


# -- recording -------------------------------------------------------------------------------------


def read_record() -> dict[str, Record]:
    """Version of Triton -> figures."""
    found: dict[str, Record] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def text_of(record: dict[str, Record]) -> str:
    """JSON with a line for each kernel, in order.

    >>> print(text_of({"3.9.0": {"b d64 forward": {"wgmma": 2}, "a d64 forward": {"wgmma": 1}}}))
    {
    "3.9.0": {
    "a d64 forward": {"wgmma": 1},
    "b d64 forward": {"wgmma": 2}
    }
    }
    """
    parts = []
    for version, kernels in sorted(record.items()):
        lines = [f"{json.dumps(key)}: {json.dumps(kernels[key])}" for key in sorted(kernels)]
        parts.append(f"{json.dumps(version)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}"


def changes(before: Record, after: Record) -> Iterator[str]:
    """A line for each kernel whose figures differ.

    >>> list(changes({"a": {"wgmma": 1}, "b": {}}, {"a": {"wgmma": 2}}))
    ['~ a: wgmma 1 -> 2', '- b']
    """
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old is None:
            yield f"+ {key}: {new}"
        elif new is None:
            yield f"- {key}"
        elif old != new:
            names = [name for name in FIGURES if old.get(name) != new.get(name)]
            parts = [f"{name} {old.get(name, '-')} -> {new.get(name, '-')}" for name in names]
            yield f"~ {key}: {', '.join(parts)}"


def measure(groups: Sequence[Group], processes: int) -> Record:
    """The figures of groups of kernels; says on stderr how far it is, and what does not compile."""
    compilers = Compilers(processes)
    waiting = [(group, compilers.submit([job])) for group in groups if (job := group.job)]
    found: Record = {}
    for number, (group, future) in enumerate(waiting, 1):
        print(f"{number} of {len(waiting)}: {group.key('')}", file=sys.stderr)
        try:
            (kernels,) = future.result()
        except KernelError as error:
            print(f"not recorded: {error}", file=sys.stderr)
            continue
        found |= record_of(group, kernels)
    compilers.close()
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Records the figures, and prints what has changed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="of examples; all unless given")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N")
    options = parser.parse_args(words)
    if unknown := sorted(set(options.names) - {group.example for group in GROUPS}):
        parser.error(f"there is no example {', '.join(unknown)}")
    groups = [group for group in GROUPS if group.example in (options.names or [group.example])]
    record = read_record() if RECORD.exists() else {}
    before = record.get(VERSION, {})
    others = set(GROUPS) - set(groups)
    kept = {key: figures for key, figures in before.items() if group_of(key) in others}
    after = kept | measure(groups, options.processes)
    RECORD.write_text(text_of(record | {VERSION: after}) + "\n", encoding="utf-8")
    print("\n".join(changes(before, after)) or "nothing has changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
