"""Writing pieces of text as they come, and reading what is typed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Sequence
from typing import Literal

from yupana.models.tokenizer import Tokenizer
from yupana.models.tokenizer_bytes import StreamDecoder

Kind = Literal["text", "prompt", "input"]
_RESET = "\x1b[0m"
_CODES: dict[Kind, str] = {"text": "", "prompt": "\x1b[33m", "input": "\x1b[1m\x1b[32m"}


class Screen:
    """Standard output, in colours if wanted.

    Args:
        tokenizer: spells tokens.
        color: prompts yellow, what is typed green.
        special: show special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, color: bool = False, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._color = color
        self._special = special
        self._decoder = StreamDecoder(self)

    def raw(self, token: int) -> bytes:
        """The bytes shown for a token."""
        return self._tokenizer.raw(token, self._special)

    def show(self, text: str, kind: Kind = "text") -> None:
        """Write a text now."""
        if self._color and text and _CODES[kind]:
            text = f"{_CODES[kind]}{text}{_RESET}"
        sys.stdout.write(text)
        sys.stdout.flush()

    def token(self, token: int) -> str:
        """Write what can be shown now that a token has come, and return it."""
        piece = self._decoder.feed(token)
        if piece:
            self.show(piece)
        return piece

    def finish(self) -> str:
        """Write what is left of a character that is not whole, and return it."""
        rest = self._decoder.close()
        self.show(rest)
        self._decoder = StreamDecoder(self)
        return rest

    def ask(self, prompt: str, multiline: bool) -> str | None:
        """What is typed, None at the end of input.

        A line that ends with a backslash is followed by another one; with `multiline` all are,
        except such a line. A slash at the end gives the text as it is, without a line end.
        """
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - `input` edits lines and remembers them then
        if self._color and sys.stdin.isatty():  # \x01 and \x02: no columns for readline
            prompt = f"{prompt}\x01{_CODES['input']}\x02"
        text = ""
        try:
            while True:
                line = input(prompt)
                prompt, part, goes_on = "", *_read_line(line, multiline)
                text += part
                if not goes_on:
                    return text.removesuffix("\n")
        except EOFError:
            return text.removesuffix("\n") or None
        finally:
            if self._color and sys.stdin.isatty():
                self.show(_RESET)


def _read_line(line: str, multiline: bool) -> tuple[str, bool]:
    r"""What a line adds to the text, and whether another one follows.

    >>> _read_line("a", False), _read_line("a\\", False), _read_line("a/", True)
    (('a\n', False), ('a\n', True), ('a', False))
    """
    if line.endswith("\\"):
        return line[:-1] + "\n", not multiline
    if line.endswith("/"):
        return line[:-1], False
    return line + "\n", multiline


class Watch:
    """Looks for texts at which the model stops, at the end of what it has written.

    Args:
        texts: the texts; one that is a single token is found as that token, too.
        tokenizer: spells tokens, special ones included.
        slack: bytes that may follow, since a token can be longer than the end of a text.

    >>> from yupana.models.tokenizer import read_tokenizer
    >>> entries = {"model": "gpt2", "tokens": ["a", "b", "ab"], "merges": ["a b"]}
    >>> tokenizer = read_tokenizer({f"tokenizer.ggml.{k}": v for k, v in entries.items()})
    >>> watch = Watch(["ba"], tokenizer)
    >>> [watch.sees([2]), watch.sees([0])]
    [False, True]
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, slack: int = 0) -> None:
        self._texts = [text.encode() for text in texts if text]
        self._tokenizer = tokenizer
        self._slack = slack
        self._tokens = set()
        for text in texts:
            ids = tokenizer.encode(text, add_special=False)
            if len(ids) == 1:
                self._tokens.add(ids[0])
        self._end = b""

    def sees(self, ids: Iterable[int]) -> bool:
        """Whether one of the texts stands at the end, now that `ids` have come."""
        if not self._texts:
            return False
        last = -1
        for last in ids:
            self._end += self._tokenizer.raw(last, special=True)
        longest = max(map(len, self._texts)) + self._slack
        self._end = self._end[-longest:]
        return last in self._tokens or any(
            self._end.find(text, max(len(self._end) - len(text) - self._slack, 0)) >= 0
            for text in self._texts
        )
