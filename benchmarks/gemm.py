"""Speed of matrix multiplication against NumPy and PyTorch, in turn, in one process, one thread.

    python benchmarks/gemm.py [WORD]      only products whose name contains WORD

Ours runs as in a compiled program: a compiled loop calls the steps. The time is that of the
thread, so that other processes disturb less; a ratio above 1 means that ours is faster.
OpenBLAS is told to use its AVX-512 kernels, which it does not choose on every processor.
"""

import os
import sys

os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from yupana.graphlib.kernels.gemm import Gemm, Matrix, lower, workspace_bytes
from yupana.graphlib.kernels.pointers import call_kernel
from yupana.graphlib.kernels.vector import HAS_AVX512

try:
    import torch
except ImportError:  # then its column shows nan
    torch = None  # type: ignore[assignment]
else:
    torch.set_num_threads(1)

_ROUNDS = 31
_SAMPLE_S = 300e-6  # each measurement repeats the product for so long


class Shape(NamedTuple):
    """C = A·Bᵀ; `a` and `b` say which axis of the operand lies contiguous in memory."""

    batch: int
    rows: int
    cols: int
    inner: int
    a: str = "k"
    b: str = "k"
    dtype: str = "f32"

    def __str__(self) -> str:
        batch = f"{self.batch} of " if self.batch > 1 else ""
        layout = "" if self.a + self.b == "kk" else f" {self.a}{self.b}"
        return f"{batch}{self.rows}x{self.cols}x{self.inner}{layout} {self.dtype}"


SHAPES = [
    Shape(1, 8, 8, 8),
    Shape(1, 8, 32, 32),
    Shape(64, 8, 8, 4),
    Shape(64, 8, 4, 8, b="j"),
    Shape(64, 8, 4, 8, "i", "j"),
    Shape(1, 64, 32, 32),
    Shape(1, 64, 96, 32),
    Shape(1, 32, 32, 64, "i", "j"),
    Shape(1, 64, 32, 32, b="j"),
    Shape(32, 64, 64, 32),
    Shape(32, 64, 32, 64),
    Shape(32, 64, 32, 64, b="j"),
    Shape(32, 64, 32, 64, "i", "j"),
    Shape(1, 512, 65, 128),
    Shape(1, 512, 128, 65, b="j"),
    Shape(1, 65, 128, 512, "i", "j"),
    Shape(1, 512, 128, 128),
    Shape(1, 512, 128, 128, b="j"),
    Shape(1, 512, 344, 128),
    Shape(1, 512, 128, 344),
    Shape(1, 512, 344, 128, b="j"),
    Shape(1, 128, 128, 512, "i", "j"),
    Shape(1, 344, 128, 512, "i", "j"),
    Shape(1, 128, 344, 512, "i", "j"),
    Shape(1, 512, 1024, 256),
    Shape(1, 1024, 1024, 1024),
    Shape(1, 128, 4096, 1024),
    Shape(1, 1024, 256, 1024, "i", "j"),
    Shape(1, 16, 4096, 1024),
    Shape(1, 8, 4096, 1024),
    Shape(1, 4, 4096, 1024),
    Shape(1, 1, 4096, 1024),
    Shape(1, 1, 128, 128),
    Shape(1, 1, 4096, 1024, dtype="f16"),
    Shape(1, 512, 1024, 256, dtype="f16"),
]


@njit(nogil=True)
def _run(table: Any, scratch: Any, repeats: Any) -> None:
    """The steps in `table` (kernel, record, chunks), as a program calls them."""
    for _ in range(repeats):
        for i in range(table.shape[0]):
            call_kernel(table[i, 0], table[i, 1], 0, table[i, 2], scratch)


def operand(shape: Shape, lines: int, near: str) -> np.ndarray[Any, Any]:
    """A (batch, lines, inner) array of which k is contiguous or not."""
    rng = np.random.default_rng(lines)
    dims = (shape.batch, lines, shape.inner) if near == "k" else (shape.batch, shape.inner, lines)
    x = rng.standard_normal(dims).astype(np.float32)
    return x if near == "k" else x.swapaxes(1, 2)


