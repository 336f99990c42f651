"""Register tiles of matrix multiplication, as LLVM IR.

`multiply_tile` computes a tile of C that fits the vector registers: lanes run along the columns
of C, and every step of the loop over k loads one row of a panel of B, broadcasts one element of
each row of A, and does one fused multiply-add per register of C.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir

from yupana.graphlib.kernels.pairs import multiply_pairs
from yupana.graphlib.kernels.vector import (
    F32,
    HAS_AVX512,
    HAS_MASKS,
    I64,
    LANES,
    REGISTERS,
    const,
    load,
    mask_below,
    masked_load,
    masked_store,
    multiply_add,
    splat,
    store,
    vector,
    void_intrinsic,
    zeros,
)

Product = Callable[[Any, Any, Any, Any], Any]  # (builder, x, y, total): total + x * y

# Three vectors by eight rows: 24 sums, 3 of B, 1 of A, of 32 registers. The eight row pointers of
# A fit the general registers, which is why A needs no packing; 2 by 12 would need it.
TILE_VECTORS = 3
TILE_ROWS = 8 if REGISTERS == 32 else 4
# Tiles at the lower edge: fewer sums, so that one row does not cost as much as eight.
_ROW_VARIANTS = (8, 4, 1) if TILE_ROWS == 8 else (4, 1)


class _Tile:
    """Emits the parts of `multiply_tile` for one size of tile."""

    def __init__(
        self,
        b: Any,
        product: Product,
        vectors: int,
        rows: int,
        edge: bool,
        lanes: Any,
        rows_left: Any,
    ) -> None:
        self.product = product
        self.b, self.vectors, self.rows, self.edge = b, vectors, rows, edge
        self.kind, self.width = vector(), 4 * LANES
        self.masks = [mask_below(b, b.sub(lanes, const(LANES * v))) for v in range(vectors)]
        self.exists = [b.icmp_signed("<", const(r), rows_left) for r in range(rows)]

    def row(self, address: Any, r: int, stride: Any) -> Any:
        """Address of row `r`, or of row 0 where it does not exist."""
        b = self.b
        offset = b.select(self.exists[r], b.mul(stride, const(r)), const(0))
        return b.add(address, offset) if r else address

    def read(self, address: Any, masked: bool) -> list[Any]:
        """The vectors of one row of the tile."""
        b, kind = self.b, self.kind
        places = [b.add(address, const(self.width * v)) for v in range(self.vectors)]
        if not masked:
            return [load(b, kind, place, 4) for place in places]
        pairs = zip(places, self.masks, strict=True)
        return [masked_load(b, kind, place, mask, 4) for place, mask in pairs]

    def multiply(self, a: Any, a_row: Any, a_k: Any, panel: Any, panel_k: Any, count: Any) -> Any:
        """The sums over k, by row and vector."""
        b = self.b
        a_rows = [self.row(a, r, a_row) for r in range(self.rows)]
        entry = b.block
        head, body, done = (b.append_basic_block(name) for name in ("head", "body", "done"))
        b.branch(head)
        b.position_at_end(head)
        left, a_offset, b_place = b.phi(I64), b.phi(I64), b.phi(I64)
        sums = [[b.phi(self.kind) for _ in range(self.vectors)] for _ in range(self.rows)]
        starts = [(left, count), (a_offset, const(0)), (b_place, panel)]
        for phi, value in starts + [(s, zeros(self.kind)) for row in sums for s in row]:
            phi.add_incoming(value, entry)
        b.cbranch(b.icmp_signed(">", left, const(0)), body, done)
        b.position_at_end(body)
        columns = self.read(b_place, self.edge and HAS_MASKS)
        for row, address in zip(sums, a_rows, strict=True):
            scalar = splat(b, load(b, F32, b.add(address, a_offset), 4))
            for s, column in zip(row, columns, strict=True):
                s.add_incoming(self.product(b, column, scalar, s), body)
        left.add_incoming(b.sub(left, const(1)), body)
        a_offset.add_incoming(b.add(a_offset, a_k), body)
        b_place.add_incoming(b.add(b_place, panel_k), body)
        b.branch(head)
        b.position_at_end(done)
        return sums

    def add(self, sums: list[list[Any]], d: Any, d_row: Any) -> list[list[Any]]:
        """`sums` plus D, unless d is 0."""
        b, before = self.b, self.b.block
        added, after = b.append_basic_block("added"), b.append_basic_block("after")
        b.cbranch(b.icmp_signed("!=", d, const(0)), added, after)
        b.position_at_end(added)
        totals = []
        for r, row in enumerate(sums):
            more = self.read(self.row(d, r, d_row), self.edge)
            totals.append([b.fadd(s, m) for s, m in zip(row, more, strict=True)])
        b.branch(after)
        b.position_at_end(after)
        results = [[b.phi(self.kind) for _ in row] for row in sums]
        for result, row, total in zip(results, sums, totals, strict=True):
            for phi, s, t in zip(result, row, total, strict=True):
                phi.add_incoming(s, before)
                phi.add_incoming(t, added)
        return results

    def write(self, results: list[list[Any]], c: Any, c_row: Any) -> None:
        """Store the rows and columns that exist."""
        b, end = self.b, self.b.append_basic_block("end")
        for r, result in enumerate(results):
            if r:
                following = b.append_basic_block("row")
                b.cbranch(self.exists[r], following, end)
                b.position_at_end(following)
            for v, (value, mask) in enumerate(zip(result, self.masks, strict=True)):
                place = b.add(c, b.add(b.mul(c_row, const(r)), const(self.width * v)))
                if self.edge:
                    masked_store(b, value, place, mask)
                else:
                    store(b, value, place)
        b.branch(end)
        b.position_at_end(end)


def _choose_tile(product: Product, b: Any, args: list[Any]) -> None:
    """Call the smallest tile that covers the columns and rows asked for."""
    lanes, rows_left = args[-2:]

    def choose(sizes: list[tuple[Any, ir.Function]]) -> None:
        end = b.append_basic_block("end")
        for condition, function in sizes:
            if condition is not None:
                yes, no = b.append_basic_block("yes"), b.append_basic_block("no")
                b.cbranch(condition, yes, no)
                b.position_at_end(yes)
            b.call(function, args)
            b.branch(end)
            if condition is not None:
                b.position_at_end(no)
        b.position_at_end(end)

    options: list[tuple[Any, ir.Function]] = []
    for vectors in range(TILE_VECTORS, 0, -1):
        wide = b.icmp_signed(">", lanes, const(LANES * (vectors - 1)))
        full = b.icmp_signed(">=", lanes, const(LANES * vectors))
        for rows, fewer in zip(_ROW_VARIANTS, (*_ROW_VARIANTS[1:], 0), strict=True):
            tall = b.icmp_signed(">", rows_left, const(fewer))
            fits = b.and_(wide, tall)
            if not HAS_AVX512:  # masks cost registers and time elsewhere
                whole = _function(product, b.module, vectors, rows, False)
                options.append((b.and_(full, tall), whole))
            options.append((fits, _function(product, b.module, vectors, rows, True)))
    options[-1] = (None, options[-1][1])
    choose(options)


def _function(product: Product, module: Any, vectors: int, rows: int, edge: bool) -> ir.Function:
    name = f"gemm_tile_{vectors}x{rows}{'_edge' if edge else ''}"
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 12), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    b = ir.IRBuilder(function.append_basic_block("entry"))
    a, a_row, a_k, panel, panel_k, c, c_row, d, d_row, count, lanes, rows_left = function.args
    tile = _Tile(b, product, vectors, rows, edge, lanes, rows_left)
    sums = tile.multiply(a, a_row, a_k, panel, panel_k, count)
    tile.write(tile.add(sums, d, d_row), c, c_row)
    b.ret_void()
    return function


# multiply_tile(a, a_row, a_k, panel, panel_k, c, c_row, d, d_row, count, lanes, rows):
# C[i, j] = sum over k < count of A[i, k] * panel[k, j] (+ D[i, j] unless d is 0) for
# i < min(rows, TILE_ROWS) and j < min(lanes, TILE_VECTORS * LANES); strides in bytes.
multiply_tile = void_intrinsic("gemm_tile", 12, partial(_choose_tile, multiply_add), inline=True)
# The same with pairs of bfloat16 for float32 along k.
multiply_pair_tile = void_intrinsic(
    "gemm_pair_tile", 12, partial(_choose_tile, multiply_pairs), inline=True
)
