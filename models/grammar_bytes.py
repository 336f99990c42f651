"""Classes of characters as sequences of bytes of UTF-8."""

from collections.abc import Iterator, Sequence
from typing import Final

Ranges = Sequence[tuple[int, int]]  # code points, first and last

_LAST: Final = 0x10FFFF
_NO_CHARACTERS: Final = (0xD800, 0xDFFF)  # halves of surrogate pairs
_LENGTHS: Final = ((0x00, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, _LAST))
ANY: Final[Ranges] = ((0, _LAST),)


def outside(ranges: Ranges) -> Ranges:
    """All characters that are in none of the ranges.

    >>> outside([(0, 64), (66, 0x10FFFF)])
    [(65, 65)]
    """
    found, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            found.append((start, low - 1))
        start = max(start, high + 1)
    return [*found, (start, _LAST)] if start <= _LAST else found


def byte_sequences(ranges: Ranges) -> list[list[int]]:
    """Sequences of sets of bytes that are the characters of some ranges in UTF-8.

    Returns:
        the sets as numbers with 256 bits; bytes that stand alone are one set.

    >>> [[bin(s).count("1") for s in some] for some in byte_sequences([(65, 70), (0xE0, 0xFF)])]
    [[6], [1, 32]]
    """
    alone, longer = 0, []
    for low, high in outside([*outside(ranges), _NO_CHARACTERS]):
        for first, last in _LENGTHS:
            if max(low, first) > min(high, last):
                continue
            ends = (chr(code).encode() for code in (max(low, first), min(high, last)))
            for spans in _spans(*ends):
                sets = [_between(*span) for span in spans]
                if len(sets) == 1:
                    alone |= sets[0]
                else:
                    longer.append(sets)
    return [[alone], *longer] if alone or not longer else longer


def _between(low: int, high: int) -> int:
    return (1 << high + 1) - (1 << low)


def _spans(low: bytes, high: bytes) -> Iterator[list[tuple[int, int]]]:
    """First and last byte at each place, for all between two characters of one length."""
    n = len(low)
    if n == 1:
        yield [(low[0], high[0])]
        return
    first, last = low[0], high[0]
    if first == last:
        yield from ([(first, first), *rest] for rest in _spans(low[1:], high[1:]))
        return
    if low[1:] != b"\x80" * (n - 1):
        yield from ([(first, first), *rest] for rest in _spans(low[1:], b"\xbf" * (n - 1)))
        first += 1
    whole = high[1:] == b"\xbf" * (n - 1)
    if first <= last - (not whole):
        yield [(first, last - (not whole)), *[(0x80, 0xBF)] * (n - 1)]
    if not whole:
        yield from ([(last, last), *rest] for rest in _spans(b"\x80" * (n - 1), high[1:]))
