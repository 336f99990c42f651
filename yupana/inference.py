"""What `generate`, `chat` and `perplexity` share: their flags, and what these open."""

from __future__ import annotations

import json
import secrets
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from yupana.flag_values import parse_biases, parse_overrides
from yupana.graphlib.errors import DataError, SettingError
from yupana.models.escapes import unescape
from yupana.models.grammar import Grammar
from yupana.models.json_schema import schema_grammar
from yupana.models.language_model import LanguageModel, load
from yupana.models.sampling import RandomStream, Sampler, Sampling
from yupana.models.sampling_settings import BREAKERS
from yupana.models.text_files import read_file
from yupana.models.tokenizer import Tokenizer
from yupana.models.writer import Writer

_MOST_CONTEXT = 4096  # unless told otherwise: memory for keys and values is taken at once


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which model, and how it is run.

    llama.cpp's own defaults for context and batch are 512 and 512 in the older generation, 4096 and
    2048 in the newer.
    """

    # Model file (GGUF).
    model: Positional[Path]
    # Tokens of context; 0: as many as the model was trained on, but no more than 4096.
    ctx_size: Annotated[int, arg(aliases=["-c"])] = 0
    # Tokens of a prompt read at once, at most.
    batch_size: Annotated[int, arg(aliases=["-b"])] = 512
    # Threads; 0: as many as there are cores.
    threads: Annotated[int, arg(aliases=["-t"])] = 0
    # Type of the cached keys and values: f16, f32, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0.
    cache_type: str = "f16"
    # LoRA adapter to use with the model: a file, or a folder of PEFT.
    lora: UseAppendAction[tuple[Path, ...]] = ()
    # LoRA adapter and what it is multiplied with.
    lora_scaled: UseAppendAction[tuple[tuple[Path, float], ...]] = ()
    # Map the file, whose pages all processes share, instead of reading it.
    mmap: bool = True
    # Ask the system to load the whole file now instead of when it is used.
    prefetch: bool = False
    # Ask it to load only what is touched, and nothing ahead; as llama.cpp's --numa does.
    random_access: bool = False
    # Keep the model in memory.
    mlock: bool = False
    # Refuse weights, and scales of quantised ones, that are not finite.
    check_tensors: bool = False
    # Metadata in place of what the file has: KEY=TYPE:VALUE, with type int, float, bool or str.
    override_kv: UseAppendAction[tuple[str, ...]] = ()

    @property
    def adapters(self) -> list[tuple[Path, float]]:
        """Files and scales of all adapters."""
        return [*((path, 1.0) for path in self.lora), *self.lora_scaled]


@dataclass(frozen=True, kw_only=True)
class TextFlags(ModelFlags):
    """How a text begins, goes on and ends."""

    # Text to begin with.
    prompt: Annotated[str, arg(aliases=["-p"])] = ""
    # File with the text to begin with.
    file: Annotated[Path | None, arg(aliases=["-f"])] = None
    # Tokens to add at most; -1: no limit, -2: until the context is full.
    n_predict: Annotated[int, arg(aliases=["-n"])] = -1
    # Tokens of the prompt that stay when the context is full; -1: all.
    keep: int = 0
    # Drop the older half when the context is full, instead of ending.
    context_shift: bool = True
    # Seed of the draws: the same seed gives the same text; -1, as in llama.cpp: another each time.
    seed: Annotated[int, arg(aliases=["-s"])] = 1337
    # Token id and what is added to its score, as 15043+1 or 29905-inf.
    logit_bias: Annotated[UseAppendAction[tuple[str, ...]], arg(aliases=["-l"])] = ()
    # Grammar that what is written follows, in llama.cpp's GBNF.
    grammar: str = ""
    # File with such a grammar.
    grammar_file: Path | None = None
    # JSON schema of what is written.
    json_schema: Annotated[str, arg(aliases=["-j"])] = ""
    # File with such a schema.
    json_schema_file: Annotated[Path | None, arg(aliases=["-jf"])] = None
    # Never end the text: the tokens that do are forbidden.
    ignore_eos: bool = False
    # Text at which the model stops.
    reverse_prompt: Annotated[UseAppendAction[tuple[str, ...]], arg(aliases=["-r"])] = ()
    # Process \n \r \t \' \" \\ \xHH in texts of the command line.
    escape: Annotated[bool, arg(aliases=["-e"])] = True
    # File to keep what was computed for the prompt; it is read if it exists.
    prompt_cache: Path | None = None
    # Keep what was computed for the whole text.
    prompt_cache_all: bool = False
    # Only read that file.
    prompt_cache_ro: bool = False
    # Show the prompt.
    display_prompt: bool = True
    # Show the prompt's tokens.
    verbose_prompt: bool = False
    # Show special tokens, as </s>.
    special: Annotated[bool, arg(aliases=["-sp"])] = False
    # Colour the prompt and what you type.
    color: Annotated[bool, arg(aliases=["-co"])] = False
    # Show at the end where the time went.
    perf: bool = True

    def text(self, text: str) -> str:
        """A text of the command line, its escapes read."""
        return unescape(text) if self.escape else text

    def prompt_text(self) -> str:
        """The prompt, from its flag or file.

        Raises:
            SettingError: both are given, or the file is not UTF-8.
            OSError: the system cannot read it.
        """
        if self.file is None:
            return self.text(self.prompt)
        if self.prompt:
            raise SettingError(f"prompt: got one and the file {self.file}, want one of them.")
        return read_file(self.file)

    def rules(self) -> Grammar | None:
        """The grammar that the flags give.

        Raises:
            SettingError: several are given, or a file is not UTF-8. DataError: it is no grammar.
            OSError: the system cannot read it.
        """
        flags = ("grammar", "grammar_file", "json_schema", "json_schema_file")
        given = [name for name in flags if getattr(self, name)]
        if len(given) > 1:
            raise SettingError(f"grammar: got {' and '.join(given)}, want one of them.")
        if not given:
            return None
        value = getattr(self, given[0])
        text = read_file(value) if isinstance(value, Path) else value
        if given[0].startswith("grammar"):
            return Grammar(text)
        try:
            return Grammar(schema_grammar(json.loads(text)))
        except json.JSONDecodeError as e:
            raise DataError(f"{given[0]}: got no JSON, want a schema: {e}.") from None


@dataclass(frozen=True, kw_only=True)
class WritingFlags(Sampling, TextFlags):
    """All that `generate` and `chat` have in common."""

    # DRY: text across which no sequence reaches, in place of the four usual ones; or none.
    dry_sequence_breaker: UseAppendAction[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Nothing: `sampling` checks, so that its errors are printed like all others."""

    def sampling(self) -> Sampling:
        """The settings of the sampler."""
        values = {field.name: getattr(self, field.name) for field in fields(Sampling)}
        breakers = self.dry_sequence_breaker or BREAKERS
        if breakers == ("none",):
            breakers = ()
        return Sampling(**values | {"dry_sequence_breaker": tuple(map(self.text, breakers))})


