"""Hugging Face's `tokenizer.json`, run by their `tokenizers` package."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine

from yupana.graphlib.errors import FileFormatError
from yupana.models.formats.hub_folder import read_json
from yupana.models.tokenizer_base import Tokenizer, TokenType
from yupana.models.tokenizer_bytes import unspell, utf8
from yupana.models.tokenizer_ends import adjust_types, end_tokens

_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


_MAX_GAPS = 1 << 16  # ids without a token: each takes memory


class HubTokenizer(Tokenizer):
    """A tokenizer that `tokenizers` runs; see `Tokenizer` for what it does.

    Args:
        engine: of the package, without truncation and padding.
        spec: what its JSON says, for how tokens become bytes.
        types, special, ends: as `Tokenizer`.
    """

    def __init__(
        self,
        engine: Engine,
        spec: Mapping[str, Any],
        types: Sequence[int],
        special: Mapping[str, int],
        ends: Iterable[int],
    ) -> None:
        steps = _steps(spec.get("decoder"))
        kinds = [step.get("type") for step in steps]
        tokens = [engine.id_to_token(k) or f"[EMPTY_{k}]" for k in range(len(types))]
        super().__init__(
            tokens,
            types,
            special,
            ends=ends,
            add_bos=special.get("bos") in engine.encode("").ids[:1],
            add_space_prefix=any(_strips(step) for step in steps),
        )
        self._spelled = "ByteLevel" in kinds
        self._has_bytes = "ByteFallback" in kinds
        self._spaces = _spaces(steps)
        self._engine = engine
        self._plain: Engine | None = None

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        utf8(text)
        engine = self._engine if parse_special else self._engine_without_special()
        ids: list[int] = engine.encode(text, add_special_tokens=add_special).ids
        return ids

    def _engine_without_special(self) -> Engine:
        if self._plain is None:
            self._plain = Engine.from_str(self._engine.to_str())
            self._plain.encode_special_tokens = True  # as text, that is
        return self._plain

    def _encode_text(self, text: str, after_special: bool) -> Iterable[int]:
        ids: list[int] = self._engine.encode(text, add_special_tokens=False).ids
        return ids

    def _piece(self, token: str, kind: int) -> bytes:
        if kind == TokenType.USER_DEFINED and self._spelled:
            return token.encode()  # not spelled: it never was
        if self._has_bytes and len(token) == 6 and token.startswith("<0x"):
            return bytes([int(token[3:5], 16)])
        if self._spelled:
            return unspell(token)
        for stored, text in self._spaces:
            token = token.replace(stored, text)
        return token.encode()


def read_hub_tokenizer(path: Path) -> HubTokenizer:
    """Read a `tokenizer.json`; its neighbours `tokenizer_config.json` and `config.json` say more.

    Raises:
        FileFormatError: no JSON, or not what `tokenizers` takes.
        OSError: the system cannot read it.
    """
    spec = read_json(path)
    engine = _engine(path, spec)
    ids = engine.get_vocab(with_added_tokens=True)
    size = max(ids.values(), default=-1) + 1
    if size > len(ids) + _MAX_GAPS:
        raise FileFormatError(
            f"{path}: ids of tokens: got {size - 1} as the last of {len(ids)} tokens, want them "
            "without large gaps. The file is damaged; fetch it again."
        )
    types = [int(TokenType.NORMAL)] * size
    tokens = [engine.id_to_token(k) or "" for k in range(len(types))]
    for k, added in engine.get_added_tokens_decoder().items():
        types[k] = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
        tokens[k] = added.content  # not as it is normalised: ends of turns are known by it
    types = adjust_types(tokens, types)
    special, ends = _special(path.parent, ids)
    return HubTokenizer(engine, spec, types, special, ends | end_tokens(tokens, types, special))


def _engine(path: Path, spec: Any) -> Engine:
    """The package's tokenizer, known to work."""
    try:
        engine = Engine.from_str(json.dumps(spec))
        engine.no_truncation()
        engine.no_padding()
        engine.encode("")  # a template with unknown tokens fails only here
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # noqa: BLE001  plain Exception, or a panic that is not even that
        raise FileFormatError(
            f"{path}: not a tokenizer: got an error of the tokenizers package ({e}), want a file "
            "that it wrote. Fetch the file again, or update the package."
        ) from None
    return engine


def _special(folder: Path, ids: Mapping[str, int]) -> tuple[dict[str, int], set[int]]:
    """Special ids by name, and end ids, from the files beside."""
    special: dict[str, int] = {}
    ends: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        settings = read_json(folder / name) if (folder / name).is_file() else {}
        for key in ("bos", "eos"):
            known = _known_ids(settings.get(f"{key}_token_id"), ids)
            if known:
                special[key] = known[0]
                ends |= set(known) if key == "eos" else set()
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    for name, key in _NAMES.items():
        token = settings.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in ids:
            special[name] = ids[text]
    return special, ends


def _known_ids(value: Any, ids: Mapping[str, int]) -> list[int]:
    """Those of one id or a list of them that the vocabulary has."""
    values = value if isinstance(value, list) else [value]
    return [k for k in values if isinstance(k, int) and k in ids.values()]


def _steps(decoder: Any) -> list[dict[str, Any]]:
    """The steps of a decoder, which may be a sequence of others."""
    if not isinstance(decoder, dict):
        return []
    inner = decoder.get("decoders")
    return [s for d in inner for s in _steps(d)] if isinstance(inner, list) else [decoder]


def _strips(step: Mapping[str, Any]) -> bool:
    """Whether a step of a decoder takes the first space off."""
    if step.get("type") == "Strip":
        return step.get("content") == " " and step.get("start") == 1
    return step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never"


def _spaces(steps: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of stored characters and the text they mean."""
    pairs = []
    for step in steps:
        pattern = step.get("pattern")
        if step.get("type") == "Metaspace":
            pairs.append((str(step.get("replacement", "\u2581")), " "))
        elif step.get("type") == "Replace" and isinstance(pattern, dict) and "String" in pattern:
            pairs.append((str(pattern["String"]), str(step.get("content", ""))))
    return pairs
