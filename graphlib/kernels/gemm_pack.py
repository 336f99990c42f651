"""Packing of matrix operands: any strides and dtype to float32 panels that are read in order.

A packed group holds LANES lines (columns of B, or rows of A): for each k the LANES values of
the group stand together, and `out_k` bytes further those of the next k. Groups side by side make
a panel. Lanes without a line are filled with copies or zeros, never with what memory held.

The functions are called through their addresses, so that one tile kernel serves all dtypes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba import int64, types, void
from numba.extending import intrinsic

from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.vector import (
    HAS_AVX512,
    I64,
    ITEMSIZE,
    LANES,
    const,
    load_f32,
    loop,
    mask_below,
    store,
    transpose,
    vector,
    void_intrinsic,
    zeros,
)


def _pack(dtype: str, b: Any, args: list[Any]) -> None:
    """Pack one group; see `call_pack`."""
    source, line, k_stride, out, out_k, count, lines = args
    size = ITEMSIZE[dtype]
    k_near = b.icmp_signed("==", k_stride, const(size))
    long = b.icmp_signed(">=", count, const(LANES))
    enough = b.icmp_signed(">=", lines, const(1 if HAS_AVX512 else LANES))
    lines_near = b.and_(b.icmp_signed("==", line, const(size)), enough)
    with b.if_else(lines_near) as (copy, otherwise):
        with copy:
            _copy(b, dtype, source, k_stride, out, out_k, count, lines)
        with otherwise, b.if_else(b.and_(k_near, long)) as (square, scattered):
            with square:
                read = partial(load_f32, b, dtype, lanes=LANES)
                pack_lines(b, size, read, source, line, out, out_k, count, lines)
            with scattered:
                _gather(b, dtype, source, line, k_stride, out, out_k, count, lines)


def _copy(
    b: Any, dtype: str, source: Any, k_stride: Any, out: Any, out_k: Any, count: Any, lines: Any
) -> None:
    """The lines of one k are neighbours in memory."""
    mask = mask_below(b, lines) if HAS_AVX512 else None

    def row(k: Any) -> None:
        value = load_f32(b, dtype, b.add(source, b.mul(k, k_stride)), LANES, mask)
        store(b, value, b.add(out, b.mul(k, out_k)))

    loop(b, const(0), count, 1, row)


def pack_lines(
    b: Any,
    size: int,
    read: Callable[[Any], Any],
    source: Any,
    line: Any,
    out: Any,
    out_k: Any,
    count: Any,
    lines: Any,
) -> None:
    """The k of one line are neighbours: squares of LANES, the last may overlap its neighbour.

    `read` gives LANES of them from an address on, each of `size` bytes there.
    """
    places = []
    for lane in range(LANES):  # lines that do not exist repeat line 0
        exists = b.icmp_signed("<", const(lane), lines)
        places.append(b.add(source, b.select(exists, b.mul(line, const(lane)), const(0))))

    def square(k: Any) -> None:
        rows = [read(b.add(place, b.mul(k, const(size)))) for place in places]
        for i, value in enumerate(transpose(b, rows)):
            store(b, value, b.add(out, b.mul(b.add(k, const(i)), out_k)))

    def step(k: Any) -> None:
        last = b.sub(count, const(LANES))
        square(b.select(b.icmp_signed("<", last, k), last, k))

    loop(b, const(0), b.add(count, const(LANES - 1)), LANES, step)


def _gather(
    b: Any,
    dtype: str,
    source: Any,
    line: Any,
    k_stride: Any,
    out: Any,
    out_k: Any,
    count: Any,
    lines: Any,
) -> None:
    """Element by element: any strides."""

    def row(k: Any) -> None:
        place, target = b.add(source, b.mul(k, k_stride)), b.add(out, b.mul(k, out_k))
        store(b, zeros(vector()), target)

        def element(i: Any) -> None:
            value = load_f32(b, dtype, b.add(place, b.mul(i, line)), 1)
            store(b, value, b.add(target, b.mul(i, const(4))))

        loop(b, const(0), lines, 1, element)

    loop(b, const(0), count, 1, row)


_pack_f32 = void_intrinsic("gemm_pack_f32", 7, partial(_pack, "f32"))
_pack_f16 = void_intrinsic("gemm_pack_f16", 7, partial(_pack, "f16"))
_pack_bf16 = void_intrinsic("gemm_pack_bf16", 7, partial(_pack, "bf16"))
pack: Any = None  # what a Kernel binds


def pack_group(source, line, k_stride, out, out_k, count, lines):
    """One of the intrinsics above as a function with an address."""
    pack(source, line, k_stride, out, out_k, count, lines)


_SEVEN = void(*[int64] * 7)
PACK = {
    "f32": Kernel(pack_group, "f32", signature=_SEVEN, pack=_pack_f32),
    "f16": Kernel(pack_group, "f16", signature=_SEVEN, pack=_pack_f16),
    "bf16": Kernel(pack_group, "bf16", signature=_SEVEN, pack=_pack_bf16),
}


@intrinsic
def call_pack(typingctx, function, source, line, k_stride, out, out_k, count, lines):
    """Pack one group by the `PACK` function at address `function`.

    out[k, i] = source[i, k] as float32 for i < LANES and k < count, where only `lines` <= LANES
    lines exist. Strides in bytes: `line` from line to line, `k_stride` and `out_k` along k.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        signature = ir.FunctionType(ir.VoidType(), [I64] * 7)
        builder.call(builder.inttoptr(args[0], signature.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), codegen