def matrix(x: np.ndarray[Any, Any]) -> Matrix:
    dtype = {"float32": "f32", "float16": "f16"}[x.dtype.name]
    batch, row, column = x.strides
    return Matrix(x.ctypes.data, dtype, (0, batch, row, column))


def contestants(shape: Shape) -> dict[str, Callable[[int], None]]:
    """Functions that do the product n times."""
    a, b = operand(shape, shape.rows, shape.a), operand(shape, shape.cols, shape.b)
    stored = b.astype(np.float16) if shape.dtype == "f16" else b
    c, c_numpy = (np.empty((shape.batch, shape.rows, shape.cols), np.float32) for _ in range(2))
    batch, sizes = (1, shape.batch), (shape.rows, shape.cols, shape.inner)
    gemm = Gemm(batch, *sizes, (1, 1), matrix(a), matrix(stored), matrix(c))
    workspace = np.zeros(workspace_bytes(gemm) + 64, np.uint8)
    steps = lower(gemm, (workspace.ctypes.data + 63) // 64 * 64)
    records = [np.array(step.record, np.int64) for step in steps]
    rows = zip(steps, records, strict=True)
    table = np.array([[s.kernel.address, r.ctypes.data, s.chunks] for s, r in rows], np.int64)
    spare = np.zeros(max(step.scratch for step in steps) + 64, np.uint8)
    scratch = (spare.ctypes.data + 63) // 64 * 64
    keep = (records, workspace, spare, a, stored, c)

    def ours(n: int, keep: Any = keep) -> None:
        _run(table, scratch, n)

    def blas(n: int) -> None:
        left, right = (a[0], b[0].T) if shape.batch == 1 else (a, b.swapaxes(1, 2))
        out = c_numpy[0] if shape.batch == 1 else c_numpy
        for _ in range(n):
            np.matmul(left, right, out=out)

    ours(1)
    blas(1)
    error = float(np.abs(c - c_numpy).max()) / shape.inner**0.5
    assert error < (1e-2 if shape.dtype == "f16" else 1e-4), (shape, error)
    found: dict[str, Any] = {"ours": ours, "numpy": blas}
    if torch is not None:
        found["torch"] = _torch(shape, a, b)
    return found


def _torch(shape: Shape, a: Any, b: Any) -> Callable[[int], None]:
    left, right = torch.from_numpy(a), torch.from_numpy(b).mT
    if shape.batch == 1:
        left, right = left[0], right[0]

    def run(n: int) -> None:
        for _ in range(n):
            torch.matmul(left, right)

    return run


def measure(shape: Shape) -> dict[str, float]:
    """Median seconds of one product, by contestant."""
    functions = contestants(shape)
    repeats = {}
    for name, function in functions.items():
        n = 1
        while True:
            start = time.thread_time()
            function(n)
            spent = time.thread_time() - start
            if spent > _SAMPLE_S / 4:
                break
            n *= 4
        repeats[name] = max(1, int(n * _SAMPLE_S / spent))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(_ROUNDS):
        for name, function in functions.items():
            start = time.thread_time()
            function(repeats[name])
            times[name].append((time.thread_time() - start) / repeats[name])
    return {name: float(np.median(samples)) for name, samples in times.items()}


def main() -> None:
    word = " ".join(sys.argv[1:])
    print(f"one thread, median of {_ROUNDS}, AVX-512 {'on' if HAS_AVX512 else 'off'}")
    print(f"{'product':26}{'ours µs':>10}{'GF/s':>8}{'numpy/ours':>12}{'torch/ours':>12}")
    for shape in SHAPES:
        if word not in str(shape):
            continue
        found = measure(shape)
        flops = 2.0 * shape.batch * shape.rows * shape.cols * shape.inner
        ratios = [found.get(n, float("nan")) / found["ours"] for n in ("numpy", "torch")]
        speed = f"{found['ours'] * 1e6:10.2f}{flops / found['ours'] / 1e9:8.1f}"
        print(f"{shape!s:26}{speed}{ratios[0]:12.2f}{ratios[1]:12.2f}", flush=True)


if __name__ == "__main__":
    main()
