"""LLVM vectors: what the processor offers, and the pieces of IR that the fast kernels share.

numba vectorises simple loops by itself; matrix multiplication and packing need to say which
value lives in which register, so their inner loops are written as LLVM IR. The functions here
are called while such IR is built: `b` is the llvmlite builder, addresses are i64 values.
"""

import inspect
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

llvm.initialize_native_asmparser()  # for the assembly in `lone_half`

I1, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))
F32 = ir.FloatType()
HALF = ir.HalfType()
DTYPES = ("f32", "f16", "bf16")  # what `load_f32` reads
FETCHED = 64  # bytes that come from memory together
ITEMSIZE = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2}


def _features() -> frozenset[str]:
    """Instruction sets of the machine that numba compiles for, NUMBA_CPU_FEATURES respected."""
    chosen = numba.config.CPU_FEATURES
    if chosen is not None:
        return frozenset(f[1:] for f in chosen.split(",") if f.startswith("+"))
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


FEATURES = _features()
HAS_AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= FEATURES
HAS_AVX2 = {"avx2", "fma"} <= FEATURES
# float32 lanes of one register
LANES = 16 if HAS_AVX512 else 8 if HAS_AVX2 else 4
# whether loads and stores under a mask are single instructions
HAS_MASKS = LANES > 4
# vector registers; ARM and AVX-512 have 32
REGISTERS = 32 if HAS_AVX512 or "neon" in FEATURES else 16


def const(value: int) -> Any:
    """An i64 constant."""
    return ir.Constant(I64, value)


def vector(lanes: int = LANES, element: Any = F32) -> Any:
    """The type of a vector."""
    return ir.VectorType(element, lanes)


def zeros(kind: Any) -> Any:
    """The vector of zeros of type `kind`."""
    return ir.Constant(kind, [0.0 if kind.element == F32 else 0] * kind.count)


def at(b: Any, address: Any, kind: Any) -> Any:
    """Pointer to `kind` at an i64 address."""
    return b.inttoptr(address, kind.as_pointer())


def load(b: Any, kind: Any, address: Any, align: int) -> Any:
    """Load a scalar or vector; `align` is that of an element."""
    return b.load(at(b, address, kind), align=align)


def store(b: Any, value: Any, address: Any, align: int = 4) -> None:
    """Store a scalar or vector."""
    b.store(value, at(b, address, value.type), align=align)


def _suffix(kind: Any) -> str:
    letter = "f" if kind.element == F32 else "i"
    bits = 32 if kind.element == F32 else kind.element.width
    return f"v{kind.count}{letter}{bits}"


def masked_load(b: Any, kind: Any, address: Any, mask: Any, align: int) -> Any:
    """Load the lanes under `mask`, zero in the others; memory outside the mask is not touched."""
    arguments = [kind.as_pointer(), I32, mask.type, kind]
    function = declare(b.module, f"llvm.masked.load.{_suffix(kind)}.p0", kind, arguments)
    pointer = at(b, address, kind)
    return b.call(function, [pointer, ir.Constant(I32, align), mask, zeros(kind)])


def masked_store(b: Any, value: Any, address: Any, mask: Any, align: int = 4) -> None:
    """Store the lanes under `mask`."""
    kind = value.type
    arguments = [kind, kind.as_pointer(), I32, mask.type]
    name = f"llvm.masked.store.{_suffix(kind)}.p0"
    function = declare(b.module, name, ir.VoidType(), arguments)
    b.call(function, [value, at(b, address, kind), ir.Constant(I32, align), mask])


def mask_below(b: Any, count: Any, lanes: int = LANES) -> Any:
    """Mask of the lanes below `count` (i64; at most 0 gives none, `lanes` or more gives all)."""
    kind = ir.VectorType(I32, lanes)
    low = b.select(b.icmp_signed(">", count, const(lanes)), const(lanes), count)
    return b.icmp_signed(
        "<", ir.Constant(kind, list(range(lanes))), splat(b, b.trunc(low, I32), lanes)
    )


def splat(b: Any, scalar: Any, lanes: int = LANES) -> Any:
    """A vector with `scalar` in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = b.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def multiply_add(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, fused where the processor can (llvm.fma would call a function elsewhere)."""
    name = f"llvm.fmuladd.{_suffix(x.type)}"
    return b.call(declare(b.module, name, x.type, [x.type] * 3), [x, y, z])


def prefetch(b: Any, address: Any, level: int) -> None:
    """Ask for the cache line at `address`, which need not exist, to be brought near.

    `level`: to the nearest cache, 1, or to the next, 2.
    """
    pointer = ir.IntType(8).as_pointer()
    arguments = [pointer, I32, I32, I32]
    function = declare(b.module, "llvm.prefetch.p0", ir.VoidType(), arguments)
    read, locality, data = (ir.Constant(I32, value) for value in (0, 4 - level, 1))
    b.call(function, [b.inttoptr(address, pointer), read, locality, data])


def shuffle(b: Any, x: Any, y: Any, lanes: list[int]) -> Any:
    """Lanes of x and y: index i < count is x[i], the others are y[i - count]."""
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def load_f32(b: Any, dtype: str, address: Any, lanes: int, mask: Any = None) -> Any:
    """Load `lanes` values of `dtype` (f32, f16, bf16) as float32."""
    element = F32 if dtype == "f32" else I16
    kind = ir.VectorType(element, lanes)
    align = ITEMSIZE[dtype]
    if mask is None:
        value = load(b, kind, address, align)
    else:
        value = masked_load(b, kind, address, mask, align)
    return value if dtype == "f32" else half_to_f32(b, value, dtype)


