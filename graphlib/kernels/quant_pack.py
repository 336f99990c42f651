"""Packing of quantised matrix operands: blocks to float32 panels, for products of many rows.

A group of lines is expanded near the processor and packed from there, so that a quantised matrix
never exists in float32 as a whole.
"""

from functools import partial
from typing import Any

from llvmlite import ir
from numba import int64, void

from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.gemm_pack import pack_lines
from yupana.graphlib.kernels.gemm_plan import K_BLOCK
from yupana.graphlib.kernels.pairs import neighbours
from yupana.graphlib.kernels.quant_lines import LINE, lines_of, numbers
from yupana.graphlib.kernels.vector import (
    F32,
    LANES,
    const,
    load_f32,
    loop,
    store,
    void_intrinsic,
)
from yupana.graphlib.quants import FORMATS


def _pack(name: str, each: int, b: Any, args: list[Any]) -> None:
    """Pack one group; see gemm_pack.call_pack. `count` is at most K_BLOCK, whole blocks.

    `each`: 1, or 2 where k is counted in pairs, which become bfloat16.
    """
    source, line, stride, out, out_k, count, lines = args
    block, row_bytes = FORMATS[name].block, const(4 * each * K_BLOCK)
    with b.goto_entry_block():
        place = b.alloca(ir.ArrayType(F32, each * LANES * K_BLOCK))
    near = b.ptrtoint(place, ir.IntType(64))

    def expand(i: Any) -> None:
        row, to = b.add(source, b.mul(i, line)), b.add(near, b.mul(i, row_bytes))

        def one(k: Any) -> None:
            start = b.add(to, b.mul(k, const(4 * block)))
            for m, part in enumerate(lines_of(b, name, b.add(row, b.mul(k, stride)))):
                store(b, numbers(b, part), b.add(start, const(4 * LINE * m)))

        loop(b, const(0), b.sdiv(b.mul(count, const(each)), const(block)), 1, one)

    loop(b, const(0), lines, 1, expand)
    read = partial(load_f32, b, "f32", lanes=LANES) if each == 1 else partial(neighbours, b, "f32")
    pack_lines(b, 4 * each, read, near, row_bytes, out, out_k, count, lines)


pack: Any = None  # what a Kernel binds


def pack_blocks(source, line, k_stride, out, out_k, count, lines):
    """One of the intrinsics below as a function with an address."""
    pack(source, line, k_stride, out, out_k, count, lines)


def _kernel(name: str, each: int) -> Kernel:
    which = f"quant_pack{each}_{name}"
    pack = void_intrinsic(which, 7, partial(_pack, name, each))
    return Kernel(pack_blocks, which, signature=void(*[int64] * 7), pack=pack)


PACK_BLOCKS = {name: _kernel(name, 1) for name in FORMATS}
PACK_BLOCK_PAIRS = {name: _kernel(name, 2) for name in FORMATS}
