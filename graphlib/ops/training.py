"""Ops that only training needs: dropout, and the end of a gradient."""

import math

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
from yupana.graphlib.kernels.rowwise import Rows
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Array, Call, Draw, ErrorSample, Result, Site, call, op
from yupana.graphlib.ops._rules import need_axes, need_float, view
from yupana.graphlib.tensor import Tensor

_SEED_LIMIT = 1 << 24  # of a seed: kernels see its numbers as float32


def _dropout(y, x, seed, i, p):
    limit, factor, zero = np.uint32(int(p[0])), y.dtype.type(p[1]), y.dtype.type(0)
    key = int(seed[0]) * 0x9E3779B1 + int(seed[1]) * 0x85EBCA6B + int(p[2]) * 0xC2B2AE35
    key32, first = np.uint32(key & 0xFFFFFFFF), np.uint32((i * y.size) & 0xFFFFFFFF)
    for j in range(y.size):
        z = np.uint32(first + np.uint32(j))
        for turn in range(2):  # a finaliser that leaves no bias (lowbias32), the key in between
            z = np.uint32(z ^ (z >> np.uint32(16)))
            z = np.uint32(z * np.uint32(0x7FEB352D))
            z = np.uint32(z ^ (z >> np.uint32(15)))
            z = np.uint32(z * np.uint32(0x846CA68B))
            z = np.uint32(z ^ (z >> np.uint32(16)))
            if turn == 0:
                z = np.uint32(z ^ key32)
        y[j] = zero if z < limit else x[j] * factor


_dropout_rows = Rows(_dropout, 2, ns=1.0)


def _lower_dropout(site: Site) -> list[Step]:
    dst, p = site.dst, float(site.params["p"])
    values = [_limit(p), 1 / (1 - p), float(site.params["salt"])]
    rows = math.prod(dst.shape[:-1])
    wide = dst.dtype.name == "f64"
    return _dropout_rows.steps(view(dst), [view(s) for s in site.srcs], values, rows, wide)


def _limit(p: float) -> float:
    """Elements whose 32 bits are below this are dropped."""
    return float(round(p * 2**32))


def _dropout_reference(x: Array, seed: Array, p: float, salt: int) -> Array:
    bits = np.arange(x.size, dtype=np.uint32).reshape(x.shape)
    spread = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)
    key = sum(int(n) * odd for n, odd in zip((*seed, salt), spread, strict=True))
    for word in (np.uint32(key % 2**32), np.uint32(0)):
        bits ^= bits >> np.uint32(16)
        bits *= np.uint32(0x7FEB352D)
        bits ^= bits >> np.uint32(15)
        bits *= np.uint32(0x846CA68B)
        bits = bits ^ (bits >> np.uint32(16)) ^ word
    return np.asarray(np.where(bits < _limit(p), 0.0, x / (1 - p)))


def _dropout_sample(d: Draw) -> Call:
    seed = d.integers((2,), 0, _SEED_LIMIT - 1)
    return call(d.floats(d.shape()), seed, d.choice((0.0, 0.1, 0.5, 0.9)), d.integer(0, 1000))


def _dropout_errors() -> list[ErrorSample]:
    x, seed = tensor([1.0]), tensor([1, 2])
    return [
        ErrorSample(lambda: dropout(seed, seed, 0.1), DtypeError, "i32"),
        ErrorSample(lambda: dropout(x, x, 0.1), ShapeError, "seed"),
        ErrorSample(lambda: dropout(x, seed, 1.0), SettingError, "p=1.0"),
        ErrorSample(lambda: dropout(x, seed, 0.1, -1), SettingError, "salt=-1"),
        ErrorSample(lambda: dropout(tensor(1.0), seed, 0.1), ShapeError, "at least 1 axes"),
    ]


def _dropout_grad(y: Tensor, g: Tensor) -> Tensor:
    return dropout(g, y.srcs[1], y.params["p"], y.params["salt"])


@op(
    lower=_lower_dropout,
    vjp=(_dropout_grad, None),
    reference=_dropout_reference,
    samples=_dropout_sample,
    error_samples=_dropout_errors,
    cost=20.0,
    family="training",
)
def dropout(x: Tensor, seed: Tensor, p: float, salt: int = 0) -> Result:
    """Zeros in place of a share of the elements; the others are divided by 1 - p.

    Which ones is decided by the seed, the salt and an element's place alone: the same in every
    run, for any number of threads, and when a checkpointed step computes it again. The seed is
    data, so a compiled step drops others each time it is given another.

    Args:
        x: float, at least one axis.
        seed: (2,) i32, each from 0 to 2^24 - 1; as the number of the run and of the step.
        p: the share, 0 <= p < 1.
        salt: tells dropouts of one graph apart.
    Raises:
        SettingError: `p` or `salt` out of range. ShapeError: a seed of another shape or dtype.
    Gradient: with respect to `x`. Source: Srivastava et al. 2014; ggml has none.

    >>> dropout(tensor([1.0, 2.0, 3.0, 4.0]), tensor([1, 0]), 0.5).numpy()
    array([0., 0., 6., 8.], dtype=float32)
    """
    need_float("dropout", x)
    need_axes("dropout", x, 1)
    if seed.shape != (2,) or seed.dtype.name != "i32":
        raise ShapeError(
            f"dropout: seed: got {seed.dtype.name} {seed.shape}, want i32 (2,). "
            "Pass a leaf such as context.input((2,), 'i32')."
        )
    if not 0 <= p < 1:
        raise SettingError(f"dropout: got p={p}, want 0 <= p < 1, the share that is dropped")
    if not 0 <= salt < _SEED_LIMIT:
        raise SettingError(f"dropout: got salt={salt}, want 0 to {_SEED_LIMIT - 1}")
    return Result((x, seed), x.shape, x.dtype, {"p": float(p), "salt": int(salt)})


@op(
    reference=lambda x: x,
    samples=lambda d: call(d.floats(d.shape(min_axes=0))),
    stops_gradient=True,
    family="training",
)
def detach(x: Tensor) -> Result:
    """The same elements as a constant: no gradient flows back to what they were made from.

    Gradient: none, and no error: parameters that reach the loss only through here are not
    trained. Source: torch.Tensor.detach; ggml has none.

    >>> detach(tensor([1.0, 2.0])).numpy()
    array([1., 2.], dtype=float32)
    """
    return Result((x,), x.shape, x.dtype, strides=x.strides)