def half_to_f32(b: Any, bits: Any, dtype: str) -> Any:
    """float32 from the 16 bits of f16 or bf16, exact; without F16C by integer arithmetic."""
    lanes = bits.type.count
    wide, single = ir.VectorType(I32, lanes), ir.VectorType(F32, lanes)

    def constant(value: int) -> Any:
        return ir.Constant(wide, [value] * lanes)

    if dtype == "bf16":
        return b.bitcast(b.shl(b.zext(bits, wide), constant(16)), single)
    if "f16c" in FEATURES or HAS_AVX512:
        return b.fpext(b.bitcast(bits, ir.VectorType(HALF, lanes)), single)
    word = b.zext(bits, wide)
    sign = b.shl(b.and_(word, constant(0x8000)), constant(16))
    size = b.shl(b.and_(word, constant(0x7FFF)), constant(13))
    # exponent 31 means infinity or NaN: 255 there; else rescale from bias 15 to bias 127
    scaled = b.fmul(b.bitcast(size, single), ir.Constant(single, [2.0**112] * lanes))
    special = b.icmp_unsigned(">=", size, constant(0x0F800000))
    huge = b.or_(size, constant(0x7F800000))
    return b.bitcast(b.or_(b.select(special, huge, b.bitcast(scaled, wide)), sign), single)


def lone_half(b: Any, bits: Any) -> Any:
    """float32 from the 16 bits of one float16.

    LLVM loads one into the low lane of whatever register is free, which then has to wait for what
    was computed there: in a loop over blocks for the sum of the blocks before. Hence assembly,
    which starts from a register of zeros.
    """
    if "f16c" in FEATURES:
        kind = ir.FunctionType(ir.VectorType(F32, 4), [I32])
        code = "vmovd $1, $0\n\tvcvtph2ps $0, $0"
        real = b.asm(kind, code, "=x,r", [b.zext(bits, I32)], False)
    else:
        real = half_to_f32(b, splat(b, bits, 8), "f16")
    return b.extract_element(real, ir.Constant(I32, 0))


def sum_of(b: Any, values: Any) -> Any:
    """The sum of a vector of whole numbers."""
    element, name = values.type.element, _suffix(values.type)
    return b.call(
        declare(b.module, f"llvm.vector.reduce.add.{name}", element, [values.type]), [values]
    )


def transpose(b: Any, rows: list[Any]) -> list[Any]:
    """Transpose a square of `n` vectors of `n` lanes by n*log2(n) shuffles."""
    n = len(rows)
    half = n // 2
    low = [lane for j in range(half) for lane in (j, n + j)]
    high = [lane for j in range(half, n) for lane in (j, n + j)]
    for _ in range(n.bit_length() - 1):
        pairs = [(rows[j], rows[j + half]) for j in range(half)]
        rows = [shuffle(b, x, y, part) for x, y in pairs for part in (low, high)]
    return rows


def loop(b: Any, start: Any, stop: Any, step: int, body: Callable[[Any], None]) -> None:
    """Emit for i in range(start, stop - step + 1, step): body(i), on i64 values."""
    before = b.block
    head = b.append_basic_block("head")
    inside = b.append_basic_block("body")
    after = b.append_basic_block("after")
    b.branch(head)
    b.position_at_end(head)
    i = b.phi(I64)
    i.add_incoming(start, before)
    following = b.add(i, const(step))
    b.cbranch(b.icmp_signed("<=", following, stop), inside, after)
    b.position_at_end(inside)
    body(i)
    i.add_incoming(following, b.block)
    b.branch(head)
    b.position_at_end(after)


def declare(module: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """The external function `name` (an LLVM intrinsic), declared once in a module."""
    found = module.globals.get(name)
    if found is None:
        found = ir.Function(module, ir.FunctionType(result, arguments), name)
    return found


def void_intrinsic(
    name: str, n_args: int, build: Callable[[Any, list[Any]], None], inline: bool = False
) -> Any:
    """A function of int64 arguments for use in kernels, whose body `build(b, args)` emits.

    The body becomes one internal function of the module. Keep the result in a module global:
    numba's disk cache does not hit for intrinsics held in closures.
    """

    def function_of(module: Any) -> Any:
        found = module.globals.get(name)
        if found is not None:
            return found
        signature = ir.FunctionType(ir.VoidType(), [I64] * n_args)
        function = ir.Function(module, signature, name)
        function.linkage = "internal"
        function.attributes.add("alwaysinline" if inline else "noinline")
        b = ir.IRBuilder(function.append_basic_block("entry"))
        build(b, list(function.args))
        b.ret_void()
        return function

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.call(function_of(builder.module), args)
        return context.get_dummy_value()

    def define(typingctx: Any, *arguments: Any) -> Any:
        return types.void(*[types.int64] * n_args), codegen

    # numba would pass *arguments as one tuple: show it a signature with separate ones
    names = ["typingctx", *(f"x{i}" for i in range(n_args))]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(n, kind) for n in names])
    define.__signature__ = signature  # type: ignore[attr-defined]
    define.__name__ = define.__qualname__ = name
    return intrinsic(define)
