"""Measured sizes of kernels: kept on disk beside the generated modules, found again by a call.

One file holds what was measured for one program and request on one model of a device, by kernel and
by lengths. Lengths are kept as powers of two: a call takes what was measured nearest to its own, so
that a length makes a module of its own only where a measurement near it found other sizes.

The key is the program, the request and the version of Triton, which makes the machine's code, not
the compiler's own sources: what was measured stays near the truth when a generator is edited, and
whether it may be launched is asked again whenever it is read.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from attndsl.ir.program import Program
from attndsl.plan.kernel_plan import Config, Request, Sizes
from attndsl.runtime import cache, targets

FORMAT = 1  # of the files; raised too where kernels change so much that old figures say nothing
SEAL = "sha256"

Function = Literal["run_forward", "run_backward"]
Kernel = Literal["forward", "backward_dq", "backward_dkv", "backward_fused"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
Bucket = tuple[int, int]  # queries and keys, as powers of two


class Place(NamedTuple):
    """Where sizes are measured for: a program (`handle` is its text form), a request without sizes,
    and a device."""

    handle: str
    program: Program
    request: Request
    device: torch.device


@dataclass(frozen=True)
class Winner:
    """The fastest configuration of a kernel; times in milliseconds of the call that was measured,
    with it and with the table's. None of backward_fused: the separate kernels are faster."""

    config: Config | None
    milliseconds: float
    table_milliseconds: float


Entry = dict[Bucket, dict[Kernel, Winner]]

ENTRIES: dict[tuple[str, Request, str], Entry] = {}
REQUESTS: dict[tuple[str, Request, str, Bucket], Request] = {}


def bucket_of(lengths: tuple[int, int]) -> Bucket:
    """Lengths as the least powers of two that are not below them.

    >>> bucket_of((1, 4097)), bucket_of((0, 4096))
    ((1, 8192), (1, 4096))
    """
    queries, keys = (1 << max(length - 1, 0).bit_length() for length in lengths)
    return queries, keys


def distance(one: Bucket, other: Bucket) -> int:
    """How many doublings lie between two buckets.

    >>> distance((4096, 4096), (1024, 8192))
    3
    """
    return sum(abs(a.bit_length() - b.bit_length()) for a, b in zip(one, other, strict=True))


def sized(place: Place, lengths: tuple[int, int]) -> Request:
    """The request with the sizes that were measured nearest to these lengths; as it is where there
    are none, or where they are those of the table. Nothing is read from the disk twice."""
    key = (place.handle, place.request, targets.name_of(place.device), bucket_of(lengths))
    found = REQUESTS.get(key)
    if found is None:
        found = REQUESTS[key] = with_sizes(place, nearest(entry_of(place), key[-1]))
    return found


def has_few_queries(place: Place, lengths: tuple[int, int], function: Function) -> bool:
    """Whether a call runs kernels for few queries, which have sizes of their own: then its module
    is that without measured sizes, whatever the number of keys."""
    return function == "run_forward" and lengths[0] <= most_decoded(place.program, place.request)


@lru_cache(maxsize=1024)
def most_decoded(program: Program, request: Request) -> int:
    """How many queries at most run kernels for few; -1 where there are none."""
    from attndsl.plan.planner import plan  # only where something is stored for this device

    decode = plan(program, request).decode
    return -1 if decode is None else decode.widest.block_m


def nearest(entry: Entry, bucket: Bucket) -> dict[Kernel, Winner]:
    """The winner of each kernel in the nearest bucket that has one; of the longer of two."""
    found: dict[Kernel, Winner] = {}
    for near in sorted(entry, key=lambda b: (distance(b, bucket), *(-length for length in b))):
        for kernel, winner in entry[near].items():
            found.setdefault(kernel, winner)
    return found


