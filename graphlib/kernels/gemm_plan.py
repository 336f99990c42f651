"""Matrix multiplication: what a product is, and how it is cut into pieces.

The choices depend on shapes, strides and dtypes only, never on addresses or threads.
"""

from dataclasses import dataclass, replace

from yupana.graphlib.dtypes import DTYPES, QUANTIZED
from yupana.graphlib.kernels.gemm_kernels import IN_PLACE, PACKED, TO_PACK, n_panels
from yupana.graphlib.kernels.gemm_micro import TILE_ROWS
from yupana.graphlib.kernels.vector import DTYPES as PACKED_DTYPES
from yupana.graphlib.kernels.vector import HAS_MASKS, LANES, REGISTERS

CHUNK_FLOPS = 2e6  # wanted in one chunk: some 10 to 20 microseconds
_WIDE_CHUNK_FLOPS = 1.6e7  # where there are enough chunks: rows of A are then read less often
_ENOUGH = 16  # chunks, to share them evenly
K_BLOCK = 256  # a panel of three vectors by this stays near the processor
_IN_PLACE_ROWS = 4 * TILE_ROWS  # up to so many, packing B costs more than strides in it
_IN_PLACE_BYTES = 1 << 19  # a B within so many bytes stays near the processor as it is
_PACKED_BYTES = 1 << 20  # B is packed as a whole up to this size, else in parts or by the chunks
_FAR_BYTES = 1 << 22  # an A of so many is not in a near cache when it is read again
_FAR_STRIDE = 4096  # bytes along k: each element of a row of A lies in another page
_FAR_COLS = 64  # so many, and packing A costs little
_PACK_ROWS = 256  # so many, and packing B for them alone costs little
_LOW, _HIGH = 4 * TILE_ROWS, 16 * TILE_ROWS  # fewer rows to a chunk would read B too often
_QUANTIZED_DOTS = 8  # rows of A up to which a quantised B is not packed
_MANY = 8  # batches or panels that are pieces enough for several threads


@dataclass(frozen=True, slots=True)
class Matrix:
    """A batch of matrices in memory: byte strides along the two batch axes, rows and columns."""

    address: int
    dtype: str
    strides: tuple[int, int, int, int]

    @property
    def itemsize(self) -> int:
        """Bytes of one element, or of one block of a quantised type."""
        return DTYPES[self.dtype].itemsize

    @property
    def block(self) -> int:
        """Elements of a block: more than one in rows of a quantised type."""
        return DTYPES[self.dtype].block


