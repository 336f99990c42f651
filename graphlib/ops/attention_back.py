"""The backward pass of attention; see attention.py."""

import math
from typing import Any

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.kernels.attention_back import attention_back_steps
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import (
    REGISTRY,
    Array,
    Call,
    Draw,
    ErrorSample,
    Result,
    Site,
    call,
    op,
)
from yupana.graphlib.ops._attention import (
    Shape,
    attention_of,
    check_operands,
    cost_of_products,
    draw_operands,
    flattened,
    operands,
    packed_parts,
    packed_size,
    part,
    repeated,
    result_shape,
    scores_of,
    settings_of,
)
from yupana.graphlib.ops._rules import four_axes, need_float, wide_dtype
from yupana.graphlib.ops._rules import view as as_view
from yupana.graphlib.tensor import Tensor


def _lower_back(site: Site) -> list[Step]:
    g, y, *rest = site.srcs
    q, k, v = (x.shape for x in rest[:3])
    dst, results, start = as_view(site.dst), [], 0
    for shape in (q, k, v):
        results.append(part(dst, shape, start))
        start += math.prod(shape)
    dq, dk, dv = results
    whole = len(g.shape) == 1
    parts = packed_parts(as_view(g), q, v) if whole else (four_axes(g), None)
    gradients = (*parts, dq, dk, dv)
    return attention_back_steps(attention_of(site, tuple(rest), as_view(y), gradients=gradients))


def _summed(full: Array, k: Array) -> Array:
    """Gradients summed over the heads of q that share one of k."""
    if full.shape == k.shape:
        return full
    group = full.shape[-3] // k.shape[-3]
    parts = full.reshape(*full.shape[:-3], k.shape[-3], group, *full.shape[-2:])
    return np.asarray(parts.sum(-3))


def _unflat(flat: Array, shape: Shape) -> Array:
    if len(shape) < 3:
        return flat.reshape(shape)
    stored = (*shape[:-3], shape[-2], shape[-3], shape[-1])
    return np.swapaxes(flat.reshape(stored), -2, -3)


def _back_reference(
    g: Array,
    y: Array,
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    **settings: Any,
) -> Array:
    shape = result_shape(q.shape, v.shape)
    n = math.prod(shape)
    rows, lse = _unflat(y[:n], shape), y[n:].reshape(*q.shape[:-1], 1)
    g_rows, g_lse = g, np.zeros(lse.shape)
    if g.ndim == 1:
        g_rows, g_lse = _unflat(g[:n], shape), g[n:].reshape(lse.shape)
    z, slope = scores_of(q, k, mask, **settings)
    p = np.where(lse == -np.inf, 0.0, np.exp(z - np.where(lse == -np.inf, 0.0, lse)))
    delta = (rows * g_rows).sum(-1, keepdims=True) - g_lse
    dz = slope * p * (g_rows @ np.swapaxes(repeated(v, q), -1, -2) - delta)
    dq = dz @ repeated(k, q)
    dk = _summed(np.swapaxes(dz, -1, -2) @ q, k)
    dv = _summed(np.swapaxes(p, -1, -2) @ g_rows, v)
    return np.concatenate([flattened(x) for x in (dq, dk, dv)])


def _back_sample(d: Draw) -> Call:
    tensors, settings = draw_operands(d)
    y = REGISTRY["flash_attn_packed"](*tensors, **settings)
    rows = result_shape(tensors[0].shape, tensors[2].shape)
    return call(d.floats(d.choice([y.shape, rows]), -2.9, 3.0), y, *tensors, **settings)


def _back_errors() -> list[ErrorSample]:
    x, y = tensor([[1.0]]), tensor([1.0, 2.0])
    return [
        ErrorSample(lambda: flash_attn_back(tensor([1, 2]), y, x, x, x), DtypeError, "i32"),
        ErrorSample(lambda: flash_attn_back(y, tensor([1.0]), x, x, x), ShapeError, "want (2,)"),
        ErrorSample(lambda: flash_attn_back(tensor([[[1.0]]]), y, x, x, x), ShapeError, "(1, 1)"),
        ErrorSample(lambda: flash_attn_back(y, y, x, x, y), ShapeError, "2 to 4 axes"),
    ]


@op(
    lower=_lower_back,
    reference=_back_reference,
    samples=_back_sample,
    error_samples=_back_errors,
    cost=cost_of_products(5.0),
    family="softmax",
)
def flash_attn_back(
    g: Tensor,
    y: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    n_past: int | None = None,
    scale: float | None = None,
    max_bias: float = 0.0,
    logit_softcap: float = 0.0,
) -> Result:
    """Gradients of `flash_attn_packed` where its result is `y`, times `g`.

        p = exp(z(scale · q kᵀ) + m · mask - lse)
        ds = scale · z' · p · (g vᵀ - <g, y> + g_lse)
        dq = ds k,  dk = dsᵀ q,  dv = pᵀ g

    Args:
        y: as `flash_attn_packed` gives it. The rest is what it was given.
        g: of the same shape; or of that of `flash_attn`, where the logarithms have no gradient.
    Returns:
        One axis: dq, dk and dv one behind the other, each with heads side by side
        (B, T, H, K); f32, or f64 if an operand is.
    Raises:
        ShapeError: the operands do not fit.
    Gradient: none; for second derivatives use `mul_mat` and `soft_max`.
    Source: ggml_flash_attn_back; Dao 2023, "FlashAttention-2", algorithm 2.

    >>> from yupana.graphlib.ops.attention import flash_attn_packed
    >>> x, g = tensor([[2.0]]), tensor([1.0, 0.0])
    >>> flash_attn_back(g, flash_attn_packed(x, x, x), x, x, x).numpy()
    array([0., 0., 1.], dtype=float32)
    """
    need_float("flash_attn_back", g, y)
    check_operands("flash_attn_back", q, k, v, mask)
    params = settings_of("flash_attn_back", q, mask, n_past, scale, max_bias, logit_softcap)
    want = (packed_size(q.shape, v.shape),)
    rows = result_shape(q.shape, v.shape)
    if g.shape not in (want, rows) or y.shape != want:
        raise ShapeError(
            f"flash_attn_back: got g {g.shape} and y {y.shape}, want {want}, or {rows} for g"
        )
    srcs = (g, y, *operands(q, k, v, mask))
    return Result(srcs, (q.size + k.size + v.size,), wide_dtype(*srcs), params)
