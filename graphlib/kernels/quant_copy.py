"""Copies from, to and between quantised types, row by row through float32."""

import math

from yupana.graphlib.dtypes import QUANTIZED
from yupana.graphlib.kernels import blocks
from yupana.graphlib.kernels.blocks import CODE, OPERAND_WORDS, STEP, View, row_at
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.convert import F32
from yupana.graphlib.kernels.pointers import call_convert, i64_array, u8_pointer
from yupana.graphlib.kernels.quant_rows import LOAD, STORE
from yupana.graphlib.kernels.step import Step

_CHUNK = 4096  # elements of a chunk, roughly
_NAMES = {dtype.code: name for name, dtype in QUANTIZED.items()}
# Time of an element: read from blocks; written to them, by bits of the search behind it.
_LOAD_NS, _STORE_NS, _SEARCH_NS = 0.1, 0.8, 8.0

_SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")

# Record: functions that load and store a row; whether rows are copied as they are, and their
# bytes then; both operands; sizes of the middle axes; elements of a row, rows, rows of a chunk.
_LOAD, _STORE, _SAME = 0, 1, 2
_DST, _SRC = 3, 3 + OPERAND_WORDS
_S1, _S2, _N, _ROWS, _EACH = range(3 + 2 * OPERAND_WORDS, 8 + 2 * OPERAND_WORDS)
_WORDS = 8 + 2 * OPERAND_WORDS


def name_of(code: int) -> str | None:
    """Name of the quantised type with this code, None for other types."""
    return _NAMES.get(code)


def load_address(code: int) -> int:
    """Function that reads a row of this type into float32; the signature is convert.py's."""
    name = name_of(code)
    return LOAD[name].address if name else blocks.head_words(wide=False)[0]


def copy_steps(dst: View, src: View) -> list[Step]:
    """Copy `src` to `dst`, both of one shape, at least one of them quantised."""
    if 0 in dst.shape:
        return []
    dst, src = blocks.collapse([dst, src], keep_last=True)
    n, rows = dst.shape[-1], math.prod(dst.shape[:-1])
    to = name_of(dst.code)
    same = QUANTIZED[to].row_bytes(n) if to and dst.code == src.code else 0
    each = max(1, _CHUNK // n)
    record = (
        load_address(src.code),
        STORE[to].address if to else blocks.head_words(wide=False)[1],
        same,
        *blocks.operand_words(dst),
        *blocks.operand_words(src),
        *blocks.outer_sizes(dst.shape),
        n,
        rows,
        each,
    )
    ns = n * rows * (_SEARCH_NS if to in _SEARCHED else _STORE_NS if to else _LOAD_NS)
    return [Step(_COPY_ROWS, record, -(-rows // each), ns, 4 * n)]


def copy_rows(record, begin, end, scratch):
    """Chunks are groups of rows."""
    r = i64_array(record, _WORDS)
    n = r[_N]
    for row in range(begin * r[_EACH], min(end * r[_EACH], r[_ROWS])):
        dst = row_at(record + 8 * _DST, row, r[_S1], r[_S2])
        src = row_at(record + 8 * _SRC, row, r[_S1], r[_S2])
        if r[_SAME] > 0:
            to, since = u8_pointer(dst), u8_pointer(src)
            for i in range(r[_SAME]):
                to[i] = since[i]
        elif r[_DST + CODE] == F32 and r[_DST + STEP] == 4:
            call_convert(r[_LOAD], src, r[_SRC + STEP], r[_SRC + CODE], n, dst)
        else:
            call_convert(r[_LOAD], src, r[_SRC + STEP], r[_SRC + CODE], n, scratch)
            call_convert(r[_STORE], scratch, n, r[_DST + CODE], dst, r[_DST + STEP])


_COPY_ROWS = Kernel(copy_rows)
