"""Arithmetic on LLVM vectors written as arithmetic: for kernels that are formulas lane by lane.

A `Lanes` wraps a vector of float32 or of integers while IR is built; its operators emit one
instruction each, rounded where it stands (no reordering; `times_plus` alone fuses). Numbers mix in
as constants.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from yupana.graphlib.kernels.vector import F32, I32, const, declare, load, multiply_add, store

Number = int | float


class Lanes:
    """A vector in registers; comparisons give masks for `where`."""

    __slots__ = ("b", "value")

    def __init__(self, b: Any, value: Any) -> None:
        self.b = b
        self.value = value

    @property
    def kind(self) -> Any:
        """Its LLVM vector type."""
        return self.value.type

    @property
    def is_float(self) -> bool:
        """Whether it holds float32."""
        return bool(self.kind.element == F32)

    def like(self, x: Lanes | Number) -> Lanes:
        """`x`, or a constant of this type with `x` in every lane."""
        if isinstance(x, Lanes):
            return x
        return Lanes(self.b, ir.Constant(self.kind, [x] * self.kind.count))

    def _do(self, float_name: str, int_name: str, x: Lanes | Number) -> Lanes:
        name = float_name if self.is_float else int_name
        return Lanes(self.b, getattr(self.b, name)(self.value, self.like(x).value))

    def __add__(self, x: Lanes | Number) -> Lanes:
        return self._do("fadd", "add", x)

    def __sub__(self, x: Lanes | Number) -> Lanes:
        return self._do("fsub", "sub", x)

    def __mul__(self, x: Lanes | Number) -> Lanes:
        return self._do("fmul", "mul", x)

    def __truediv__(self, x: Lanes | Number) -> Lanes:
        return self._do("fdiv", "sdiv", x)

    def times_plus(self, x: Lanes | Number, y: Lanes | Number) -> Lanes:
        """self * x + y, fused where the processor can."""
        product = multiply_add(self.b, self.value, self.like(x).value, self.like(y).value)
        return Lanes(self.b, product)

    def minus_as_written(self, x: Lanes | Number) -> Lanes:
        """self - x, which must not be taken apart where the kernel's sums may be rearranged.

        numba gives its fast-math flags to what has none.
        """
        return Lanes(self.b, self.b.fsub(self.value, self.like(x).value, flags=("nsz",)))

    def __neg__(self) -> Lanes:
        return Lanes(self.b, self.b.fneg(self.value) if self.is_float else self.b.neg(self.value))

    def __and__(self, x: Lanes | Number) -> Lanes:
        return self._do("", "and_", x)

    def __or__(self, x: Lanes | Number) -> Lanes:
        return self._do("", "or_", x)

    def __lshift__(self, x: Lanes | Number) -> Lanes:
        return self._do("", "shl", x)

    def __rshift__(self, x: Lanes | Number) -> Lanes:
        return self._do("", "lshr", x)

    def _compare(self, sign: str, x: Lanes | Number) -> Lanes:
        other = self.like(x).value
        if not self.is_float:
            return Lanes(self.b, self.b.icmp_signed(sign, self.value, other))
        compare = self.b.fcmp_unordered if sign == "!=" else self.b.fcmp_ordered
        return Lanes(self.b, compare(sign, self.value, other))

    def __lt__(self, x: Lanes | Number) -> Lanes:
        return self._compare("<", x)

    def __gt__(self, x: Lanes | Number) -> Lanes:
        return self._compare(">", x)

    def equals(self, x: Lanes | Number) -> Lanes:
        """Mask of equal lanes; a NaN equals nothing."""
        return self._compare("==", x)

    def differs(self, x: Lanes | Number) -> Lanes:
        """Mask of lanes that are not equal; a NaN differs from everything."""
        return self._compare("!=", x)

    def least(self, x: Lanes | Number) -> Lanes:
        """The smaller of two, as C's ``a < b ? a : b`` has it: `x` where either is a NaN."""
        return where(self < x, self, self.like(x))

    def most(self, x: Lanes | Number) -> Lanes:
        """The larger of two: `x` where either is a NaN."""
        return where(self > x, self, self.like(x))

    def clip(self, low: int, high: int) -> Lanes:
        """Cut to [low, high]."""
        return self.least(high).most(low)

    def bits(self, element: Any) -> Lanes:
        """The same bits as lanes of another type of the same size."""
        return Lanes(self.b, self.b.bitcast(self.value, ir.VectorType(element, self.kind.count)))

    def real(self) -> Lanes:
        """Integers as float32."""
        kind = ir.VectorType(F32, self.kind.count)
        return Lanes(self.b, self.b.sitofp(self.value, kind))

    def whole(self) -> Lanes:
        """Float32 without their fractions, as int32; they must lie in its range."""
        kind = ir.VectorType(I32, self.kind.count)
        return Lanes(self.b, self.b.fptosi(self.value, kind))

    def narrow(self, element: Any) -> Lanes:
        """The low bits of integers."""
        kind = ir.VectorType(element, self.kind.count)
        return Lanes(self.b, self.b.trunc(self.value, kind))

    def magnitude(self) -> Lanes:
        """Float32 without their signs."""
        return (self.bits(I32) & 0x7FFFFFFF).bits(F32)

    def root(self) -> Lanes:
        """Square roots of float32, rounded right."""
        name = f"llvm.sqrt.v{self.kind.count}f32"
        function = declare(self.b.module, name, self.kind, [self.kind])
        return Lanes(self.b, self.b.call(function, [self.value]))

    def nearest(self) -> Lanes:
        """The nearest integers, ties to even; beyond 22 bits the low bits, as ggml has it."""
        # Added, 1.5 * 2^23 pushes the fraction out of the last bit.
        return ((self + 12582912.0).bits(I32) & 0x7FFFFF) - 0x400000

    def part(self, lanes: list[int]) -> Lanes:
        """Some of the lanes, in the order given."""
        chosen = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
        return Lanes(self.b, self.b.shuffle_vector(self.value, self.value, chosen))

    def any(self) -> Any:
        """Of a mask: one bit, whether a lane is set."""
        n = self.kind.count
        return self.b.icmp_unsigned("!=", self.b.bitcast(self.value, ir.IntType(n)), _zero(n))

    def largest(self) -> Lanes:
        """The largest lane of float32, NaN left out, in every lane."""
        b, n = self.b, self.kind.count
        function = declare(b.module, f"llvm.vector.reduce.fmax.v{n}f32", F32, [self.kind])
        return everywhere(b, b.call(function, [self.value]), n)

    def sum(self) -> Lanes:
        """The sum of lanes of int32, as one lane."""
        b, n = self.b, self.kind.count
        function = declare(b.module, f"llvm.vector.reduce.add.v{n}i32", I32, [self.kind])
        return everywhere(b, b.call(function, [self.value]), 1)

    def first(self, mask: Lanes) -> Lanes:
        """The first lane set in a mask (the last, if none is), in every lane."""
        b, n = self.b, self.kind.count
        whole = ir.IntType(n)
        flag = ir.Constant(ir.IntType(1), 0)
        count = declare(b.module, f"llvm.cttz.i{n}", whole, [whole, flag.type])
        last = ir.Constant(whole, n - 1)
        at = b.call(count, [b.bitcast(mask.value, whole), flag])
        at = b.select(b.icmp_unsigned("<", at, last), at, last)
        return everywhere(b, b.extract_element(self.value, b.zext(at, I32)), n)

    def extreme(self) -> Lanes:
        """The lane of largest magnitude, the first where several are, in every lane."""
        size = self.magnitude()
        return self.first(size.equals(size.largest()))


