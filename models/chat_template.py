"""Chat templates: a conversation as the text that a model was trained to continue.

A template is a program in Jinja's language, which comes with the model, so from strangers; it
runs in Jinja's sandbox. Its surroundings are those that Hugging Face's `transformers` gives it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.text_files import read_file
from yupana.models.tokenizer_base import Tokenizer

Message: TypeAlias = Mapping[str, str]

# What models without a template of their own most often know (ChatML).
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATE_KEY = "tokenizer.chat_template"  # in model files
_NAMED = {"chatml": CHATML}


class ChatTemplate:
    """A template, ready to be filled in.

    Args:
        source: as in a GGUF file's `tokenizer.chat_template`.
        words: what it can refer to, as `bos_token`; `special_words` gives those of a tokenizer.

    Raises:
        FileFormatError: the source is no template.
        SettingError: the package jinja2 is missing.

    >>> template = ChatTemplate(CHATML)
    >>> print(template.render([{"role": "user", "content": "Hello"}]), end="")
    <|im_start|>user
    Hello<|im_end|>
    <|im_start|>assistant
    """

    def __init__(self, source: str, words: Mapping[str, str] | None = None) -> None:
        try:
            import jinja2
        except ImportError:
            raise SettingError(
                "chat template: the package jinja2 is missing: got no such module, want it "
                "installed. Run `pip install jinja2`, or chat without a template "
                "(--no-conversation)."
            ) from None
        self._words = dict(words or {})
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as e:
            raise FileFormatError(
                f"chat template: line {e.lineno}: got {e.message!r}, want Jinja's language. Pass "
                "another one with --chat-template."
            ) from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation.

        Args:
            messages: each with "role" ("system", "user", "assistant") and "content".
            add_generation_prompt: begin the answer of the assistant.

        Raises:
            SettingError: the template refuses these messages, or fails.
        """
        try:
            text: str = self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self._words,
            )
            return text
        except _Refused as e:
            raise SettingError(
                f"chat template: it refuses the messages: got {[m['role'] for m in messages]}, and "
                f"says: {e}"
            ) from None
        except Exception as e:  # noqa: BLE001 - of somebody's template, whatever it is
            said = f"{type(e).__name__}: {e}".removesuffix(".")
            raise SettingError(
                f"chat template: it fails: got {said}. Pass another one with --chat-template."
            ) from None


def given_source(given: str | None, file: Path | None = None) -> str | None:
    """The source of a template that somebody gave; None without one.

    Args:
        given: a template, or the name of one: chatml.
        file: where a template is, in place of it.
    Raises:
        SettingError: both are given, or what is given is no template. OSError: the system cannot
            read.

    >>> given_source("chatml") == CHATML, given_source("{{ messages }}"), given_source(None)
    (True, '{{ messages }}', None)
    """
    if given and file is not None:
        raise SettingError(
            f"chat_template: got it and the chat_template_file {file}, want one of the two."
        )
    if not given and file is None:
        return None
    source = (given or "") if file is None else read_file(file)
    if file is None and source in _NAMED:
        return _NAMED[source]
    if "{" not in source:  # it would write the same for any conversation
        got = repr(source) if file is None else f"the file {file} with none"
        raise SettingError(
            f"chat_template: got {got}, want {', '.join(_NAMED)} or a template in Jinja."
        )
    return source


def special_words(tokenizer: Tokenizer) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like, as templates call them.

    >>> from yupana.models.tokenizer import read_tokenizer
    >>> entries = {"model": "gpt2", "tokens": ["a", "</s>"], "merges": [], "eos_token_id": 1}
    >>> tokenizer = read_tokenizer({f"tokenizer.ggml.{k}": v for k, v in entries.items()})
    >>> special_words(tokenizer)["eos_token"]
    '</s>'
    """
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    return {
        word: tokenizer.tokens[tokenizer.special[name]] if name in tokenizer.special else ""
        for name, word in names.items()
    }


class _Refused(Exception):
    """What `raise_exception` of a template raises."""


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own `tojson` writes HTML entities, which no model was trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks the assistant's text for training: as if not there."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja's class has it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    strftime: Callable[[str], str] = lambda form: datetime.now().strftime(form)  # noqa: E731
    environment.globals["strftime_now"] = strftime
    return environment
