"""Matrix multiplication: the steps that compute one product.

    C[b0, b1, i, j] = sum over k of A[b0, b1, i, k] * B[b0 // r0, b1 // r1, j, k]
                      (+ D[b0, b1, i, j])

A, B, C and D are views of any strides: transposed operands, repeated batches and slices are read
where they lie. Results have the same bits for any number of threads: `gemm_plan` cuts by shapes.
"""

from dataclasses import replace

from yupana.graphlib.dtypes import DTYPES
from yupana.graphlib.kernels import blocks
from yupana.graphlib.kernels.compiler import Kernel
from yupana.graphlib.kernels.gemm_dots import DOTS, dots_record
from yupana.graphlib.kernels.gemm_general import GENERAL, GeneralRecord, scratch_bytes
from yupana.graphlib.kernels.gemm_kernels import (
    PACK_PANELS,
    PACKED,
    PAIR_TILES,
    TILES,
    TO_PACK,
    PackRecord,
    TilesRecord,
    n_panels,
)
from yupana.graphlib.kernels.gemm_micro import TILE_ROWS, TILE_VECTORS
from yupana.graphlib.kernels.gemm_pack import PACK
from yupana.graphlib.kernels.gemm_pairs import PACK_PAIRS, halved
from yupana.graphlib.kernels.gemm_plan import (
    Gemm,
    Matrix,
    Plan,
    inner_parts,
    is_fast,
    plan_tiles,
    round_up,
    rows_of,
    suits_dots,
)
from yupana.graphlib.kernels.pairs import HAS_BF16
from yupana.graphlib.kernels.quant_dots import QUANT_DOTS
from yupana.graphlib.kernels.quant_pack import PACK_BLOCK_PAIRS, PACK_BLOCKS
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.kernels.vector import HAS_MASKS, LANES

__all__ = ["Gemm", "Matrix", "is_fast", "lower", "one_step", "workspace_bytes"]

_FLOPS_PER_NS = 110.0 if HAS_MASKS else 25.0  # of one thread, roughly
_PAIRS_NS = 1.2 if HAS_BF16 else 3.0  # of steps of pairs, in times of those of float32


def workspace_bytes(gemm: Gemm) -> int:
    """Bytes of workspace that the steps of `lower` share."""
    if _is_empty(gemm) or not is_fast(gemm) or suits_dots(gemm):
        return 0
    part = inner_parts(halved(gemm))[0]  # none of the others is larger
    if plan_tiles(part).b_mode != PACKED:
        return 0
    b0, b1 = part.matrices_of_b
    return b0 * b1 * part.packed_bytes


def lower(gemm: Gemm, workspace: int) -> list[Step]:
    """The steps that compute `gemm`; none if the result is empty.

    `workspace` is the address of `workspace_bytes` bytes.
    """
    if _is_empty(gemm):
        return []
    if not is_fast(gemm):
        return [_general(gemm)]
    if suits_dots(gemm):
        return [_dots(gemm)]
    steps = []
    for part in inner_parts(halved(gemm)):
        plan = plan_tiles(part)
        if plan.b_mode == PACKED:
            steps.append(_pack(part, plan, workspace))
        steps.append(_tiles(part, plan, workspace))
    return steps


def one_step(gemm: Gemm, rows_vary: bool) -> Step:
    """The product as one step, to be run with other sizes than planned: see `experts`.

    Either the number of rows varies, and each chunk does all of them, or that of inner products.
    """
    gemm = replace(gemm, pairs=False)
    if not is_fast(gemm):
        return _general(gemm)
    if rows_vary and suits_dots(gemm):
        return _dots(gemm)
    plan = plan_tiles(gemm)
    rows_block = round_up(gemm.rows, TILE_ROWS) if rows_vary else plan.rows_block
    mode = TO_PACK if plan.b_mode == PACKED else plan.b_mode
    return _tiles(gemm, replace(plan, b_mode=mode, rows_block=rows_block), 0)


def _is_empty(gemm: Gemm) -> bool:
    return gemm.batches * gemm.rows * gemm.cols == 0


