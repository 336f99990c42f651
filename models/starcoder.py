"""StarCoder: GPT-2's layout with attention to one head of keys and values (or a few).

Learned positions, layer norm with bias, one matrix for queries, keys and values, gelu. Weights
carry the names of GGUF; shapes are (outputs, inputs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from yupana.graphlib.context import Context
from yupana.graphlib.dtypes import i32
from yupana.graphlib.errors import SettingError
from yupana.graphlib.ops import gelu, get_rows, index, norm
from yupana.graphlib.tensor import Tensor
from yupana.models.attend import Attend, attend_before
from yupana.models.decoder import Decoder, picked, rounded_to


@dataclass(frozen=True)
class StarCoderConfig:
    """Sizes of a model; the defaults are those of ggml's starcoder program.

    Raises:
        SettingError: a size out of range, or sizes that do not divide.

    >>> StarCoderConfig().head_width
    128
    """

    # Tokens in the vocabulary.
    n_vocab: int = 49280
    # Positions learned.
    n_ctx: int = 2048
    # Width of the residual stream.
    n_embd: int = 2048
    # Transformer blocks.
    n_layer: int = 24
    # Attention heads, each n_embd / n_head wide.
    n_head: int = 16
    # Heads of keys and values.
    n_head_kv: int = 1
    # Width of the feed-forward layer; 0: 4 n_embd.
    n_ff: int = 0
    # Added to the variance before its root is taken.
    norm_eps: float = 1e-5
    # Whether the output uses the matrix of the embedding.
    tied: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_ff", self.n_ff or 4 * self.n_embd)
        rules = [(n, getattr(self, n) >= 1, "at least 1") for n in _SIZES]
        rules += [
            ("n_embd", self.n_embd % max(self.n_head, 1) == 0, "a multiple of n_head"),
            ("n_head_kv", self.n_head % max(self.n_head_kv, 1) == 0, "a divisor of n_head"),
            ("norm_eps", 0 < self.norm_eps < 1, "a small positive number"),
        ]
        for name, is_right, rule in rules:
            if not is_right:
                got = getattr(self, name)
                raise SettingError(f"starcoder: {name}: got {got!r}, want {rule}.", name)

    @property
    def architecture(self) -> str:
        """Its name in files."""
        return "starcoder"

    @property
    def head_width(self) -> int:
        """K, elements of a head."""
        return self.n_embd // self.n_head

    @property
    def value_width(self) -> int:
        """Elements of a head of values."""
        return self.head_width


_SIZES = ("n_vocab", "n_ctx", "n_embd", "n_layer", "n_head", "n_head_kv", "n_ff")


def weight_shapes(config: StarCoderConfig) -> dict[str, tuple[int, ...]]:
    """Name to shape of every weight, in the order of the forward pass.

    >>> sizes = StarCoderConfig(n_vocab=9, n_ctx=8, n_embd=8, n_layer=1, n_head=2, n_head_kv=1)
    >>> weight_shapes(sizes)["blk.0.attn_qkv.weight"]
    (16, 8)
    """
    c = config
    D, F = c.n_embd, c.n_ff
    qkv = D + 2 * c.n_head_kv * c.head_width
    block = {
        "attn_norm.weight": (D,),
        "attn_norm.bias": (D,),
        "attn_qkv.weight": (qkv, D),
        "attn_qkv.bias": (qkv,),
        "attn_output.weight": (D, D),
        "attn_output.bias": (D,),
        "ffn_norm.weight": (D,),
        "ffn_norm.bias": (D,),
        "ffn_up.weight": (F, D),
        "ffn_up.bias": (F,),
        "ffn_down.weight": (D, F),
        "ffn_down.bias": (D,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (c.n_vocab, D),
        "position_embd.weight": (c.n_ctx, D),
    }
    for i in range(c.n_layer):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    shapes |= {"output_norm.weight": (D,), "output_norm.bias": (D,)}
    return shapes if c.tied else {**shapes, "output.weight": (c.n_vocab, D)}


class StarCoder(Decoder):
    """The weights of a model, and the graphs recorded on them.

    Args:
        config: sizes.
        weights: name to tensor, of any type, as `weight_shapes` says.
        context: owner of what graphs share; None: a new one.
        rounds: see `Decoder`.
    Raises:
        ShapeError: a weight is missing or has another shape.
    """

    architecture = "starcoder"

    def __init__(
        self,
        config: StarCoderConfig,
        weights: Mapping[str, Tensor],
        context: Context | None = None,
        rounds: bool = False,
    ) -> None:
        super().__init__(config, context, rounds)
        self.config = config
        self._take(weights, weight_shapes(config), {})

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
        if positions is None:
            self._check_tokens(tokens, "starcoder")
            positions = self.context.tensor(np.arange(tokens.shape[1]), i32)
        x = self.embed(tokens) + get_rows(self._weights["position_embd.weight"], positions)
        for i in range(self.config.n_layer):
            mixed = self._attention(i, self._norm(f"blk.{i}.attn_norm", x), attend)
            if i == self.config.n_layer - 1:  # from here on no token looks at others
                x, mixed = picked(x, wanted), picked(mixed, wanted)
            x = x + self.linear(f"blk.{i}.attn_output", mixed)
            up = self._gelu(self.linear(f"blk.{i}.ffn_up", self._norm(f"blk.{i}.ffn_norm", x)))
            x = x + self.linear(f"blk.{i}.ffn_down", up)
        return self._norm("output_norm", x)

    def output(self, hidden: Tensor) -> Tensor:
        """Record the output matrix: (…, D) to (…, V)."""
        return self.linear("token_embd" if self.config.tied else "output", hidden)

    @property
    def reach(self) -> int | None:
        """Positions that were learned."""
        return self.config.n_ctx

    def moved(self, keys: Tensor, by: Tensor) -> Tensor:
        """Not possible: what a position is, was learned.

        Raises:
            SettingError: always.
        """
        raise SettingError(
            "starcoder: keys cannot be moved: got a model with learned positions, want one that "
            "rotates. Read the tokens again at their new places."
        )

    def _attention(self, i: int, x: Tensor, attend: Attend | None) -> Tensor:
        c = self.config
        B, T, D = x.shape
        G, K = c.n_head_kv, c.head_width
        qkv = self.linear(f"blk.{i}.attn_qkv", x)
        q = index(qkv, np.s_[..., :D]).cont().reshape(B, T, c.n_head, K)
        k = index(qkv, np.s_[..., D : D + G * K]).cont().reshape(B, T, G, K)
        v = index(qkv, np.s_[..., D + G * K :]).cont().reshape(B, T, G, K)
        return (attend or attend_before())(i, q, k, v)

    def _gelu(self, x: Tensor) -> Tensor:
        """As ggml does it, which looks results in float16 up by arguments in float16."""
        return rounded_to(gelu(rounded_to(x, "f16")), "f16") if self.rounds else gelu(x)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return norm(x, self.config.norm_eps) * self.gain(name) + self._weights[f"{name}.bias"]
