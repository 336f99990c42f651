"""Operators and methods of tensors: `y = (x @ w.T).silu()` records the ops of those names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yupana.graphlib.errors import ShapeError

if TYPE_CHECKING:
    from yupana.graphlib.dtypes import Dtype
    from yupana.graphlib.tensor import Tensor

Number = int | float


class Methods:
    """What `Tensor` inherits; each method records the op it names."""

    __slots__ = ()

    def __add__(self, other: Tensor | Number) -> Tensor:
        return _record("add", self, _tensor(other, self))

    def __radd__(self, other: Number) -> Tensor:
        return _record("add", _tensor(other, self), self)

    def __sub__(self, other: Tensor | Number) -> Tensor:
        return _record("sub", self, _tensor(other, self))

    def __rsub__(self, other: Number) -> Tensor:
        return _record("sub", _tensor(other, self), self)

    def __mul__(self, other: Tensor | Number) -> Tensor:
        if isinstance(other, int | float):
            return _record("scale", self, other)
        return _record("mul", self, _tensor(other, self))

    def __rmul__(self, other: Number) -> Tensor:
        return self.__mul__(other)

    def __truediv__(self, other: Tensor | Number) -> Tensor:
        if isinstance(other, int | float) and other != 0:
            return _record("scale", self, 1.0 / other)
        return _record("div", self, _tensor(other, self))

    def __rtruediv__(self, other: Number) -> Tensor:
        return _record("div", _tensor(other, self), self)

    def __neg__(self) -> Tensor:
        return _record("neg", self)

    def __matmul__(self, other: Tensor) -> Tensor:
        """The mathematical product: rows of self by columns of other, as `mul_mat` on a view."""
        return _record("mul_mat", _record("transpose", _tensor(other, self)), self)

    def __getitem__(self, key: Any) -> Tensor:
        return _record("index", self, key)

    @property
    def T(self) -> Tensor:  # noqa: N802 - NumPy's name
        """A view with the last two axes swapped."""
        return _record("transpose", self)

    def reshape(self, *shape: int) -> Tensor:
        """See `ops.reshape`."""
        return _record("reshape", self, _axes(shape))

    def permute(self, *axes: int) -> Tensor:
        """See `ops.permute`."""
        return _record("permute", self, _axes(axes))

    def cast(self, dtype: str | Dtype) -> Tensor:
        """See `ops.cast`."""
        return _record("cast", self, dtype)

    def cont(self) -> Tensor:
        """See `ops.cont`."""
        return _record("cont", self)

    def sum(self) -> Tensor:
        """See `ops.sum`."""
        return _record("sum", self)

    def sum_rows(self) -> Tensor:
        """See `ops.sum_rows`."""
        return _record("sum_rows", self)

    def mean(self) -> Tensor:
        """See `ops.mean`."""
        return _record("mean", self)

    def sqr(self) -> Tensor:
        """See `ops.sqr`."""
        return _record("sqr", self)

    def sqrt(self) -> Tensor:
        """See `ops.sqrt`."""
        return _record("sqrt", self)

    def exp(self) -> Tensor:
        """See `ops.exp`."""
        return _record("exp", self)

    def log(self) -> Tensor:
        """See `ops.log`."""
        return _record("log", self)

    def silu(self) -> Tensor:
        """See `ops.silu`."""
        return _record("silu", self)

    def relu(self) -> Tensor:
        """See `ops.relu`."""
        return _record("relu", self)

    def tanh(self) -> Tensor:
        """See `ops.tanh`."""
        return _record("tanh", self)

    def sigmoid(self) -> Tensor:
        """See `ops.sigmoid`."""
        return _record("sigmoid", self)

    def rms_norm(self, eps: float = 1e-6) -> Tensor:
        """See `ops.rms_norm`."""
        return _record("rms_norm", self, eps)

    def soft_max(self, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """See `ops.soft_max`."""
        return _record("soft_max", self, mask, scale)


def _record(name: str, *args: Any) -> Tensor:
    from yupana.graphlib import ops

    result: Tensor = getattr(ops, name)(*args)
    return result


def _axes(given: tuple[Any, ...]) -> tuple[int, ...]:
    """`x.reshape(2, 3)` and `x.reshape((2, 3))` mean the same."""
    if len(given) == 1 and isinstance(given[0], tuple | list):
        return tuple(given[0])
    return given


def _tensor(value: Any, other: Any) -> Any:
    """Numbers and arrays become leaves of the other operand's context."""
    if isinstance(value, Methods):
        return value
    if isinstance(value, int | float):
        return other.context.constant(value, other.dtype if other.dtype.is_float else "f32")
    try:
        return other.context.tensor(value)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"operator: got {type(value).__name__}, want a tensor: {error}") from error
