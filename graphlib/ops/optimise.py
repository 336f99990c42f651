"""Optimiser steps as nodes: with them in the graph, a training step is one program."""

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.dtypes import f32, f64
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.kernels import optimise
from yupana.graphlib.kernels.blocks import View, contiguous_strides
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Array, Call, Draw, ErrorSample, Result, Site, call, op
from yupana.graphlib.ops import slices
from yupana.graphlib.ops._rules import need_contiguous, need_float, need_same_shape, view
from yupana.graphlib.ops.reduction import copy_steps
from yupana.graphlib.tensor import Tensor


def _check(name: str, param: Tensor, grad: Tensor, state: tuple[Tensor, ...]) -> None:
    need_float(name, grad)
    if param.dtype not in (f32, f64) or any(s.dtype is not param.dtype for s in state):
        dtypes = ", ".join(t.dtype.name for t in (param, *state))
        raise DtypeError(
            f"{name}: got {dtypes} for {param.label} and its state, want all f32 or all f64. "
            "Train an f32 copy and cast it to half precision."
        )
    for other in (grad, *state):
        need_same_shape(name, param, other)
    need_contiguous(name, param, *state)


def _check_settings(name: str, settings: Tensor, names: str) -> None:
    n = len(names.split(", "))
    if settings.dtype not in (f32, f64):
        raise DtypeError(f"{name}: got settings of {settings.dtype}, want f32 or f64")
    if settings.shape != (n,):
        raise ShapeError(f"{name}: got settings {settings.shape}, want ({n},): {names}")
    need_contiguous(name, settings)


def _check_scale(name: str, scale: Tensor | None) -> tuple[Tensor, ...]:
    """`scale` as one source more, or none."""
    if scale is None:
        return ()
    if scale.dtype not in (f32, f64):
        raise DtypeError(f"{name}: got a scale of {scale.dtype}, want f32 or f64")
    if scale.size != 1:
        raise ShapeError(f"{name}: got scale {scale.shape}, want one element")
    return (scale,)


def _gradient(site: Site) -> tuple[View, list[Step]]:
    """The gradient as the kernel takes it: one that is strided or of another type is copied."""
    grad, param = view(site.srcs[1]), view(site.srcs[0])
    strides = contiguous_strides(param.shape, param.itemsize)
    if grad.strides == strides and grad.code == param.code:
        return grad, []
    address = site.workspace(site.srcs[0].size * param.itemsize)
    copy = View(address, param.shape, strides, param.code, param.itemsize)
    return copy, copy_steps(copy, grad)


def _lower_adamw(site: Site) -> list[Step]:
    param, _, m, v, settings, *scale = (view(src) for src in site.srcs)
    grad, copying = _gradient(site)
    return copying + optimise.adamw(param, grad, m, v, settings, *scale)


def _lower_sgd(site: Site) -> list[Step]:
    param, _, settings, *scale = (view(src) for src in site.srcs)
    grad, copying = _gradient(site)
    return copying + optimise.sgd(param, grad, settings, *scale)


def _adamw_reference(
    x: Array, g: Array, m: Array, v: Array, settings: Array, scale: Array | float = 1.0
) -> tuple[Array, Array, Array]:
    if not np.isfinite(scale).all():
        return x, m, v
    g = g * np.reshape(scale, ())
    alpha, beta1, beta2, eps, decay, beta1h, beta2h = settings
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    x = x * (1 - alpha * decay) - alpha * (m * beta1h) / (np.sqrt(v * beta2h) + eps)
    return x, m, v


def _sgd_reference(x: Array, g: Array, settings: Array, scale: Array | float = 1.0) -> tuple[Array]:
    if not np.isfinite(scale).all():
        return (x,)
    alpha, decay = settings
    return (x * (1 - alpha * decay) - alpha * (g * np.reshape(scale, ())),)


def _state(d: Draw, shape: tuple[int, ...], dtype: str, low: float = -3.0) -> Tensor:
    return d.floats(shape, low, dtypes=(dtype,), layouts=("contiguous", "offset"))


def _scale(d: Draw) -> list[Tensor]:
    """No scale, a factor, or one that stops the step."""
    kind = d.choice(["none", "factor", "stop"])
    if kind == "stop":
        return [tensor(d.choice([np.nan, np.inf, -np.inf]))]
    return [d.floats((), 0.1, 1.0, ("f32", "f64"))] if kind == "factor" else []


def _adamw_sample(d: Draw) -> Call:
    shape, dtype = d.shape(min_axes=0), d.choice(["f32", "f64"])
    param, m, v = _state(d, shape, dtype), _state(d, shape, dtype), _state(d, shape, dtype, 0.01)
    settings = d.floats((7,), 0.1, 0.9, ("f32", "f64"), ("contiguous",))
    return call(param, d.floats(shape), m, v, settings, *_scale(d))


def _sgd_sample(d: Draw) -> Call:
    shape, dtype = d.shape(min_axes=0), d.choice(["f32", "f64"])
    settings = d.floats((2,), 0.1, 0.9, ("f32", "f64"), ("contiguous",))
    return call(_state(d, shape, dtype), d.floats(shape), settings, *_scale(d))


