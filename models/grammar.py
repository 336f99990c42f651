r"""Grammars in llama.cpp's form, GBNF, as rules over the bytes of UTF-8.

    root   ::= "yes" | "no" | list
    list   ::= "[" (number ("," number)*)? "]"   # comments end with the line
    number ::= [0-9]{1,4}

Text in quotes, classes of characters, `.` for any, groups, `|`, and `*`, `+`, `?`, `{m}`, `{m,}`,
`{m,n}` behind what is repeated. Escapes are \n, \r, \t, \\, \", \[, \], \xHH, \uHHHH, \UHHHHHHHH.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NoReturn

from yupana.graphlib.errors import DataError
from yupana.models.grammar_bytes import ANY, Ranges, byte_sequences, outside

# A symbol of a sequence: a rule's number, or -1 - k for the k-th set of bytes.
Sequence = tuple[int, ...]

_MOST_COPIES: Final = 2000  # of what is repeated, as in llama.cpp
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_DIGITS: Final = {"x": 2, "u": 4, "U": 8}
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]+")
_LINE: Final = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_LINES: Final = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_COUNT: Final = re.compile(r"\{[ \t]*(\d+)[ \t]*(?:(,)[ \t]*(\d*)[ \t]*)?\}")


class Grammar:
    """The rules of a grammar.

    Args:
        text: in GBNF.
        root: the rule that a whole text follows.
    Attributes:
        rules: number of a rule to its alternatives.
        sets: sets of bytes, as numbers with 256 bits.
        root: number of the first rule.
    Raises:
        DataError: the text is no grammar, a rule is missing or defined twice, or begins with
            itself.

    >>> grammar = Grammar('root ::= "a" [0-9]+')
    >>> len(grammar.rules), [bin(s).count("1") for s in grammar.sets]
    (2, [1, 10])
    """

    def __init__(self, text: str, root: str = "root") -> None:
        self._text, self._at = text, 0
        self.rules: list[list[Sequence]] = []
        self.sets: list[int] = []
        self._numbers: dict[str, int] = {}
        self._first_use: dict[str, int] = {}
        self._of_sets: dict[int, int] = {}
        self._of_classes: dict[tuple[tuple[int, int], ...], Sequence] = {}
        self._skip(_LINES)
        while self._at < len(text):
            self._rule()
        for name, at in self._first_use.items():
            if not self.rules[self._numbers[name]]:
                self._at = at
                self._refuse("a rule that is defined", f"{name!r}, which is not")
        if root not in self._numbers:
            self._refuse(f"a rule called {root!r}", f"rules {[*self._numbers][:8]}")
        self.root = self._numbers[root]
        self._check_beginnings()

    def _refuse(self, want: str, got: str | None = None) -> NoReturn:
        before = self._text[: self._at]
        line, column = before.count("\n") + 1, self._at - before.rfind("\n")
        shown = got or repr(self._text[self._at : self._at + 20] or "the end")
        raise DataError(f"grammar: line {line}, column {column}: got {shown}, want {want}.")

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _take(self, text: str) -> bool:
        is_there = self._text.startswith(text, self._at)
        self._at += len(text) if is_there else 0
        return is_there

    def _name(self) -> str:
        found = _NAME.match(self._text, self._at)
        if not found:
            self._refuse("the name of a rule")
        self._first_use.setdefault(found[0], self._at)
        self._at = found.end()
        self._skip(_LINE)
        return found[0]

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = self._new([])
        return self._numbers[name]

    def _new(self, alternatives: list[Sequence]) -> int:
        self.rules.append(alternatives)
        return len(self.rules) - 1

    def _rule(self) -> None:
        start = self._at
        number = self._number(self._name())
        if self.rules[number]:
            self._at = start
            self._refuse("each rule once", "a rule that is defined above")
        if not self._take("::="):
            self._refuse("'::='")
        self._skip(_LINES)
        self.rules[number] = self._alternatives(in_group=False)
        if self._at < len(self._text) and self._text[self._at] not in "\r\n":
            self._refuse("the end of the line, or a part of a rule")
        self._skip(_LINES)

    def _alternatives(self, in_group: bool) -> list[Sequence]:
        found = [self._sequence(in_group)]
        while self._take("|"):
            self._skip(_LINES)
            found.append(self._sequence(in_group))
        return found

    def _sequence(self, in_group: bool) -> Sequence:
        parts: list[Sequence] = []
        between = _LINES if in_group else _LINE
        while self._at < len(self._text):
            part = self._part()
            if part is not None:
                parts.append(part)
            elif not self._repeat(parts):
                break
            self._skip(between)
        return tuple(symbol for part in parts for symbol in part)

    def _part(self) -> Sequence | None:
        """Symbols of the next literal, class, name or group; None where none begins."""
        if self._take('"'):
            literal: Sequence = ()
            while not self._take('"'):
                literal += self._one_of([(code := self._character(), code)])
            return literal
        if self._take("["):
            is_negated, ranges = self._take("^"), []
            while not self._take("]"):
                low = self._character()
                is_range = self._text[self._at : self._at + 2] not in ("-]", "-")
                high = self._character() if is_range and self._take("-") else low
                if high < low:
                    self._refuse("a range that goes up", f"{chr(low)!r} to {chr(high)!r}")
                ranges.append((low, high))
            return self._one_of(outside(ranges) if is_negated else ranges)
        if self._take("."):
            return self._one_of(ANY)
        if self._take("("):
            self._skip(_LINES)
            group = self._new(self._alternatives(in_group=True))
            if not self._take(")"):
                self._refuse("')'")
            return (group,)
        if _NAME.match(self._text, self._at):
            return (self._number(self._name()),)
        return None

    def _character(self) -> int:
        """The code point at the place, which may be an escape."""
        text, at = self._text, self._at
        if at >= len(text) or text[at] in "\r\n":
            self._refuse("the rest of a text or a class of characters")
        self._at += 1
        if text[at] != "\\":
            return ord(text[at])
        kind = text[at + 1 : at + 2]
        self._at += 1
        if kind in _ESCAPES:
            return ord(_ESCAPES[kind])
        digits = text[at + 2 : at + 2 + _DIGITS.get(kind, 0)]
        if kind not in _DIGITS or not re.fullmatch(rf"[0-9a-fA-F]{{{_DIGITS[kind]}}}", digits):
            self._at = at
            self._refuse(r"an escape: \n, \r, \t, \\, \", \[, \], \xHH, \uHHHH or \UHHHHHHHH")
        code = int(digits, 16)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            self._at = at
            self._refuse("a character of Unicode")
        self._at += len(digits)
        return code

    def _repeat(self, parts: list[Sequence]) -> bool:
        """Repeat the last part as a sign behind it says; False where there is none."""
        count = _COUNT.match(self._text, self._at)
        signs: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if count:
            least = int(count[1])
            most = least if not count[2] else int(count[3]) if count[3] else None
        elif self._text[self._at] in signs:
            least, most = signs[self._text[self._at]]
        else:
            return False
        if not parts:
            self._refuse("something before it that is repeated")
        if max(least, most or 0) > _MOST_COPIES or (most is not None and most < least):
            self._refuse(f"numbers up to {_MOST_COPIES}, the second not below the first")
        self._at = count.end() if count else self._at + 1
        what = parts.pop()
        if most is None:
            rest = self._new([])
            self.rules[rest] = [(*what, rest), ()]
            parts.append(what * least + (rest,))
        else:
            rests: Sequence = ()
            for _ in range(most - least):
                rests = (self._new([what + rests, ()]),)
            parts.append(what * least + rests)
        return True

    def _one_of(self, ranges: Ranges) -> Sequence:
        """Symbols of one character out of some ranges of code points."""
        key = tuple(ranges)
        if key not in self._of_classes:
            found = [tuple(map(self._set, some)) for some in byte_sequences(ranges)]
            self._of_classes[key] = found[0] if len(found) == 1 else (self._new(found),)
        return self._of_classes[key]

    def _set(self, members: int) -> int:
        if members not in self._of_sets:
            self._of_sets[members] = -1 - len(self.sets)
            self.sets.append(members)
        return self._of_sets[members]

    def _check_beginnings(self) -> None:
        """No rule may begin with itself and go on behind it: that would never end."""
        empty = self._may_be_empty()
        begins: dict[int, set[int]] = {}
        goes_on: list[tuple[int, int]] = []
        for number, alternatives in enumerate(self.rules):
            for sequence in alternatives:
                for at, symbol in enumerate(sequence):
                    if symbol >= 0:
                        begins.setdefault(number, set()).add(symbol)
                        if at + 1 < len(sequence):
                            goes_on.append((number, symbol))
                    if symbol < 0 or symbol not in empty:
                        break
        for number, symbol in goes_on:
            if number in _reached(begins, symbol):
                names = {n: name for name, n in self._numbers.items()}
                inside = [names[n] for n in (number, *_reached(begins, symbol)) if n in names]
                raise DataError(
                    f"grammar: rule {inside[0] if inside else 'of a group'!r} begins with itself: "
                    "got left recursion, want what is repeated behind something: a ::= b (c b)*."
                )

    def _may_be_empty(self) -> set[int]:
        empty: set[int] = set()
        is_growing = True
        while is_growing:
            more = {
                number
                for number, alternatives in enumerate(self.rules)
                if any(all(symbol in empty for symbol in sequence) for sequence in alternatives)
            }
            is_growing, empty = more != empty, more
        return empty


def _reached(edges: dict[int, set[int]], start: int) -> Iterator[int]:
    """All that can be reached from `start`, itself included."""
    seen, waiting = {start}, [start]
    while waiting:
        number = waiting.pop()
        yield number
        fresh = edges.get(number, set()) - seen
        seen |= fresh
        waiting += fresh
