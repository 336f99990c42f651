"""Conversion between dtypes inside kernels, and bfloat16 in NumPy.

Kernels compute in float32 or float64. `load_f32` gathers elements of any dtype into a contiguous
row, `store_f32` scatters a row back, both with a byte stride; `load_f64` and `store_f64` do the
same for float64. The dtype is one of the codes below and may be known at run time only.

The four are written in LLVM IR: vectors where memory is contiguous, a scalar loop for other
strides and for what is left over. Every kernel contains a copy of those it calls, and written
this way a copy costs a quarter of the compile time of the same loops in Python.
"""

import platform
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

# Codes of the dtypes a kernel can read and write.
F32 = 0
F16 = 1
F64 = 2
BF16 = 3
I32 = 4
I8 = 5
I16 = 6
ITEMSIZE = (4, 2, 8, 2, 4, 1, 2)  # bytes, indexed by code

_LANES = 16  # elements a step of the contiguous loops; LLVM splits what the CPU cannot hold
_I8, _I16, _I32, _I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_HALF, _FLOAT, _DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()
_STORED = (_FLOAT, _HALF, _DOUBLE, _I16, _I32, _I8, _I16)  # LLVM type in memory, by code
_WHOLE = (I32, I8, I16)
_FIVE_I64 = types.void(*[types.int64] * 5)


@intrinsic
def load_f32(typingctx, address, stride_bytes, code, n, out):
    """Convert `n` elements of dtype `code` into contiguous float32 at address `out`.

    Element i is read at ``address + i * stride_bytes``; the stride may be 0 (the element is
    repeated) or negative. `address` and `out` need the alignment of their elements only and
    must not overlap. float64 and int32 are rounded to the nearest, ties to even.
    """
    return _FIVE_I64, _caller("load_f32", _FLOAT, _emit_load)


@intrinsic
def load_f64(typingctx, address, stride_bytes, code, n, out):
    """As `load_f32`, into float64: exact for every dtype."""
    return _FIVE_I64, _caller("load_f64", _DOUBLE, _emit_load)


@intrinsic
def store_f32(typingctx, source, n, code, address, stride_bytes):
    """Convert `n` contiguous float32 at `source` to dtype `code` at ``address + i * stride``.

    Rounds to the nearest, ties to even: float16 overflows to infinity, a NaN stays one (bfloat16
    keeps its sign and leading bits). To whole numbers the fraction is cut off as in C; beyond the
    range the nearest one is stored and 0 for NaN, where C promises nothing.
    """
    return _FIVE_I64, _caller("store_f32", _FLOAT, _emit_store)


@intrinsic
def store_f64(typingctx, source, n, code, address, stride_bytes):
    """As `store_f32`, from float64; rounds once, straight to `code`."""
    return _FIVE_I64, _caller("store_f64", _DOUBLE, _emit_store)


