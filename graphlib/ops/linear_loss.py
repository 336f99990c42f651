"""Cross entropy of x · Wᵀ, a piece of the rows at a time: the logits never exist as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.dtypes import f64, i32
from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
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
    Vjp,
    call,
    op,
)
from yupana.graphlib.ops._linear_loss import AT, linear_loss_steps
from yupana.graphlib.ops._rules import need_axes, need_float, need_real, wide_dtype
from yupana.graphlib.tensor import Tensor

Of = Literal["x", "w", "x2", "w2"]


def _lower_loss(site: Site) -> list[Step]:
    return linear_loss_steps(site, site.srcs, site.params["chunk"], site.dst, {})


def _lower_back(site: Site) -> list[Step]:
    seed, *srcs = site.srcs
    grads = {site.params["of"]: site.dst}
    return linear_loss_steps(site, srcs, site.params["chunk"], None, grads, seed)


def _logits(x: Array, w: Array, pair: Sequence[Array]) -> Array:
    return x @ w.T + (pair[0] @ pair[1].T if pair else 0.0)


def _loss_reference(x: Array, w: Array, targets: Array, *pair: Array, chunk: int) -> Array:
    logits, weights = _logits(x, w, pair), (targets >= 0).astype(np.float64)
    loss = REGISTRY["cross_entropy_loss"].reference
    return np.asarray(loss(logits, targets, weights, ignore_index=-1))


def _back_reference(
    g: Array, x: Array, w: Array, targets: Array, *pair: Array, of: str, chunk: int
) -> Array:
    logits, weights = _logits(x, w, pair), (targets >= 0).astype(np.float64)
    back = REGISTRY["cross_entropy_loss_back"].reference
    change = back(g, logits, targets, weights, ignore_index=-1)
    srcs = (x, w, targets, *pair)
    if of in ("x", "x2"):
        return np.asarray(change @ srcs[AT[of] + 1])
    return np.asarray(change.T @ srcs[AT[of] - 1])


def _loss_sample(d: Draw) -> Call:
    n, classes = d.choice([1, 0, 2, 5, 9]), d.choice([3, 1, 33, 130])
    inner = d.choice([4, 1, 17])
    x, targets = d.floats((n, inner)), d.integers((n,), -1, classes - 1)
    pair = []
    if d.choice([False, True]):
        rank = d.integer(1, 3)
        pair = [d.floats((n, rank)), d.floats((classes, rank))]
    return call(x, d.floats((classes, inner)), targets, *pair, chunk=d.choice([128, 1, 2, 4]))


def _back_sample(d: Draw) -> Call:
    drawn = _loss_sample(d)
    of = d.choice(["x", "w", "x2", "w2"] if len(drawn.args) > 3 else ["x", "w"])
    return call(d.floats((), -2.0, 2.0, dtypes=("f32", "f64")), *drawn.args, of=of, **drawn.kwargs)


def _check(name: str, srcs: tuple[Tensor | None, ...], chunk: int) -> tuple[Tensor, ...]:
    """The sources that are there, checked."""
    x, w, targets, *pair = (src for src in srcs if src is not None)
    if len(pair) == 1:
        raise ShapeError(f"{name}: got one of x2 and w2, want both or neither")
    for a, b in ((x, w), tuple(pair)) if pair else ((x, w),):
        need_float(name, a)
        need_real(name, b)
        need_axes(name, b, 2)
        is_wide = [t.dtype is f64 for t in (x, a, b)]
        if any(is_wide) != all(is_wide) and not b.dtype.is_quantized:
            raise DtypeError(f"{name}: got {a.dtype} and {b.dtype}, want f64 for all or for none")
        if (a.ndim, b.ndim) != (2, 2) or a.shape != (x.shape[0], b.shape[1]) or len(b) != len(w):
            raise ShapeError(
                f"{name}: got x {a.shape} and w {b.shape}, want (N, D) and (V, D), with N and V "
                f"as in {x.shape} and {w.shape}"
            )
    if targets.dtype is not i32:
        raise DtypeError(f"{name}: got targets of {targets.dtype}, want labels in i32")
    if targets.shape != x.shape[:1]:
        raise ShapeError(f"{name}: got targets {targets.shape}, want {x.shape[:1]}, one a row")
    if not len(w):
        raise ShapeError(f"{name}: got w {w.shape}, want at least one class")
    if chunk < 1:
        raise SettingError(f"{name}: got chunk={chunk}, want at least 1 row")
    return (x, w, targets, *pair)


def _loss_errors() -> list[ErrorSample]:
    x, w, labels = tensor([[1.0, 2.0]]), tensor([[1.0, 0.0], [0.0, 1.0]]), tensor([1])

    def run(
        x: Tensor,
        w: Tensor,
        t: Tensor,
        x2: Tensor | None = None,
        w2: Tensor | None = None,
        n: int = 8,
    ) -> Tensor:
        return linear_cross_entropy(x, w, t, x2, w2, n)

    return [
        ErrorSample(lambda: run(labels, w, labels), DtypeError, "float"),
        ErrorSample(lambda: run(x, w, tensor([1.0])), DtypeError, "i32"),
        ErrorSample(lambda: run(x, w, tensor([1, 0])), ShapeError, "(2,)"),
        ErrorSample(lambda: run(x, tensor([[1.0]]), labels), ShapeError, "(N, D)"),
        ErrorSample(lambda: run(x, tensor([[1.0, 2.0]], "f64"), labels), DtypeError, "f64"),
        ErrorSample(lambda: run(x, w, labels, x), ShapeError, "both or neither"),
        ErrorSample(lambda: run(x, w, labels, x, tensor([[1.0, 2.0]])), ShapeError, "(1, 2)"),
        ErrorSample(lambda: run(x, w, labels, n=0), SettingError, "at least 1 row"),
    ]


def _back_errors() -> list[ErrorSample]:
    x, w, labels = tensor([[1.0, 2.0]]), tensor([[1.0, 0.0], [0.0, 1.0]]), tensor([1])
    back, one = linear_cross_entropy_back, tensor(1.0)
    return [
        ErrorSample(lambda: back(x, x, w, labels, of="x"), ShapeError, "one element"),
        ErrorSample(lambda: back(one, x, w, labels, of="x2"), SettingError, "'x2'"),
        ErrorSample(lambda: back(one, x, w, tensor([1, 0]), of="x"), ShapeError, "(2,)"),
    ]


def _cost(node: Tensor) -> Cost:
    """Of one product: that of a gradient does not count what it shares with the loss."""
    x, w = node.srcs[1:3] if "of" in node.params else node.srcs[:2]
    flops = 2.0 * x.size * w.shape[0]
    return Cost(flops, float(node.nbytes + sum(src.nbytes for src in node.srcs)))


def _grad(of: Of) -> Vjp:
    def rule(y: Tensor, g: Tensor) -> Tensor:
        x, w, targets = y.srcs[:3]
        x2, w2 = y.srcs[3:] if len(y.srcs) == 5 else (None, None)
        return linear_cross_entropy_back(g, x, w, targets, x2, w2, of, y.params["chunk"])

    return rule


@op(
    lower=_lower_loss,
    vjp=(_grad("x"), _grad("w"), None, _grad("x2"), _grad("w2")),
    reference=_loss_reference,
    samples=_loss_sample,
    error_samples=_loss_errors,
    cost=_cost,
    family="loss",
)
def linear_cross_entropy(
    x: Tensor,
    w: Tensor,
    targets: Tensor,
    x2: Tensor | None = None,
    w2: Tensor | None = None,
    chunk: int = 256,
) -> Result:
    """`cross_entropy_loss` of the logits x · wᵀ, which are computed and used up in pieces.

    Of N rows and V classes only `chunk` · V logits exist at a time, and no more of their gradient.
    In one graph with the loss its gradients cost what they cost without pieces; on their own they
    compute the logits again.

    Args:
        x: (N, D) float.
        w: (V, D) float or quantised.
        targets: (N,) i32, the class of each row; rows with a negative one do not count. A label
            of V or more makes the loss NaN.
        x2: (N, R) float, and w2: (V, R) float: x2 · w2ᵀ is added to the logits, as the low-rank
            part of an adapter is.
        chunk: rows in a piece.

    Returns:
        () in f64 for x of f64, else f32; 0 if no row counts.

    Raises:
        ShapeError, DtypeError: operands that do not belong together. SettingError: no rows in a
        piece.
    Gradient: with respect to `x`, `w`, `x2`, `w2` (`linear_cross_entropy_back`).
    Source: Wijmans et al. 2024 (Cut Your Losses), in pieces of rows.

    >>> x, w = tensor([[1.0, 0.0], [0.0, 1.0]]), tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> linear_cross_entropy(x, w, tensor([0, 1]), chunk=1).numpy().round(4)
    np.float32(0.6931)
    """
    srcs = _check("linear_cross_entropy", (x, w, targets, x2, w2), chunk)
    return Result(srcs, (), wide_dtype(x), {"chunk": int(chunk)})


@op(
    lower=_lower_back,
    reference=_back_reference,
    samples=_back_sample,
    error_samples=_back_errors,
    cost=_cost,
    family="loss",
)
def linear_cross_entropy_back(
    g: Tensor,
    x: Tensor,
    w: Tensor,
    targets: Tensor,
    x2: Tensor | None = None,
    w2: Tensor | None = None,
    of: Of = "x",
    chunk: int = 256,
) -> Result:
    """A gradient of `linear_cross_entropy`, times g.

    Args:
        g: one element, float. of: with respect to which source. The others as there.
    Returns:
        The shape of that source; f64 for x of f64, else f32.
    Raises:
        ShapeError, DtypeError, SettingError: as there; or there is no such source.
    Gradient: none; second derivatives of the loss are refused when backward is built.
    Source: as `linear_cross_entropy`.

    >>> x, w = tensor([[1.0, 0.0]]), tensor([[0.0, 0.0], [0.0, 0.0]])
    >>> linear_cross_entropy_back(tensor(1.0), x, w, tensor([1]), of="w").numpy()
    array([[ 0.5,  0. ],
           [-0.5,  0. ]], dtype=float32)
    """
    name = "linear_cross_entropy_back"
    need_float(name, g)
    srcs = _check(name, (x, w, targets, x2, w2), chunk)
    if g.size != 1:
        raise ShapeError(f"{name}: got g {g.shape}, want one element, the gradient of the loss")
    if AT.get(of, len(srcs)) >= len(srcs):
        raise SettingError(f"{name}: got of={of!r}, want one of the float sources given")
    params = {"of": of, "chunk": int(chunk)}
    return Result((g, *srcs), srcs[AT[of]].shape, wide_dtype(x), params)
