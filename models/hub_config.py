"""`config.json` of a Llama or Qwen on Hugging Face's hub as the sizes of our model."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.formats.gguf_cursor import shown
from yupana.models.llama import LlamaConfig

_USUAL_TURNS = (32.0, 1.0)  # of YaRN: those that llama.cpp knows
_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "LLaMAForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


class HubConfig:
    """A model's `config.json`, checked.

    Args:
        path: of the file, for errors.
        values: what it holds.

    Raises:
        FileFormatError: another architecture, an entry missing or out of range, or a feature that
            llama.cpp's architecture of that name does not have.

    Attributes:
        sizes: of the model.
        frequency_factors: what the speed of each pair's rotation is divided by, (K/2,); None: 1.

    >>> values = dict(architectures=["LlamaForCausalLM"], vocab_size=9, hidden_size=8)
    >>> values |= dict(intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    >>> HubConfig(Path("config.json"), values).sizes.head_width
    4
    """

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self._path, self._values = path, values
        architecture = self._check_kind()
        heads = self._count("num_attention_heads")
        rope = self._rope()
        theta = self._number(values, "rope_theta", 10000.0)
        base = self._number(rope, "rope_theta", theta)
        n_ctx = self._count("max_position_embeddings", 2048)
        head_width = self._count("head_dim", max(1, self._count("hidden_size") // heads))
        self.frequency_factors = self._factors(rope, base, head_width, n_ctx)
        try:
            self.sizes = LlamaConfig(
                n_vocab=self._count("vocab_size"),
                n_ctx=n_ctx,
                n_embd=self._count("hidden_size"),
                n_layer=self._count("num_hidden_layers"),
                n_head=heads,
                n_head_kv=self._count("num_key_value_heads", heads),
                n_ff=self._count("intermediate_size"),
                head_width=head_width,
                rms_eps=self._number(values, "rms_norm_eps", 1e-6),
                rope_base=base,
                tied=values.get("tie_word_embeddings") is True,
                architecture=architecture,
                **self._scaling(rope, n_ctx),
            )
        except SettingError as e:
            raise FileFormatError(f"{path}: the sizes do not fit: {e}") from None

    def _check_kind(self) -> str:
        """The architecture's name in GGUF."""
        values = self._values
        named = values.get("architectures")
        names = named if isinstance(named, list) else [named]
        known = [kind for name, kind in _ARCHITECTURES.items() if name in names]
        if not known:
            raise self._wrong("architectures", named, f"one of {', '.join(_ARCHITECTURES)}")
        if values.get("quantization_config"):
            raise self._wrong("quantization_config", "one", "an unquantised model")
        if values.get("hidden_act", "silu") != "silu":
            raise self._wrong("hidden_act", values["hidden_act"], "'silu'")
        if known[0] != "llama" and values.get("use_sliding_window") is True:
            raise self._wrong("use_sliding_window", True, "attention to all tokens")
        return known[0]

    def _rope(self) -> dict[str, Any]:
        """What is said of rotary positions: `rope_parameters`, formerly `rope_scaling`."""
        for key in ("rope_parameters", "rope_scaling"):
            value = self._values.get(key)
            if isinstance(value, dict):
                return value
            if value is not None:
                raise self._wrong(key, value, "a JSON object")
        return {}

    def _scaling(self, rope: Mapping[str, Any], n_ctx: int) -> dict[str, Any]:
        """The fields that slow the rotation down, for contexts longer than those trained on."""
        kind = _kind(rope)
        if kind in ("default", "llama3"):
            return {}
        if kind not in ("linear", "yarn"):
            raise self._wrong("rope_type", kind, "'default', 'linear', 'llama3' or 'yarn'")
        factor = self._number(rope, "factor")
        if kind == "linear":
            return {"rope_scale": 1 / factor}
        if rope.get("mscale_all_dim") or rope.get("mscale"):
            raise self._wrong("mscale", rope.get("mscale"), "'attention_factor' instead")
        usual = 1 + 0.1 * math.log(factor) if factor > 1 else 1.0
        magnitude = self._number(rope, "attention_factor", usual)
        if self._yarn_turns(rope) != _USUAL_TURNS:
            return {"rope_magnitude": magnitude}  # what is slowed down say the factors
        return {
            "rope_scale": 1 / factor,
            "yarn": True,
            "n_ctx_orig": int(self._number(rope, "original_max_position_embeddings", n_ctx)),
            # Theirs is the whole factor, ours multiplies YaRN's own.
            "rope_magnitude": magnitude / (1 + 0.1 * math.log(factor)),
        }

    def _factors(
        self, rope: Mapping[str, Any], base: float, width: int, n_ctx: int
    ) -> NDArray[np.float32] | None:
        """What no other entry of a GGUF file says about the speeds of pairs."""
        if _kind(rope) == "llama3":
            return self._llama3_factors(rope, base, width)
        if _kind(rope) == "yarn" and self._yarn_turns(rope) != _USUAL_TURNS:
            return self._yarn_factors(rope, base, width, n_ctx)
        return None

    def _yarn_turns(self, rope: Mapping[str, Any]) -> tuple[float, float]:
        """Turns within the context trained on between which YaRN mixes: fast, slow."""
        fast, slow = _USUAL_TURNS
        return self._number(rope, "beta_fast", fast), self._number(rope, "beta_slow", slow)

    def _yarn_factors(
        self, rope: Mapping[str, Any], base: float, width: int, n_ctx: int
    ) -> NDArray[np.float32]:
        """YaRN with other turns than llama.cpp's: it reads none from files of this architecture."""
        old = self._number(rope, "original_max_position_embeddings", n_ctx)
        if base <= 1:
            raise self._wrong("rope_theta", base, "more than 1 with YaRN")
        low, high = (
            width * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(base))
            for turns in self._yarn_turns(rope)
        )
        first, last = max(math.floor(low), 0), min(math.ceil(high), width - 1)
        slowed = np.clip((np.arange(width // 2) - first) / max(last - first, 1e-3), 0, 1)
        speeds = 1 - slowed + slowed / self._number(rope, "factor")
        return np.asarray(1 / speeds, np.float32)

    def _llama3_factors(
        self, rope: Mapping[str, Any], base: float, width: int
    ) -> NDArray[np.float32]:
        """Llama 3.1's scaling: short waves stay, long ones are stretched, those between in part."""
        factor = self._number(rope, "factor", 8.0)
        low = self._number(rope, "low_freq_factor", 1.0)
        high = self._number(rope, "high_freq_factor", 4.0)
        n_ctx = self._number(rope, "original_max_position_embeddings", 8192)
        if high <= low:
            raise self._wrong("high_freq_factor", high, f"more than low_freq_factor {low}")
        waves = 2 * math.pi * base ** (np.arange(0, width, 2) / width)
        staying = np.clip((n_ctx / waves - low) / (high - low), 0, 1)
        factors: NDArray[np.float32] = (1 / ((1 - staying) / factor + staying)).astype(np.float32)
        return factors

    def _count(self, key: str, default: int | None = None) -> int:
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise self._wrong(key, value, "a whole number of at least 1")
        return value

    def _number(self, values: Mapping[str, Any], key: str, default: float | None = None) -> float:
        value: Any = values.get(key)
        if value is None and default is not None:
            return float(default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self._wrong(key, value, "a positive number")
        return float(value)

    def _wrong(self, key: str, got: object, want: str) -> FileFormatError:
        return FileFormatError(
            f"{self._path}: {shown(key)}: got {shown(got)}, want {want}. llama.cpp has no other "
            "for such models."
        )


def _kind(rope: Mapping[str, Any]) -> Any:
    """How positions are scaled, by its name."""
    return rope.get("rope_type", rope.get("type", "default"))
