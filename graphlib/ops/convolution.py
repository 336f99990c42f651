"""Convolutions: matrix products of windows (columns.py), with their gradients for free.

Signals are (N, C, L) and images (N, C, H, W), N optional; weights are (O, C, K) and
(O, C, kh, kw): ggml's layouts, and PyTorch's. What is called a convolution here slides the weights
as they are (a cross-correlation), as everywhere in this field.
"""

import math

from yupana.graphlib.context import tensor  # noqa: F401 - for the examples
from yupana.graphlib.errors import ShapeError
from yupana.graphlib.ops._windows import Sizes, per_axes
from yupana.graphlib.ops.columns import im2col, im2col_back
from yupana.graphlib.ops.copies import contiguous
from yupana.graphlib.ops.matmul import mul_mat
from yupana.graphlib.ops.views import permute, reshape, transpose
from yupana.graphlib.tensor import Tensor


def conv_1d(
    w: Tensor, x: Tensor, stride: Sizes = 1, padding: Sizes = 0, dilation: Sizes = 1
) -> Tensor:
    """Convolve signals with weights.

        y[n, o, i] = sum_{c, a} w[o, c, a] · x[n, c, i·stride - padding + a·dilation]

    Args:
        w: (O, C, K) float. x: (N, C, L) float, N optional; zero outside.
    Returns:
        (N, O, places), places = (L + 2·padding - dilation·(K-1) - 1) / stride + 1, rounded down;
        a view of memory in which O stands last.
    Raises:
        ShapeError: the channels differ, or the window fits nowhere.
    Gradient: with respect to both. Source: ggml_conv_1d.

    >>> conv_1d(tensor([[[1.0, -1.0]]]), tensor([[1.0, 4.0, 9.0]])).numpy()
    array([[-3., -5.]], dtype=float32)
    """
    return _conv("conv_1d", 1, w, x, stride, padding, dilation)


