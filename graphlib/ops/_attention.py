"""What the ops of attention share: operands and results in memory, scores, samples."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from yupana.graphlib.dtypes import f64
from yupana.graphlib.errors import SettingError, ShapeError
from yupana.graphlib.kernels.attention import Attention
from yupana.graphlib.kernels.blocks import View, broadcast, padded
from yupana.graphlib.op import Array, Cost, Draw, Operand, Site
from yupana.graphlib.ops._rules import four_axes, need_float
from yupana.graphlib.ops.masks import alibi_slopes, diag_mask_inf
from yupana.graphlib.tensor import Tensor

Shape = tuple[int, ...]


def four(shape: Shape) -> tuple[int, int, int, int]:
    """A shape with the axes that it lacks: batch, heads."""
    b, h, t, k = padded(shape, 4, 1)
    return b, h, t, k


def interleaved(shape: Shape) -> Shape:
    """Strides, in elements, of (…, H, T, K) stored with heads side by side, as (…, T, H, K)."""
    _, h, t, k = four(shape)
    return (t * h * k, k, h * k, 1)[4 - len(shape) :]


def part(flat: View, shape: Shape, start: int, steps: Shape | None = None) -> View:
    """Part of a flat operand, `steps` elements apart (default: interleaved heads)."""
    step = flat.strides[0]
    strides = tuple(s * step for s in steps or interleaved(four(shape)))
    shape = four(shape) if steps is None else shape
    return View(flat.address + start * step, shape, strides, flat.code, flat.itemsize)


def result_shape(q: Shape, v: Shape) -> Shape:
    """Of attention: a row of v's width for each of q."""
    return (*q[:-1], v[-1])


def packed_size(q: Shape, v: Shape) -> int:
    """Elements of a result with the logarithms of its rows' sums."""
    return math.prod(q[:-1]) * (v[-1] + 1)


def packed_parts(flat: View, q: Shape, v: Shape) -> tuple[View, View]:
    """Rows, and the logarithm of the sum of each."""
    shape = result_shape(q, v)
    b, h, t, _ = four(q)
    return part(flat, shape, 0), part(flat, (b, h, t), math.prod(shape), (h * t, t, 1))