def _tiles(gemm: Gemm, plan: Plan, workspace: int) -> Step:
    b_address, b_strides = gemm.b.address, gemm.b.strides
    if plan.b_mode == PACKED:
        each = gemm.packed_bytes
        b_address, b_strides = workspace, (each * gemm.matrices_of_b[1], each, 0, 0)
    record = TilesRecord(
        gemm.a.address,
        *gemm.a.strides,
        b_address,
        *b_strides,
        _block(gemm),
        *rows_of(gemm.c),
        *rows_of(gemm.d),
        gemm.batch[1],
        *gemm.shared,
        gemm.rows,
        gemm.cols,
        gemm.inner,
        plan.rows_block,
        plan.panels_block,
        plan.k_block,
        plan.b_mode,
        _packs(gemm)[gemm.a.dtype].address if plan.a_pack else 0,
        _pack_of_b(gemm) if plan.b_mode == TO_PACK else 0,
    )
    panels = n_panels(gemm.vectors)
    chunks = gemm.batches * -(-panels // plan.panels_block) * -(-gemm.rows // plan.rows_block)
    scratch = 0
    if plan.b_mode == TO_PACK:
        scratch += 4 * LANES * TILE_VECTORS * plan.panels_block * plan.k_block
    if plan.a_pack:
        scratch += 4 * round_up(min(plan.rows_block, gemm.rows), LANES) * plan.k_block
    flops = 2.0 * round_up(gemm.rows, TILE_ROWS) * gemm.vectors * LANES * gemm.inner
    ns = 20.0 + 20.0 * chunks + gemm.batches * flops / _FLOPS_PER_NS
    if gemm.pairs:
        ns *= _PAIRS_NS
    return Step(PAIR_TILES if gemm.pairs else TILES, record, chunks, ns, scratch)


def _block(gemm: Gemm) -> int:
    """Steps along k that a block of B is: one where it is not quantised."""
    return gemm.b.block // 2 if gemm.pairs and gemm.b.block > 1 else gemm.b.block


def _packs(gemm: Gemm) -> dict[str, Kernel]:
    return PACK_PAIRS if gemm.pairs else PACK


def _pack_of_b(gemm: Gemm) -> int:
    """Address of the function that packs B."""
    if gemm.b.block > 1:
        return (PACK_BLOCK_PAIRS if gemm.pairs else PACK_BLOCKS)[gemm.b.dtype].address
    return _packs(gemm)[gemm.b.dtype].address


def _pack(gemm: Gemm, plan: Plan, workspace: int) -> Step:
    n0, n1 = gemm.matrices_of_b
    record = PackRecord(
        gemm.b.address,
        *gemm.b.strides,
        _block(gemm),
        workspace,
        gemm.packed_bytes,
        n1,
        gemm.cols,
        gemm.inner,
        plan.k_block,
        _pack_of_b(gemm),
    )
    chunks = n0 * n1 * n_panels(gemm.vectors) * -(-gemm.inner // plan.k_block)
    ns = 20.0 + n0 * n1 * gemm.packed_bytes / 16
    return Step(PACK_PANELS, record, chunks, ns)


def _dots(gemm: Gemm) -> Step:
    kernel = (QUANT_DOTS if gemm.b.block > 1 else DOTS)[gemm.b.dtype]
    record, chunks = dots_record(gemm)
    ns_element = 0.09 if gemm.b.block > 1 else gemm.b.itemsize / 32
    ns_reading = gemm.cols * gemm.inner * ns_element
    ns = 20.0 + gemm.batches * max(gemm.flops / _FLOPS_PER_NS, ns_reading)
    return Step(kernel, record, chunks, ns)


def _general(gemm: Gemm) -> Step:
    load, store = blocks.head_words(wide=True)[:2]

    def words(matrix: Matrix | None) -> tuple[int, int, int, int, int, int]:
        if matrix is None:
            return 0, 0, 0, 0, 0, 0
        return matrix.address, *matrix.strides, DTYPES[matrix.dtype].code

    record = GeneralRecord(
        load,
        store,
        *words(gemm.a),
        *words(gemm.b),
        *words(gemm.c),
        *words(gemm.d),
        gemm.batch[1],
        *gemm.shared,
        gemm.rows,
        gemm.cols,
        gemm.inner,
    )
    chunks = gemm.batches * gemm.rows
    ns = chunks * (30.0 + gemm.cols * (10.0 + 0.2 * gemm.inner))
    return Step(GENERAL, record, chunks, ns, scratch_bytes(gemm.cols, gemm.inner))
