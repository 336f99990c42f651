"""The one algorithm under both families of tokenizers: join the neighbours that rank first."""

from collections.abc import Mapping
from heapq import heapify, heappop, heappush


def merge(text: str, ranks: Mapping[str, float], between: str = "") -> list[str]:
    """Join neighbouring pieces of `text`, starting from its characters, until no pair has a rank.

    At each step the pair of lowest rank is joined, the leftmost among equals. A queue of pairs
    makes that O(n log n) for n characters.

    Args:
        text: what to take apart.
        ranks: of two neighbours written with `between` between them; others are not joined.

    >>> merge("banana", {"an": 0, "ana": 1}), merge("banana", {"a n": 0, "an an": 1}, " ")
    (['b', 'an', 'ana'], ['b', 'anan', 'a'])
    """
    pieces = list(text)  # a piece that was joined to the one before it becomes empty
    n, rank = len(pieces), ranks.get
    following = list(range(1, n + 1))  # n: none
    before = list(range(-1, n - 1))
    # The length tells whether a queued pair is still the same: pieces only grow.
    queue = [
        (order, k, k + 1, 2)
        for k in range(n - 1)
        if (order := rank(pieces[k] + between + pieces[k + 1])) is not None
    ]
    heapify(queue)
    while queue:
        _, left, right, length = heappop(queue)
        joined = pieces[left] + pieces[right]
        if not pieces[left] or not pieces[right] or len(joined) != length:
            continue
        pieces[left], pieces[right] = joined, ""
        after = following[left] = following[right]
        if after < n:
            before[after] = left
            order = rank(joined + between + pieces[after])
            if order is not None:
                heappush(queue, (order, left, after, length + len(pieces[after])))
        ahead = before[left]
        if ahead >= 0:
            order = rank(pieces[ahead] + between + joined)
            if order is not None:
                heappush(queue, (order, ahead, left, length + len(pieces[ahead])))
    return [piece for piece in pieces if piece]
