"""A text that ends before one of some texts, told in pieces as it comes."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Passes on pieces of a text up to the first of some texts, which may come in several pieces.

    Letters that may be the beginning of one are held back until it is clear.

    Args:
        texts: none of them empty.

    Attributes:
        has_ended: one of the texts has come.

    >>> stops = StopTexts(["END", "."])
    >>> [stops.feed(piece) for piece in ("one E", "N", "t wo EN", "D three")]
    ['one ', '', 'ENt wo ', '']
    >>> stops.has_ended
    True
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._held = ""
        self.has_ended = False

    def feed(self, piece: str) -> str:
        """What of the text is clear now, with this piece at its end."""
        if self.has_ended:
            return ""
        text = self._held + piece
        found = [at for stop in self._texts if (at := text.find(stop)) >= 0]
        if found:
            self.has_ended, self._held = True, ""
            return text[: min(found)]
        longest = max((self._begun(text, stop) for stop in self._texts), default=0)
        clear = len(text) - longest
        self._held = text[clear:]
        return text[:clear]

    def close(self) -> str:
        """What was held back, now that no more comes."""
        rest, self._held = self._held, ""
        return rest

    @staticmethod
    def _begun(text: str, stop: str) -> int:
        """How many letters at the end of `text` are the beginning of `stop`."""
        sizes = range(min(len(stop) - 1, len(text)), 0, -1)
        return next((size for size in sizes if text.endswith(stop[:size])), 0)
