"""Ops that only move memory, beside the machine's own copy, on one thread.

    python benchmarks/copies.py

Operands of 32 MiB, more than the caches hold. `bandwidth` is the bytes an op has to read and write
in a unit of time, as a part of what `np.copyto` of such an array reaches in the same process.
"""

import time
from collections.abc import Callable

import numpy as np
from measure import in_turn

import yupana as yp
from yupana.graphlib import ops
from yupana.graphlib.tensor import Tensor

_SHAPE = (2048, 4096)
_ROUNDS = 15


def cases(x: Tensor, other: Tensor, row: Tensor, half: Tensor) -> dict[str, tuple[Tensor, float]]:
    """A call, and how many arrays of `_SHAPE` in float32 it reads and writes."""
    rows, columns = _SHAPE
    return {
        "cpy": (ops.cpy(x, other), 2.0),
        "cpy f16 to f32": (ops.cpy(half, other), 1.5),
        "cast to f16": (ops.cast(x, "f16"), 1.5),
        "cont of columns cut off": (ops.cont(x[:, : columns - 96]), 2.0),
        "cont of a transpose": (ops.cont(x.T), 2.0),
        "add": (ops.add(x, other), 3.0),
        "add a row": (ops.add(x, row), 2.0),
        "scale": (ops.scale(x, 2.0), 2.0),
        "repeat a row": (ops.repeat(row, _SHAPE), 1.0),
        "repeat_back to a row": (ops.repeat_back(x, (1, columns)), 1.0),
        "repeat_back to a column": (ops.repeat_back(x, (rows, 1)), 1.0),
        "repeat_back to a quarter": (ops.repeat_back(x, (rows // 2, columns // 2)), 1.25),
    }


def main() -> None:
    rng, context = np.random.default_rng(0), yp.Context()
    source = rng.normal(size=_SHAPE).astype(np.float32)
    target = np.empty_like(source)
    x, other = (context.leaf(_SHAPE).set(source) for _ in range(2))
    row, half = context.leaf((1, _SHAPE[1])).set(source[:1]), context.leaf(_SHAPE, "f16")
    for name, (y, arrays) in cases(x, other, row, half.set(source)).items():
        sides: dict[str, Callable[[], object]] = {
            "yupana": yp.Graph([y]).compile(threads=1).run,
            "copyto": lambda: np.copyto(target, source),
        }
        found = in_turn(sides, _ROUNDS, clock=time.process_time)
        part = arrays / 2 * found["copyto"] / found["yupana"]
        print(f"{name:26} {found['yupana'] * 1e3:7.2f} ms, bandwidth {part:.2f}", flush=True)


if __name__ == "__main__":
    main()
