"""Products of numbers rounded to bfloat16, two at a time: half as many steps along k.

Where a graph is compiled with `matmul="bf16"`, operands are rounded while they are packed, and two
neighbours along k share a word of a panel. The tile kernel then goes through words as it otherwise
goes through float32, and adds two products for each; processors with AVX-512 BF16 do so in the time
of one. Sums are float32. See `pairs`.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from numba import int64, void

from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.gemm_pack import pack_group, pack_lines
from yupana.graphlib.kernels.gemm_plan import Gemm, Matrix
from yupana.graphlib.kernels.pairs import joined, neighbours
from yupana.graphlib.kernels.vector import (
    HAS_AVX512,
    ITEMSIZE,
    LANES,
    const,
    load_f32,
    loop,
    mask_below,
    store,
    vector,
    void_intrinsic,
    zeros,
)

_LEAST_INNER = 32  # shorter sums are little work beside packing


def halved(gemm: Gemm) -> Gemm:
    """The product with k counted in pairs, or in float32 if it is not one for pairs."""
    if not gemm.pairs or gemm.inner % 2 or gemm.inner < _LEAST_INNER:
        return replace(gemm, pairs=False)
    return replace(gemm, inner=gemm.inner // 2, a=_by_pairs(gemm.a), b=_by_pairs(gemm.b))


def _by_pairs(matrix: Matrix) -> Matrix:
    b0, b1, row, k = matrix.strides
    return matrix if matrix.block > 1 else replace(matrix, strides=(b0, b1, row, 2 * k))


def _pack(dtype: str, b: Any, args: list[Any]) -> None:
    """Pack one group; see `gemm_pack.call_pack`: k and its strides are those of pairs."""
    source, line, k_stride, out, out_k, count, lines = args
    size = ITEMSIZE[dtype]
    single = b.sdiv(k_stride, const(2))
    k_near = b.icmp_signed("==", single, const(size))
    long = b.icmp_signed(">=", count, const(LANES))
    enough = b.icmp_signed(">=", lines, const(1 if HAS_AVX512 else LANES))
    lines_near = b.and_(b.icmp_signed("==", line, const(size)), enough)

    def copy(k: Any) -> None:
        place = b.add(source, b.mul(k, k_stride))
        mask = mask_below(b, lines) if HAS_AVX512 else None
        low, high = (load_f32(b, dtype, b.add(place, at), LANES, mask) for at in (const(0), single))
        store(b, joined(b, low, high), b.add(out, b.mul(k, out_k)))

    def gather(k: Any) -> None:
        place, target = b.add(source, b.mul(k, k_stride)), b.add(out, b.mul(k, out_k))
        store(b, zeros(vector()), target)

        def element(i: Any) -> None:
            at = b.add(place, b.mul(i, line))
            low, high = (load_f32(b, dtype, b.add(at, far), 1) for far in (const(0), single))
            store(b, joined(b, low, high), b.add(target, b.mul(i, const(4))))

        loop(b, const(0), lines, 1, element)

    with b.if_else(lines_near) as (near, otherwise):
        with near:
            loop(b, const(0), count, 1, copy)
        with otherwise, b.if_else(b.and_(k_near, long)) as (square, scattered):
            with square:
                read = partial(neighbours, b, dtype)
                pack_lines(b, 2 * size, read, source, line, out, out_k, count, lines)
            with scattered:
                loop(b, const(0), count, 1, gather)


PACK_PAIRS = {
    dtype: Kernel(
        pack_group,
        f"pairs_{dtype}",
        signature=void(*[int64] * 7),
        pack=void_intrinsic(f"gemm_pack_pairs_{dtype}", 7, partial(_pack, dtype)),
    )
    for dtype in ("f32", "f16", "bf16")
}
