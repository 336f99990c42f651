"""Speed of quantised types: rows converted, and products beside those in float32.

    python benchmarks/quants.py [TYPE ...]

One thread, each measurement the median processor time over several rounds, the sides of a
comparison in turn. `load` and `store` are conversions to and from float32 near the processor;
products are (rows, 2048) by a weight of (2048, 2048) that comes from memory: `f32` with that
weight in float32, `exact` with float32 activations, `levels` with activations in Q8_0 (their
conversion included).
"""

import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from numba import njit

import yupana as yp
from yupana.graphlib import quants
from yupana.graphlib.kernels.pointers import call_convert
from yupana.graphlib.kernels.quant_rows import LOAD, STORE

SIZE = 2048
ROWS = (1, 4, 16, 128)
_COPIES = 6  # of every weight: more than the caches hold
_ROUNDS = 9


def seconds_of(run: Callable[[], object]) -> float:
    """Processor time of one call; a program may run on a thread of its own."""
    start = time.process_time()
    run()
    return time.process_time() - start


@njit(nogil=True)
def _repeat(function, first, second, third, n, last, count):
    for _ in range(count):
        call_convert(function, first, second, third, n, last)


def conversions(name: str) -> tuple[float, float]:
    """Elements per nanosecond from blocks to float32 and back."""
    fmt, rng = quants.FORMATS[name], np.random.default_rng(0)
    values = rng.normal(size=SIZE).astype(np.float32)
    stored = quants.quantize(values, name)
    data, blocks, nbytes = values.ctypes.data, stored.ctypes.data, fmt.nbytes
    load = (LOAD[name].address, blocks, nbytes, 0, SIZE, data, 2000)
    store = (STORE[name].address, data, SIZE, 0, blocks, nbytes, 20)
    speeds = []
    for arguments in (load, store):
        _repeat(*arguments)
        seconds = median(seconds_of(lambda a=arguments: _repeat(*a)) for _ in range(_ROUNDS))
        speeds.append(SIZE * arguments[-1] / seconds * 1e-9)
    return speeds[0], speeds[1]


def products(name: str, rows: int) -> dict[str, float]:
    """Milliseconds of one product of each kind."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(SIZE, SIZE)).astype(np.float32)
    x = yp.tensor(rng.normal(size=(rows, SIZE)).astype(np.float32))
    context = yp.Context()

    def weights(dtype: str) -> list[yp.Tensor]:
        return [context.leaf(values.shape, dtype).set(values) for _ in range(_COPIES)]

    quantised = weights(name)
    sides = {
        "f32": [yp.ops.mul_mat(w, x) for w in weights("f32")],
        "exact": [yp.ops.mul_mat(w, x) for w in quantised],
        "levels": [yp.ops.mul_mat(w, yp.ops.cast(x, "Q8_0")) for w in quantised],
    }
    programs = {side: yp.Graph(outputs).compile(threads=1) for side, outputs in sides.items()}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(_ROUNDS + 1):
        for side, program in programs.items():
            times[side].append(seconds_of(program.run) / _COPIES * 1e3)
    return {side: median(found[1:]) for side, found in times.items()}


def main() -> None:
    for name in sys.argv[1:] or quants.FORMATS:
        load, store = conversions(name)
        print(f"{name}: load {load:5.1f}, store {store:5.2f} elements/ns", flush=True)
        for rows in ROWS:
            found = products(name, rows)
            parts = [f"{side} {ms:7.3f} ms" for side, ms in found.items()]
            ratios = [f"{found['f32'] / found[side]:4.2f}x" for side in ("exact", "levels")]
            print(f"  {rows:4} rows  {'  '.join(parts)}   {'  '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
