"""The file of `--prompt-cache`: read before the prompt is evaluated, written after."""

from __future__ import annotations

from pathlib import Path

from yupana.graphlib.errors import SettingError
from yupana.inference import TextFlags, say
from yupana.models.prompt_cache import (
    PromptCache,
    fingerprint,
    load_prompt_cache,
    save_prompt_cache,
)
from yupana.models.writer import Writer


class CacheFile:
    """What a program knows of its prompt cache.

    Args:
        flags: say where it is and whether it is written.
        writer: whose state it holds.
    """

    def __init__(self, flags: TextFlags, writer: Writer) -> None:
        self._flags = flags
        self._writer = writer
        self._owner = ""
        self._found = PromptCache((), {})
        self._has_news = False
        if flags.prompt_cache is None:
            if flags.prompt_cache_all or flags.prompt_cache_ro:
                raise SettingError(
                    "prompt_cache: got none with prompt_cache_all or prompt_cache_ro, want a file. "
                    "Pass --prompt-cache FILE."
                )
            return
        self._owner = fingerprint(writer.session.model, flags.adapters)
        if flags.prompt_cache.exists() and not _is_empty(flags.prompt_cache):
            self._found = load_prompt_cache(flags.prompt_cache, self._owner)

    @property
    def tokens(self) -> list[int]:
        """The tokens in the file; none where there is no file."""
        return list(self._found.tokens)

    def resume(self) -> None:
        """Take over what the file has of the pending tokens."""
        if self._flags.prompt_cache is None:
            return
        wanted, same = len(self._writer.pending), 0
        if self._found.state and wanted:
            same = self._writer.resume(self._found.tokens, self._found.state)
            say(f"prompt cache: {same} of {wanted} tokens need not be read again")
        self._has_news = same + 1 < wanted
        self._found = PromptCache((), {})

    def save_prompt(self) -> None:
        """Write the state after the prompt, if it was not in the file."""
        if self._has_news and self._writer.evaluate():
            self._save()

    def save_all(self) -> None:
        """Write the state of the whole text, if that is wanted."""
        if not self._flags.prompt_cache_all:
            return
        if self._writer.evaluate():
            self._save()

    def _save(self) -> None:
        if self._flags.prompt_cache is None or self._flags.prompt_cache_ro:
            return
        if self._writer.has_shifted:
            say("prompt cache: not written, since the beginning of the text was dropped")
            return
        cache = PromptCache(self._writer.tokens, self._writer.session.state())
        save_prompt_cache(self._flags.prompt_cache, cache, self._owner)


def _is_empty(path: Path) -> bool:
    """Whether a file was made and not written yet, as by `mktemp`."""
    return path.is_file() and path.stat().st_size == 0
