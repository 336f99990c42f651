"""What a model reads in a conversation: raw text with prefixes, or a chat template filled in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from yupana.graphlib.errors import SettingError
from yupana.models.chat_template import ChatTemplate
from yupana.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Turn:
    """Tokens to read before the model answers.

    Attributes:
        ids: the tokens.
        starts_over: they are the whole text; what was read before is to be forgotten.
    """

    ids: list[int]
    starts_over: bool = False


class Dialogue(ABC):
    """How a conversation becomes tokens.

    Attributes:
        mark: shown where the user may type.
        suffix: shown after what the user typed.
        reverse_prompts: texts at which the user's turn begins.
    """

    mark = "> "
    suffix = ""
    reverse_prompts: Sequence[str] = ()

    @abstractmethod
    def opening(self) -> list[int]:
        """What comes before everything; may be nothing."""

    @property
    @abstractmethod
    def user_begins(self) -> bool:
        """Whether the user says something before the model does."""

    @abstractmethod
    def turn(self, text: str) -> Turn:
        """What the user says."""

    def answered(self, text: str, end: int | None) -> list[int]:
        """The model has answered `text`; `end` is the token it ended with, None if it was stopped.

        Returns:
            tokens that are read, and shown, in return.
        """
        return []


class RawDialogue(Dialogue):
    """Text as it is, as in `main -i`: prefix, what is typed, suffix.

    Args:
        prompt: the beginning.
        prefix, suffix: around what is typed.
        reverse_prompts: texts at which the user's turn begins; the first one is added where the
            model ends the text instead.
        user_begins: even after a prompt.
        has_bos: put BOS before the prefix.
        mark: shown where the user may type; None: the prefix.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: str,
        *,
        prefix: str = "",
        suffix: str = "",
        reverse_prompts: Sequence[str] = (),
        user_begins: bool = False,
        has_bos: bool = False,
        mark: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._prefix = prefix
        self._user_begins = user_begins or not prompt
        self._has_bos = has_bos
        self._end_of_turn = suffix
        self.mark = prefix if mark is None else mark
        self.suffix = suffix if mark is None else ""
        self.reverse_prompts = reverse_prompts

    def opening(self) -> list[int]:
        if self._prompt or self._tokenizer.add_bos:
            return self._tokenizer.encode(self._prompt)
        return []

    @property
    def user_begins(self) -> bool:
        return self._user_begins

    def turn(self, text: str) -> Turn:
        ids = (
            self._encode(self._prefix) + self._encode(text, False) + self._encode(self._end_of_turn)
        )
        bos = self._tokenizer.bos
        return Turn([bos, *ids] if self._has_bos and bos is not None else ids)

    def answered(self, text: str, end: int | None) -> list[int]:
        return self._encode(self.reverse_prompts[0]) if self.reverse_prompts and end else []

    def _encode(self, text: str, parse_special: bool = True) -> list[int]:
        if not text:
            return []
        return self._tokenizer.encode(text, add_special=False, parse_special=parse_special)


class TemplateDialogue(Dialogue):
    """Messages, put into a chat template; only what is new of its text is read each time.

    Args:
        system: first message; none if empty.
        first: what the user says first; the user is asked if empty.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, system: str = "", first: str = ""
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._first = first
        self._messages = [{"role": "system", "content": system}] if system else []
        # What the template gave last, and texts of which one has been read since: the template may
        # strip an answer, and end it otherwise.
        self._asked = ""
        self._read = [""]

    def opening(self) -> list[int]:
        if self._first:
            return self.turn(self._first).ids
        if not self._messages:
            return []
        try:
            text = self._template.render(self._messages, add_generation_prompt=False)
        except SettingError:  # some refuse a system message alone; it is read with the next one
            return []
        return self._advance(text).ids

    @property
    def user_begins(self) -> bool:
        return not self._first

    def turn(self, text: str) -> Turn:
        self._messages.append({"role": "user", "content": text})
        try:
            return self._advance(self._template.render(self._messages))
        except SettingError:
            self._messages.pop()
            raise

    def answered(self, text: str, end: int | None) -> list[int]:
        if self._messages and self._messages[-1]["role"] == "assistant":  # it was told to go on
            text = self._messages.pop()["content"] + text
        self._messages.append({"role": "assistant", "content": text})
        word = "" if end is None else self._tokenizer.tokens[end]
        self._read = [
            self._asked + answer + tail
            for tail in dict.fromkeys((word, ""))
            for answer in (text, text.strip())
        ]
        return []

    def _advance(self, text: str) -> Turn:
        read = next((read for read in self._read if text.startswith(read)), None)
        new = text if read is None else text[len(read) :]
        ids = self._tokenizer.encode(new, add_special=False)
        bos = self._tokenizer.bos
        if not read and self._tokenizer.add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        starts_over = read is None
        self._asked, self._read = text, [text]
        return Turn(ids, starts_over)
