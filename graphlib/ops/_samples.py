"""Samples and error samples that functions of one element share."""

from collections.abc import Callable
from typing import Any

from numpy.typing import ArrayLike

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.op import REGISTRY, Call, Draw, ErrorSample, call
from yupana.graphlib.tensor import Tensor


def refuses_integers(name: str, *rest: Any) -> Callable[[], list[ErrorSample]]:
    """The error sample of an op of one float tensor; `rest` follows the tensor."""
    return lambda: [
        ErrorSample(lambda: REGISTRY[name](tensor([1, 2]), *rest), DtypeError, f"{name}: got i32")
    ]


def refuses_unlike(name: str) -> Callable[[], list[ErrorSample]]:
    """The error samples of an op of two float tensors of one shape."""

    def run(a: ArrayLike, b: ArrayLike) -> Tensor:
        return REGISTRY[name](tensor(a), tensor(b))

    return lambda: [
        ErrorSample(lambda: run([1, 2], [1, 2]), DtypeError, f"{name}: got i32"),
        ErrorSample(lambda: run([1.0], [1.0, 2.0]), ShapeError, "differ"),
    ]


def within(*ranges: tuple[float, float]) -> Callable[[Draw], Call]:
    """A tensor of any shape within one of `ranges`; between them there may be no derivative."""
    return lambda d: call(d.floats(d.shape(min_axes=0), *d.choice(ranges)))


def two_alike(d: Draw) -> Call:
    """Two tensors of the same shape."""
    shape = d.shape(min_axes=0)
    return call(d.floats(shape), d.floats(shape))
