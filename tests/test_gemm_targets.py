"""Matrix multiplication on other processors, and at the end of memory.

Each runs in a process of its own: the target is chosen when numba is imported, and a read
beyond an operand ends the process.
"""

import ctypes
import itertools
import mmap
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.targets import TARGETS, in_process, shared_cache
from yupana.graphlib.kernels.compiler import function_type
from yupana.graphlib.kernels.gemm import Gemm, Matrix, lower, workspace_bytes

_other = pytest.mark.skipif(platform.machine() != "x86_64", reason="for other x86 processors")
_kept: list[Any] = []  # memory that addresses point to


@pytest.fixture
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Folders of compiled kernels, one for each target; None: that of this processor."""
    return {"": None} | {target: shared_cache(tmp_path_factory, target) for target in TARGETS}


@_other
@pytest.mark.parametrize("target", TARGETS)
def test_other_processors(target: str, caches: dict[str, str | None]) -> None:
    names = ("test_product_agrees_with_float64", "test_result_does_not_depend_on_chunk_ranges")
    tests = [f"{Path(__file__).parent / 'test_gemm.py'}::{name}" for name in names]
    arguments = ("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *tests)
    done = in_process(*arguments, target=target, cache=caches[target])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages by mprotect")
@pytest.mark.parametrize("target", ["", *(pytest.param(t, marks=_other) for t in TARGETS)])
def test_nothing_beyond_the_operands_is_touched(target: str, caches: dict[str, str | None]) -> None:
    done = in_process(__file__, target=target, cache=caches[target])
    assert done.stdout.split() == ["done"], (done.returncode, done.stderr[-1000:])


def at_page_end(values: np.ndarray[Any, Any]) -> int:
    """Address of a copy of `values` that ends where a page that may not be touched begins."""
    pages = -(-max(values.nbytes, 1) // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    _kept.append(memory)
    end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + pages * mmap.PAGESIZE
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0) == 0
    ctypes.memmove(end - values.nbytes, values.ctypes.data, values.nbytes)
    return end - values.nbytes


def multiply_ones(
    rows: int, cols: int, inner: int, turned: tuple[bool, bool], dtype: str, pairs: bool
) -> None:
    """A product of ones, all of whose operands and scratch memory lie at the end of a page."""
    size = 4 if dtype == "f32" else 2
    a, b = np.ones((rows, inner), np.float32), np.ones((cols, inner), f"f{size}")
    a_strides = (0, 0, 4, 4 * rows) if turned[0] else (0, 0, 4 * inner, 4)
    b_strides = (0, 0, size, size * cols) if turned[1] else (0, 0, size * inner, size)
    c = Matrix(at_page_end(np.zeros((rows, cols), np.float32)), "f32", (0, 0, 4 * cols, 4))
    d = Matrix(at_page_end(np.ones((rows, cols), np.float32)), "f32", (0, 0, 4 * cols, 4))
    left = Matrix(at_page_end(a), "f32", a_strides)
    right = Matrix(at_page_end(b), dtype, b_strides)
    gemm = Gemm((1, 1), rows, cols, inner, (1, 1), left, right, c, d, pairs)
    workspace = at_page_end(np.zeros(workspace_bytes(gemm), np.uint8))
    for step in lower(gemm, workspace):
        record = np.array(step.record, np.int64)
        scratch = at_page_end(np.zeros(step.scratch, np.uint8))
        function_type(4)(step.kernel.address)(record.ctypes.data, 0, step.chunks, scratch)
    floats = ctypes.cast(c.address, ctypes.POINTER(ctypes.c_float))
    assert (np.ctypeslib.as_array(floats, (rows, cols)) == inner + 1).all()


def main() -> None:
    sizes = [(1, 1, 1), (3, 5, 7), (3, 5, 17), (9, 17, 33), (5, 50, 90), (300, 65, 130)]
    turns = [(a, b) for a in (False, True) for b in (False, True)]
    for size, turned, dtype in itertools.product(sizes, turns, ("f32", "f16")):
        multiply_ones(*size, turned, dtype, False)
    for size, turned in itertools.product([(9, 17, 34), (21, 50, 90), (300, 65, 130)], turns):
        multiply_ones(*size, turned, "f32", True)
    print("done")


if __name__ == "__main__":
    main()
