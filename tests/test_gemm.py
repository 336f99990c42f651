"""Matrix multiplication against NumPy in float64: shapes, strides, dtypes, groups, NaN, chunks."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.kernel_steps import GUARD, run
from yupana.graphlib.dtypes import DTYPES, bf16, from_storage, to_storage
from yupana.graphlib.kernels.gemm import Gemm, Matrix, lower, workspace_bytes
from yupana.graphlib.kernels.gemm_kernels import PACKED
from yupana.graphlib.kernels.gemm_pairs import halved
from yupana.graphlib.kernels.gemm_plan import inner_parts, is_fast, plan_tiles, suits_dots
from yupana.graphlib.kernels.vector import LANES

Array = np.ndarray[Any, Any]
_LAYOUTS = ("rows", "columns", "wide", "backwards", "sparse", "repeated")


@dataclass(frozen=True)
class Case:
    """One product: sizes, dtypes, memory layouts, and where special values stand."""

    rows: int
    cols: int
    inner: int
    batch: tuple[int, int] = (1, 1)
    group: tuple[int, int] = (1, 1)
    dtypes: tuple[str, str] = ("f32", "f32")
    layouts: tuple[str, str, str, str] = ("rows", "rows", "rows", "rows")  # a, b, c, d
    d_dtype: str = ""  # none: nothing to add
    in_place: bool = False  # d is c
    seed: int = 0
    special: float = 0.0  # a NaN or infinity planted in A and B
    pairs: bool = False  # rounded to bf16, if it is a product for that


def place(values: Array, dtype: str, layout: str) -> tuple[Array, Array]:
    """A view of `layout` that holds `values`, in the middle of memory of NaN; view and memory."""
    stored = to_storage(values, DTYPES[dtype])
    n0, n1, rows, cols = values.shape
    shapes = {
        "rows": (n0, n1, rows, cols),
        "columns": (n0, n1, cols, rows),
        "wide": (n0, rows, n1, cols + 3),
        "backwards": (n0, n1, rows, cols),
        "sparse": (n0, n1, rows, 2 * cols + 1),
        "repeated": (1, 1, rows, cols),
    }
    guard = GUARD // stored.itemsize
    size = int(np.prod(shapes[layout]))
    memory = np.full((size + 2 * guard) * stored.itemsize, 255, np.uint8).view(stored.dtype)
    whole = memory[guard : guard + size].reshape(shapes[layout])
    if layout == "repeated":
        whole[:] = stored[:1, :1]
        return np.broadcast_to(whole, values.shape), memory
    views: dict[str, Array] = {
        "rows": whole,
        "columns": whole.swapaxes(2, 3),
        "wide": whole[..., 1 : cols + 1].swapaxes(1, 2),
        "backwards": whole[:, ::-1, ::-1],
        "sparse": whole[..., 1::2],
    }
    view = views[layout]
    view[...] = stored
    return view, memory


def matrix(view: Array, dtype: str) -> Matrix:
    """The view as a kernel sees it."""
    address = view.__array_interface__["data"][0]
    n0, n1, row, col = view.strides
    return Matrix(address, dtype, (n0, n1, row, col))


class Product:
    """Operands of a case in memory, its steps, and what NumPy says."""

    def __init__(self, case: Case) -> None:
        rng = np.random.default_rng(case.seed)
        (n0, n1), (r0, r1) = case.batch, case.group
        a = rng.standard_normal((n0 * r0, n1 * r1, case.rows, case.inner))
        b = rng.standard_normal((n0, n1, case.cols, case.inner))
        for x in (a, b) if case.special != 0 else ():
            x.flat[rng.integers(0, x.size, 3) if x.size else []] = case.special
        self.a, self._memory_a = place(a, case.dtypes[0], case.layouts[0])
        self.b, self._memory_b = place(b, case.dtypes[1], case.layouts[1])
        shape = (*a.shape[:2], case.rows, case.cols)
        self.c_dtype = "f64" if "f64" in case.dtypes else "f32"
        self.d: Array | None = None
        d_matrix = None
        added: Any = 0.0
        if case.d_dtype:
            self.d, self._memory_d = place(
                rng.standard_normal(shape), case.d_dtype, case.layouts[3]
            )
            added = from_storage(self.d, DTYPES[case.d_dtype]).astype(np.float64)
            d_matrix = matrix(self.d, case.d_dtype)
        self.c, self.memory = place(np.full(shape, np.nan), self.c_dtype, case.layouts[2])
        if case.in_place:
            self.c[...] = added
            added = self.c.astype(np.float64)
            d_matrix = matrix(self.c, self.c_dtype)
        sizes = (case.rows, case.cols, case.inner)
        operands = (matrix(self.a, case.dtypes[0]), matrix(self.b, case.dtypes[1]))
        result = matrix(self.c, self.c_dtype)
        self.gemm = Gemm(shape[:2], *sizes, case.group, *operands, result, d_matrix, case.pairs)
        left = from_storage(self.a, DTYPES[case.dtypes[0]])
        right = from_storage(self.b, DTYPES[case.dtypes[1]])
        if self.goes_by_pairs:
            left, right = (from_storage(to_storage(x, bf16), bf16) for x in (left, right))
        left, right = left.astype(np.float64), right.astype(np.float64)
        right = right.repeat(r0, 0).repeat(r1, 1).swapaxes(-1, -2)
        with np.errstate(invalid="ignore"):
            self.expected = left @ right + added
            self.tolerance = 1e-6 + (np.abs(left) @ np.abs(right) + np.abs(added)) * (
                1e-13 if self.c_dtype == "f64" else 1e-6 + 1e-7 * case.inner**0.5
            )
        size = workspace_bytes(self.gemm)
        self.workspace = np.full(size + GUARD, 255, np.uint8)
        self.steps = lower(self.gemm, self.workspace.ctypes.data)

    @property
    def goes_by_pairs(self) -> bool:
        """Whether its operands are rounded."""
        gemm = self.gemm
        return is_fast(gemm) and not suits_dots(gemm) and halved(gemm).pairs

    def check(self) -> None:
        """The result is right, and nothing beside it was written."""
        finite = np.isfinite(self.expected)
        assert (np.isnan(self.c) == np.isnan(self.expected)).all()
        infinite = np.isinf(self.expected)
        assert (self.c[infinite] == self.expected[infinite]).all()
        error = np.abs(self.c.astype(np.float64) - np.where(finite, self.expected, 0.0))
        assert (error <= self.tolerance)[finite].all(), error[finite].max()
        assert (self.workspace[-GUARD:] == 255).all(), "wrote beyond its workspace"
        before = self.c.copy()
        self.c[...] = np.frombuffer(b"\xff" * self.c.itemsize, self.c.dtype)[0]
        assert (self.memory.view(np.uint8) == 255).all(), "wrote beyond the result"
        self.c[...] = before


_sizes = st.one_of(
    st.integers(0, 20),
    st.sampled_from([24, 31, 32, 33, 47, 48, 49, 64, 65, 80, 100]),
)
_float = st.sampled_from(["f32", "f32", "f16", "bf16"])
_layout = st.sampled_from(_LAYOUTS)


@st.composite
def cases(draw: Any) -> Case:
    """Any product: the general kernel and all the fast ones."""
    small = st.integers(1, 3)
    dtypes = draw(st.one_of(st.just(("f64", "f64")), st.tuples(_float, _float)))
    f64 = dtypes[0] == "f64"
    result = draw(st.sampled_from(["rows", "rows", "wide", "backwards", "columns", "sparse"]))
    d_dtype = draw(st.sampled_from(["", "", "f64" if f64 else "f32", "f32", "f16"]))
    return Case(
        rows=draw(_sizes),
        cols=draw(_sizes),
        inner=draw(_sizes),
        batch=(draw(small), draw(small)),
        group=(draw(small), draw(small)),
        dtypes=dtypes,
        layouts=(draw(_layout), draw(_layout), result, draw(_layout)),
        d_dtype=d_dtype,
        in_place=bool(d_dtype) and draw(st.booleans()),
        seed=draw(st.integers(0, 5)),
        special=draw(st.sampled_from([0.0, 0.0, np.nan, np.inf])),
    )


@st.composite
def fast_cases(draw: Any) -> Case:
    """Products for the float32 kernels: tiles that read B in place or packed, and dots."""
    near = st.sampled_from(["rows", "rows", "columns", "wide"])
    return Case(
        rows=draw(st.one_of(st.integers(1, 18), _sizes)),
        cols=draw(_sizes),
        inner=draw(_sizes),
        batch=(1, draw(st.integers(1, 3))),
        group=(1, draw(st.integers(1, 2))),
        dtypes=(draw(st.sampled_from(["f32", "f32", "f32", "f16"])), draw(_float)),
        layouts=(draw(near), draw(near), "rows", "rows"),
        d_dtype=draw(st.sampled_from(["", "f32"])),
        special=draw(st.sampled_from([0.0, 0.0, np.nan, np.inf])),
        pairs=draw(st.sampled_from([False, False, True])),
    )


@given(st.one_of(fast_cases(), cases()))
@example(Case(3, 5, 0, d_dtype="f32"))
@example(Case(3, 9, 37, d_dtype="f32"))
@example(Case(9, 18, 77, dtypes=("f32", "bf16")))
@example(Case(512, 65, 128))
@example(Case(130, 100, 300, layouts=("columns", "columns", "rows", "rows"), in_place=True))
@example(Case(200, 130, 600, dtypes=("f16", "bf16"), d_dtype="f32"))
@example(Case(33, 50, 128, pairs=True))
@example(Case(200, 130, 600, layouts=("columns", "rows", "rows", "rows"), pairs=True))
@example(Case(130, 100, 1030, (1, 2), dtypes=("bf16", "f16"), d_dtype="f32", pairs=True))
@example(Case(70, 65, 514, (2, 1), layouts=("wide", "columns", "rows", "rows"), pairs=True))
@example(Case(40, 40, 64, layouts=("backwards", "sparse", "rows", "rows"), pairs=True))
@example(Case(10, 520, 1030, batch=(2, 1), layouts=("wide", "columns", "rows", "rows")))
def test_product_agrees_with_float64(case: Case) -> None:
    product = Product(case)
    run(product.steps)
    product.check()


# One for each way through the kernels: see `test_cases_reach_every_way`.
_WAYS = {
    "tiny": Case(8, 8, 4, batch=(4, 5)),
    "in place": Case(
        24, 70, 40, (2, 2), layouts=("rows", "columns", "rows", "rows"), d_dtype="f32"
    ),
    "in place, many rows": Case(530, 50, 64, layouts=("columns", "columns", "rows", "rows")),
    "packed by chunks": Case(50, 600, 300, dtypes=("f16", "f32")),
    "packed at once": Case(300, 65, 300, batch=(1, 2), group=(1, 2), d_dtype="f32"),
    "dots": Case(7, 600, 144, dtypes=("f32", "bf16"), d_dtype="f32"),
    "general": Case(9, 17, 33, dtypes=("f64", "f64"), batch=(2, 1)),
    "pairs": Case(300, 65, 300, batch=(1, 2), group=(1, 2), d_dtype="f32", pairs=True),
}


@pytest.mark.parametrize("case", _WAYS.values(), ids=_WAYS)
def test_result_does_not_depend_on_chunk_ranges(case: Case) -> None:
    product = Product(case)
    run(product.steps)
    product.check()
    whole = product.c.tobytes()
    assert max(step.chunks for step in product.steps) > 1
    for pieces, backwards in [(2, True), (3, False), (7, True), (1000, False)]:
        again = Product(case)
        run(again.steps, pieces, backwards)
        assert again.c.tobytes() == whole


def test_cases_reach_every_way() -> None:
    found = {}
    for name, case in _WAYS.items():
        gemm = Product(case).gemm
        if not is_fast(gemm):
            found[name] = "general"
        elif suits_dots(gemm):
            found[name] = "dots"
        elif halved(gemm).pairs:
            found[name] = "pairs"
        else:
            plan = plan_tiles(gemm)
            columns = plan.panels_block * 3 * LANES < gemm.cols
            rows = plan.rows_block < gemm.rows
            found[name] = f"mode {plan.b_mode}{' columns' * columns}{' rows' * rows}"
    assert len(set(found.values())) == len(_WAYS), found
    assert f"mode {PACKED} rows" in found.values()


def test_long_sums_of_far_rows_go_part_by_part() -> None:
    long, wide = Case(130, 40, 8200), Case(130, 4000, 300)
    for case, n in (long, 2), (wide, 1):
        assert len(inner_parts(Product(case).gemm)) == n
    for layouts in (("rows", "rows", "rows", "rows"), ("rows", "columns", "rows", "rows")):
        product = Product(Case(130, 40, 8200, layouts=layouts))
        run(product.steps)
        product.check()


def test_rows_in_many_pages_are_packed() -> None:
    near, far = (Case(n, 70, 20, layouts=("columns", "rows", "rows", "rows")) for n in (40, 1100))
    for case, packs in (near, False), (far, True):
        product = Product(case)
        assert plan_tiles(product.gemm).a_pack == packs
        run(product.steps)
        product.check()


def test_repeated_matrix_is_packed_once() -> None:
    one = Product(Case(300, 65, 300))
    many = Product(Case(300, 65, 300, (3, 2), layouts=("rows", "repeated", "rows", "rows")))
    assert workspace_bytes(many.gemm) == workspace_bytes(one.gemm) > 0


@pytest.mark.parametrize("inner", [1, 15, 16, 17, 40, 300])
@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("pairs", [False, True])
def test_nan_and_infinity_stay_in_their_rows(
    inner: int, layout: str, special: float, pairs: bool
) -> None:
    for rows, cols in [(1, 1), (3, 5), (9, 17), (20, 49)]:
        case = Case(rows, cols, inner, layouts=(layout, layout, "rows", "rows"), pairs=pairs)
        product = Product(case)
        for x, line in ((product.a, rows - 1), (product.b, cols // 2)):
            x[0, 0, line, inner - 1] = special
        run(product.steps)
        is_special = ~np.isfinite(product.c[0, 0])
        wanted = np.zeros((rows, cols), bool)
        wanted[rows - 1, :] = wanted[:, cols // 2] = True
        assert (is_special == wanted).all()


def test_products_of_few_rows_short_or_odd_sums_are_not_rounded() -> None:
    for case in (Case(2, 50, 128), Case(60, 50, 30), Case(60, 50, 129), Case(60, 50, 64)):
        product = Product(replace(case, pairs=True))
        assert product.goes_by_pairs == (case.inner == 64)
        run(product.steps)
        product.check()


def test_zero_times_infinity_is_nan() -> None:
    for rows, cols in [(1, 20), (20, 1), (8, 8)]:
        product = Product(Case(rows, cols, 20))
        product.a[:] = 0.0
        product.b[0, 0, 0, 3] = np.inf
        run(product.steps)
        assert np.isnan(product.c[..., 0]).all()
        assert (product.c[..., 1:] == 0.0).all()


def test_empty_results_have_no_steps_and_empty_sums_are_zero() -> None:
    for case in (Case(0, 3, 4), Case(3, 0, 4), Case(3, 4, 5, batch=(0, 2))):
        assert Product(case).steps == []
    for dtypes in (("f32", "f32"), ("f16", "bf16"), ("f64", "f64")):
        product = Product(Case(3, 70, 0, dtypes=dtypes))
        run(product.steps)
        assert (product.c == 0.0).all()