def conv_1d_ph(w: Tensor, x: Tensor, stride: Sizes = 1, dilation: Sizes = 1) -> Tensor:
    """`conv_1d` with half the window as padding, so that stride 1 keeps the length (K odd).

    Gradient: with respect to both. Source: ggml_conv_1d_ph.

    >>> conv_1d_ph(tensor([[[1.0, 1.0, 1.0]]]), tensor([[1.0, 2.0, 3.0]])).numpy()
    array([[3., 6., 5.]], dtype=float32)
    """
    return _conv("conv_1d_ph", 1, w, x, stride, w.shape[-1] // 2, dilation)


def conv_2d(
    w: Tensor, x: Tensor, stride: Sizes = 1, padding: Sizes = 0, dilation: Sizes = 1
) -> Tensor:
    """Convolve images with weights: `conv_1d` along two axes.

    Args:
        w: (O, C, kh, kw) float. x: (N, C, H, W) float, N optional; zero outside.
        stride, padding, dilation: one number, or (rows, columns).
    Returns:
        (N, O, rows, columns), a view of memory in which O stands last.
    Raises:
        ShapeError: the channels differ, or the window fits nowhere.
    Gradient: with respect to both. Source: ggml_conv_2d (which rounds windows to f16).

    >>> x = tensor([[[1.0, 2.0], [3.0, 4.0]]])
    >>> conv_2d(tensor([[[[1.0, 0.0], [0.0, 1.0]]]]), x).numpy()
    array([[[5.]]], dtype=float32)
    """
    return _conv("conv_2d", 2, w, x, stride, padding, dilation)


def conv_2d_sk_p0(w: Tensor, x: Tensor) -> Tensor:
    """`conv_2d` whose windows lie side by side: the patches of a vision transformer.

    Gradient: with respect to both. Source: ggml_conv_2d_sk_p0.

    >>> conv_2d_sk_p0(tensor([[[[1.0, 1.0]]]]), tensor([[[1.0, 2.0, 3.0, 4.0]]])).numpy()
    array([[[3., 7.]]], dtype=float32)
    """
    return _conv("conv_2d_sk_p0", 2, w, x, w.shape[-2:], 0, 1)


def conv_2d_s1_ph(w: Tensor, x: Tensor) -> Tensor:
    """`conv_2d` of stride 1 with half the window as padding: keeps the size (odd windows).

    Gradient: with respect to both. Source: ggml_conv_2d_s1_ph.

    >>> conv_2d_s1_ph(tensor([[[[1.0, 1.0, 1.0]]]]), tensor([[[1.0, 2.0, 3.0]]])).numpy()
    array([[[3., 6., 5.]]], dtype=float32)
    """
    return _conv("conv_2d_s1_ph", 2, w, x, 1, tuple(k // 2 for k in w.shape[-2:]), 1)


def conv_transpose_1d(
    w: Tensor, x: Tensor, stride: Sizes = 1, padding: Sizes = 0, dilation: Sizes = 1
) -> Tensor:
    """Transposed convolution: what `conv_1d` does to gradients; each element adds a window.

        y[n, o, i] = sum_{c, j, a with j·stride - padding + a·dilation = i} w[c, o, a] · x[n, c, j]

    Args:
        w: (C, O, K) float. x: (N, C, L) float, N optional.
    Returns:
        (N, O, (L-1)·stride - 2·padding + dilation·(K-1) + 1).
    Gradient: with respect to both. Source: ggml_conv_transpose_1d.

    >>> w = tensor([[[1.0, 10.0]]])
    >>> conv_transpose_1d(w, tensor([[1.0, 2.0, 3.0]]), stride=2).numpy()
    array([[ 1., 10.,  2., 20.,  3., 30.]], dtype=float32)
    """
    return _conv_transpose("conv_transpose_1d", 1, w, x, stride, padding, dilation)


def conv_transpose_2d_p0(w: Tensor, x: Tensor, stride: Sizes = 1) -> Tensor:
    """Transposed convolution of images without padding: `conv_transpose_1d` along two axes.

    Args:
        w: (C, O, kh, kw) float. x: (N, C, H, W) float, N optional.
    Returns:
        (N, O, (H-1)·stride + kh, (W-1)·stride + kw).
    Gradient: with respect to both. Source: ggml_conv_transpose_2d_p0.

    >>> w = tensor([[[[1.0, 2.0]]]])
    >>> conv_transpose_2d_p0(w, tensor([[[1.0, 3.0]]])).numpy()
    array([[[1., 5., 6.]]], dtype=float32)
    """
    return _conv_transpose("conv_transpose_2d_p0", 2, w, x, stride, 0, 1)


def _check(
    name: str, w: Tensor, x: Tensor, axes: int, first: tuple[int | None, int | None]
) -> None:
    """Raise unless the first two axes of `w` are `first` (None: any) and `x` has planes."""
    fits = w.ndim == axes + 2 and x.ndim in (axes + 1, axes + 2)
    if not fits or any(want not in (None, n) for n, want in zip(w.shape[:2], first, strict=True)):
        space, window = ("L", "K") if axes == 1 else ("H, W", "kh, kw")
        wants = ["O" if n is None else str(n) for n in first]
        raise ShapeError(
            f"{name}: weights and input do not fit: got {w.shape} and {x.shape}, want weights "
            f"({', '.join(wants)}, {window}) for an input (N, C, {space}), N optional"
        )


def _conv(
    name: str, axes: int, w: Tensor, x: Tensor, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Tensor:
    channels = x.shape[-axes - 1] if x.ndim > axes else 0
    _check(name, w, x, axes, (None, channels))
    columns = im2col(x, w.shape[2:], stride, padding, dilation)  # (N, *places, C kk)
    y = mul_mat(reshape(contiguous(w), (w.shape[0], columns.shape[-1])), columns)
    return permute(y, (*range(y.ndim - axes - 1), y.ndim - 1, *range(y.ndim)[-axes - 1 : -1]))


def _conv_transpose(
    name: str, axes: int, w: Tensor, x: Tensor, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Tensor:
    channels = x.shape[-axes - 1] if x.ndim > axes else 0
    _check(name, w, x, axes, (channels, None))
    settings = per_axes(name, axes, stride, padding, dilation).values()
    window, outer = w.shape[2:], x.shape[: -axes - 1]
    space = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + 1
        for n, k, s, p, d in zip(x.shape[-axes:], window, *settings, strict=True)
    )
    if any(n < 1 for n in space):
        raise ShapeError(
            f"{name}: nothing comes out: got {x.shape} and weights {w.shape}, want sizes of "
            f"at least 1 where these are {space}. Take less padding."
        )
    flat = reshape(contiguous(x), (*outer, channels, math.prod(x.shape[-axes:])))
    columns = mul_mat(transpose(reshape(contiguous(w), (channels, -1))), transpose(flat))
    columns = reshape(columns, (*outer, *x.shape[-axes:], columns.shape[-1]))
    return im2col_back(columns, space, window, *settings)
