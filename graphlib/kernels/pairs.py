"""Pairs of bfloat16 in words, as LLVM IR: rounding float32 to them, and products of two at a time.

Processors with AVX-512 BF16 have instructions for both; others take words apart.
"""

from typing import Any

from llvmlite import ir

from yupana.graphlib.kernels.vector import (
    FEATURES,
    HAS_AVX512,
    I16,
    I32,
    ITEMSIZE,
    LANES,
    const,
    load,
    load_f32,
    multiply_add,
    shuffle,
)

HAS_BF16 = HAS_AVX512 and "avx512bf16" in FEATURES
_WORDS = ir.VectorType(I32, LANES)


def multiply_pairs(b: Any, x: Any, y: Any, total: Any) -> Any:
    """total + both products of each lane, which are words as float32."""
    if HAS_BF16:
        kind = ir.FunctionType(x.type, [x.type] * 3)
        return b.asm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v", [total, x, y], False)
    for part in (_low, _high):
        total = multiply_add(b, part(b, x), part(b, y), total)
    return total


def _low(b: Any, x: Any) -> Any:
    words = ir.VectorType(I32, x.type.count)
    moved = b.shl(b.bitcast(x, words), ir.Constant(words, [16] * words.count))
    return b.bitcast(moved, x.type)


def _high(b: Any, x: Any) -> Any:
    words = ir.VectorType(I32, x.type.count)
    kept = b.and_(b.bitcast(x, words), ir.Constant(words, [-(1 << 16)] * words.count))
    return b.bitcast(kept, x.type)


def _rounded(b: Any, x: Any) -> Any:
    """The bits of float32 rounded to bfloat16, ties to even, in the high half of each word."""
    words = ir.VectorType(I32, x.type.count)

    def all_of(value: int) -> Any:
        return ir.Constant(words, [value] * words.count)

    bits = b.bitcast(x, words)
    odd = b.and_(b.lshr(bits, all_of(16)), all_of(1))
    rounded = b.add(bits, b.add(odd, all_of(0x7FFF)))
    is_nan = b.fcmp_unordered("uno", x, x)
    return b.select(is_nan, b.or_(bits, all_of(0x400000)), rounded)


def joined(b: Any, low: Any, high: Any) -> Any:
    """Words of two vectors of float32: lane by lane."""
    if HAS_BF16 and low.type.count == LANES:
        both = side_by_side(b, low, high)
        lanes = [lane for k in range(LANES) for lane in (k, LANES + k)]
        return b.bitcast(shuffle(b, both, both, lanes), _WORDS)
    low, high = _rounded(b, low), _rounded(b, high)
    words = low.type
    low = b.lshr(low, ir.Constant(words, [16] * words.count))
    return b.or_(low, b.and_(high, ir.Constant(words, [-(1 << 16)] * words.count)))


def side_by_side(b: Any, low: Any, high: Any) -> Any:
    """All of `low`, then all of `high`, as bfloat16."""
    kind = ir.FunctionType(ir.VectorType(I16, 2 * LANES), [low.type] * 2)
    return b.asm(kind, "vcvtne2ps2bf16 $2, $1, $0", "=v,v,v", [high, low], False)


def neighbours(b: Any, dtype: str, address: Any) -> Any:
    """Words of 2 LANES elements in a row."""
    if dtype == "bf16":
        return load(b, _WORDS, address, 2)
    first, second = (
        load_f32(b, dtype, b.add(address, const(ITEMSIZE[dtype] * LANES * k)), LANES)
        for k in range(2)
    )
    if HAS_BF16:
        return b.bitcast(side_by_side(b, first, second), _WORDS)
    even, odd = (shuffle(b, first, second, list(range(k, 2 * LANES, 2))) for k in range(2))
    return joined(b, even, odd)
