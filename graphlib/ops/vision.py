"""What Segment Anything does to images (windows, relative positions), and diffusion to time.

All of it is composed of other ops.
"""

import math

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.dtypes import f32, f64
from yupana.graphlib.errors import SettingError, ShapeError
from yupana.graphlib.ops.arithmetic import add, mul
from yupana.graphlib.ops.arrange import along, concat, pad
from yupana.graphlib.ops.copies import cast, cont, contiguous
from yupana.graphlib.ops.rows import get_rows
from yupana.graphlib.ops.unary import cos, sin
from yupana.graphlib.ops.views import permute, reshape
from yupana.graphlib.tensor import Tensor


def _tiles(size: int, window: int) -> int:
    return -(-size // window)


def win_part(x: Tensor, window: int) -> Tensor:
    """Cut images into square windows, with zeros where the last ones reach beyond.

    Args:
        x: (B, H, W, D) float, or (H, W, D).
        window: side of a window.
    Returns:
        (B · ⌈H / window⌉ · ⌈W / window⌉, window, window, D): windows by rows.
    Raises:
        ShapeError: another number of axes. SettingError: `window` is below 1.
    Gradient: with respect to `x` (ggml has none). Source: ggml_win_part (B = 1 there).

    >>> win_part(tensor(np.arange(8.0).reshape(2, 4, 1)), 2).numpy().reshape(2, -1)
    array([[0., 1., 4., 5.],
           [2., 3., 6., 7.]], dtype=float32)
    """
    if x.ndim not in (3, 4):
        raise ShapeError(f"win_part: got shape {x.shape}, want (B, H, W, D) or (H, W, D)")
    if window < 1:
        raise SettingError(f"win_part: got window={window}, want a side of at least 1")
    height, width, depth = x.shape[-3:]
    batch = x.shape[0] if x.ndim == 4 else 1
    rows, columns = _tiles(height, window), _tiles(width, window)
    short = (0, rows * window - height), (0, columns * window - width)
    if any(after for _, after in short):
        x = pad(x, [*[(0, 0)] * (x.ndim - 3), *short, (0, 0)])
    tiles = reshape(contiguous(x), (batch * rows, window, columns, window * depth))
    tiles = cont(permute(tiles, (0, 2, 1, 3)))
    return reshape(tiles, (batch * rows * columns, window, window, depth))


def win_unpart(x: Tensor, height: int, width: int, window: int) -> Tensor:
    """Put the windows of `win_part` together again; what was added is cut off.

    Args:
        x: (B · ⌈height / window⌉ · ⌈width / window⌉, window, window, D) float.
    Returns:
        (B, height, width, D), a view.
    Raises:
        ShapeError: `x` is not made of such windows.
    Gradient: with respect to `x` (ggml has none). Source: ggml_win_unpart (B = 1 there).

    >>> image = tensor(np.arange(6.0).reshape(2, 3, 1))
    >>> win_unpart(win_part(image, 2), 2, 3, 2).numpy().reshape(2, 3)
    array([[0., 1., 2.],
           [3., 4., 5.]], dtype=float32)
    """
    rows, columns = _tiles(height, max(window, 1)), _tiles(width, max(window, 1))
    each = rows * columns
    if x.ndim != 4 or x.shape[1:3] != (window, window) or not each or x.shape[0] % each:
        raise ShapeError(
            f"win_unpart: got {x.shape}, want (B · {each}, {window}, {window}, D): windows of "
            f"{window} for {height} by {width}"
        )
    batch, depth = x.shape[0] // each, x.shape[3]
    tiles = reshape(contiguous(x), (batch * rows, columns, window, window * depth))
    tiles = cont(permute(tiles, (0, 2, 1, 3)))
    image = reshape(tiles, (batch, rows * window, columns * window, depth))
    return along(along(image, 1, 0, height), 2, 0, width)


def get_rel_pos(table: Tensor, queries: int, keys: int) -> Tensor:
    """For each query and key position the row of a table that their distance picks.

        y[q, k] = table[q · max(keys / queries, 1) - k · max(queries / keys, 1) + offset]

    where the offset makes the least row number 0; for as many keys as queries that is
    table[q - k + keys - 1].

    Args:
        table: (2 · max(queries, keys) - 1, D) float.
    Returns:
        (queries, keys, D) f32, or f64 for a table of f64.
    Raises:
        ShapeError: another number of rows.
    Gradient: with respect to `table` (ggml has none).
    Source: Segment Anything, get_rel_pos; ggml_get_rel_pos (queries = keys there).

    >>> get_rel_pos(tensor([[1.0], [2.0], [3.0]]), 2, 2).numpy()[..., 0]
    array([[2., 1.],
           [3., 2.]], dtype=float32)
    """
    if min(queries, keys) < 1 or table.ndim != 2 or table.shape[0] != 2 * max(queries, keys) - 1:
        raise ShapeError(
            f"get_rel_pos: got {table.shape} for {queries} queries and {keys} keys, want "
            f"({2 * max(queries, keys) - 1}, D)"
        )
    by_key = max(queries / keys, 1.0)
    q = np.arange(queries)[:, None] * max(keys / queries, 1.0)
    k = np.arange(keys)[None, :] * by_key
    return get_rows(table, tensor((q - k + (keys - 1) * by_key).astype(np.int32)))


def add_rel_pos(scores: Tensor, by_width: Tensor, by_height: Tensor) -> Tensor:
    """Add to attention scores of an image what rows and columns of the keys contribute.

        y[b, q, h · W + w] = scores[b, q, h · W + w] + by_height[b, q, h] + by_width[b, q, w]

    Args:
        scores: (B, Q, H · W) float.
        by_width: (B, Q, W). by_height: (B, Q, H).
    Raises:
        ShapeError: sizes do not fit.
    Gradient: with respect to all three (ggml has none).
    Source: Segment Anything, add_decomposed_rel_pos; ggml_add_rel_pos (H = W there).

    >>> scores = tensor(np.zeros((1, 1, 4)))
    >>> add_rel_pos(scores, tensor([[[1.0, 2.0]]]), tensor([[[10.0, 20.0]]])).numpy()
    array([[[11., 12., 21., 22.]]], dtype=float32)
    """
    size = (by_height.shape[-1:] or (0,))[0] * (by_width.shape[-1:] or (0,))[0]
    outer = scores.shape[:-1]
    if scores.ndim != 3 or by_width.shape[:-1] != outer or by_height.shape[:-1] != outer:
        size = -1
    if size != scores.shape[-1]:
        raise ShapeError(
            f"add_rel_pos: got {scores.shape}, {by_width.shape} and {by_height.shape}, want "
            "(B, Q, H · W), (B, Q, W) and (B, Q, H)"
        )
    rows = scores.shape[0] * scores.shape[1]
    height, width = by_height.shape[-1], by_width.shape[-1]
    x = reshape(contiguous(scores), (rows, height, width))
    x = add(x, reshape(contiguous(by_height), (rows, height, 1)))
    x = add(x, reshape(contiguous(by_width), (rows, 1, width)))
    return reshape(x, scores.shape)


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sines and cosines of time at frequencies from 1 down to 1 / max_period.

        y[t, j] = cos(timesteps[t] · f[j]), y[t, half + j] = sin(timesteps[t] · f[j]),
        f[j] = max_period^(-j / half), j < half = dim // 2

    Args:
        timesteps: (T,) float or i32.
        dim: size of an embedding; the last element is 0 where it is odd.
    Returns:
        (T, dim) f32, or f64 for timesteps of f64.
    Gradient: with respect to `timesteps` (ggml has none).
    Source: Nichol's GLIDE, timestep_embedding; ggml_timestep_embedding.

    >>> timestep_embedding(tensor([0, 1]), 4).numpy().round(3)
    array([[1.   , 1.   , 0.   , 0.   ],
           [0.54 , 1.   , 0.841, 0.01 ]], dtype=float32)
    """
    if timesteps.ndim != 1:
        raise ShapeError(f"timestep_embedding: got shape {timesteps.shape}, want (T,)")
    if dim < 2 or max_period <= 0:
        raise SettingError(
            f"timestep_embedding: got dim={dim} and max_period={max_period}, want at least 2 and "
            "a positive number"
        )
    t = timesteps if timesteps.dtype in (f32, f64) else cast(timesteps, "f32")
    half = dim // 2
    frequencies = np.exp(-math.log(max_period) * np.arange(half) / half)
    angles = mul(reshape(contiguous(t), (t.size, 1)), tensor(frequencies, t.dtype))
    y = concat(cos(angles), sin(angles))
    return pad(y, [(0, 0), (0, 1)]) if dim % 2 else y
