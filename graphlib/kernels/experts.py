"""Products of rows with one matrix out of several, which an index picks for each row.

The rows of each expert are gathered next to each other, and the kernels of matrix multiplication
do the work: a driver runs them for one expert at a time, with the sizes found at run time written
into a copy of their record.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from yupana.graphlib.kernels.blocks import HEAD, LOAD, STORE, View, head_words
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.convert import F64
from yupana.graphlib.kernels.gemm import Gemm, Matrix, one_step
from yupana.graphlib.kernels.gemm_dots import DotsRecord
from yupana.graphlib.kernels.gemm_general import GENERAL, GeneralRecord
from yupana.graphlib.kernels.gemm_kernels import TILES, TilesRecord
from yupana.graphlib.kernels.pointers import (
    call_convert,
    call_kernel,
    f64_array,
    i32_pointer,
    i64_pointer,
)
from yupana.graphlib.kernels.step import Step

Workspace = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class _Groups:
    """Positions (t, u) sorted by the expert their index names.

    `starts` is the address of where each expert's positions begin, and of where those end that
    name an expert at all; `order` that of the positions as t · n_used + u.
    """

    n_experts: int
    n_tokens: int
    n_used: int
    starts: int
    order: int

    @property
    def n_rows(self) -> int:
        return self.n_tokens * self.n_used

    @property
    def rows_each(self) -> int:
        """Rows of an expert if all have the same; what products are planned for."""
        return -(-self.n_rows // self.n_experts)


def mul_mat_id(dst: View, w: View, w_dtype: str, x: View, ids: View, room: Workspace) -> list[Step]:
    """`dst[t, u] = w[ids[t, u]] @ x[t, u]`; NaN where there is no such expert.

    `w` may be of any dtype that `Gemm` takes, `x` is broadcast over u, `dst` is f32 or f64.
    """
    n_experts, cols, inner = w.shape
    dtype, size = ("f64", 8) if dst.code == F64 else ("f32", 4)
    if dst.shape[0] * dst.shape[1] * cols == 0:
        return []
    groups, steps = _grouped(ids, n_experts, room)
    packed, a = _packed(x, groups, size, room)
    steps += packed
    c = room(groups.n_rows * cols * size)
    if n_experts:
        product = one_step(
            Gemm(
                batch=(1, n_experts),
                rows=groups.rows_each,
                cols=cols,
                inner=inner,
                group=(1, 1),
                a=Matrix(a, dtype, (0, 0, inner * size, size)),
                b=_batched(w, w_dtype),
                c=Matrix(c, dtype, (0, 0, cols * size, size)),
            ),
            rows_vary=True,
        )
        steps.append(_for_experts(product, groups, (inner * size, 0, cols * size), True))
    record = (*_copying(dst, groups, c, cols, size), groups.n_experts, groups.starts)
    ns = groups.n_rows * (20 + 0.1 * cols)
    return [*steps, Step(_SPREAD, record, groups.n_rows, ns, scratch=8)]


def out_prod_id(dst: View, x: View, g: View, ids: View, room: Workspace) -> list[Step]:
    """`dst[e] = sum of outer(g[t, u], x[t, u])` over the (t, u) with ids[t, u] == e."""
    n_experts, rows, cols = dst.shape
    dtype, size = ("f64", 8) if dst.code == F64 else ("f32", 4)
    if n_experts * rows * cols == 0:
        return []
    groups, steps = _grouped(ids, n_experts, room)
    (gather_g, a), (gather_x, b) = (_packed(v, groups, size, room) for v in (g, x))
    # The general kernel, for float64, needs scratch memory for all it may have to sum.
    inner = groups.n_rows if dtype == "f64" else groups.rows_each
    product = one_step(
        Gemm(
            batch=(1, n_experts),
            rows=rows,
            cols=cols,
            inner=inner,
            group=(1, 1),
            a=Matrix(a, dtype, (0, 0, size, rows * size)),
            b=Matrix(b, dtype, (0, 0, size, cols * size)),
            c=_batched(dst, dtype),
        ),
        rows_vary=False,
    )
    driven = _for_experts(product, groups, (rows * size, cols * size, 0), False)
    return [*steps, *gather_g, *gather_x, driven]


def _batched(matrices: View, dtype: str) -> Matrix:
    """One matrix per expert: they are the second batch axis."""
    over_experts, row, column = matrices.strides
    return Matrix(matrices.address, dtype, (0, over_experts, row, column))


def _grouped(ids: View, n_experts: int, room: Workspace) -> tuple[_Groups, list[Step]]:
    n_tokens, n_used = ids.shape
    starts, order = room(8 * (n_experts + 1)), room(8 * n_tokens * n_used)
    groups = _Groups(n_experts, n_tokens, n_used, starts, order)
    record = (ids.address, *ids.strides, n_tokens, n_used, n_experts, starts, order)
    return groups, [Step(_SORT, record, 1, 3.0 * groups.n_rows + n_experts)]


def _copying(rows: View, groups: _Groups, packed: int, n: int, size: int) -> tuple[int, ...]:
    """Words of the kernels that gather and spread rows."""
    strides = [0 if side == 1 else s for side, s in zip(rows.shape, rows.strides, strict=True)]
    head = head_words(wide=size == 8)
    address = (rows.code, rows.address, *strides[:2], rows.strides[2])
    return (*head, *address, groups.n_used, groups.order, packed, n, size)


def _packed(rows: View, groups: _Groups, size: int, room: Workspace) -> tuple[list[Step], int]:
    """Copies rows in the order of the experts; the step, and where they lie."""
    n = rows.shape[-1]
    packed = room(groups.n_rows * n * size)
    if groups.n_rows * n == 0:
        return [], packed
    record = _copying(rows, groups, packed, n, size)
    ns = groups.n_rows * (15 + 0.1 * n)
    return [Step(_GATHER, record, groups.n_rows, ns)], packed


_KERNEL, _WORDS, _CHUNKS, _STARTS, _ROWS_VARY, _BY_ROWS = range(6)
_PLACES, _STEPS = 6, 9  # words of the addresses of A, B, C; bytes from row to row
_SIZES, _BASE = 12, 14  # words of the size that varies, twice; then the record itself


def _for_experts(
    product: Step, groups: _Groups, row_bytes: tuple[int, int, int], rows_vary: bool
) -> Step:
    """Runs a step for each expert with its own rows, or its own inner products."""
    is_general, is_tiles = product.kernel is GENERAL, product.kernel is TILES
    layout = GeneralRecord if is_general else TilesRecord if is_tiles else DotsRecord
    word = {name: k for k, name in enumerate(layout._fields)}
    size = word["rows" if rows_vary else "inner"]
    block = word["rows_block"] if rows_vary and is_tiles else size
    by_rows = rows_vary and is_general  # its chunks are rows: there are as many as are found
    chunks = groups.n_experts if by_rows else product.chunks
    record = (
        product.kernel.address,
        len(product.record),
        chunks // groups.n_experts,
        groups.starts,
        int(rows_vary),
        int(by_rows),
        *(word[name] for name in "abc"),
        *row_bytes,
        size,
        block,
        *product.record,
    )
    scratch = product.scratch + 8 * len(product.record) + 64
    return Step(_DRIVE, record, chunks, product.work_ns, scratch)


def sort_positions(record, begin, end, scratch):
    """One chunk: positions by expert, in order within each; those without one come last."""
    r = i64_pointer(record)
    n, n_used, n_experts = r[3] * r[4], r[4], r[5]
    starts, order = i64_pointer(r[6]), i64_pointer(r[7])
    for e in range(n_experts + 1):
        starts[e] = 0
    for q in range(n):
        e = i32_pointer(r[0] + q // n_used * r[1] + q % n_used * r[2])[0]
        starts[e if 0 <= e < n_experts else n_experts] += 1
    for e in range(1, n_experts + 1):
        starts[e] += starts[e - 1]  # where each ends; filling from there leads to where it starts
    for q in range(n - 1, -1, -1):
        e = i32_pointer(r[0] + q // n_used * r[1] + q % n_used * r[2])[0]
        e = e if 0 <= e < n_experts else n_experts
        starts[e] -= 1
        order[starts[e]] = q


_CODE, _ADDRESS, _OVER_T, _OVER_U, _STEP = range(HEAD, HEAD + 5)
_N_USED, _ORDER, _PACKED, _N, _SIZE = range(HEAD + 5, HEAD + 10)
_N_EXPERTS, _ENDS = HEAD + 10, HEAD + 11


def gather_rows(record, begin, end, scratch):
    """Chunks are rows, in the order of the experts."""
    r = i64_pointer(record)
    order = i64_pointer(r[_ORDER])
    for k in range(begin, end):
        t, u = order[k] // r[_N_USED], order[k] % r[_N_USED]
        row = r[_ADDRESS] + t * r[_OVER_T] + u * r[_OVER_U]
        out = r[_PACKED] + k * r[_N] * r[_SIZE]
        call_convert(r[LOAD], row, r[_STEP], r[_CODE], r[_N], out)


def spread_rows(record, begin, end, scratch):
    """The reverse for results, with NaN where no expert was named."""
    r = i64_pointer(record)
    order, n_found = i64_pointer(r[_ORDER]), i64_pointer(r[_ENDS])[r[_N_EXPERTS]]
    for k in range(begin, end):
        t, u = order[k] // r[_N_USED], order[k] % r[_N_USED]
        row = r[_PACKED] + k * r[_N] * r[_SIZE]
        out = r[_ADDRESS] + t * r[_OVER_T] + u * r[_OVER_U]
        if k >= n_found:
            f64_array(scratch, 1)[0] = np.nan
            call_convert(r[LOAD], scratch, 0, F64, r[_N], row)
        call_convert(r[STORE], row, r[_N], r[_CODE], out, r[_STEP])


def drive(record, begin, end, scratch):
    """Chunks are those of the product, of which each belongs to one expert."""
    r, patched = i64_pointer(record), i64_pointer(scratch)
    starts = i64_pointer(r[_STARTS])
    spare = (scratch + 8 * r[_WORDS] + 63) // 64 * 64
    for chunk in range(begin, end):
        e = chunk // r[_CHUNKS]
        count = starts[e + 1] - starts[e]
        if r[_ROWS_VARY] and count == 0:
            continue
        for k in range(r[_WORDS]):
            patched[k] = r[_BASE + k]
        for k in range(3):
            patched[r[_PLACES + k]] += starts[e] * r[_STEPS + k]
        patched[r[_SIZES]] = count
        patched[r[_SIZES + 1]] = count
        first, last = (e * count, (e + 1) * count) if r[_BY_ROWS] else (chunk, chunk + 1)
        call_kernel(r[_KERNEL], scratch, first, last, spare)


_SORT, _GATHER, _SPREAD, _DRIVE = map(Kernel, (sort_positions, gather_rows, spread_rows, drive))
