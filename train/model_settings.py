"""Sizes of a model and of a batch: what `yupana pretrain` and `yupana cost` share.

The command line is made from these classes: a field is a flag, the comment above it its help.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import arg

from yupana.graphlib.errors import SettingError
from yupana.models.llama import LlamaConfig

# Settings, by what they are in a model's configuration.
OF_CONFIG = {
    "ctx": "n_ctx",
    "embd": "n_embd",
    "ff": "n_ff",
    "head": "n_head",
    "head_kv": "n_head_kv",
    "layer": "n_layer",
    "tied": "tied",
    "norm_rms_eps": "rms_eps",
    "rope_freq_base": "rope_base",
    "rope_freq_scale": "rope_scale",
}


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """Sizes of a batch, and what computes it."""

    # Tokens of context.
    ctx: Annotated[int, arg(aliases=["-c"])] = 128
    # Windows of text per step.
    batch: Annotated[int, arg(aliases=["-b"])] = 8
    # Threads; 0: as many as there are cores.
    threads: Annotated[int, arg(aliases=["-t"])] = 0

    @property
    def n_threads(self) -> int | None:
        """What `Graph.compile` is told of threads.

        Raises:
            SettingError: fewer than none.
        """
        if self.threads < 0:
            raise SettingError(
                f"threads: got {self.threads}, want at least 1, or 0 for as many as cores."
            )
        return self.threads or None


@dataclass(frozen=True, kw_only=True)
class ModelSettings(BatchSettings):
    """Sizes of the model and of a batch, with the defaults of ggml's train-text-from-scratch."""

    # Width of the residual stream.
    embd: int = 256
    # Width of the feed-forward layers.
    ff: int = 768
    # Attention heads.
    head: int = 8
    # Heads of keys and values, each shared by several query heads; 0: as many as heads.
    head_kv: int = 0
    # Transformer blocks.
    layer: int = 16
    # Let the output use the matrix of the embedding.
    tied: bool = False
    # Added to the mean square in each norm.
    norm_rms_eps: float = 1e-5
    # Base of the rotation of positions.
    rope_freq_base: float = 10000.0
    # Factor of positions before they are rotated.
    rope_freq_scale: float = 1.0

    def config(self, n_vocab: int) -> LlamaConfig:
        """The model's sizes.

        Raises:
            SettingError: as `LlamaConfig`.
        """
        sizes: dict[str, Any] = {field: getattr(self, name) for name, field in OF_CONFIG.items()}
        return LlamaConfig(n_vocab=n_vocab, **sizes)
