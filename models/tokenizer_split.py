"""How byte-level BPE cuts a text before it joins bytes: expressions on classes of characters.

llama.cpp sees each character beyond ASCII as one of six classes (number, letter, punctuation,
mark, symbol, other) or as white space; so do the expressions here, on a copy of the text in which
such a character is the letter of its class. The few that name characters look at the text itself.
Each expression in turn cuts the pieces that the one before has left.

Classes are those of Python's `unicodedata`; a character younger than that is "other".
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from yupana.graphlib.errors import FileFormatError
from yupana.models.tokenizer_kinds import CLASSES, KINDS, Named

# Other white space than this is none to llama.cpp, and beyond ASCII it is a vertical tab.
_SPACES = [0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
_TAB = "\v"
_OTHER = "\xd0"


class _ClassTable(dict[int, str]):
    """Code point to the letter of its class, found when first asked for."""

    def __missing__(self, point: int) -> str:
        letter = chr(point)
        if point >= 128:
            letter = CLASSES.get(unicodedata.category(letter)[0], _OTHER)
        self[point] = letter
        return letter


_SPACE_TABLE = dict.fromkeys(_SPACES, _TAB)
_CLASS_TABLE = _ClassTable(_SPACE_TABLE)


@dataclass(frozen=True, slots=True)
class Splitter:
    """Cuts a text into the words within which bytes are joined.

    Attributes:
        name: `tokenizer.ggml.pre` in GGUF.
        whole_words: a word that is a token needs no joining.
        add_bos: what holds where a file does not say.
    """

    name: str
    expressions: tuple[tuple[re.Pattern[str], bool], ...]  # and whether it looks at the text
    whole_words: bool
    add_bos: bool

    def split(self, text: str) -> Iterator[str]:
        """The words of a text; put together they are the text.

        >>> list(splitter("gpt-2").split("I've 22  ñus!"))
        ['I', "'ve", ' 22', ' ', ' ñus', '!']
        >>> list(splitter("llama-bpe").split("I'VE 22222"))
        ['I', "'VE", ' ', '222', '22']
        """
        classes = text.translate(_CLASS_TABLE)
        spaced = text.translate(_SPACE_TABLE)
        cuts = [0, len(text)] if text else [0]
        for expression, on_text in self.expressions:
            cuts = _cut(expression, spaced if on_text else classes, cuts)
        return (text[start:end] for start, end in pairwise(cuts))


def _cut(expression: re.Pattern[str], view: str, cuts: Sequence[int]) -> list[int]:
    """More cuts: before and after each match inside a piece; a match never crosses a cut."""
    found = [0]
    for start, end in pairwise(cuts):
        for match in expression.finditer(view, start, end):
            for at in match.span():
                if at > found[-1]:
                    found.append(at)
        if end > found[-1]:
            found.append(end)
    return found


@cache
def splitter(name: str) -> Splitter:
    """The splitter of a name as `tokenizer.ggml.pre` gives it.

    Raises:
        FileFormatError: no splitter of that name is known.
    """
    for kind in KINDS:
        if name in kind.names:
            expressions = []
            for expression in kind.expressions:
                on_text = isinstance(expression, Named)
                expressions.append((re.compile(expression, re.ASCII), on_text))
            return Splitter(name, tuple(expressions), kind.whole_words, kind.add_bos)
    known = ", ".join(sorted(name for kind in KINDS for name in kind.names))
    raise FileFormatError(
        f"tokenizer: tokenizer.ggml.pre is not known: got {name!r}, want one of {known}. Set the "
        "key to the name of a model whose text is split in the same way."
    )
