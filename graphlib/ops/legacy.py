"""ggml's names for what other ops do."""

from yupana.graphlib.ops.arithmetic import add
from yupana.graphlib.ops.copies import cont
from yupana.graphlib.ops.gaussian import gelu
from yupana.graphlib.ops.matmul import mul_mat
from yupana.graphlib.tensor import Tensor


def dup(x: Tensor) -> Tensor:
    """A contiguous copy, as `cont`.

    Gradient: with respect to `x`. Source: ggml_dup.

    >>> from yupana import tensor
    >>> dup(tensor([1.0, 2.0])).numpy()
    array([1., 2.], dtype=float32)
    """
    return cont(x)


def flash_ff(x: Tensor, w0: Tensor, b0: Tensor, w1: Tensor, b1: Tensor) -> Tensor:
    """A feed-forward layer: y = gelu(x w0ᵀ + b0) w1ᵀ + b1, with gelu in its tanh form.

    Args:
        x: (…, D) float. w0: (F, D) float. b0: (F,) float.
        w1: (D, F) float. b1: (D,) float.
    Raises:
        ShapeError: sizes do not fit.
    Gradient: with respect to all (ggml has none). Source: ggml_flash_ff (f16 there).

    >>> from yupana import tensor
    >>> one, none = tensor([[1.0]]), tensor([0.0])
    >>> flash_ff(tensor([[3.0]]), one, none, one, tensor([1.0])).numpy().round(3)
    array([[3.996]], dtype=float32)
    """
    return add(mul_mat(w1, gelu(add(mul_mat(w0, x), b0))), b1)