@dataclass(frozen=True, slots=True)
class Gemm:
    """One product; `gemm` has the formula.

    Rows and columns of `b` are j and k; those of `a` i and k. `a` and `b` may be f32, f16 and
    bf16 in any mix, or both f64; `b` may be quantised, with k along its rows of blocks. `d` may be
    `c` itself; no other operands may overlap `c`.
    """

    batch: tuple[int, int]
    rows: int
    cols: int
    inner: int
    group: tuple[int, int]  # r0, r1
    a: Matrix
    b: Matrix
    c: Matrix
    d: Matrix | None = None
    pairs: bool = False  # round A and B to bf16 and go along k in pairs, where that is worth it

    @property
    def batches(self) -> int:
        """Number of matrices of C."""
        return self.batch[0] * self.batch[1]

    @property
    def flops(self) -> float:
        """Floating-point operations of one matrix of C."""
        return 2.0 * self.rows * self.cols * self.inner

    @property
    def vectors(self) -> int:
        """Vectors that hold a row of C."""
        return -(-self.cols // LANES)

    @property
    def packed_bytes(self) -> int:
        """Size of one packed matrix of B."""
        return 4 * LANES * self.vectors * self.inner

    @property
    def shared(self) -> tuple[int, int]:
        """`group`, with a matrix repeated by stride 0 counted as one."""
        (n0, n1), (r0, r1) = self.batch, self.group
        s0, s1 = self.b.strides[:2]
        return n0 if s0 == 0 else r0, n1 if s1 == 0 else r1

    @property
    def matrices_of_b(self) -> tuple[int, int]:
        """Number of different matrices of B along the batch axes."""
        (n0, n1), (r0, r1) = self.batch, self.shared
        return -(-n0 // r0), -(-n1 // r1)


@dataclass(frozen=True, slots=True)
class Plan:
    """How the tile kernel goes about a product."""

    b_mode: int
    a_pack: bool
    rows_block: int
    panels_block: int
    k_block: int


def rows_of(matrix: Matrix | None) -> tuple[int, int, int, int]:
    """Address and strides of a matrix of which the columns are neighbours, as records have them."""
    return (matrix.address, *matrix.strides[:3]) if matrix else (0, 0, 0, 0)


def has_near_outputs(gemm: Gemm) -> bool:
    """Whether results, and what is added to them, are rows of float32."""
    outputs = [gemm.c] if gemm.d is None else [gemm.c, gemm.d]
    return all(m.dtype == "f32" and (m.strides[3] == 4 or gemm.cols == 1) for m in outputs)


def is_fast(gemm: Gemm) -> bool:
    """Whether the float32 kernels read and write these operands."""
    return (
        has_near_outputs(gemm)
        and gemm.a.dtype in PACKED_DTYPES
        and gemm.b.dtype in (*PACKED_DTYPES, *QUANTIZED)
    )


def suits_dots(gemm: Gemm) -> bool:
    """Whether there are so few rows that B is read once, where it lies."""
    a, b = gemm.a, gemm.b
    near = a.dtype == "f32" and a.strides[3] == 4 and b.strides[3] == b.itemsize
    if b.block > 1:
        return near and gemm.rows <= _QUANTIZED_DOTS
    limit = 4 if gemm.inner < 64 else 12 if gemm.inner < 256 else 16
    return near and gemm.rows <= min(limit, REGISTERS // 2) and gemm.inner >= LANES


def plan_tiles(gemm: Gemm) -> Plan:
    """How B is read, and the blocks that C is cut into."""
    panels = n_panels(gemm.vectors)
    pieces = max(round(gemm.flops / CHUNK_FLOPS), 1)
    flat = gemm.rows <= _PACK_ROWS and panels >= _MANY
    far = _is_far(gemm)
    if _stays_in_place(gemm) and not far:
        b_mode = IN_PLACE
    elif pieces == 1 or gemm.batches >= _MANY or flat or gemm.packed_bytes > _PACKED_BYTES:
        b_mode = TO_PACK
    else:
        b_mode = PACKED
    a_pack = far or gemm.a.dtype != "f32" or gemm.pairs
    unit = LANES if a_pack else TILE_ROWS
    rows_block, panels_block = round_up(gemm.rows, unit), panels
    if b_mode == TO_PACK or flat:
        pieces = max(round(gemm.flops / _WIDE_CHUNK_FLOPS), min(pieces, _ENOUGH))
        panels_block = -(-panels // min(pieces, panels))
        if gemm.rows > _PACK_ROWS:
            row_pieces = max(pieces // panels, 1)
            rows_block = max(round_up(gemm.rows / row_pieces, unit), _PACK_ROWS)
    elif pieces > 1:
        rows_block = _even_block(gemm.rows, gemm.rows / pieces, unit)
    return Plan(b_mode, a_pack, rows_block, panels_block, max(min(gemm.inner, K_BLOCK), 1))


def inner_parts(gemm: Gemm) -> list[Gemm]:
    """The product as several, each adding its part of the sum over k to the one before.

    That is one where B can be packed as a whole, or A is read once anyway. Else the chunks of each
    part read an A that is still near, and a B packed for all of them.
    """
    each = _PACKED_BYTES // max(4 * LANES * gemm.vectors, 1) // K_BLOCK * K_BLOCK
    is_far = 4 * gemm.rows * gemm.inner > _FAR_BYTES
    if not is_far or not each or gemm.inner <= each or gemm.batches > 1 or gemm.b.block > 1:
        return [gemm]
    parts = []
    for first in range(0, gemm.inner, each):
        part = replace(gemm, inner=min(each, gemm.inner - first))
        part = replace(part, a=_moved(gemm.a, first), b=_moved(gemm.b, first))
        parts.append(replace(part, d=gemm.c) if first else part)
    return parts


def _moved(matrix: Matrix, k: int) -> Matrix:
    """The same from element `k` of the sum on."""
    return replace(matrix, address=matrix.address + k * matrix.strides[3])


def _is_far(gemm: Gemm) -> bool:
    """Whether rows of A, read where they lie, would be in another page with each element."""
    near_rows = gemm.a.dtype == "f32" and gemm.a.strides[2] == 4
    return near_rows and gemm.a.strides[3] >= _FAR_STRIDE and gemm.cols >= _FAR_COLS


def round_up(size: float, unit: int) -> int:
    """The least multiple of `unit`, from one up, that is not below `size`."""
    return max(1, -int(-size // unit)) * unit


def _even_block(rows: int, wanted: float, unit: int) -> int:
    """Rows of a chunk: near `wanted`, but first such that two threads get much the same."""

    def badness(block: int) -> tuple[int, float]:
        chunks = -(-rows // block)
        return -(-chunks // 2) * block, abs(block - wanted)

    return min(range(_LOW, _HIGH + 1, unit), key=badness)


def _stays_in_place(gemm: Gemm) -> bool:
    """Whether tiles read B where it lies: columns are neighbours, B is small or rows are few."""
    near = gemm.b.dtype == "f32" and (gemm.b.strides[2] == 4 or gemm.cols == 1)
    small = gemm.inner * abs(gemm.b.strides[3]) <= _IN_PLACE_BYTES
    # Without masked loads, the last vector of a row would reach beyond it
    whole = HAS_MASKS or gemm.cols % LANES == 0
    return not gemm.pairs and near and whole and (small or gemm.rows <= _IN_PLACE_ROWS)
