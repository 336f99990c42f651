"""How the tokens of a batch see each other where there is no cache: in training.

Each function gives an `Attend`, by the nodes of the formula or by one op (`flash`), which does not
keep the matrix of all scores: the same up to rounding, with less memory and mostly in less time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from yupana.graphlib.ops import diag_mask_inf, flash_attn, mul_mat, soft_max
from yupana.graphlib.tensor import Tensor

# Mixes the values: (layer, q (B, T, H, K), k (B, T, G, K), v (B, T, G, V)) to (B, T, H * V).
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

_HIDDEN = -1e9  # added to a score that shall not count, times the squared distance of segments


def attend_before(flash: bool = False) -> Attend:
    """Each token sees itself and those before it.

    >>> from yupana.graphlib.context import tensor
    >>> q, v = tensor([[[[0.0]], [[0.0]]]]), tensor([[[[1.0]], [[3.0]]]])
    >>> attend_before()(0, q, q, v).numpy().tolist()
    [[[1.0], [2.0]]]
    """

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if flash:
            return _fused(q, k, v, None)
        scale = 1 / math.sqrt(q.shape[-1])
        return _mixed(q, k, v, lambda scores: soft_max(diag_mask_inf(scores), scale=scale))

    return attend


def attend_within(segments: Tensor, flash: bool = False) -> Attend:
    """The same among tokens of one segment only, so that samples packed side by side stay apart.

    Args:
        segments: (B, T) i32; equal numbers see each other.

    >>> import numpy as np
    >>> from yupana.graphlib.context import Context
    >>> segments = Context().tensor([[1, 1, 2]])
    >>> q = Context().tensor(np.ones((1, 3, 1, 2)))
    >>> v = Context().tensor(np.arange(6.0).reshape(1, 3, 1, 2))
    >>> attend_within(segments)(0, q, q, v).numpy().tolist()
    [[[0.0, 1.0], [1.0, 2.0], [4.0, 5.0]]]
    """

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, T = segments.shape
        # Recorded for each layer anew: nothing but the residual stream shall go from block to
        # block, or checkpoints between them would save nothing.
        number = segments.cast("f32")
        apart = (number.reshape(B, 1, T, 1) - number.reshape(B, 1, 1, T)).sqr() * _HIDDEN
        if flash:
            return _fused(q, k, v, apart)
        mask, scale = diag_mask_inf(apart), 1 / math.sqrt(q.shape[-1])  # (B, 1, T, T)
        return _mixed(q, k, v, lambda scores: soft_max(scores, mask, scale))

    return attend


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention to earlier tokens as one op; heads side by side."""
    B, T, _, _ = q.shape
    q, k, v = (x.permute(0, 2, 1, 3) for x in (q, k, v))
    mixed = flash_attn(q, k, v, mask, n_past=0)  # (B, H, T, V)
    return mixed.permute(0, 2, 1, 3).reshape(B, T, -1)


def _mixed(q: Tensor, k: Tensor, v: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """Values mixed by what `weigh` makes of scores, queries by keys; heads side by side."""
    B, T, _, _ = q.shape
    q = q.permute(0, 2, 1, 3)  # (B, H, T, K)
    k = k.permute(0, 2, 1, 3)  # (B, G, T, K)
    v = v.permute(0, 2, 3, 1)  # (B, G, V, T), of the width of the values
    # H / G heads in a row share the keys of one: mul_mat pairs them, nothing is repeated.
    weights = weigh(mul_mat(k, q))  # (B, H, T, T)
    mixed = mul_mat(v, weights)  # (B, H, T, V)
    return mixed.permute(0, 2, 1, 3).cont().reshape(B, T, -1)
