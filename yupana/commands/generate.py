"""`yupana generate`: let a model continue a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from yupana.cache_file import CacheFile
from yupana.inference import WritingFlags, begin, check_characters, open_model, open_writer, say
from yupana.models.language_model import LanguageModel
from yupana.models.timings import Timings
from yupana.models.tokenizer import Tokenizer
from yupana.models.writer import Writer
from yupana.terminal import Screen, Watch


@dataclass(frozen=True, kw_only=True)
class Settings(WritingFlags):
    """Let a model continue a text."""

    # Tokens to add at most, the model may end before; -1: no limit, -2: until the context is full.
    n_predict: Annotated[int, arg(aliases=["-n"])] = 128


def run(settings: Settings) -> int:
    """Print the prompt and its continuation; returns the exit code."""
    s, timings = settings, Timings()
    with timings.load.measured():
        prompt = s.prompt_text()
        model = open_model(s)
        writer = open_writer(s, model)
        writer.timings = timings
        cache = CacheFile(s, writer)
        if not prompt and cache.tokens:  # go on from what the cache has
            prompt = model.tokenizer.decode(cache.tokens)
            ids = cache.tokens
        else:
            ids = first_ids(prompt, model.tokenizer)
        begin(s, writer, model.tokenizer, ids)
        cache.resume()
        writer.session.prepare(len(writer.pending))
    try:
        write(s, model, writer, cache, prompt)
        cache.save_all()
    except KeyboardInterrupt:
        return 130
    finally:
        if s.perf:
            say(f"\n{timings.table()}")
    return 0


def first_ids(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens of the prompt; of a line end if it is empty, or else what begins texts."""
    check_characters(prompt, tokenizer)
    bos = [] if tokenizer.bos is None else [tokenizer.bos]
    return tokenizer.encode(prompt) or tokenizer.encode("\n") or bos


def write(s: Settings, model: LanguageModel, writer: Writer, cache: CacheFile, prompt: str) -> None:
    """Draw and show tokens until one of the ends is reached."""
    screen = Screen(model.tokenizer, s.color, s.special)
    watch = Watch([*map(s.text, s.reverse_prompt)], model.tokenizer, slack=2)
    if s.display_prompt:
        screen.show(prompt, "prompt")
    try:
        cache.save_prompt()
        left = s.n_predict
        while left != 0:
            token = writer.draw()
            if token is None or token in model.tokenizer.ends:
                break
            screen.token(token)
            if watch.sees([token]):
                break
            left -= 1
    finally:
        screen.finish()
        print(flush=True)  # so that an error begins a line, too
