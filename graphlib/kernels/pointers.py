"""Typed views of raw addresses, atomics, and calls through addresses, for use inside kernels.

Kernels get addresses as int64; these intrinsics turn them into something to index.
None of them checks anything: bounds are the business of the rule that built the record.
"""

import platform
from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from yupana.graphlib.kernels.for_kernels import for_kernels

_I64 = ir.IntType(64)


def _pointer_cast(scalar: Any) -> Any:
    @intrinsic
    def cast(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

        return types.CPointer(scalar)(types.int64), codegen

    return cast


f32_pointer = _pointer_cast(types.float32)
f64_pointer = _pointer_cast(types.float64)
i32_pointer = _pointer_cast(types.int32)
i64_pointer = _pointer_cast(types.int64)
u8_pointer = _pointer_cast(types.uint8)


@for_kernels
def f32_array(address, n):
    """`n` contiguous float32 at `address`."""
    return carray(f32_pointer(address), n)


@for_kernels
def f64_array(address, n):
    """`n` contiguous float64 at `address`."""
    return carray(f64_pointer(address), n)


@for_kernels
def i32_array(address, n):
    """`n` contiguous int32 at `address`."""
    return carray(i32_pointer(address), n)


@for_kernels
def i64_array(address, n):
    """`n` contiguous int64 at `address`: a kernel reads its record this way."""
    return carray(i64_pointer(address), n)


@for_kernels
def f64_words(address, n):
    """The record read as float64: float parameters are stored as their 64 bits."""
    return carray(f64_pointer(address), n)


def _caller(n_args: int) -> Any:
    """A call of the void function of `n_args` int64 at an address."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        signature = ir.FunctionType(ir.VoidType(), [_I64] * n_args)
        builder.call(builder.inttoptr(args[0], signature.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * (n_args + 1)), codegen


@intrinsic
def call_kernel(typingctx, kernel, record, begin, end, scratch):
    """Call the kernel at address `kernel` on chunks [begin, end) of `record`."""
    return _caller(4)


@intrinsic
def call_convert(typingctx, function, a, b, c, d, e):
    """Call one of the conversions of convert.py through its address."""
    return _caller(5)


@intrinsic
def call_body(typingctx, function, y, x0, x1, x2, n, params):
    """Call the body of a family (elementwise.py, rowwise.py) through its address."""
    return _caller(6)


@intrinsic
def atomic_add(typingctx, address, value):
    """Add to the int64 at `address`; returns what was there before."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx, address):
    """The int64 at `address`, ordered with other atomics."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_store(typingctx, address, value):
    """Store an int64 at `address`, ordered with other atomics."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        builder.store_atomic(args[1], pointer, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def compare_and_swap(typingctx, address, before, after):
    """Store `after` in the int64 at `address` if `before` is there; whether it was."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        found = builder.cmpxchg(pointer, args[1], args[2], "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def spin_hint(typingctx):
    """Tell the core that this thread only waits: its twin on the same core runs the faster."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if platform.machine() in ("x86_64", "AMD64"):
            signature = ir.FunctionType(ir.VoidType(), [])
            builder.call(
                cgutils.get_or_insert_function(builder.module, signature, "llvm.x86.sse2.pause"), []
            )
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_cpu(typingctx):
    """Give the core to another runnable thread (sched_yield): a spinning thread's way out."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        signature = ir.FunctionType(ir.IntType(32), [])
        function = cgutils.get_or_insert_function(builder.module, signature, "sched_yield")
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen
