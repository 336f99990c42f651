"""What a file that declares an op of its own imports; docs/custom_ops.md shows how.

An op is declared by `op`, with a kernel made by `per_element`, `per_row` or `per_array` from a
plain function, and proved by `check_op`. `real` is the type a kernel computes in, `exp` to `tanh`
and `row_sum` to `row_max` are functions for kernels, `need_float` to `like` help to write rules.
"""

from yupana.graphlib.check import Report, check_op
from yupana.graphlib.context import tensor
from yupana.graphlib.errors import (
    DtypeError,
    GradientError,
    KernelError,
    SettingError,
    ShapeError,
)
from yupana.graphlib.kernels.math import erf, exp, log, row_max, sigmoid, tanh
from yupana.graphlib.kernels.rowwise import row_dot, row_sum
from yupana.graphlib.kernels.trigonometry import cos, sin
from yupana.graphlib.op import Call, Cost, Draw, ErrorSample, Op, Result, call, op
from yupana.graphlib.ops._authors import per_array, per_element, per_row, real
from yupana.graphlib.ops._rules import (
    broadcast_shape,
    float_dtype,
    like,
    need_axes,
    need_float,
    need_same_shape,
)
from yupana.graphlib.tensor import Tensor

__all__ = [
    "Call",
    "Cost",
    "Draw",
    "DtypeError",
    "ErrorSample",
    "GradientError",
    "KernelError",
    "Op",
    "Report",
    "Result",
    "SettingError",
    "ShapeError",
    "Tensor",
    "broadcast_shape",
    "call",
    "check_op",
    "cos",
    "erf",
    "exp",
    "float_dtype",
    "like",
    "log",
    "need_axes",
    "need_float",
    "need_same_shape",
    "op",
    "per_array",
    "per_element",
    "per_row",
    "real",
    "row_dot",
    "row_max",
    "row_sum",
    "sigmoid",
    "sin",
    "tanh",
    "tensor",
]
