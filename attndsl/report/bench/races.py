"""A suite of cases: one after the other, each with every implementation that its device has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch._inductor.config as inductor

from attndsl.diagnostics import ArgumentError
from attndsl.report.bench.cases import Case, Wish, chosen
from attndsl.report.bench.comparison import Comparison, machine
from attndsl.report.bench.contest import Contest, first_line
from attndsl.report.bench.implementations import OURS, Maker, ours
from attndsl.report.bench.peers import peers
from attndsl.report.bench.results import Entry, Note
from attndsl.report.progress import Progress, progress


def race(suite: str, about: str, cases: Callable[[Wish], Iterator[Case]], wish: Wish) -> Comparison:
    """Everything that the cases say. Raises ArgumentError where no case is left."""
    found = chosen(cases(wish), wish)
    if not found:
        names = dict.fromkeys(case.mask.name for case in cases(wish))
        raise ArgumentError(f"only: no mask of {suite} is called so; there are {', '.join(names)}")
    entries: list[Entry] = []
    notes: list[Note] = []
    is_stopped = False
    with progress(sum(len(makers(case, wish)) + 1 for case in found)) as line:
        for case in found:
            try:
                with threads(case.threads):
                    some, more, is_lost = run(case, wish, line)
            except KeyboardInterrupt:  # what was measured in an hour is not thrown away
                notes.append(
                    Note(case, "everything", "stopped here, and before what follows", True)
                )
                is_stopped = True
                break
            entries += some
            notes += more
            if is_lost:
                break
    where = f"{about} {machine(wish.device)}"
    return Comparison(suite, where, tuple(entries), tuple(notes), is_stopped)


def makers(case: Case, wish: Wish) -> list[tuple[str, Maker]]:
    return [*ours(case, wish.device, wish.ours), *peers(case, wish.device, wish.peers)]


def run(case: Case, wish: Wish, line: Progress) -> tuple[list[Entry], list[Note], bool]:
    """Entries and notes of a case; whether the device cannot go on after it."""
    try:
        contest = Contest(case, wish.device, wish.is_quick)
        return contest.run(makers(case, wish), line), contest.notes, False
    except torch.OutOfMemoryError as error:
        return [], [Note(case, "everything", first_line(error))], False
    except torch.AcceleratorError as error:  # after this, every call on the device fails
        reason = f"{first_line(error)}; nothing after it was measured"
        return [], [Note(case, OURS, reason, is_wrong=True)], True
    finally:
        if wish.device != "cpu":
            torch.cuda.empty_cache()


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads of PyTorch's; and of the code that Inductor compiles, which it fixes then."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with inductor.patch({"cpp.threads": count}):
            yield
    finally:
        torch.set_num_threads(before)
