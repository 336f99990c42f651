"""Attention in one op, without the matrix of all scores: memory grows with T, not with T · S."""

import weakref
from typing import Any

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
from yupana.graphlib.kernels.attention import attention_steps
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import (
    REGISTRY,
    Array,
    Call,
    Draw,
    ErrorSample,
    Result,
    Site,
    Vjp,
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
    interleaved,
    operands,
    packed_size,
    repeated,
    result_shape,
    scores_of,
    settings_of,
)
from yupana.graphlib.ops._rules import view as as_view
from yupana.graphlib.ops._rules import wide_dtype
from yupana.graphlib.ops.slices import index
from yupana.graphlib.ops.views import reshape, view
from yupana.graphlib.tensor import Tensor


def _lower(site: Site) -> list[Step]:
    return attention_steps(attention_of(site, site.srcs, as_view(site.dst)))


def _reference(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    **settings: Any,
) -> Array:
    z, _ = scores_of(q, k, mask, **settings)
    largest = z.max(-1, initial=-np.inf, keepdims=True)
    e = np.exp(z - np.where(largest == -np.inf, 0.0, largest))
    total = e.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.where(total == 0, -np.inf, largest + np.log(total))
    y = e / np.where(total == 0, 1.0, total) @ repeated(v, q)
    return np.concatenate([flattened(y), lse.reshape(-1)])


def _sample(d: Draw) -> Call:
    tensors, settings = draw_operands(d)
    return call(*tensors, **settings)


# The backward pass gives three gradients at once, but is asked for them one by one.
_shared: weakref.WeakValueDictionary[tuple[int, int], Tensor] = weakref.WeakValueDictionary()


def _rows_only(y: Tensor, g: Tensor) -> Tensor:
    """The gradient of what `flash_attn` sees, where `g` is that with zeros behind it: no copy."""
    q, _, v = y.srcs[:3]
    is_copy = g.op is not None and g.op.name == "view_back" and g.params["start"] == 0
    if is_copy and g.srcs[0].shape == result_shape(q.shape, v.shape):
        steps = g.params["steps"]
        return g.srcs[0] if steps == interleaved(g.srcs[0].shape) else g
    return g


def _grad(which: int) -> Vjp:
    """The rule for source `which`: a part of the node that gives the gradients of all three."""

    def rule(y: Tensor, g: Tensor) -> Tensor:
        g = _rows_only(y, g)
        key = (id(y), id(g))  # of tensors that live as long as the node does
        back = _shared.get(key)
        if back is None:
            back = _shared[key] = REGISTRY["flash_attn_back"](g, y, *y.srcs, **y.params)
        size, src = back.dtype.itemsize, y.srcs[which]
        start = sum(x.size for x in y.srcs[:which])
        strides = tuple(size * step for step in interleaved(src.shape))
        return view(back, src.shape, strides, start * size if src.size else 0)

    return rule


def _errors() -> list[ErrorSample]:
    def run(q: Shape, k: Shape, v: Shape, mask: Shape | None = None, **more: Any) -> Tensor:
        shapes = [q, k, v] + ([mask] if mask else [])
        tensors = [tensor(np.ones(shape)) for shape in shapes]
        return REGISTRY["flash_attn_packed"](*tensors, **more)

    i, x = tensor([[1]]), tensor([[1.0]])
    return [
        ErrorSample(lambda: flash_attn_packed(x, i, x), DtypeError, "i32"),
        ErrorSample(lambda: run((1,), (1,), (1,)), ShapeError, "2 to 4 axes"),
        ErrorSample(lambda: run((2, 3), (2, 4), (2, 4)), ShapeError, "k (…, S, K)"),
        ErrorSample(lambda: run((3, 1, 2), (2, 1, 2), (2, 1, 2)), ShapeError, "multiple"),
        ErrorSample(lambda: run((2, 3), (4, 3), (4, 3), (3, 4)), ShapeError, "want (2, 4)"),
        ErrorSample(lambda: run((1, 1), (1, 1), (1, 1), n_past=-1), SettingError, "n_past"),
        ErrorSample(lambda: run((1, 1), (1, 1), (1, 1), max_bias=8), SettingError, "a mask"),
        ErrorSample(lambda: run((1, 1), (1, 1), (1, 1), logit_softcap=-1), SettingError, "cap=-1"),
    ]