def check_operands(name: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    """Check the operands of both ops."""
    need_float(name, *operands(q, k, v, mask))
    shapes = f"q {q.shape}, k {k.shape} and v {v.shape}"
    if not 2 <= q.ndim == k.ndim == v.ndim:
        raise ShapeError(f"{name}: got {shapes}, want 2 to 4 axes, as many for each")
    if k.shape[:-1] != v.shape[:-1] or q.shape[-1] != k.shape[-1]:
        raise ShapeError(f"{name}: got {shapes}, want q (…, T, K), k (…, S, K), v (…, S, V)")
    (b, h, t, _), (b_kv, h_kv, n, _) = four(q.shape), four(k.shape)
    if b != b_kv or h % max(h_kv, 1) or (h_kv == 0) != (h == 0):
        raise ShapeError(
            f"{name}: heads do not fit: got {shapes}, want the same batch, and heads of q (axis "
            "-3) that are a multiple of those of k and v"
        )
    seen = (b, h, t, n)
    if mask is not None and (
        not 1 <= mask.ndim <= q.ndim
        or mask.shape[-1] != n
        or any(m not in (1, w) for m, w in zip(mask.shape[::-1], seen[::-1], strict=False))
    ):
        raise ShapeError(
            f"{name}: mask does not fit: got {mask.shape}, want {seen[4 - q.ndim :]}, where sizes "
            "before the last may be 1 or missing"
        )


def settings_of(
    name: str,
    q: Tensor,
    mask: Tensor | None,
    n_past: int | None,
    scale: float | None,
    max_bias: float,
    logit_softcap: float,
) -> dict[str, Any]:
    """Check the settings of both ops; the parameters of the node."""
    if n_past is not None and n_past < 0:
        raise SettingError(f"{name}: got n_past={n_past}, want the number of keys before row 0")
    for key, value in (("max_bias", max_bias), ("logit_softcap", logit_softcap)):
        if not 0 <= value < math.inf:
            raise SettingError(f"{name}: got {key}={value}, want a number that is not negative")
    if max_bias > 0 and mask is None:
        raise SettingError(
            f"{name}: got max_bias={max_bias} without a mask, want what the slopes multiply. "
            "Give the distances as mask."
        )
    factor = 1.0 / math.sqrt(max(q.shape[-1], 1)) if scale is None else float(scale)
    return {
        "n_past": None if n_past is None else int(n_past),
        "scale": factor,
        "max_bias": float(max_bias),
        "logit_softcap": float(logit_softcap),
    }


def operands(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    """The sources of a node: a mask is the last, if there is one."""
    return (q, k, v) if mask is None else (q, k, v, mask)


def attention_of(site: Site, srcs: tuple[Operand, ...], y: View, **more: Any) -> Attention:
    """What the kernels are told: `srcs` are q, k, v and perhaps a mask, `y` is packed."""
    q, k, v = (four_axes(x) for x in srcs[:3])
    mask = broadcast(four_axes(srcs[3]), (*q.shape[:3], k.shape[2])) if len(srcs) > 3 else None
    n_past, scale = site.params["n_past"], site.params["scale"]
    bend = {"max_bias": site.params["max_bias"], "cap": site.params["logit_softcap"]}
    rows, sums = packed_parts(y, srcs[0].shape, srcs[2].shape)
    hides = -1 if n_past is None else n_past
    wide = site.dst.dtype is f64
    return Attention(q, k, v, mask, rows, sums, scale, hides, wide, **bend, **more)


def scores_of(
    q: Array,
    k: Array,
    mask: Array | None,
    n_past: int | None,
    scale: float,
    max_bias: float,
    logit_softcap: float,
) -> tuple[Array, Array]:
    """Scores (…, H, T, S), capped, masked; and their derivative by the products of q and k."""
    z = scale * q @ np.swapaxes(repeated(k, q), -1, -2)
    slope = np.full(z.shape, scale)
    if logit_softcap > 0:
        part = np.tanh(z / logit_softcap)
        z, slope = logit_softcap * part, scale * (1 - part * part)
    if n_past is not None:
        rows, columns = np.indices(z.shape[-2:])
        z = np.where(columns > n_past + rows, -np.inf, z)
    if mask is not None:
        heads = z.shape[-3] if z.ndim > 2 else 1
        factors = alibi_slopes(heads, max_bias) if max_bias > 0 else np.ones(heads)
        z = z + mask * (factors[:, None, None] if z.ndim > 2 else factors[0])
    return z, slope


def repeated(k: Array, q: Array) -> Array:
    """One head of k for each head of q."""
    if k.ndim < 3 or k.shape[-3] == q.shape[-3]:
        return k
    return np.repeat(k, q.shape[-3] // k.shape[-3], -3)


def flattened(x: Array) -> Array:
    """(…, H, T, K) as it is stored: heads side by side."""
    return (np.swapaxes(x, -2, -3) if x.ndim > 2 else x).reshape(-1)


def draw_operands(d: Draw) -> tuple[list[Tensor], dict[str, Any]]:
    """Operands, with a mask or without, and settings."""
    axes, group = d.integer(2, 4), d.choice([1, 2, 3])
    outer = (d.choice([1, 2, 0]), d.choice([1, 2]))[4 - axes :]
    t, s = d.choice([1, 2, 7, 66, 0]), d.choice([1, 3, 8, 20, 195, 0])
    k, v = d.choice([1, 2, 5, 16, 33]), d.choice([1, 3, 16, 40])
    heads = (*outer[:-1], outer[-1] * group) if outer else ()
    # Bounds of their own: what NaN and infinity hide behind a mask is not promised.
    tensors = [
        d.floats((*outer_, n, m), -2.9, 3.0)
        for outer_, n, m in ((heads, t, k), (outer, s, k), (outer, s, v))
    ]
    if d.choice([False, True]):
        rows = d.choice([t, 1])
        mask = d.floats((*d.broadcastable(heads), rows, s), -2.9, 3.0)
        tensors.append(diag_mask_inf(mask, d.integer(0, 2)) if d.choice([False, True]) else mask)
    settings = {"n_past": d.choice([None, 0, 3, 200]), "scale": d.choice([None, 0.5, -1.0])}
    settings["logit_softcap"] = d.choice([0.0, 0.0, 2.5])
    settings["max_bias"] = d.choice([0.0, 8.0]) if len(tensors) > 3 else 0.0
    return tensors, settings


def cost_of_products(products: float) -> Callable[[Tensor], Cost]:
    """Of so many products of all rows with all keys."""

    def cost(y: Tensor) -> Cost:
        q, k = [x for x in y.srcs if x.ndim > 1][:2]
        (b, h, t, width), n = four(q.shape), k.shape[-2]
        n_past = y.params["n_past"]
        seen = n if n_past is None else min(n, n_past + t / 2)
        flops = b * h * t * seen * (products * 2.0 * width + 20.0)
        return Cost.of(y, flops)

    return cost
