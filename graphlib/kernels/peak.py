"""What the processor can do at most: multiply-adds in registers, and memory read and copied.

Records: repeats of the multiply-adds and the address of three floats; or address of what is read,
address of what is written, bytes. Chunks are not looked at: each thread measures on its own.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.pointers import f32_array, i64_array
from yupana.graphlib.kernels.vector import F32, I64, LANES, const, load, multiply_add, splat, store

# Sums that do not wait for each other: a multiply-add takes 4 or 5 cycles, and two begin in each.
SUMS = 12
FLOPS_PER_REPEAT = 2 * LANES * SUMS


@intrinsic
def _multiply_adds(typingctx: Any, repeats: Any, floats: Any) -> Any:
    """Sums s = s * x + y, `repeats` times each; `floats` holds x and y, and gets a result."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        count, address = args
        x, y = (splat(b, load(b, F32, b.add(address, const(4 * k)), 4)) for k in range(2))
        entry = b.block
        body, done = (b.append_basic_block(name) for name in ("body", "done"))
        b.branch(body)
        b.position_at_end(body)
        left = b.phi(I64)
        left.add_incoming(count, entry)
        sums = [b.phi(x.type) for _ in range(SUMS)]
        after = [multiply_add(b, s, x, y) for s in sums]
        rest = b.sub(left, const(1))
        left.add_incoming(rest, body)
        for k, (s, following) in enumerate(zip(sums, after, strict=True)):
            s.add_incoming(ir.Constant(x.type, [float(k)] * LANES), entry)
            s.add_incoming(following, body)
        b.cbranch(b.icmp_signed(">", rest, const(0)), body, done)
        b.position_at_end(done)
        total = after[0]
        for s in after[1:]:
            total = b.fadd(total, s)
        first = b.extract_element(total, ir.Constant(ir.IntType(32), 0))
        store(b, first, b.add(address, const(8)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _peak(record: int, begin: int, end: int, scratch: int) -> None:
    words = i64_array(record, 2)
    _multiply_adds(words[0], words[1])


def _read(record: int, begin: int, end: int, scratch: int) -> None:
    words = i64_array(record, 3)
    n = words[2] // 4
    source, target = f32_array(words[0], n), f32_array(words[1], 1)
    total = source[0]
    for k in range(1, n):
        total += source[k]
    target[0] = total


def _copy(record: int, begin: int, end: int, scratch: int) -> None:
    words = i64_array(record, 3)
    n = words[2] // 4
    source, target = f32_array(words[0], n), f32_array(words[1], n)
    for k in range(n):
        target[k] = source[k]


PEAK, READ, COPY = Kernel(_peak), Kernel(_read), Kernel(_copy)
