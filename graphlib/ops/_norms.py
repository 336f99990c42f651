"""What the ops that normalise rows share: checks, samples, second derivatives."""

from collections.abc import Callable

from numpy.typing import ArrayLike

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
from yupana.graphlib.op import REGISTRY, Call, Draw, ErrorSample, call
from yupana.graphlib.ops._rules import need_axes
from yupana.graphlib.ops.arithmetic import add, mul, scale, sub
from yupana.graphlib.ops.unary import sqr
from yupana.graphlib.tensor import Tensor

_EPS = (1e-6, 1e-5, 0.5)


def need_rows(name: str, x: Tensor, eps: float) -> None:
    """Raise unless `x` has rows and `eps` can be added to their mean square."""
    need_axes(name, x, 1)
    if not eps >= 0:
        raise SettingError(f"{name}: got eps={eps}, want a number that is not negative")


def rows_sample(d: Draw) -> Call:
    """Rows, and eps."""
    return call(d.floats(d.shape(max_side=9)), d.choice(_EPS))


def rows_and_gradient(d: Draw) -> Call:
    """Rows, their gradient, and eps."""
    shape = d.shape(max_side=9)
    return call(d.floats(shape), d.floats(shape), d.choice(_EPS))


def rows_errors(name: str, n_args: int = 1) -> list[ErrorSample]:
    """The error samples of an op of rows, or of rows and their gradient."""

    def run(value: ArrayLike, *rest: float) -> Tensor:
        return REGISTRY[name](*[tensor(value)] * n_args, *rest)

    samples = [
        ErrorSample(lambda: run([1, 2]), DtypeError, "i32"),
        ErrorSample(lambda: run(1.0), ShapeError, "at least 1 axes"),
        ErrorSample(lambda: run([1.0], -1e-6), SettingError, "not negative"),
    ]
    if n_args == 2:
        pair = tensor([1.0]), tensor([1.0, 2.0])
        samples.append(ErrorSample(lambda: REGISTRY[name](*pair), ShapeError, "differ"))
    return samples


def second_derivative(
    u: Tensor, r: Tensor, y: Tensor, g: Tensor, dot: Callable[[Tensor], Tensor]
) -> Tensor:
    """What reaches x through the gradient of y = r x, r = 1 / sqrt(<x, x> + eps), times u.

    With <a, b> the mean (or sum) `dot` of the products in a row, that gradient is
    r (g - y <y, g>), and the derivative of its product with u
    r² (3 y <u, y> <y, g> - y <u, g> - u <y, g> - g <u, y>).
    """
    uy, yg, ug = (dot(mul(a, b)) for a, b in ((u, y), (y, g), (u, g)))
    along_y = mul(y, sub(scale(mul(uy, yg), 3.0), ug))
    return mul(sqr(r), sub(along_y, add(mul(u, yg), mul(g, uy))))