def with_sizes(place: Place, winners: Mapping[Kernel, Winner]) -> Request:
    """The request with the table's sizes, and those of the winners that may be launched."""
    from attndsl.plan.candidates import is_legal
    from attndsl.plan.planner import table_sizes

    table = table_sizes(place.program, place.request)
    chosen = table
    for kernel, winner in winners.items():
        tried = with_kernel(chosen, kernel, winner.config)
        is_whole = kernel == "backward_fused" or winner.config is not None
        if is_whole and is_legal(place.program, replace(place.request, sizes=tried)):
            chosen = tried
        else:
            warn(f"a stored configuration of {kernel} may not be launched here: {winner.config}")
    return place.request if chosen == table else replace(place.request, sizes=chosen)


def with_kernel(sizes: Sizes, kernel: Kernel, config: Config | None) -> Sizes:
    changed: dict[str, Any] = {kernel: config}
    return replace(sizes, **changed)


def entry_of(place: Place) -> Entry:
    """What was measured for a place, read from the disk the first time."""
    key = (place.handle, place.request, targets.name_of(place.device))
    with cache.LOCK:
        if key not in ENTRIES:
            ENTRIES[key] = read(path_of(place))
        return ENTRIES[key]


def remember(place: Place, bucket: Bucket, winners: Mapping[Kernel, Winner]) -> Path:
    """Adds winners to what is stored of a place; returns the file."""
    with cache.LOCK:
        path = path_of(place)
        entry = read(path)  # another process may have measured meanwhile
        entry[bucket] = {**entry.get(bucket, {}), **winners}
        path = cache.write_atomically(path, encode(place, entry))
        ENTRIES[place.handle, place.request, targets.name_of(place.device)] = entry
        REQUESTS.clear()
    return path


def forget() -> None:
    """Drop what this process has read: see `cache.forget`."""
    with cache.LOCK:
        ENTRIES.clear()
        REQUESTS.clear()


cache.ON_FORGET.append(forget)


# -- files ----------------------------------------------------------------------------------


def path_of(place: Place) -> Path:
    assert place.request.sizes is None, "measured sizes are kept by the request without sizes"
    parts = [
        str(FORMAT),
        place.handle,
        repr(replace(place.request, per_batch=())),  # where a length comes from changes no size
        targets.name_of(place.device),
        cache.triton_version(),
    ]
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(encoded)}:".encode() + encoded)
    return cache.directory() / f"{place.program.name}_tuned_{digest.hexdigest()[:24]}.json"


def encode(place: Place, entry: Entry) -> bytes:
    """An entry as JSON, with a hash of what it says."""
    request = place.request
    record: dict[str, Any] = {
        "attndsl tuned": FORMAT,
        "program": place.program.name,
        "device": targets.name_of(place.device),
        "triton": cache.triton_version(),
        "dtype": request.dtype,
        "head_dim": request.head_dim,
        "value_dim": request.value_dim,
        "measured": [
            {
                "queries": bucket[0],
                "keys": bucket[1],
                "winners": {kernel: asdict(winner) for kernel, winner in sorted(winners.items())},
            }
            for bucket, winners in sorted(entry.items())
        ],
    }
    return (json.dumps({**record, SEAL: seal_of(record)}, indent=1) + "\n").encode()


def read(path: Path) -> Entry:
    """The entry of a file; empty, with a warning, where it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        warn(f"cannot read {path}: {error.strerror}")
        return {}
    try:
        record = json.loads(data)
        if record.pop(SEAL) != seal_of(record):
            raise ValueError("its hash is another")
        return {
            (int(row["queries"]), int(row["keys"])): {
                kernel: decode(row["winners"][kernel])
                for kernel in KERNELS
                if kernel in row["winners"]
            }
            for row in record["measured"]
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        warn(f"{path} is damaged ({error})")
        return {}


def decode(winner: Mapping[str, Any]) -> Winner:
    times = (float(winner["milliseconds"]), float(winner["table_milliseconds"]))
    config = winner["config"]
    return Winner(None if config is None else Config(**config), *times)


def seal_of(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def warn(reason: str) -> None:
    warnings.warn(
        f"attndsl: {reason}; sizes of the table are used. Measure again with `attndsl tune`.",
        RuntimeWarning,
        stacklevel=2,
    )


__all__ = ["Bucket", "Config", "Entry", "Function", "Kernel", "Place", "Sizes", "Winner"]
