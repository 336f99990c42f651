"""Rows of quantised types to float32, and back: conversions with the signature of convert.py."""

from functools import partial
from typing import Any

import numpy as np
from numba import int64, void
from numpy.typing import NDArray

from yupana.graphlib.kernels.compiler import Kernel, function_type
from yupana.graphlib.kernels.quant_lines import LINE, lines_of, numbers
from yupana.graphlib.kernels.quant_store import store_block
from yupana.graphlib.kernels.vector import const, loop, store, void_intrinsic
from yupana.graphlib.quants import FORMATS


def quantize_rows(values: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
    """Contiguous rows of whole blocks, (…, n), as `quants.quantize` would store them."""
    fmt = FORMATS[name]
    stored = np.empty(
        (*values.shape[:-1], values.shape[-1] // fmt.block * fmt.nbytes), dtype=np.uint8
    )
    run = function_type(5)(STORE[name].address)
    run(values.ctypes.data, values.size, 0, stored.ctypes.data, fmt.nbytes)
    return stored


def _load(name: str, b: Any, args: list[Any]) -> None:
    address, stride, _, n, out = args
    block = FORMATS[name].block

    def one(k: Any) -> None:
        place = b.add(out, b.mul(k, const(4 * block)))
        for i, line in enumerate(lines_of(b, name, b.add(address, b.mul(k, stride)))):
            store(b, numbers(b, line), b.add(place, const(4 * LINE * i)))

    loop(b, const(0), b.sdiv(n, const(block)), 1, one)


def _store(name: str, b: Any, args: list[Any]) -> None:
    source, n, _, address, stride = args
    block = FORMATS[name].block

    def one(k: Any) -> None:
        place = b.add(source, b.mul(k, const(4 * block)))
        store_block(b, name, place, b.add(address, b.mul(k, stride)))

    loop(b, const(0), b.sdiv(n, const(block)), 1, one)


# What a Kernel binds.
load: Any = None
keep: Any = None


def load_blocks(address, stride, code, n, out):
    """`n` elements from blocks `stride` bytes apart, as float32 at `out`; whole blocks."""
    load(address, stride, code, n, out)


def store_blocks(source, n, code, address, stride):
    """`n` contiguous float32 at `source` as blocks `stride` bytes apart; whole blocks."""
    keep(source, n, code, address, stride)


# Without any fastmath: the bits are those of the definition.
_OPTIONS: dict[str, Any] = {"signature": void(*[int64] * 5), "fastmath": ()}
LOAD = {
    name: Kernel(
        load_blocks,
        name,
        load=void_intrinsic(f"quant_load_{name}", 5, partial(_load, name)),
        **_OPTIONS,
    )
    for name in FORMATS
}
STORE = {
    name: Kernel(
        store_blocks,
        name,
        keep=void_intrinsic(f"quant_store_{name}", 5, partial(_store, name)),
        **_OPTIONS,
    )
    for name in FORMATS
}
