"""The chat template of a run: a name, a template, one in a file, or that of the model's file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from yupana.models.chat_template import TEMPLATE_KEY, ChatTemplate, given_source, special_words
from yupana.models.formats import expect
from yupana.models.tokenizer_base import Tokenizer
from yupana.models.vocabulary import Vocabulary
from yupana.train.samples import Template
from yupana.train.settings import FinetuneSettings, RunSettings

_S = TypeVar("_S", RunSettings, FinetuneSettings)


def with_template(settings: _S) -> _S:
    """The settings, with the template of a file as if it had been given itself.

    Checkpoints hold the template, so that a run that goes on does not need the file.

    Raises:
        SettingError: a template is given as well, or the file holds none.
        OSError: the system cannot read it.
    """
    if settings.chat_template_file is None:
        return settings
    source = given_source(settings.chat_template, settings.chat_template_file)
    given = settings.given | {"chat_template"}
    return settings.with_given(given, chat_template=source, chat_template_file=None)


def template_entries(given: str | None) -> dict[str, Any]:
    """What a model file says of a template that was given: its source; nothing without one.

    Raises:
        SettingError: neither a name nor a template.

    >>> template_entries("{{ messages }}"), template_entries(None)
    ({'tokenizer.chat_template': '{{ messages }}'}, {})
    """
    source = given_source(given)
    return {} if source is None else {TEMPLATE_KEY: source}


def read_template(
    given: str | None, metadata: Mapping[str, Any], words: Vocabulary | Tokenizer | None = None
) -> Template | None:
    """What makes text of chat messages; None where there is no template.

    Args:
        given: a name or a template; None: that of the file.
        metadata: of the file.
        words: the vocabulary, with what templates call `eos_token` and the like.
    Raises:
        FileFormatError, SettingError: it is no template.
    """
    source = given_source(given) or expect(metadata, TEMPLATE_KEY, str, "")
    special = special_words(words) if isinstance(words, Tokenizer) else {}
    return ChatTemplate(source, special).render if source else None