def _zero(bits: int) -> Any:
    return ir.Constant(ir.IntType(bits), 0)


def everywhere(b: Any, scalar: Any, lanes: int) -> Lanes:
    """A scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = b.insert_element(undefined, scalar, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return Lanes(b, b.shuffle_vector(first, undefined, zeros))


def where(mask: Lanes, x: Lanes, y: Lanes) -> Lanes:
    """x where the mask is set, else y."""
    return Lanes(mask.b, mask.b.select(mask.value, x.value, y.value))


def both(x: Lanes, *masks: Lanes) -> Lanes:
    """The mask of lanes set in all."""
    for mask in masks:
        x = Lanes(x.b, x.b.and_(x.value, mask.value))
    return x


def read(b: Any, element: Any, lanes: int, address: Any) -> Lanes:
    """Lanes from memory of any alignment of an element."""
    return Lanes(b, load(b, ir.VectorType(element, lanes), address, _size(element)))


def write(x: Lanes, address: Any) -> None:
    """Lanes to memory of any alignment of an element."""
    store(x.b, x.value, address, _size(x.kind.element))


def _size(element: Any) -> int:
    return 4 if element == F32 else int(element.width) // 8


class Cell:
    """A variable: lanes that change in loops and branches."""

    def __init__(self, first: Lanes) -> None:
        self._b = first.b
        with self._b.goto_entry_block():
            self._place = self._b.alloca(first.kind)
        self.set(first)

    def get(self) -> Lanes:
        """Its value now."""
        return Lanes(self._b, self._b.load(self._place))

    def set(self, x: Lanes) -> None:
        """Change it."""
        self._b.store(x.value, self._place)

    def set_where(self, mask: Lanes, x: Lanes) -> None:
        """Change the lanes under a mask."""
        self.set(where(mask, x, self.get()))


class Table:
    """`size` vectors in the function's stack, indexed by i64 values or numbers."""

    def __init__(self, b: Any, kind: Any, size: int) -> None:
        self._b = b
        self.kind, self.size = kind, size
        with b.goto_entry_block():
            self._place = b.alloca(ir.ArrayType(kind, size))

    def _at(self, i: Any) -> Any:
        index = const(i) if isinstance(i, int) else i
        return self._b.gep(self._place, [const(0), index])

    def __getitem__(self, i: Any) -> Lanes:
        return Lanes(self._b, self._b.load(self._at(i)))

    def __setitem__(self, i: Any, x: Lanes) -> None:
        self._b.store(x.value, self._at(i))

    @property
    def address(self) -> Any:
        """Of its first byte, as i64."""
        return self._b.ptrtoint(self._at(0), ir.IntType(64))