def open_model(flags: ModelFlags) -> LanguageModel:
    """Open the model file and attach its adapters."""
    if flags.threads < 0:
        raise SettingError(f"threads: got {flags.threads}, want at least 0.")
    return load(
        flags.model,
        flags.adapters,
        mmap=flags.mmap,
        prefetch=flags.prefetch,
        random_access=flags.random_access,
        mlock=flags.mlock,
        validate=flags.check_tensors,
        overrides=parse_overrides(flags.override_kv),
    )


def open_writer(flags: WritingFlags, model: LanguageModel) -> Writer:
    """A writer on a new session of the model."""
    if flags.ctx_size < 0:
        raise SettingError(f"ctx_size: got {flags.ctx_size}, want at least 0.")
    tokenizer = model.tokenizer
    bias = parse_biases(flags.logit_bias)
    if flags.ignore_eos:
        bias |= dict.fromkeys(tokenizer.ends, float("-inf"))
    session = model.session(
        n_ctx=flags.ctx_size or min(model.model.sizes.n_ctx, _MOST_CONTEXT),
        n_batch=flags.batch_size,
        cache=flags.cache_type,
        threads=flags.threads or None,
    )
    seed = secrets.randbits(32) if flags.seed == -1 else flags.seed
    return Writer(
        session,
        Sampler(flags.sampling(), tokenizer, bias, flags.rules()),
        RandomStream(seed),
        shifts=flags.context_shift and flags.n_predict != -2,
    )


def check_characters(text: str, tokenizer: Tokenizer) -> None:
    """Raise DataError if the text has characters that would be lost, as in a small vocabulary."""
    lost = [c for c in dict.fromkeys(text) if not tokenizer.encode(c, add_special=False)]
    if lost:
        raise DataError(
            f"encode: the model has no tokens for some characters: got {''.join(lost)[:20]!r}, "
            "want others. Leave them out."
        )


def begin(flags: TextFlags, writer: Writer, tokenizer: Tokenizer, ids: list[int]) -> None:
    """Let the writer read the prompt, and settle how much of it is kept.

    Raises:
        SettingError: the prompt does not fit the context.
    """
    if len(ids) >= writer.session.n_ctx:
        raise SettingError(
            f"prompt: it is too long: got {len(ids)} tokens, want at most "
            f"{writer.session.n_ctx - 1}. Shorten it, or pass a larger --ctx-size."
        )
    if flags.keep < 0 or flags.keep > len(ids):
        writer.keep = len(ids)
    else:
        writer.keep = min(flags.keep + tokenizer.add_bos, len(ids))
    writer.read(ids)
    if flags.verbose_prompt:
        for token in ids:
            print(f"{token:6} -> {tokenizer.decode([token], special=True)!r}", file=sys.stderr)


def say(text: str) -> None:
    """Tell the user something that is no part of the text."""
    print(text, file=sys.stderr, flush=True)
