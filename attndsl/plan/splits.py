"""Into how many parts the keys of few queries are split, and how many sequences a program has.

Generated host code carries these functions along as they stand here: they use nothing but each
other.
"""

from __future__ import annotations


def attn_keys_reached(ranges: list[tuple[int, int]], first: int, length: int) -> int:
    """How many of the positions first .. first + length - 1 lie in ranges [lo, hi), at most.

    >>> attn_keys_reached([(-5, 3), (90, 200)], 0, 100)
    13
    """
    parts = (min(hi, first + length) - max(lo, first) for lo, hi in ranges)
    return min(sum(max(part, 0) for part in parts), length)


def attn_splits(programs: int, keys: int, columns: int, places: int) -> int:
    """Into how many parts to split the keys of each program: the fewest that fill a device well.

    programs  programs without a split; keys  what each of them reaches; columns  keys of a tile
    places    programs that the device holds at once. There are never more than four times as many

    >>> attn_splits(8, 100_000, 64, 264), attn_splits(300, 100_000, 64, 264)
    (28, 3)
    """
    most = min(keys // (2 * columns), 64)  # a part has two tiles, or it is not worth its merge
    if programs < 1 or most < 2 or 4 * programs >= 3 * -(-programs // places) * places:
        return 1
    enough = 17 * places // 20  # of each wave of programs
    first = min(-(-enough // programs), most)
    best, found = 0, 1
    for splits in range(max(first, 2), min(first + 8, most, 4 * places // programs) + 1):
        count = splits * programs
        filled = count * places // (-(-count // places) * places)  # of the places of a wave
        if filled > best:
            best, found = filled, splits
        if filled >= enough:
            break
    return found


def attn_are_windows(queries: int, keys: int, held: int, rows: int, columns: int) -> bool:
    """Whether a tile of `rows` by `columns` holds a sequence of one head and is filled to a quarter
    at least; `held`: rows of the tile that the call would have otherwise, of more heads perhaps.

    >>> attn_are_windows(49, 49, 64, 64, 64), attn_are_windows(1, 49, 64, 64, 64)
    (True, False)
    """
    return held == rows and 4 * queries >= rows and keys <= columns


def attn_sequences(sequences: int, heads: int, places: int) -> int:
    """How many sequences a program goes over: programs fill a device twice, or have one.

    >>> attn_sequences(4096, 4, 512), attn_sequences(8, 4, 512)
    (16, 1)
    """
    return max(min(sequences * heads // (2 * places), sequences), 1)
