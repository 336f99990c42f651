"""Convolutions and pooling, forward and backward, on one thread: here and in PyTorch, in turn.

    python benchmarks/convolution.py [WORD]      only cases whose name contains WORD

Times are of the thread's processor, so that other processes disturb less; the ratio is above 1
where ours is faster. Sizes are those of small image models.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from measure import in_turn, report

import yupana as yp
from yupana.graphlib import ops

try:
    import torch
    from torch.nn import functional
except ImportError:  # then its column is missing
    torch = functional = None  # type: ignore[assignment]
else:
    torch.set_num_threads(1)

_ROUNDS = 15
_X = (4, 64, 56, 56)  # batch, channels, rows, columns


class Case(NamedTuple):
    """One call: shapes of its operands, and how either side makes it."""

    shapes: tuple[tuple[int, ...], ...]
    ours: Callable[..., Any]
    torch: Callable[..., Any]


CASES = {
    "conv_2d 3x3": Case(
        (_X, (64, 64, 3, 3)),
        lambda x, w: ops.conv_2d(w, x, padding=1),
        lambda x, w: functional.conv2d(x, w, padding=1),
    ),
    "conv_2d 1x1": Case(
        (_X, (128, 64, 1, 1)),
        lambda x, w: ops.conv_2d(w, x),
        lambda x, w: functional.conv2d(x, w, stride=1),
    ),
    "conv_2d 3x3 stride 2": Case(
        (_X, (128, 64, 3, 3)),
        lambda x, w: ops.conv_2d(w, x, stride=2, padding=1),
        lambda x, w: functional.conv2d(x, w, stride=2, padding=1),
    ),
    "conv_2d 7x7 of 3 channels": Case(
        ((4, 3, 112, 112), (64, 3, 7, 7)),
        lambda x, w: ops.conv_2d(w, x, stride=2, padding=3),
        lambda x, w: functional.conv2d(x, w, stride=2, padding=3),
    ),
    "conv_2d_dw 3x3": Case(
        (_X, (64, 1, 3, 3)),
        lambda x, w: ops.conv_2d_dw(w, x, padding=1),
        lambda x, w: functional.conv2d(x, w, padding=1, groups=64),
    ),
    "conv_2d_dw 3x3 stride 2": Case(
        (_X, (64, 1, 3, 3)),
        lambda x, w: ops.conv_2d_dw(w, x, stride=2, padding=1),
        lambda x, w: functional.conv2d(x, w, stride=2, padding=1, groups=64),
    ),
    "conv_2d_dw 5x5 of 14x14": Case(
        ((4, 256, 14, 14), (256, 1, 5, 5)),
        lambda x, w: ops.conv_2d_dw(w, x, padding=2),
        lambda x, w: functional.conv2d(x, w, padding=2, groups=256),
    ),
    "conv_1d 3": Case(
        ((4, 128, 1024), (128, 128, 3)),
        lambda x, w: ops.conv_1d(w, x, padding=1),
        lambda x, w: functional.conv1d(x, w, padding=1),
    ),
    "conv_transpose_1d 4 stride 2": Case(
        ((4, 128, 512), (128, 64, 4)),
        lambda x, w: ops.conv_transpose_1d(w, x, stride=2, padding=1),
        lambda x, w: functional.conv_transpose1d(x, w, stride=2, padding=1),
    ),
    "conv_transpose_2d 2x2 stride 2": Case(
        ((4, 64, 28, 28), (64, 32, 2, 2)),
        lambda x, w: ops.conv_transpose_2d_p0(w, x, stride=2),
        lambda x, w: functional.conv_transpose2d(x, w, stride=2),
    ),
    "pool_2d max 2x2": Case(
        (_X,),
        lambda x: ops.pool_2d(x, "max", 2, stride=2),
        lambda x: functional.max_pool2d(x, 2),
    ),
    "pool_2d max 3x3 stride 2": Case(
        (_X,),
        lambda x: ops.pool_2d(x, "max", 3, stride=2, padding=1),
        lambda x: functional.max_pool2d(x, 3, stride=2, padding=1),
    ),
    "pool_2d avg 2x2": Case(
        (_X,),
        lambda x: ops.pool_2d(x, "avg", 2, stride=2),
        lambda x: functional.avg_pool2d(x, 2),
    ),
}


def program(case: Case, arrays: list[Any], back: bool) -> Any:
    """A compiled program: the result without gaps, or the gradients of its weighted sum."""
    context = yp.Context()
    leaves = [context.param(a.shape).set(a) for a in arrays]
    y = case.ours(*leaves)
    graph = yp.Graph([ops.cont(y)])
    if back:
        loss = (y * context.tensor(np.random.default_rng(1).normal(size=y.shape))).sum()
        graph = yp.Graph([loss])
        graph.backward(loss)
    return graph.compile(threads=1)


def torch_side(case: Case, arrays: list[Any], back: bool) -> Callable[[], None]:
    leaves = [torch.tensor(a, requires_grad=back) for a in arrays]
    shape = case.torch(*leaves).shape
    weights = torch.tensor(np.random.default_rng(1).normal(size=shape).astype(np.float32))

    def run() -> None:
        y = case.torch(*leaves)
        if back:
            (y * weights).sum().backward()

    return run


def main(word: str) -> None:
    for name, case in CASES.items():
        if word not in name:
            continue
        rng = np.random.default_rng(0)
        arrays = [rng.normal(size=shape).astype(np.float32) for shape in case.shapes]
        for back in (False, True):
            sides: dict[str, Callable[[], object]] = {"yupana": program(case, arrays, back).run}
            if torch is not None:
                sides["torch"] = torch_side(case, arrays, back)
            title = f"{name}{', with gradients' if back else ''}"
            report(title, in_turn(sides, _ROUNDS, clock=time.process_time))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
