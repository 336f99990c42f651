"""ggml's baby-llama: a tiny LLaMA that learns to draw sine waves, plain or factored (LoRA).

The model is `Llama` itself. What is special here: the sizes, the initial weights, the variant
whose attention and output matrices are products a · b, the examples and the squared error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.context import Context
from yupana.graphlib.errors import SettingError
from yupana.graphlib.graph import Graph
from yupana.graphlib.ops import mul_mat
from yupana.graphlib.tensor import Tensor
from yupana.models.llama import Llama, LlamaConfig

N_EXAMPLES = 256
N_BATCH = 8
_FACTORED = ("attn_q", "attn_k", "attn_v", "attn_output", "output")


def baby_config(
    n_vocab: int = 8,
    n_ctx: int = 8,
    n_embd: int = 32,
    n_mult: int = 2,
    n_head: int = 8,
    n_layer: int = 1,
    n_head_kv: int = 0,
) -> LlamaConfig:
    """The sizes of ggml's baby-llama, or others by the same rules.

    Raises:
        SettingError: as `LlamaConfig`.

    >>> config = baby_config()
    >>> config.n_rot, config.n_ff, config.rms_eps
    (4, 86, 5e-06)
    """
    return LlamaConfig(
        n_vocab=n_vocab,
        n_ctx=n_ctx,
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_mult=n_mult,
        n_rot=min(16, n_embd // max(n_head, 1)),
        rms_eps=5e-6,
    )


class BabyLlama(Llama):
    """A `Llama` with baby-llama's initial weights and loss.

    Args:
        config: sizes, as from `baby_config`.
        n_lora: R; None: plain. Else the query, key, value, attention output and output matrices
            are products a · b of a (outputs, R) and b (R, inputs), held in place of the matrix as
            `<name>.a` and `<name>.b`. Both are trained: no weight lies frozen below them.
        context: owner of the weights; None: a new one.
    Raises:
        SettingError: an R below 1.

    >>> BabyLlama(baby_config()).n_parameters, BabyLlama(baby_config(), n_lora=4).n_parameters
    (12960, 9792)
    """

    def __init__(
        self, config: LlamaConfig, n_lora: int | None = None, context: Context | None = None
    ) -> None:
        if n_lora is not None and n_lora < 1:
            raise SettingError(f"baby-llama: n_lora: got {n_lora}, want at least 1, or None.")
        self.n_lora = n_lora
        super().__init__(config, context)

    def _is_factored(self, name: str) -> bool:
        return self.n_lora is not None and name.rpartition(".")[2] in _FACTORED

    def _add_linear(self, name: str, shape: tuple[int, ...]) -> None:
        if self.n_lora is None or not self._is_factored(name):
            super()._add_linear(name, shape)
        else:
            self._add(f"{name}.a", (shape[0], self.n_lora))
            self._add(f"{name}.b", (self.n_lora, shape[1]))

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Record x · Wᵀ, or x · bᵀ · aᵀ for a factored weight: (…, inputs) to (…, outputs)."""
        if not self._is_factored(name):
            return super().linear(name, x)
        narrow = mul_mat(self.weights[f"{name}.b"], x)  # (…, R)
        return mul_mat(self.weights[f"{name}.a"], narrow)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The weights as a file holds them, factored ones multiplied out."""
        arrays = super().arrays()
        for name in [name.removesuffix(".a") for name in arrays if name.endswith(".a")]:
            a, b = arrays.pop(f"{name}.a"), arrays.pop(f"{name}.b")
            arrays[f"{name}.weight"] = a @ b
        return arrays

    def init(self, seed: int = 1337) -> Self:
        """Fill every weight, norms too, as ggml's randomize_model does; returns itself.

        Normal numbers cut to [-1, 1], times 1 / sqrt(inputs) for one axis and
        1 / sqrt(inputs + outputs) for two. (ggml draws them from another generator.)
        """
        random = np.random.default_rng(seed)
        for weight in self.weights.values():
            numbers = random.standard_normal(weight.shape).clip(-1, 1)
            weight.set(numbers / math.sqrt(sum(weight.shape)))
        return self

    def squared_error(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Record sum((targets - logits)²).

        Args:
            tokens: (B, T) i32.
            targets: (B, T, V) float: +1 for the token that comes next, -1 for the others.
        Returns:
            () f32.
        """
        return (targets - self.logits(tokens)).sqr().sum()


def wave_tokens(phase: int, config: LlamaConfig) -> NDArray[np.int32]:
    """The tokens of one wave, (T,) i32: half a period of a sine, its heights as 1 to V - 1.

    >>> wave_tokens(0, baby_config())
    array([5, 6, 7, 7, 7, 6, 5, 4], dtype=int32)
    """
    i = np.arange(1, config.n_ctx + 1)
    z = (np.sin(phase + i * 3.14159 / config.n_ctx) + 1) / 2  # 0 to 1
    steps = (z * (config.n_vocab - 1)).astype(np.int32)
    tokens: NDArray[np.int32] = (1 + steps).clip(1, config.n_vocab - 1)
    return tokens


def example(
    number: int, config: LlamaConfig, n_batch: int = N_BATCH
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Example `number` of the task: row k is the wave of phase 8·(64·number) + k.

    Returns:
        tokens: (B, T) i32, each wave moved right behind a 0.
        targets: (B, T, V) f32, +1 at the wave's token and -1 elsewhere.

    >>> tokens, targets = example(0, baby_config())
    >>> tokens[0], targets[0].argmax(axis=-1)
    (array([0, 5, 6, 7, 7, 7, 6, 5], dtype=int32), array([5, 6, 7, 7, 7, 6, 5, 4]))
    """
    waves = np.stack([wave_tokens(8 * (64 * number) + k, config) for k in range(n_batch)])
    tokens = np.zeros_like(waves)  # (B, T)
    tokens[:, 1:] = waves[:, :-1]
    targets = np.full((*waves.shape, config.n_vocab), -1, np.float32)  # (B, T, V)
    np.put_along_axis(targets, waves[:, :, None], 1, axis=2)
    return tokens, targets


def generate_wave(model: BabyLlama, n: int = 128) -> Iterator[int]:
    """The `n` tokens the model adds to the start of a wave, the best one each time.

    As ggml does: the window holds 7/8 of the context and moves on by one with each token, and
    its first place is always the 0 that stands before a wave.

    >>> len([*generate_wave(BabyLlama(baby_config()).init(seed=1), n=3)])
    3
    """
    c = model.config
    size = c.n_ctx - c.n_ctx // 8
    window = np.zeros((1, size), np.int32)
    window[0, 1:] = wave_tokens(137, c)[: size - 1]
    tokens = Context().input((1, size), "i32")
    logits = model.logits(tokens)  # (1, size, V)
    program = Graph(logits).compile()
    for _ in range(n):
        tokens.set(window)
        program.run()
        token = int(program.value(logits)[0, -1].argmax())
        yield token
        window[0, 1:-1] = window[0, 2:]
        window[0, -1] = token


def draw_token(token: int, n_vocab: int) -> str:
    """One line of a wave, the token's height marked as ggml prints it.

    >>> draw_token(3, 8)
    '   X    '
    """
    return " " * token + "X" + " " * (n_vocab - token - 1)
