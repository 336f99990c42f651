"""Parts of quantised blocks written to memory, as LLVM IR: halves, levels and fields of bits."""

from typing import Any

from llvmlite import ir

from yupana.graphlib.kernels.convert import to_half
from yupana.graphlib.kernels.lanes import Lanes, everywhere, read, where, write
from yupana.graphlib.kernels.vector import I16, I32, const, half_to_f32

I8 = ir.IntType(8)
_HALF = 16


def at_byte(b: Any, address: Any, offset: int) -> Any:
    """The address `offset` bytes on."""
    return b.add(address, const(offset))


def put_half(b: Any, x: Lanes, block: Any, at: int) -> Lanes:
    """Store lane 0 as float16 at byte `at`; what was stored, in every lane of float32."""
    half = to_half(b, b.extract_element(x.value, ir.Constant(I32, 0)), 1)
    bits = everywhere(b, b.bitcast(half, I16), x.kind.count)
    write(bits.part([0]), at_byte(b, block, at))
    return Lanes(b, half_to_f32(b, bits.value, "f16"))


def inverse_of(d: Lanes) -> Lanes:
    """1 / d, and 0 for 0."""
    return where(d.differs(0.0), d.like(1.0) / d, d.like(0.0))


def put_levels(b: Any, levels: Lanes, block: Any, at: int) -> None:
    """32 levels as 16 bytes of two times four bits."""
    low = levels.part(list(range(_HALF))) & 15
    write(low | (levels.part(list(range(_HALF, 32))) << 4), at_byte(b, block, at))


def put_fifth(b: Any, levels: Lanes, block: Any, at: int) -> None:
    """The fifth bits of 32 levels as four bytes."""
    mask = (levels & 16).differs(0)
    write(everywhere(b, b.bitcast(mask.value, I32), 1), at_byte(b, block, at))


def put_fields(b: Any, levels: Any, block: Any, at: int, bits: int, shift: int) -> None:
    """Fields of `bits` bits of the levels moved right: a byte holds elements 32 apart."""
    per_byte, mask = 8 // bits, (1 << bits) - 1
    for part in range(256 // (32 * per_byte)):
        packed = None
        for k in range(per_byte):
            field = read(b, I8, 32, at_byte(b, levels, 32 * (part * per_byte + k)))
            field = ((field >> shift if shift else field) & mask) << (bits * k)
            packed = field if packed is None else packed | field
        assert packed is not None
        write(packed, at_byte(b, block, at + 32 * part))


def put_six_bits(b: Any, scales: Lanes, minima: Lanes, block: Any) -> None:
    """Two times eight steps of six bits as twelve bytes."""
    first, last = list(range(4)), list(range(4, 8))
    for k, steps in enumerate((scales, minima)):
        write(steps.part(first) | (steps.part(last) >> 4 << 6), at_byte(b, block, 4 + 4 * k))
    write((scales.part(last) & 15) | (minima.part(last) << 4), at_byte(b, block, 12))