def _adamw_errors() -> list[ErrorSample]:
    def run(grad: Tensor, m: Tensor, n_settings: int, scale: Tensor | None = None) -> Tensor:
        x, v = tensor([1.0, 2.0]), tensor([1.0, 2.0])
        return opt_step_adamw(x, grad, m, v, tensor([0.1] * n_settings), scale)

    one, two, half = tensor([1.0]), tensor([1.0, 2.0]), tensor([1.0, 2.0], "f16")
    every_other = slices.slice(tensor([1.0, 2.0, 3.0, 4.0]), ((0, 4, 2),))
    return [
        ErrorSample(lambda: run(one, two, 7), ShapeError, "(2,) and (1,)"),
        ErrorSample(lambda: run(two, one, 7), ShapeError, "(2,) and (1,)"),
        ErrorSample(lambda: run(two, two, 2), ShapeError, "beta2"),
        ErrorSample(lambda: run(two, half, 7), DtypeError, "f16"),
        ErrorSample(lambda: run(two, every_other, 7), ShapeError, "contiguous"),
        ErrorSample(lambda: run(two, two, 7, two), ShapeError, "one element"),
        ErrorSample(lambda: run(two, two, 7, tensor(1)), DtypeError, "i32"),
    ]


def _sgd_errors() -> list[ErrorSample]:
    def run(grad: Tensor, n_settings: int) -> Tensor:
        return opt_step_sgd(tensor([1.0, 2.0]), grad, tensor([0.1] * n_settings))

    return [
        ErrorSample(lambda: run(tensor([1.0]), 2), ShapeError, "(2,) and (1,)"),
        ErrorSample(lambda: run(tensor([1.0, 2.0]), 1), ShapeError, "decay"),
        ErrorSample(lambda: run(tensor([1, 2]), 2), DtypeError, "i32"),
    ]


@op(
    lower=_lower_adamw,
    reference=_adamw_reference,
    samples=_adamw_sample,
    error_samples=_adamw_errors,
    mutates=(0, 2, 3),
    cost=12.0,
    family="optimiser",
)
def opt_step_adamw(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    settings: Tensor,
    scale: Tensor | None = None,
) -> Result:
    """One step of AdamW, written into `param`, `m` and `v`; the result is a view of `param`.

        g ← scale · grad
        m ← beta1 · m + (1 - beta1) · g
        v ← beta2 · v + (1 - beta2) · g²
        x ← x · (1 - alpha · decay) - alpha · m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

    Args:
        param, m, v: one shape, contiguous, all f32 or all f64.
        grad: that shape, any float type and strides; one that differs from `param` in either is
            copied first.
        settings: (7,) f32 or f64: alpha (learning rate), beta1, beta2, eps, decay,
            1/(1 - beta1^t), 1/(1 - beta2^t) in step t = 1, 2, …; data, so that the compiled
            step serves any learning rate.
        scale: one element, f32 or f64, to clip gradients with. Where it is NaN or infinite,
            nothing changes: a step that went wrong does not destroy the parameters. None: 1.

    Raises:
        ShapeError: shapes differ, or a tensor written to is not contiguous. DtypeError: types
            other than these.
    Gradient: none. Source: Loshchilov & Hutter 2019; ggml_opt_step_adamw.

    >>> from yupana.graphlib.program import evaluate
    >>> x, m, v = tensor([1.0]), tensor([0.0]), tensor([0.0])
    >>> settings = tensor([0.1, 0.9, 0.999, 1e-8, 0.0, 10.0, 1000.0])
    >>> evaluate(opt_step_adamw(x, tensor([4.0]), m, v, settings)).round(4)
    array([0.9], dtype=float32)
    >>> m.numpy().round(4), v.numpy().round(4)
    (array([0.4], dtype=float32), array([0.016], dtype=float32))
    """
    name = "opt_step_adamw"
    _check(name, param, grad, (m, v))
    _check_settings(name, settings, "alpha, beta1, beta2, eps, decay, 1/(1-beta1^t), 1/(1-beta2^t)")
    srcs = (param, grad, m, v, settings, *_check_scale(name, scale))
    return Result(srcs, param.shape, param.dtype, {}, param.strides, 0, param)


@op(
    lower=_lower_sgd,
    reference=_sgd_reference,
    samples=_sgd_sample,
    error_samples=_sgd_errors,
    mutates=(0,),
    cost=4.0,
    family="optimiser",
)
def opt_step_sgd(
    param: Tensor, grad: Tensor, settings: Tensor, scale: Tensor | None = None
) -> Result:
    """One step of gradient descent, written into `param`; the result is a view of it.

        x ← x · (1 - alpha · decay) - alpha · scale · grad

    Args:
        param: contiguous, f32 or f64.
        grad: that shape, any float type and strides.
        settings: (2,) f32 or f64: alpha (learning rate) and decay.
        scale: as in `opt_step_adamw`.

    Raises:
        ShapeError: shapes differ, or `param` is not contiguous. DtypeError: types other than these.
    Gradient: none. Source: ggml_opt_step_sgd.

    >>> from yupana.graphlib.program import evaluate
    >>> x = tensor([1.0, 2.0])
    >>> evaluate(opt_step_sgd(x, tensor([1.0, 1.0]), tensor([0.5, 0.0])))
    array([0.5, 1.5], dtype=float32)
    """
    _check("opt_step_sgd", param, grad, ())
    _check_settings("opt_step_sgd", settings, "alpha, decay")
    srcs = (param, grad, settings, *_check_scale("opt_step_sgd", scale))
    return Result(srcs, param.shape, param.dtype, {}, param.strides, 0, param)
