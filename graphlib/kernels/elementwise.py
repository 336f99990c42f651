"""Element-wise kernels with broadcasting: the author writes the formula of one element."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import int64, void

from yupana.graphlib.kernels.blocks import (
    ADDRESS,
    BLOCK,
    CODE,
    FLAT,
    HEAD,
    LOAD,
    NATIVE,
    OPERAND_WORDS,
    OUTER,
    SIZE,
    STEP,
    STORE,
    View,
    bindings,
    both_kernels,
    broadcast,
    collapse,
    head_words,
    is_wide,
    operand_words,
    outer_sizes,
    row_at,
)
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.pointers import (
    call_body,
    call_convert,
    f64_words,
    i32_pointer,
    i64_pointer,
)
from yupana.graphlib.kernels.step import Step, float_word

_N_PARAMS = 4  # float parameters of a formula at most
_MAX_IN = 3
_TILE = 32  # elements of a row in a tile
_BODY, _WHOLE, _INNER, _BLOCK, _BLOCKS, _GROUP, _ROWS, _S1, _S2 = range(HEAD, HEAD + 9)
_PARAMS = HEAD + 9
_DST = _PARAMS + _N_PARAMS
_N_IN = _DST + (_MAX_IN + 1) * OPERAND_WORDS
# How a chunk finds the elements of an operand (its word FLAT): row by row, at one address
# without gaps, or as the chunk before did, because they are the same for every row.
_BY_ROWS, _FLAT, _CONSTANT = range(3)
_BODY_SIGNATURE = void(*[int64] * 6)
# Placeholders of the names that a Kernel binds; see blocks.bindings.
real: Any = None
array: Any = None
formula: Any = None
usual_formula: Any = None
rarity: Any = None


class Map:
    """An element-wise operation, result and sources broadcast together.

    Args:
        formula: scalar function of the sources and then of four float parameters. It is compiled
            for float32 and float64: write its constants as ``real(0.5)``, since numba would
            take 0.5 for a float64, and use the functions of kernels/math.py.
        n_in: number of sources, 1 to 3.
        ns: predicted time per element on one thread.
        usual: for float32, of one source: a function that gives a negative int32 for the rare
            elements, and a formula that gives, bit for bit, what `formula` does for the others.
            It is used for blocks without rare elements.
    """

    def __init__(
        self,
        formula: Callable[..., Any],
        n_in: int,
        ns: float = 0.15,
        usual: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
    ) -> None:
        self._n_in = n_in
        self._ns = ns
        name = formula.__name__.strip("<>")
        # Without reassociation: formulas are few operations long and should round as written.
        template = (body1, body2, body3)[n_in - 1]
        options: Any = {"fastmath": {"contract", "nsz"}, "signature": _BODY_SIGNATURE}
        options["formula"] = formula
        self.bodies = both_kernels(template, f"{name}_", **options)
        if usual is not None:
            options["rarity"], options["usual_formula"] = usual
            self.bodies[False] = Kernel(body1_usual, f"{name}_f32", **bindings(False), **options)

    def steps(self, dst: View, srcs: Sequence[View], params: Sequence[float] = ()) -> list[Step]:
        """The one step that computes `dst`; none if it has no elements."""
        size = math.prod(dst.shape)
        if size == 0:
            return []
        views = collapse([dst, *(broadcast(src, dst.shape) for src in srcs)])
        wide = is_wide(views)
        native, itemsize = head_words(wide)[NATIVE:]
        inner = views[0].shape[-1]
        rows = size // inner
        # Memory across the rows is read in tiles: its cache lines hold elements of many rows.
        tiled = rows > 1 and any(v.strides[-1] not in (0, v.itemsize) for v in views)
        block = min(inner, _TILE if tiled else BLOCK)
        blocks = -(-inner // block)
        group = BLOCK // block if tiled or blocks == 1 else 1
        chunks = -(-rows // group) * blocks
        operands = [_operand(view, blocks == 1, group == 1) for view in views]
        whole = all(
            view.code == native and words[FLAT] == _FLAT
            for view, words in zip(views, operands, strict=True)
        )
        record = [*head_words(wide), self.bodies[wide].address, int(whole)]
        record += [inner, block, blocks, group, rows, *outer_sizes(views[0].shape)]
        record += [float_word(value) for value in params] + [0] * (_N_PARAMS - len(params))
        # Sources that the formula does not have repeat the first.
        for words in (operands + [operands[1]] * _MAX_IN)[: _MAX_IN + 1]:
            record += words
        record.append(self._n_in)
        ns = self._ns * size * (2 if wide else 1) + (5 if whole else 25) * chunks
        return [Step(_DRIVER, tuple(record), chunks, ns, (_MAX_IN + 1) * BLOCK * itemsize)]


def _operand(view: View, whole_rows: bool, single_rows: bool) -> tuple[int, ...]:
    """Words of an operand; the last says how a chunk finds its elements, see below."""
    words = operand_words(view)
    kind = _BY_ROWS
    if words[FLAT] and (whole_rows or single_rows):
        kind = _FLAT
    elif not any(view.strides[:-1]) and (whole_rows or view.strides[-1] == 0):
        kind = _CONSTANT
    return (*words[:FLAT], kind)


def body1(y, x0, x1, x2, n, params):
    """Formulas of one source, over `n` contiguous elements."""
    p = f64_words(params, _N_PARAMS)
    p0, p1, p2, p3 = real(p[0]), real(p[1]), real(p[2]), real(p[3])
    out, a = array(y, n), array(x0, n)
    for i in range(n):
        out[i] = formula(a[i], p0, p1, p2, p3)


def body1_usual(y, x0, x1, x2, n, params):
    """Formulas of one source that have a faster one for blocks without rare elements."""
    p = f64_words(params, _N_PARAMS)
    p0, p1, p2, p3 = real(p[0]), real(p[1]), real(p[2]), real(p[3])
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        out, a = array(y + start * 4, count), array(x0 + start * 4, count)
        rare = np.int32(0)
        for i in range(count):
            rare |= rarity(a[i])
        if rare < np.int32(0):
            for i in range(count):
                out[i] = formula(a[i], p0, p1, p2, p3)
        else:
            for i in range(count):
                out[i] = usual_formula(a[i], p0, p1, p2, p3)


def body2(y, x0, x1, x2, n, params):
    """Formulas of two sources."""
    p = f64_words(params, _N_PARAMS)
    p0, p1, p2, p3 = real(p[0]), real(p[1]), real(p[2]), real(p[3])
    out, a, b = array(y, n), array(x0, n), array(x1, n)
    for i in range(n):
        out[i] = formula(a[i], b[i], p0, p1, p2, p3)


def body3(y, x0, x1, x2, n, params):
    """Formulas of three sources."""
    p = f64_words(params, _N_PARAMS)
    p0, p1, p2, p3 = real(p[0]), real(p[1]), real(p[2]), real(p[3])
    out, a, b, c = array(y, n), array(x0, n), array(x1, n), array(x2, n)
    for i in range(n):
        out[i] = formula(a[i], b[i], c[i], p0, p1, p2, p3)


def elementwise(record, begin, end, scratch):
    """Chunks are blocks of one long row, groups of short rows, or tiles."""
    r = i64_pointer(record)
    if r[_WHOLE]:
        _whole(record, begin, end, scratch)
        return
    size = r[SIZE]
    slot = BLOCK * size
    operand, words = record + 8 * _DST, 8 * OPERAND_WORDS
    for chunk in range(begin, end):
        row = (chunk // r[_BLOCKS]) * r[_GROUP]
        start = (chunk % r[_BLOCKS]) * r[_BLOCK]
        n = min(r[_BLOCK], r[_INNER] - start)
        count = min(r[_GROUP], r[_ROWS] - row)
        first = chunk == begin
        x0 = _source(record, operand + words, first, row, count, start, n, scratch + slot)
        x1 = x2 = x0
        if r[_N_IN] > 1:
            out = scratch + 2 * slot
            x1 = _source(record, operand + 2 * words, first, row, count, start, n, out)
        if r[_N_IN] > 2:
            out = scratch + 3 * slot
            x2 = _source(record, operand + 3 * words, first, row, count, start, n, out)
        flat = r[_DST + ADDRESS] + (row * r[_INNER] + start) * r[_DST + STEP]
        is_flat = r[_DST + FLAT] == _FLAT
        is_native = r[_DST + CODE] == r[NATIVE]
        if is_flat and is_native and flat != x0 and flat != x1 and flat != x2:
            call_body(r[_BODY], flat, x0, x1, x2, n * count, record + 8 * _PARAMS)
            continue
        # Through scratch: to convert, to scatter, or because the result takes over the memory
        # of a source, where the loop of a body would not vectorise.
        call_body(r[_BODY], scratch, x0, x1, x2, n * count, record + 8 * _PARAMS)
        if is_flat:
            call_convert(r[STORE], scratch, n * count, r[_DST + CODE], flat, r[_DST + STEP])
        else:
            _scatter(record, operand, row, count, start, n, scratch)


@for_kernels
def _whole(record, begin, end, scratch):
    """Everything lies without gaps and needs no conversion: one call, if nothing is taken over."""
    r = i64_pointer(record)
    size, params = r[SIZE], record + 8 * _PARAMS
    n = min(end * r[_BLOCK], r[_INNER]) - begin * r[_BLOCK]
    offset = begin * r[_BLOCK] * size
    y, x0 = r[_DST + ADDRESS] + offset, r[_DST + OPERAND_WORDS + ADDRESS] + offset
    x1 = r[_DST + 2 * OPERAND_WORDS + ADDRESS] + offset
    x2 = r[_DST + 3 * OPERAND_WORDS + ADDRESS] + offset
    if y != x0 and y != x1 and y != x2:
        call_body(r[_BODY], y, x0, x1, x2, n, params)
        return
    for start in range(0, n, BLOCK):
        at, count = start * size, min(BLOCK, n - start)
        call_body(r[_BODY], scratch, x0 + at, x1 + at, x2 + at, count, params)
        call_convert(r[STORE], scratch, count, r[NATIVE], y + at, size)


@for_kernels
def _source(record, operand, first, row, count, start, n, out):
    """Address of a block of a source, contiguous and of the type computed in."""
    r, o = i64_pointer(record), i64_pointer(operand)
    step, size = o[STEP], r[SIZE]
    is_native = o[CODE] == r[NATIVE]
    if o[FLAT] == _FLAT:
        address = o[ADDRESS] + (row * r[_INNER] + start) * step
        if is_native:
            return address
        call_convert(r[LOAD], address, step, o[CODE], n * count, out)
        return out
    if o[FLAT] == _CONSTANT:
        if not first:
            return out
        start, n, count = 0, r[_BLOCK], r[_GROUP]  # enough for every chunk
    i2 = row % r[_S2]
    address = row_at(operand, row, r[_S1], r[_S2]) + start * step
    if count == 1 and is_native and step == size and o[FLAT] != _CONSTANT:
        return address
    if is_native and o[OUTER + 2] == size == 4 < step and i2 + count <= r[_S2]:
        _transpose(address, step // 4, n, count, out)
        return out
    for j in range(count):
        to = out + j * n * size
        if is_native and size == 4:
            _copy_row(address, step // 4, n, to)
        else:
            call_convert(r[LOAD], address, step, o[CODE], n, to)
        i2 += 1
        address += o[OUTER + 2]
        if i2 == r[_S2]:
            i2 = 0
            address = row_at(operand, row + j + 1, r[_S1], r[_S2]) + start * step
    return out


@for_kernels
def _copy_row(source, step, n, to):
    """Gather `n` elements of four bytes, `step` elements apart."""
    x, y = i32_pointer(source), i32_pointer(to)
    if step == 1:
        for i in range(n):
            y[i] = x[i]
    elif step == 0:
        value = x[0]
        for i in range(n):
            y[i] = value
    else:
        for i in range(n):
            y[i] = x[i * step]


@for_kernels
def _transpose(source, step, n, rows, to):
    """Gather `rows` rows of `n` elements of four bytes, whose columns lie without gaps."""
    x, y = i32_pointer(source), i32_pointer(to)
    for i in range(n):
        for j in range(rows):
            y[j * n + i] = x[i * step + j]


@for_kernels
def _scatter(record, operand, row, count, start, n, source):
    """Store a block of the result row by row."""
    r, o = i64_pointer(record), i64_pointer(operand)
    for j in range(count):
        address = row_at(operand, row + j, r[_S1], r[_S2]) + start * o[STEP]
        call_convert(r[STORE], source + j * n * r[SIZE], n, o[CODE], address, o[STEP])


_DRIVER = Kernel(elementwise)