@op(
    lower=_lower,
    vjp=(_grad(0), _grad(1), _grad(2), None),
    reference=_reference,
    samples=_sample,
    error_samples=_errors,
    cost=cost_of_products(2.0),
    family="softmax",
)
def flash_attn_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    n_past: int | None = None,
    scale: float | None = None,
    max_bias: float = 0.0,
    logit_softcap: float = 0.0,
) -> Result:
    """What `flash_attn` looks at: its result, and the logarithm of the sum of each row behind it.

    The backward pass needs the second to make the weights anew, instead of keeping them.

        lse[…, t] = log sum_s exp(z(scale · q[…, t] · k[…, s]) + m · mask[…, t, s])

    Args:
        As `flash_attn`.
    Returns:
        One axis: B·T·H·V elements, the result with heads side by side as (B, T, H, V), then
        B·H·T logarithms (-inf where a row sees nothing); f32, or f64 if an operand is.
    Raises:
        As `flash_attn`.
    Gradient: with respect to q, k and v (`flash_attn_back`), not to the mask.
    Source: Dao 2023, "FlashAttention-2", algorithm 1.

    >>> x = tensor([[0.0], [0.0]])
    >>> flash_attn_packed(x, x, tensor([[1.0], [3.0]]), n_past=0).numpy().round(3)
    array([1.   , 2.   , 0.   , 0.693], dtype=float32)
    """
    check_operands("flash_attn", q, k, v, mask)
    params = settings_of("flash_attn", q, mask, n_past, scale, max_bias, logit_softcap)
    srcs = operands(q, k, v, mask)
    return Result(srcs, (packed_size(q.shape, v.shape),), wide_dtype(*srcs), params)


def flash_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    n_past: int | None = None,
    scale: float | None = None,
    max_bias: float = 0.0,
    logit_softcap: float = 0.0,
) -> Tensor:
    """Attention of rows q to keys k with values v, without the matrix of all scores.

        y[b, h, t] = sum_s p[t, s] · v[b, h//G, s]
        p[t, :] = softmax over s of z(scale · q[b, h, t] · k[b, h//G, s]) + m[h] · mask[b, h, t, s]
        z(x) = x, or logit_softcap · tanh(x / logit_softcap)

    Memory grows with T and S, in both passes, not with their product. A row that sees nothing is
    zero. Results have the same bits for any number of threads; chunks are heads of k, and pieces
    of the rows where there are few of them (forward).

    Args:
        q: (B, H, T, K) float. k: (B, H/G, S, K) float. v: (B, H/G, S, V) float. B may be missing,
            and heads with it; consecutive heads of q share one of k and v.
        mask: float, added to the scores: (B, H, T, S), where sizes before the last may be 1 or
            missing.
        n_past: row t sees keys up to n_past + t; None: all of them.
        scale: of the scores; None: 1/√K.
        max_bias: above 0, the mask of head h is multiplied with the slope m[h] of `alibi`; a mask
            of -|distance| then gives ALiBi.
        logit_softcap: above 0, scaled scores are kept between -logit_softcap and logit_softcap.
    Returns:
        (B, H, T, V), f32, or f64 if an operand is. It lies in memory as (B, T, H, V): heads come
        side by side without a copy, by ``y.permute(0, 2, 1, 3).reshape(B, T, H * V)``.
    Raises:
        ShapeError: the operands do not fit. SettingError: a setting is negative, or `max_bias`
            given without a mask.
    Gradient: with respect to q, k and v; for that of a mask use `soft_max`. No second derivatives.
    Source: ggml_flash_attn and ggml_flash_attn_ext; Dao 2023, "FlashAttention-2".

    >>> x = tensor([[0.0], [0.0]])
    >>> flash_attn(x, x, tensor([[1.0], [3.0]]), n_past=0).numpy()
    array([[1.],
           [2.]], dtype=float32)
    """
    packed = flash_attn_packed(q, k, v, mask, n_past, scale, max_bias, logit_softcap)
    shape, size = result_shape(q.shape, v.shape), packed.dtype.itemsize
    if 0 in shape:  # a view that sees nothing has no gradient
        return reshape(index(packed, np.s_[:0]), shape)
    return view(packed, shape, tuple(size * step for step in interleaved(shape)))
