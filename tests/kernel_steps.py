"""Steps of a program, run one by one as threads would run them."""

import itertools
from collections.abc import Sequence

import numpy as np

from yupana.graphlib.kernels.compiler import function_type
from yupana.graphlib.kernels.step import Step

GUARD = 64  # bytes that must stay as they are, beside what a kernel may write to
_call = function_type(4)


def run(steps: Sequence[Step], pieces: int = 1, backwards: bool = False) -> None:
    """Run steps one after the other, their chunks cut into ranges, in either order."""
    for step in steps:
        record = np.array(step.record, np.int64)
        count = max(1, min(pieces, step.chunks))
        cuts = np.linspace(0, step.chunks, count + 1).astype(int).tolist()
        ranges = list(itertools.pairwise(cuts))
        for begin, end in reversed(ranges) if backwards else ranges:
            scratch = np.full(step.scratch + GUARD, 255, np.uint8)  # NaN wherever it is read
            _call(step.kernel.address)(record.ctypes.data, begin, end, scratch.ctypes.data)
            assert (scratch[step.scratch :] == 255).all(), "wrote beyond its scratch memory"