def f32_to_bf16(array: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Round float32 to bfloat16, kept as its 16 bits: nearest, ties to even; a NaN stays one.

    >>> f32_to_bf16([1.0, 1.00390625]).tolist()  # the second lies halfway: down to even
    [16256, 16256]
    """
    bits = np.asarray(array, np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, (bits >> 16) | 0x40, rounded).astype(np.uint16)


def bf16_to_f32(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The float32 values of bfloat16 given as 16 bits each; exact.

    >>> bf16_to_f32(np.array([0x3F80, 0xFF80], np.uint16))
    array([  1., -inf], dtype=float32)
    """
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


Emit = Callable[[ir.IRBuilder, ir.Function, Any], None]


def _caller(name: str, wide: Any, emit: Emit) -> Any:
    """Code generator of a call to function `name`, which `emit` adds to the module once."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        function = builder.module.globals.get(f"yupana_{name}")
        if function is None:
            signature = ir.FunctionType(ir.VoidType(), [_I64] * 5)
            function = ir.Function(builder.module, signature, f"yupana_{name}")
            function.linkage = "internal"
            # Kept out of line and un-unrolled: copies cost compile time and win nothing.
            function.attributes.add("noinline")
            function.attributes.add("optsize")
            emit(ir.IRBuilder(function.append_basic_block()), function, wide)
        builder.call(function, args)
        return context.get_dummy_value()

    return codegen


def _emit_load(b: ir.IRBuilder, function: ir.Function, wide: Any) -> None:
    address, stride, code, n, out = function.args
    step = _I64(_size(wide))
    is_splat = b.and_(b.icmp_signed("==", stride, _I64(0)), b.icmp_signed(">", n, _I64(1)))
    distinct = b.select(is_splat, _I64(1), n)

    def one_dtype(dtype: int) -> None:
        def body(i: Any, lanes: int) -> None:
            x = _load(b, _type(_STORED[dtype], lanes), b.add(address, b.mul(i, stride)))
            _store(b, _widen(b, x, dtype, wide, lanes), b.add(out, b.mul(i, step)))

        is_contiguous = b.icmp_signed("==", stride, _I64(ITEMSIZE[dtype]))
        _vector_then_scalar(b, distinct, is_contiguous, body)

    _for_each_dtype(b, function, code, one_dtype)
    with b.if_then(is_splat):
        value = _load(b, wide, out)

        def fill(i: Any, lanes: int) -> None:
            _store(b, _splat(b, value, lanes), b.add(out, b.mul(i, step)))

        _vector_then_scalar(b, n, ir.Constant(ir.IntType(1), 1), fill)
    b.ret_void()


def _emit_store(b: ir.IRBuilder, function: ir.Function, wide: Any) -> None:
    source, n, code, address, stride = function.args
    step = _I64(_size(wide))

    def one_dtype(dtype: int) -> None:
        def body(i: Any, lanes: int) -> None:
            x = _load(b, _type(wide, lanes), b.add(source, b.mul(i, step)))
            _store(b, _narrow(b, x, dtype, wide, lanes), b.add(address, b.mul(i, stride)))

        is_contiguous = b.icmp_signed("==", stride, _I64(ITEMSIZE[dtype]))
        _vector_then_scalar(b, n, is_contiguous, body)

    _for_each_dtype(b, function, code, one_dtype)
    b.ret_void()


def _for_each_dtype(b: Any, function: Any, code: Any, emit: Callable[[int], None]) -> None:
    """A switch over `code`; leaves the builder behind it. Unknown codes do nothing."""
    end = function.append_basic_block()
    switch = b.switch(code, end)
    for dtype in range(len(_STORED)):
        block = function.append_basic_block()
        switch.add_case(_I64(dtype), block)
        b.position_at_end(block)
        emit(dtype)
        b.branch(end)
    b.position_at_end(end)


def _vector_then_scalar(b: Any, n: Any, use_vectors: Any, body: Callable[[Any, int], None]) -> None:
    whole = b.select(use_vectors, b.and_(n, _I64(-_LANES)), _I64(0))
    _loop(b, _I64(0), whole, _LANES, lambda i: body(i, _LANES))
    _loop(b, whole, n, 1, lambda i: body(i, 1))


def _loop(b: Any, start: Any, stop: Any, step: int, body: Callable[[Any], None]) -> None:
    """``for i in range(start, stop, step)``; `stop` is a whole number of steps away."""
    before = b.block
    head, inside, after = (b.function.append_basic_block() for _ in range(3))
    b.branch(head)
    b.position_at_end(head)
    i = b.phi(_I64)
    i.add_incoming(start, before)
    b.cbranch(b.icmp_signed("<", i, stop), inside, after)
    b.position_at_end(inside)
    body(i)
    i.add_incoming(b.add(i, _I64(step)), b.block)
    b.branch(head)
    b.position_at_end(after)


def _widen(b: Any, x: Any, dtype: int, wide: Any, lanes: int) -> Any:
    """Lanes of stored type `dtype` as float type `wide`."""
    target = _type(wide, lanes)
    if dtype in _WHOLE:
        return b.sitofp(x, target)
    if dtype == F64:
        return x if wide is _DOUBLE else b.fptrunc(x, target)
    if dtype == F16:
        x = _from_half(b, x, lanes)
    if dtype == BF16:
        bits = b.shl(b.zext(x, _type(_I32, lanes)), _constant(_I32, 16, lanes))
        x = b.bitcast(bits, _type(_FLOAT, lanes))
    return x if wide is _FLOAT else b.fpext(x, target)


def _narrow(b: Any, x: Any, dtype: int, wide: Any, lanes: int) -> Any:
    """Lanes of float type `wide` as stored type `dtype`."""
    if dtype in _WHOLE:
        return _to_whole(b, x, _STORED[dtype], wide, lanes)
    if dtype == F64:
        return x if wide is _DOUBLE else b.fpext(x, _type(_DOUBLE, lanes))
    if dtype == F32:
        return x if wide is _FLOAT else b.fptrunc(x, _type(_FLOAT, lanes))
    if wide is _DOUBLE:
        x = _round_to_odd(b, x, lanes)
    if dtype == F16:
        return to_half(b, x, lanes)
    return _to_bf16(b, x, lanes)


def _has_half() -> bool:
    """Whether the CPU converts float16; LLVM would call a library that may be missing."""
    if platform.machine() not in ("x86_64", "AMD64", "i686"):
        return True  # every 64-bit ARM does
    return "+f16c" in (numba.config.CPU_FEATURES or get_host_cpu_features()).split(",")


def _from_half(b: Any, x: Any, lanes: int) -> Any:
    real, integer = _type(_FLOAT, lanes), _type(_I32, lanes)
    if _has_half():
        return b.fpext(x, real)
    bits = b.zext(b.bitcast(x, _type(_I16, lanes)), integer)
    sign = b.shl(b.and_(bits, _constant(_I32, 0x8000, lanes)), _constant(_I32, 16, lanes))
    size = b.and_(bits, _constant(_I32, 0x7FFF, lanes))
    moved = b.shl(size, _constant(_I32, 13, lanes))
    # The exponents differ by 112; a product, so that denormals come out right too.
    scaled = b.fmul(b.bitcast(moved, real), _constant(_FLOAT, 2.0**112, lanes))
    special = b.or_(moved, _constant(_I32, 0x7F800000, lanes))  # inf and NaN
    is_special = b.icmp_unsigned(">=", size, _constant(_I32, 0x7C00, lanes))
    magnitude = b.select(is_special, special, b.bitcast(scaled, integer))
    return b.bitcast(b.or_(magnitude, sign), real)


def to_half(b: Any, x: Any, lanes: int) -> Any:
    """Lanes of float32 as float16, rounded to nearest even (a scalar for one lane)."""
    real, integer, half = _type(_FLOAT, lanes), _type(_I32, lanes), _type(_HALF, lanes)
    if _has_half():
        return b.fptrunc(x, half)
    bits = b.bitcast(x, integer)
    size = b.and_(bits, _constant(_I32, 0x7FFFFFFF, lanes))
    sign = b.lshr(b.xor(bits, size), _constant(_I32, 16, lanes))
    # Normal results: drop 13 bits to even, take 112 off the exponent.
    odd = b.and_(b.lshr(size, _constant(_I32, 13, lanes)), _constant(_I32, 1, lanes))
    rounded = b.add(b.add(size, _constant(_I32, 0xFFF - (112 << 23), lanes)), odd)
    result = b.lshr(rounded, _constant(_I32, 13, lanes))
    # Denormal results: 0.5 has the spacing of those in its last bit, so adding it rounds.
    moved = b.fadd(b.bitcast(size, real), _constant(_FLOAT, 0.5, lanes))
    tiny = b.sub(b.bitcast(moved, integer), _constant(_I32, 0x3F000000, lanes))
    is_tiny = b.icmp_unsigned("<", size, _constant(_I32, 0x38800000, lanes))
    result = b.select(is_tiny, tiny, result)
    is_huge = b.icmp_unsigned(">=", size, _constant(_I32, 0x477FF000, lanes))  # 65520
    result = b.select(is_huge, _constant(_I32, 0x7C00, lanes), result)
    is_nan = b.icmp_unsigned(">", size, _constant(_I32, 0x7F800000, lanes))
    result = b.select(is_nan, _constant(_I32, 0x7E00, lanes), result)
    return b.bitcast(b.trunc(b.or_(result, sign), _type(_I16, lanes)), half)


def _to_whole(b: Any, x: Any, stored: Any, wide: Any, lanes: int) -> Any:
    """Cut off the fraction; saturate beyond the range, where plain fptosi is undefined."""
    # llvm.fptosi.sat does the same, but one lane after the other.
    end = 2 ** (stored.width - 1)
    low, high = _constant(wide, -float(end), lanes), _constant(wide, float(end), lanes)
    is_below, is_above = b.fcmp_ordered("<", x, low), b.fcmp_ordered(">=", x, high)
    is_inside = b.and_(b.fcmp_ordered(">=", x, low), b.fcmp_ordered("<", x, high))  # not NaN
    cut = b.fptosi(b.select(is_inside, x, _constant(wide, 0.0, lanes)), _type(_I32, lanes))
    cut = b.select(is_below, _constant(_I32, -end, lanes), cut)
    cut = b.select(is_above, _constant(_I32, end - 1, lanes), cut)
    return cut if stored is _I32 else b.trunc(cut, _type(stored, lanes))


def _to_bf16(b: Any, x: Any, lanes: int) -> Any:
    bits = b.bitcast(x, _type(_I32, lanes))
    high = b.lshr(bits, _constant(_I32, 16, lanes))
    half = b.add(b.and_(high, _constant(_I32, 1, lanes)), _constant(_I32, 0x7FFF, lanes))
    rounded = b.lshr(b.add(bits, half), _constant(_I32, 16, lanes))
    quiet = b.or_(high, _constant(_I32, 0x40, lanes))  # rounding could make a NaN infinite
    return b.trunc(b.select(b.fcmp_unordered("uno", x, x), quiet, rounded), _type(_I16, lanes))


def _round_to_odd(b: Any, x: Any, lanes: int) -> Any:
    """float64 to float32 so that rounding the result once more equals rounding `x` once.

    Where float32 is inexact the neighbour with the odd last bit is taken: it never looks like
    a tie to the second rounding.
    """
    near = b.fptrunc(x, _type(_FLOAT, lanes))
    back = b.fpext(near, _type(_DOUBLE, lanes))
    bits = b.bitcast(near, _type(_I32, lanes))
    one = _constant(_I32, 1, lanes)
    is_even = b.icmp_unsigned("!=", b.and_(bits, one), one)
    is_inexact = b.fcmp_ordered("one", x, back)  # false for NaN
    magnitudes = [b.bitcast(v, _type(_I64, lanes)) for v in (back, x)]
    mask = _constant(_I64, (1 << 63) - 1, lanes)
    near_is_larger = b.icmp_unsigned(">", *(b.and_(m, mask) for m in magnitudes))
    other = b.select(near_is_larger, b.sub(bits, one), b.add(bits, one))
    odd = b.select(b.and_(is_even, is_inexact), other, bits)
    return b.bitcast(odd, _type(_FLOAT, lanes))


def _load(b: Any, type_: Any, address: Any) -> Any:
    return b.load(b.inttoptr(address, type_.as_pointer()), align=_size(type_))


def _store(b: Any, value: Any, address: Any) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer()), align=_size(value.type))


def _splat(b: Any, value: Any, lanes: int) -> Any:
    if lanes == 1:
        return value
    vector = ir.VectorType(value.type, lanes)
    first = b.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    return b.shuffle_vector(first, first, _constant(_I32, 0, lanes))


def _type(scalar: Any, lanes: int) -> Any:
    return scalar if lanes == 1 else ir.VectorType(scalar, lanes)


def _constant(scalar: Any, value: float, lanes: int) -> Any:
    return ir.Constant(_type(scalar, lanes), value if lanes == 1 else [value] * lanes)


def _size(type_: Any) -> int:
    """Bytes of one element: the only alignment that operands promise."""
    scalar = type_.element if isinstance(type_, ir.VectorType) else type_
    sizes = {_I8: 1, _HALF: 2, _I16: 2, _FLOAT: 4, _I32: 4, _DOUBLE: 8}
    return sizes[scalar]
