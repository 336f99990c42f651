"""The chat template of a run: a name, a template, or that of the model's file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yupana.graphlib.errors import SettingError
from yupana.models.chat_template import CHATML, ChatTemplate, special_words
from yupana.models.formats import expect
from yupana.models.tokenizer_base import Tokenizer
from yupana.models.vocabulary import Vocabulary
from yupana.train.samples import Template

TEMPLATE_KEY = "tokenizer.chat_template"  # in model files
_NAMED = {"chatml": CHATML}  # as `yupana chat` knows them


def template_entries(given: str | None) -> dict[str, Any]:
    """What a model file says of a template that was given: its source; nothing without one.

    Raises:
        SettingError: neither a name nor a template.

    >>> template_entries("chatml")["tokenizer.chat_template"] == CHATML, template_entries(None)
    (True, {})
    """
    if not given:
        return {}
    if given not in _NAMED and "{" not in given:  # it would write the same for any conversation
        raise SettingError(
            f"chat_template: got {given!r}, want {', '.join(_NAMED)} or a template in Jinja."
        )
    return {TEMPLATE_KEY: _NAMED.get(given, given)}


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
    source = expect({**template_entries(given)} or metadata, TEMPLATE_KEY, str, "")
    special = special_words(words) if isinstance(words, Tokenizer) else {}
    return ChatTemplate(source, special).render if source else None
