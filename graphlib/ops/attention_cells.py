"""Attention to a cache whose rows say, as data, which sequence they belong to and where."""

import math
from typing import Any

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.dtypes import f32, f64, i32
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.kernels.attention_cells import CellAttention, cell_attention_steps
from yupana.graphlib.kernels.attention_cells_wide import wide_steps
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import (
    REGISTRY,
    Array,
    Call,
    Cost,
    Draw,
    ErrorSample,
    Result,
    Site,
    call,
    op,
)
from yupana.graphlib.ops._rules import need_real, view
from yupana.graphlib.ops.copies import contiguous
from yupana.graphlib.tensor import Tensor


def _lower(site: Site) -> list[Step]:
    q, k, v, cells = (view(operand) for operand in site.srcs)
    y = view(site.dst)
    if site.dst.dtype is f64:
        return wide_steps(q, k, v, cells, y, site.params["scale"])
    p = site.params
    return cell_attention_steps(CellAttention(q, k, v, cells, y, p["scale"], p["half"]))


def _reference(q: Array, k: Array, v: Array, cells: Array, scale: float, half: bool) -> Array:
    (n_seq, n_cells, kv_heads, _), heads = k.shape, q.shape[1]
    y = np.zeros((*q.shape[:2], v.shape[-1]))
    q = q.astype(np.float16).astype(np.float64) if half else q
    for t, cell in enumerate(cells):
        if not 0 <= cell < n_seq * n_cells:
            continue
        seq, last = divmod(int(cell), n_cells)
        for h in range(heads):
            g = h * kv_heads // heads
            z = scale * k[seq, : last + 1, g] @ q[t, h]
            e = np.exp(z - z.max())
            p = e / e.sum()
            p = p.astype(np.float16).astype(np.float64) if half else p
            y[t, h] = p @ v[seq, : last + 1, g]
    return y


def _sample(d: Draw) -> Call:
    rows, n_seq, n_cells = d.integer(0, 9), d.integer(1, 3), d.choice([1, 7, 70, 300])
    kv_heads, group = d.integer(1, 2), d.choice([1, 2, 5])
    width, values = d.choice([1, 16, 40, 288]), d.choice([3, 16, 33])
    cache = (n_seq, n_cells, kv_heads)
    if d.choice([False, False, True]):
        width = 64
        k, v = d.quantized((*cache, 64), "Q8_0"), d.quantized((*cache, 32), "Q8_0")
    else:
        floats = ("f32", "f16", "bf16")
        k, v = (d.floats((*cache, n), -1.0, 1.1, floats, ("contiguous",)) for n in (width, values))
    q = d.floats((rows, kv_heads * group, width), -1.0, 1.1, ("f32",))
    cells = d.integers((rows,), -1, n_seq * n_cells)
    return call(q, k, v, cells, half=d.choice([False, False, True]))


def _errors() -> list[ErrorSample]:
    def run(q: Any, k: Any, v: Any, cells: Any) -> Tensor:
        made = (tensor(np.ones(shape)) for shape in (q, k, v))
        return REGISTRY["flash_attn_cells"](*made, tensor(cells))

    cache = (1, 4, 1, 2)
    return [
        ErrorSample(lambda: run((1, 2), cache, cache, [0]), ShapeError, "q (T, H, K)"),
        ErrorSample(lambda: run((1, 1, 3), cache, cache, [0]), ShapeError, "q (T, H, K)"),
        ErrorSample(
            lambda: run((1, 3, 2), (1, 4, 2, 2), (1, 4, 2, 2), [0]), ShapeError, "multiple"
        ),
        ErrorSample(lambda: run((1, 1, 2), cache, cache, [0, 1]), ShapeError, "(1,)"),
        ErrorSample(lambda: run((1, 1, 2), cache, cache, [0.0]), DtypeError, "i32"),
        ErrorSample(
            lambda: flash_attn_cells(
                tensor(np.ones((1, 1, 2))),
                tensor(np.ones(cache)).permute(0, 1, 3, 2).permute(0, 1, 3, 2)[:, ::2],
                tensor(np.ones(cache))[:, ::2],
                tensor([0]),
            ),
            ShapeError,
            "contiguous",
        ),
    ]


