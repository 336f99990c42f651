"""Keys and values of tokens seen before, for several sequences."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.context import Context
from yupana.graphlib.dtypes import dtype_of
from yupana.graphlib.errors import SettingError
from yupana.graphlib.ops import flash_attn_cells, set_rows
from yupana.graphlib.tensor import Tensor
from yupana.models.attend import Attend
from yupana.models.decoder import Sizes

CACHE_TYPES = ("f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


class KvCache:
    """Room for the keys and values of `n_seq` sequences of up to `n_ctx` tokens.

    A cell holds one token of all heads in every layer; cell `s * n_ctx + p` is that of position
    p of sequence s. Keys are kept rotated.

    Args:
        sizes: of the model.
        dtype: one of `CACHE_TYPES`; quantised ones need heads of whole blocks of 32.
        rounds: round what meets keys and values in f16 to f16 as well, as llama.cpp does.
    Raises:
        SettingError: a setting out of range.
    """

    def __init__(
        self, sizes: Sizes, n_ctx: int, n_seq: int, dtype: str, rounds: bool = False
    ) -> None:
        most = (2**31 - 1) // max(n_seq, 1)  # cells are numbered with 32 bits
        for name, value in (("n_ctx", n_ctx), ("n_seq", n_seq)):
            if not 1 <= value <= most:
                raise SettingError(f"session: {name}: got {value}, want 1 to {most}.")
        if dtype not in CACHE_TYPES:
            wanted = ", ".join(CACHE_TYPES)
            raise SettingError(f"session: cache: got {dtype!r}, want one of {wanted}.")
        kind, widths = dtype_of(dtype), (sizes.head_width, sizes.value_width)
        if any(width % kind.block for width in widths):
            raise SettingError(
                f"session: cache: got {dtype} for heads of {widths}, want multiples of "
                f"{kind.block}. Use f16."
            )
        self.n_ctx, self.n_seq, self.dtype = n_ctx, n_seq, dtype
        self._half = rounds and dtype == "f16"
        layers = range(sizes.n_layer)
        self.context = Context()
        self.keys, self.values = (
            [self.context.leaf((n_seq, n_ctx, sizes.n_head_kv, width), kind) for _ in layers]
            for width in widths
        )
        nbytes = sum(leaf.nbytes for leaf in self.context)
        try:
            for leaf in self.context:
                _ = leaf.data  # takes the memory, which costs nothing before it is written to
        except (MemoryError, ValueError):
            raise SettingError(
                f"session: no memory for the cache: got n_ctx {n_ctx} and n_seq {n_seq}, which "
                f"take {nbytes / 2**30:.3g} GiB, want less. Pass a smaller n_ctx."
            ) from None

    def attend(self, cells: Tensor) -> Attend:
        """Attention that writes new keys and values to `cells` and then looks at the cache.

        Args:
            cells: (T,) i32, where the tokens lie; a token with a negative cell is not kept.
        """

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            B, T, H, K = q.shape  # B is 1: sequences are told apart by their cells
            keys = self._write(self.keys[layer], k, cells)
            values = self._write(self.values[layer], v, cells)
            mixed = flash_attn_cells(q.reshape(T, H, K), keys, values, cells, half=self._half)
            return mixed.reshape(B, T, -1)

        return attend

    @staticmethod
    def _write(cache: Tensor, new: Tensor, cells: Tensor) -> Tensor:
        """Record new rows (1, T, G, K) going to their cells; the cache after that."""
        n_seq, n_ctx, G, K = cache.shape
        rows = set_rows(cache.reshape(n_seq * n_ctx, G * K), new.reshape(-1, G * K), cells)
        return rows.reshape(*cache.shape)

    def arrays(self, seq: int, start: int, stop: int) -> list[NDArray[np.generic]]:
        """The stored bytes of positions `start` to `stop`: keys, then values, layer by layer."""
        return [leaf.data[seq, start:stop] for leaf in (*self.keys, *self.values)]
