"""LLaMA: RMS norm, rotary positions, grouped-query attention, gated feed-forward; Qwen 2 and 3.

Weights carry the names of GGUF and the shapes of ggml read in NumPy's order: a matrix is
(outputs, inputs). Which elements of a head are rotated together is llama.cpp's choice for each
architecture, so that files need no permutation. (On Hugging Face it is i and i + K/2 for all, and
converters of LLaMA reorder the rows of attn_q and attn_k.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.context import Context
from yupana.graphlib.dtypes import i32
from yupana.graphlib.errors import SettingError
from yupana.graphlib.ops import rms_norm, rope, silu
from yupana.graphlib.tensor import Tensor
from yupana.models.attend import Attend, attend_before
from yupana.models.decoder import Decoder, picked


@dataclass(frozen=True)
class Family:
    """What an architecture does in a way of its own."""

    rope_mode: str  # which elements are a pair; see `rope`
    has_head_norms: bool  # queries and keys are normed, head by head, before they are rotated


FAMILIES = {
    "llama": Family("normal", False),
    "qwen2": Family("neox", False),  # has biases beside queries, keys and values
    "qwen3": Family("neox", True),
}
_POSITIVE = ("rms_eps", "rope_base", "rope_scale", "rope_magnitude")


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a model; the defaults are those of ggml's train-text-from-scratch.

    Raises:
        SettingError: a size out of range, or sizes that do not divide.

    >>> LlamaConfig(n_vocab=65, n_embd=128, n_head=4, n_mult=8).n_ff
    344
    """

    # Tokens in the vocabulary.
    n_vocab: int
    # Tokens the model sees at most.
    n_ctx: int = 128
    # Width of the residual stream.
    n_embd: int = 256
    # Transformer blocks.
    n_layer: int = 16
    # Attention heads.
    n_head: int = 8
    # Heads of keys and values, each shared by n_head / n_head_kv queries; 0: n_head.
    n_head_kv: int = 0
    # Width of the feed-forward layer; 0: 8/3 of n_embd, rounded up to a multiple of n_mult.
    n_ff: int = 0
    n_mult: int = 256
    # Elements of each head that are rotated, even; 0: all. llama.cpp reads files with all only.
    n_rot: int = 0
    # Added to the mean square before its root is taken.
    rms_eps: float = 1e-5
    # Rotation of pair i at position p is p · rope_scale / rope_base^(2i / n_rot) radians.
    rope_base: float = 10000.0
    rope_scale: float = 1.0
    # Whether the output uses the matrix of the embedding.
    tied: bool = False
    # K, elements of a head of queries and keys; 0: n_embd / n_head.
    head_width: int = 0
    # Elements of a head of values; 0: head_width.
    value_width: int = 0
    # YaRN: pairs that turn fast keep their speed, only the others are slowed down by rope_scale;
    # see `rope`, whose defaults say which, as in llama.cpp.
    yarn: bool = False
    # Positions trained on before rotation was slowed down; 0: n_ctx. Only YaRN asks for it.
    n_ctx_orig: int = 0
    # Multiplies rotated queries and keys.
    rope_magnitude: float = 1.0
    # One of `FAMILIES`, as files have it.
    architecture: str = "llama"

    def __post_init__(self) -> None:
        names = ", ".join(map(repr, FAMILIES))
        self._require("architecture", self.architecture in FAMILIES, f"one of {names}")
        for name in ("n_vocab", "n_ctx", "n_embd", "n_layer", "n_head", "n_mult"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        divides = self.head_width > 0 or self.n_embd % self.n_head == 0
        self._require("n_embd", divides, f"a multiple of n_head {self.n_head}")
        self._fill("head_width", self.n_embd // self.n_head)
        self._fill("value_width", self.head_width)
        n_ff = (2 * (4 * self.n_embd) // 3 + self.n_mult - 1) // self.n_mult * self.n_mult
        self._fill("n_ff", n_ff)
        self._fill("n_head_kv", self.n_head)
        self._fill("n_rot", self.head_width)
        self._fill("n_ctx_orig", self.n_ctx)
        self._require("n_ff", self.n_ff >= 1, "at least 1")
        divides = self.n_head_kv >= 1 and self.n_head % self.n_head_kv == 0
        self._require("n_head_kv", divides, f"a divisor of n_head {self.n_head}")
        is_fit = 2 <= self.n_rot <= self.head_width and self.n_rot % 2 == 0
        self._require("n_rot", is_fit, f"even, 2 to n_embd / n_head = {self.head_width}")
        for name in (*_POSITIVE, "head_width", "value_width", "n_ctx_orig"):
            self._require(name, 0 < getattr(self, name) < math.inf, "a positive number")
        self._require("yarn", self.yarn in (False, True), "True or False")

    @property
    def family(self) -> Family:
        """What its architecture does in a way of its own."""
        return FAMILIES[self.architecture]

    def _require(self, name: str, is_right: bool, rule: str) -> None:
        if not is_right:
            got = getattr(self, name)
            raise SettingError(f"llama: {name}: got {got!r}, want {rule}.", name)

    def _fill(self, name: str, value: int) -> None:
        """Set a size that was left at 0."""
        object.__setattr__(self, name, getattr(self, name) or value)


def weight_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name to shape of every weight a model must have, in the order of the forward pass.

    >>> sizes = LlamaConfig(n_vocab=9, n_ctx=8, n_embd=8, n_layer=1, n_head=2)
    >>> weight_shapes(sizes)["token_embd.weight"], len(weight_shapes(sizes))
    ((9, 8), 12)
    """
    c = config
    D, F, V = c.n_embd, c.n_ff, c.n_vocab
    H, G, K = c.n_head, c.n_head_kv, c.head_width
    block = {
        "attn_norm": (D,),
        "attn_q": (H * K, D),
        "attn_k": (G * K, D),
        "attn_v": (G * c.value_width, D),
        **({"attn_q_norm": (K,), "attn_k_norm": (K,)} if c.family.has_head_norms else {}),
        "attn_output": (D, H * c.value_width),
        "ffn_norm": (D,),
        "ffn_gate": (F, D),
        "ffn_up": (F, D),
        "ffn_down": (D, F),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (V, D)}
    for i in range(c.n_layer):
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
    shapes["output_norm.weight"] = (D,)
    return shapes if c.tied else {**shapes, "output.weight": (V, D)}


def optional_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The same of those that a file may have: biases, and factors of the rotation's speeds.

    >>> sizes = LlamaConfig(n_vocab=9, n_ctx=8, n_embd=8, n_layer=1, n_head=2)
    >>> optional_shapes(sizes)["rope_freqs.weight"]
    (2,)
    """
    biases = {
        f"{name.removesuffix('.weight')}.bias": shape[:1]
        for name, shape in weight_shapes(config).items()
        if len(shape) == 2 and name.startswith("blk.")
    }
    return {**biases, "rope_freqs.weight": (config.n_rot // 2,)}


class Llama(Decoder):
    """The weights of a model in a context, and the graphs recorded on them.

    Shape letters: B batch, T time, D n_embd, H heads, G heads of keys and values, K head width,
    F n_ff, V n_vocab.

    Args:
        config: sizes.
        context: owner of the weights; None: a new one. Pass one with no_alloc=True to count
            without allocating. The weights are zero until `init` or a file fills them.
        weights: name to tensor, of any type: frozen or quantised ones, such as those of a mapped
            file. Biases beside matrices and `rope_freqs.weight` are used where they are given.
        rounds: see `Decoder`.
    Raises:
        ShapeError: a weight is missing or does not have the shape of `weight_shapes`.

    >>> model = Llama(LlamaConfig(n_vocab=11, n_ctx=8, n_embd=16, n_layer=1, n_head=2)).init(seed=1)
    >>> tokens = model.context.tensor([[1, 2, 3]])
    >>> model.logits(tokens).shape
    (1, 3, 11)
    """

    def __init__(
        self,
        config: LlamaConfig,
        context: Context | None = None,
        weights: Mapping[str, Tensor] | None = None,
        rounds: bool = False,
    ) -> None:
        super().__init__(config, context, rounds)
        self.config, self.architecture = config, config.architecture
        if weights is None:
            self._add_weights()
        else:
            self._take(weights, weight_shapes(config), optional_shapes(config))

    def _add_weights(self) -> None:
        for name, shape in weight_shapes(self.config).items():
            if len(shape) == 2 and name != "token_embd.weight":
                self._add_linear(name.removesuffix(".weight"), shape)
            else:
                self._add(name, shape)

    def _add(self, name: str, shape: tuple[int, ...]) -> None:
        self._weights[name] = self.context.param(shape, name=name)

    def _add_linear(self, name: str, shape: tuple[int, ...]) -> None:
        """The weight of `linear(name, x)`; a subclass may hold it in another form."""
        self._add(f"{name}.weight", shape)

    def init(self, seed: int = 1337) -> Self:
        """Fill the weights for training from scratch; returns itself.

        Norms are 1. Matrices are normal with deviation 0.02, and those that write to the residual
        stream 0.02 / sqrt(2 n_layer), so that the stream's variance does not grow with the number
        of blocks (GPT-2, section 2.3). Other scales learn more slowly at the sizes this library
        is for: width 128, 4 blocks, 400 steps on Python's documentation give a validation loss of
        4.15; 4.51 with 1 / sqrt(inputs), 4.67 with the 1 / sqrt(inputs + outputs) of ggml's
        programs (which draw norms too: see `BabyLlama`).
        """
        random = np.random.default_rng(seed)
        for name, weight in self._weights.items():
            if weight.ndim == 1:
                weight.set(1.0)
                continue
            writes_to_stream = ".attn_output." in name or ".ffn_down." in name
            deviation = 0.02 / math.sqrt(2 * self.config.n_layer) if writes_to_stream else 0.02
            weight.set(random.standard_normal(weight.shape, np.float32) * np.float32(deviation))
        return self

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The weights as a file holds them: GGUF name to a view of the values."""
        return {name: weight.data.view(np.float32) for name, weight in self._weights.items()}

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        attend: Attend | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Record everything before the output matrix: (B, T) i32 to (B, T, D), normed.

        See `Decoder.hidden`.
        """
        c = self.config
        if positions is None:
            self._check_tokens(tokens, "llama")
            positions = self._positions(tokens.shape[1])
        x = self.embed(tokens)  # (B, T, D)
        for i in range(c.n_layer):
            mixed = self._attention(i, self._norm(f"blk.{i}.attn_norm", x), positions, attend)
            if i == c.n_layer - 1:  # from here on no token looks at others
                x, mixed = picked(x, wanted), picked(mixed, wanted)
            x = x + self.linear(f"blk.{i}.attn_output", mixed)
            x = x + self._feed_forward(i, self._norm(f"blk.{i}.ffn_norm", x))
        return self._norm("output_norm", x)

    def output(self, hidden: Tensor) -> Tensor:
        """Record the output matrix: (…, D) to (…, V)."""
        return self.linear("token_embd" if self.config.tied else "output", hidden)

    def moved(self, keys: Tensor, by: Tensor) -> Tensor:
        """Record keys (T, G, K) as they would be `by` (T,) positions further on."""
        # What they were multiplied with when they were rotated must not be applied again.
        return self._rope(keys, by, 1 / self._magnitude)

    def _attention(self, i: int, x: Tensor, positions: Tensor, attend: Attend | None) -> Tensor:
        c = self.config
        B, T, _ = x.shape
        H, G, K = c.n_head, c.n_head_kv, c.head_width
        q = self.linear(f"blk.{i}.attn_q", x).reshape(B, T, H, K)
        k = self.linear(f"blk.{i}.attn_k", x).reshape(B, T, G, K)
        v = self.linear(f"blk.{i}.attn_v", x).reshape(B, T, G, -1)
        if c.family.has_head_norms:
            q, k = self._norm(f"blk.{i}.attn_q_norm", q), self._norm(f"blk.{i}.attn_k_norm", k)
        mix = attend or attend_before()
        return mix(i, self._rope(q, positions), self._rope(k, positions), v)

    def _feed_forward(self, i: int, x: Tensor) -> Tensor:
        gate = silu(self.linear(f"blk.{i}.ffn_gate", x))  # (B, T, F)
        return self.linear(f"blk.{i}.ffn_down", gate * self.linear(f"blk.{i}.ffn_up", x))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return rms_norm(x, self.config.rms_eps) * self.gain(name)

    def _rope(self, x: Tensor, positions: Tensor, magnitude: float = 1.0) -> Tensor:
        c = self.config
        if positions.ndim == 2:  # a row of them for each sequence: as one long sequence
            flat = x.reshape(positions.size, *x.shape[2:])
            return self._rope(flat, positions.reshape(positions.size), magnitude).reshape(*x.shape)
        return rope(
            x,
            positions,
            c.n_rot,
            c.family.rope_mode,
            base=c.rope_base,
            freq_scale=c.rope_scale,
            freq_factors=self._weights.get("rope_freqs.weight"),
            n_ctx_orig=c.n_ctx_orig,
            ext_factor=float(c.yarn),
            attn_factor=c.rope_magnitude * magnitude,
        )

    @property
    def _magnitude(self) -> float:
        """What rotated pairs are multiplied with; YaRN adds to it."""
        c = self.config
        more = 1 - 0.1 * math.log(c.rope_scale) if c.yarn else 1.0
        return c.rope_magnitude * more

    def _positions(self, n: int) -> Tensor:
        """(n,) i32: 0, 1, …; one leaf per length, whatever graphs are recorded."""
        name = f"positions.{n}"
        if name in self.context:
            return self.context[name]
        return self.context.tensor(np.arange(n), i32, name)