def _cost(y: Tensor) -> Cost:
    """As if every row saw half of the cells."""
    k, v = y.srcs[1:3]
    flops = y.size / max(v.shape[-1], 1) * k.shape[1] * (k.shape[-1] + v.shape[-1])
    return Cost(flops, y.nbytes + (k.nbytes + v.nbytes) / 2)


@op(
    lower=_lower,
    vjp=None,
    reference=_reference,
    samples=_sample,
    error_samples=_errors,
    cost=_cost,
    family="softmax",
    # A weight in the middle between two halves may go the other way: it changes by 2^-11, where
    # usual checks allow 8 deviations of the roundings they make, of 3.5 · 2^-24 each.
    tolerance=lambda y: 300.0 if y.params["half"] else 1.0,
)
def flash_attn_cells(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cells: Tensor,
    scale: float | None = None,
    half: bool = False,
) -> Result:
    """Attention of rows q to a cache of several sequences, each as far as its own cell.

        y[t, h] = sum_p softmax over p of (scale · q[t, h] · k[s, p, h//G]) · v[s, p, h//G]
        s, last = divmod(cells[t], N);  p = 0 … last

    Which sequence a row belongs to, and where in it, is data: one program serves every position.
    The work grows with what rows see, not with the size of the cache.

    Args:
        q: (T, H, K) f32; or f64, which is for tests.
        k: (S, N, H/G, K) float or quantised, contiguous: S sequences of N cells.
        v: (S, N, H/G, V) float or quantised, contiguous.
        cells: (T,) i32, the cell s · N + p of each row. A row with a number outside of the cache
            sees nothing, and is zero.
        scale: of the scores; None: 1/√K.
        half: round q and the weights to float16 before they are multiplied, as llama.cpp does
            with a cache in float16; with q in f64 nothing is rounded.
    Returns:
        (T, H, V), dtype of `q`.
    Raises:
        ShapeError: the operands do not fit, or the cache is not contiguous. DtypeError: others.
    Gradient: none; to train, use `flash_attn`.
    Source: derived from `flash_attn`; llama.cpp masks a cache of all sequences instead.

    >>> cache = tensor([[[[0.0]], [[0.0]], [[0.0]]]])
    >>> values = tensor([[[[1.0]], [[3.0]], [[9.0]]]])
    >>> flash_attn_cells(tensor([[[1.0]]]), cache, values, tensor([1])).numpy()
    array([[[2.]]], dtype=float32)
    """
    name = "flash_attn_cells"
    need_real(name, k)
    need_real(name, v)
    kinds = q.dtype, k.dtype, v.dtype
    if q.dtype not in (f32, f64) or (q.dtype is f32 and f64 in kinds) or cells.dtype is not i32:
        raise DtypeError(
            f"{name}: got q, k, v of {kinds} and cells of {cells.dtype}, want q f32 (or f64, then "
            "k and v may be so, too) and cells i32"
        )
    shapes = f"q {q.shape}, k {k.shape} and v {v.shape}"
    fits = (q.ndim, k.ndim, v.ndim) == (3, 4, 4)
    if not fits or k.shape[:3] != v.shape[:3] or q.shape[2] != k.shape[3]:
        raise ShapeError(
            f"{name}: got {shapes}, want q (T, H, K), k (S, N, H/G, K), v (S, N, H/G, V)"
        )
    if 0 in k.shape or 0 in v.shape or q.shape[1] % k.shape[2]:
        raise ShapeError(
            f"{name}: heads do not fit: got {shapes}, want no size 0, and heads of q that are a "
            "multiple of those of k"
        )
    if cells.shape != q.shape[:1]:
        raise ShapeError(f"{name}: got cells {cells.shape}, want {q.shape[:1]}: one for each row")
    if not (k.is_contiguous and v.is_contiguous):
        raise ShapeError(f"{name}: got a part of a cache, want k and v contiguous")
    factor = 1.0 / math.sqrt(q.shape[2]) if scale is None else float(scale)
    params = {"scale": factor, "half": half and q.dtype is f32}
    return Result((contiguous(q), k, v, cells), (*q.shape[:2], v.shape[3]), q.dtype, params)
