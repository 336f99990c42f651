"""Operators and methods of tensors: `y = (x @ w.T).silu()` records the ops of those names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from yupana.graphlib.errors import OperandError, ShapeError

if TYPE_CHECKING:
    from yupana.graphlib.dtypes import Dtype
    from yupana.graphlib.tensor import Tensor

Number = int | float


def _of_one(name: str) -> Callable[[Any], Tensor]:
    """A method without arguments, which records the op of that name."""

    def method(self: Any) -> Tensor:
        return _record(name, self)

    method.__name__, method.__doc__ = name, f"See `ops.{name}`."
    return method


class Methods:
    """What `Tensor` inherits; each method records the op it names."""

    __slots__ = ()

    abs = _of_one("abs")
    argmax = _of_one("argmax")
    ceil = _of_one("ceil")
    cont = _of_one("cont")
    cos = _of_one("cos")
    detach = _of_one("detach")
    elu = _of_one("elu")
    erf = _of_one("erf")
    exp = _of_one("exp")
    expm1 = _of_one("expm1")
    floor = _of_one("floor")
    gelu = _of_one("gelu")
    gelu_erf = _of_one("gelu_erf")
    gelu_quick = _of_one("gelu_quick")
    hardsigmoid = _of_one("hardsigmoid")
    hardswish = _of_one("hardswish")
    log = _of_one("log")
    mean = _of_one("mean")
    neg = _of_one("neg")
    relu = _of_one("relu")
    round = _of_one("round")
    sgn = _of_one("sgn")
    sigmoid = _of_one("sigmoid")
    silu = _of_one("silu")
    sin = _of_one("sin")
    softplus = _of_one("softplus")
    sqr = _of_one("sqr")
    sqrt = _of_one("sqrt")
    step = _of_one("step")
    sum = _of_one("sum")
    sum_rows = _of_one("sum_rows")
    tanh = _of_one("tanh")
    transpose = _of_one("transpose")
    trunc = _of_one("trunc")

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

    def __pow__(self, power: Number) -> Tensor:
        """0.5, 1, 2 and 3 by `sqrt`, `sqr` and `mul`; their negatives by `div`."""
        if not isinstance(power, int | float) or abs(power) not in (0.5, 1, 2, 3):
            raise OperandError(
                f"power: got {power!r}, want 0.5, 1, 2, 3 or their negatives. Where x is above 0, "
                "(x.log() * p).exp() is x ** p."
            )
        if power < 0:
            return 1 / self**-power
        if power == 3:
            return self * _record("sqr", self)
        return _record({0.5: "sqrt", 1: "dup", 2: "sqr"}[power], self)

    def __abs__(self) -> Tensor:
        return _record("abs", self)

    def __contains__(self, value: object) -> bool:
        raise OperandError(
            "in: a tensor is not searched, as it is recorded and not computed: got "
            f"{type(value).__name__} in a tensor, want an array. Use x.numpy()."
        )

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

    def view(
        self, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, offset: int = 0
    ) -> Tensor:
        """See `ops.view`."""
        return _record("view", self, shape, strides, offset)

    def repeat(self, shape: tuple[int, ...]) -> Tensor:
        """See `ops.repeat`."""
        return _record("repeat", self, shape)

    def scale(self, s: float) -> Tensor:
        """See `ops.scale`."""
        return _record("scale", self, s)

    def clamp(self, low: float, high: float) -> Tensor:
        """See `ops.clamp`."""
        return _record("clamp", self, low, high)

    def leaky_relu(self, slope: float = 0.1) -> Tensor:
        """See `ops.leaky_relu`."""
        return _record("leaky_relu", self, slope)

    def cumsum(self, reverse: bool = False) -> Tensor:
        """See `ops.cumsum`."""
        return _record("cumsum", self, reverse)

    def argsort(self, descending: bool = False) -> Tensor:
        """See `ops.argsort`."""
        return _record("argsort", self, descending)

    def top_k(self, k: int) -> Tensor:
        """See `ops.top_k`."""
        return _record("top_k", self, k)

    def get_rows(self, index: Tensor) -> Tensor:
        """See `ops.get_rows`."""
        return _record("get_rows", self, index)

    def mul_mat(self, x: Tensor) -> Tensor:
        """See `ops.mul_mat`: self is the matrix, as ggml has it."""
        return _record("mul_mat", self, x)

    def norm(self, eps: float = 1e-5) -> Tensor:
        """See `ops.norm`."""
        return _record("norm", self, eps)

    def rms_norm(self, eps: float = 1e-6) -> Tensor:
        """See `ops.rms_norm`."""
        return _record("rms_norm", self, eps)

    def l2_norm(self, eps: float = 1e-12) -> Tensor:
        """See `ops.l2_norm`."""
        return _record("l2_norm", self, eps)

    def soft_max(
        self, mask: Tensor | None = None, scale: float = 1.0, max_bias: float = 0.0
    ) -> Tensor:
        """See `ops.soft_max`."""
        return _record("soft_max", self, mask, scale, max_bias)


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
