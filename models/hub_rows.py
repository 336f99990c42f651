"""Rows of queries and keys in the order of Hugging Face, and in that of ggml.

Heads in transformers rotate element i with element i + K/2. ggml does so too for Qwen, but rotates
2i with 2i + 1 for Llama.
"""

import numpy as np

from yupana.models.decoder import Sizes
from yupana.models.formats.stored import Array
from yupana.models.llama import FAMILIES


def in_halves(rows: Array, weight: str, sizes: Sizes) -> Array:
    """Rows in the order of Hugging Face."""
    if not (heads := reordered_heads(weight, sizes)):
        return np.ascontiguousarray(rows)
    pairs = rows.reshape(heads, sizes.head_width // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def in_neighbours(rows: Array, weight: str, sizes: Sizes) -> Array:
    """Rows in the order of ggml."""
    heads = reordered_heads(weight, sizes)
    if not heads or len(rows) != heads * sizes.head_width:  # the wrong shape is told of later
        return rows
    halves = rows.reshape(heads, 2, sizes.head_width // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def reordered_heads(weight: str, sizes: Sizes) -> int:
    """Heads whose rows are in another order there; 0: none."""
    family = FAMILIES.get(sizes.architecture)
    if family is None or family.rope_mode != "normal":
        return 0
    return {"attn_q": sizes.n_head, "attn_k": sizes.n_head_kv}.get(weight.split(".")[-2], 0)
