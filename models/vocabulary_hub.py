"""Hugging Face's `tokenizer.json` as GGUF's `tokenizer.ggml.*` entries."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Engine

from yupana.graphlib.errors import FileFormatError
from yupana.models.formats.gguf_cursor import shown
from yupana.models.formats.hub_folder import read_json
from yupana.models.tokenizer_base import Tokenizer, TokenType
from yupana.models.tokenizer_hub import read_hub_tokenizer
from yupana.models.tokenizer_kinds import KINDS
from yupana.models.tokenizer_split import splitter

_SPECIAL = ("bos", "eos", "unknown", "padding")
# The splitters of most models come first; of those that are alike, the best known name.
_USUAL = ("gpt-2", "llama-bpe", "qwen2", "starcoder", "tekken", "gpt-4o", "deepseek-v3")
# Splitters differ in how they treat white space, digits, apostrophes, marks and scripts.
_PROBE = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \nHello, World's 'best' I'VE we'll  it'S don'T"
    " 3 33 333 3333 33333 333333 1,234,567.89 x=y+1; a_b __init__(self): != -> <|x|> //path/to\r\n"
    "camelCase HTTPServer iPhone ÉCOLE école naïve e\u0301te\u0301 straße \u0639\u0631\u0628\u064a "
    "\u0645\u064e\u0631\u062d \u4f60\u597d\u4e16\u754c3\u5929 \u3053\u3093\u306b\u3061\u306f "
    "\ud55c\uad6d\uc5b4 \u0e20\u0e32\u0e29\u0e32 \u0939\u093f\u0928\u094d\u0926\u0940 \u2460\u00bd "
    "\U0001f999\U0001f999 \u200d\u2705 \u00a0 \u2003 $5 \u20ac7 ~~~ === \u2026 \u201cq\u201d ??!  "
)


def hub_entries(folder: Path, n_vocab: int) -> tuple[dict[str, Any], list[str]]:
    """The entries of the folder's tokenizer, and what the user should know of them.

    Args:
        folder: with a `tokenizer.json`; without one the entries say that there is no vocabulary.
        n_vocab: rows of the embedding; those without a token get one that no text has.

    Raises:
        FileFormatError: a tokenizer of a kind that GGUF's families do not cover.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        note = "The folder has no tokenizer.json, so the file has no vocabulary."
        return {"tokenizer.ggml.model": "none"}, [note]
    spec = read_json(path)
    tokenizer = read_hub_tokenizer(path)
    if len(tokenizer) > n_vocab:
        raise FileFormatError(
            f"{path}: more tokens than the embedding has rows: got {len(tokenizer)}, want at most "
            f"{n_vocab}. Token {shown(tokenizer.tokens[n_vocab])} has no row."
        )
    model = spec.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise FileFormatError(f"{path}: kind of tokenizer: got {shown(kind)}, want 'BPE'.")
    engine = Engine.from_file(str(path))
    engine.no_truncation()
    engine.no_padding()
    merges = [_pair(path, merge) for merge in model.get("merges", [])]
    notes: list[str] = []
    entries = _common(tokenizer, engine, n_vocab)
    if model.get("byte_fallback"):
        entries |= _spm(tokenizer, merges, n_vocab, model.get("unk_token"), entries)
        if odd := _pairs_without_merge(tokenizer, merges):
            notes.append(
                f"{odd} pairs of tokens make another token without being a merge; SentencePiece's "
                "rules, which llama.cpp follows, join them all the same."
            )
    else:
        entries |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": _splitting(path, engine, bool(model.get("ignore_merges"))),
            "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        }
    return entries | _template(folder), notes


def _common(tokenizer: Tokenizer, engine: Engine, n_vocab: int) -> dict[str, Any]:
    tokens = [f"[PAD{k}]" for k in range(n_vocab)]
    types = [int(TokenType.UNUSED)] * n_vocab
    # As they stand in texts, where llama.cpp looks for them; not as the tokenizer normalises them.
    added = {k: token.content for k, token in engine.get_added_tokens_decoder().items()}
    for k, token in enumerate(tokenizer.tokens):
        if engine.id_to_token(k) is not None:
            tokens[k], types[k] = added.get(k, token), tokenizer.types[k]
            if types[k] == TokenType.USER_DEFINED:
                tokens[k] = tokens[k].replace("\u2581", " ")
    entries: dict[str, Any] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
    }
    for name in _SPECIAL:
        if name in tokenizer.special:
            entries[f"tokenizer.ggml.{name}_token_id"] = tokenizer.special[name]
    around = engine.encode("").ids
    entries["tokenizer.ggml.add_bos_token"] = tokenizer.bos in around[:1]
    entries["tokenizer.ggml.add_eos_token"] = len(around) > 0 and tokenizer.eos == around[-1]
    return entries


def _spm(
    tokenizer: Tokenizer,
    merges: Sequence[tuple[str, str]],
    n_vocab: int,
    unknown: Any,
    entries: Mapping[str, Any],
) -> dict[str, Any]:
    """What SentencePiece's family has besides: scores, by which pairs are joined, and bytes."""
    scores = np.zeros(n_vocab, np.float32)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    types = entries["tokenizer.ggml.token_type"].copy()
    for k, token in enumerate(entries["tokenizer.ggml.tokens"][: len(tokenizer)]):
        scores[k] = -ranks.get(token, 0)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[k] = TokenType.BYTE
        elif token == unknown:
            types[k] = TokenType.UNKNOWN
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": tokenizer.add_space_prefix,
    }


def _pairs_without_merge(tokenizer: Tokenizer, merges: Sequence[tuple[str, str]]) -> int:
    """Number of pairs that SentencePiece would join though the merges do not."""
    known = set(merges)
    normal = {
        token
        for token, kind in zip(tokenizer.tokens, tokenizer.types, strict=True)
        if kind == TokenType.NORMAL
    }
    return sum(
        (token[:cut], token[cut:]) not in known
        for token in normal
        if not token.startswith("<0x")
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    )


def _splitting(path: Path, engine: Engine, whole_words: bool) -> str:
    """The name of the splitter that cuts a text of many kinds where the tokenizer does."""
    if engine.pre_tokenizer is None:
        raise FileFormatError(f"{path}: pre_tokenizer: got none, want one that splits text.")
    found = engine.pre_tokenizer.pre_tokenize_str(_PROBE)
    wanted = [_PROBE[start:end] for _, (start, end) in found]
    names = [*_USUAL, *(kind.names[0] for kind in KINDS)]
    for name in names:
        split = splitter(name)
        if split.whole_words == whole_words and list(split.split(_PROBE)) == wanted:
            return name
    raise FileFormatError(
        f"{path}: pre_tokenizer: got one that cuts text as no splitter of llama.cpp does, want one "
        "of its kinds. Convert without tokenizer.json, and take the vocabulary from elsewhere."
    )


def _pair(path: Path, merge: Any) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(type(p) is str for p in parts):
        raise FileFormatError(f"{path}: a merge is no pair: got {shown(merge)}, want two tokens.")
    return parts[0], parts[1]


def _template(folder: Path) -> dict[str, Any]:
    """The chat template, from a file of its own or from `tokenizer_config.json`."""
    if (folder / "chat_template.jinja").is_file():
        return {"tokenizer.chat_template": (folder / "chat_template.jinja").read_text("utf-8")}
    path = folder / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(template, list):  # several by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return {"tokenizer.chat_template": template} if isinstance(template, str) else {}
