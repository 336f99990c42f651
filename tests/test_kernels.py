"""Kernels run directly: element-wise, sums, gather, optimiser, loss, against NumPy in float64.

Every run cuts the chunks into ranges, as threads do, and watches the memory around the result.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.kernel_steps import GUARD, run
from yupana.graphlib.dtypes import DTYPES, from_storage, to_storage
from yupana.graphlib.kernels import gather, loss, optimise, reduce
from yupana.graphlib.kernels.blocks import BLOCK, View
from yupana.graphlib.kernels.elementwise import Map
from yupana.graphlib.ops import reduction

_TOLERANCE = {"f64": 1e-14, "f32": 3e-7, "f16": 1e-3, "bf16": 1e-2}
_FLOATS = ("f32", "f64", "f16", "bf16")


class Operand:
    """Values in memory of a given layout, with NaN around them, as kernels see them."""

    def __init__(self, values, dtype="f32", layout="rows"):
        self.dtype = DTYPES[dtype]
        stored = to_storage(np.asarray(values), self.dtype)
        axes = list(range(stored.ndim))
        if layout == "columns":
            axes = axes[::-1]
        steps = [2 if layout == "sparse" else 1] * stored.ndim
        full = [stored.shape[a] * steps[a] for a in axes]
        if layout == "gaps":  # between rows
            full[-1] += 3
        guard = GUARD // stored.itemsize
        size = int(np.prod(full))
        self.memory = np.full((size + 2 * guard) * stored.itemsize, 255, np.uint8)
        whole = self.memory.view(stored.dtype)[guard : guard + size].reshape(full)
        whole = whole.transpose(np.argsort(axes)) if axes else whole
        whole = whole[..., : stored.shape[-1]] if layout == "gaps" else whole
        self.array = whole[(*(slice(None, None, step) for step in steps), ...)]
        self.array[...] = stored
        self._mask = np.ones(self.memory.size, bool)
        offset = self.array.ctypes.data - self.memory.ctypes.data
        shape, strides = (*stored.shape, stored.itemsize), (*self.array.strides, 1)
        np.ndarray(shape, bool, self._mask, offset, strides)[...] = False

    @property
    def view(self):
        a = self.array
        return View(a.ctypes.data, a.shape, a.strides, self.dtype.code, self.dtype.itemsize)

    @property
    def values(self):
        """What it holds now, in float64; complains if anything else was written."""
        assert (self.memory[self._mask] == 255).all(), "wrote beyond its elements"
        return from_storage(self.array, self.dtype).astype(np.float64)


def zeros(shape, dtype="f32", layout="rows"):
    return Operand(np.full(shape, 7.0), dtype, layout)  # every element has to be written


def run_all_ways(make_steps, results):
    """Run with chunks together, apart and backwards; the bits have to be the same."""
    before = [result.memory.copy() for result in results]
    bits = []
    for pieces, backwards in ((1, False), (2, False), (5, True), (1 << 10, True)):
        for result, memory in zip(results, before, strict=True):
            result.memory[:] = memory
        run(make_steps(), pieces, backwards)
        bits.append(b"".join(result.memory.tobytes() for result in results))
    assert all(b == bits[0] for b in bits)


class Workspace:
    """Workspace memory that lives as long as the test."""

    def __init__(self):
        self._kept = []

    def __call__(self, nbytes):
        self._kept.append(np.full(nbytes + 8, 255, np.uint8))
        return self._kept[-1].ctypes.data


def check(result, want, terms=1):
    """Compare with float64; `terms` numbers were added up in the result's own precision."""
    tolerance = _TOLERANCE[result.dtype.name] * terms
    np.testing.assert_allclose(result.values, want, rtol=tolerance, atol=tolerance)


def rng_of(*seeds):
    return np.random.default_rng(seeds)


_SIDES = st.sampled_from([1, 2, 3, 5, 8, 31, 33, 70])
_SHAPES = st.lists(_SIDES, min_size=0, max_size=3).map(tuple) | st.sampled_from(
    [(0, 3), (BLOCK + 1,), (3, BLOCK - 1), (2, 3 * BLOCK + 5), (70, 130), (2, 3, 4, 40)]
)
_LAYOUTS = st.sampled_from(["rows", "columns", "sparse"])
_PLACES = st.tuples(st.sampled_from(_FLOATS), _LAYOUTS)

_formula = Map(lambda a, b, c, p0, p1, p2, p3: a * p0 + b * c - p1, 3)
_double = Map(lambda a, p0, p1, p2, p3: a + a, 1)


@given(
    shape=_SHAPES,
    places=st.tuples(_PLACES, _PLACES, _PLACES, _PLACES),
    repeated=st.lists(st.booleans(), min_size=8, max_size=8),
    dropped=st.integers(0, 4),
)
@example(  # a range of chunks begins at the short end of a row, which needs less of the repeated c
    shape=(3, 2 * BLOCK + 3),
    places=(("f32", "rows"), ("f32", "rows"), ("f32", "rows"), ("f16", "rows")),
    repeated=[True, False, True, True, True, True, True, True],
    dropped=0,
)
def test_elementwise_broadcasts_any_layout_and_dtype(shape, places, repeated, dropped):
    rng = rng_of(*shape, 1)
    shapes = [
        shape,
        tuple(1 if r else n for n, r in zip(shape, repeated, strict=False)),
        tuple(1 if r else n for n, r in zip(shape, repeated[4:], strict=False))[dropped:],
    ]
    sources = [
        Operand(rng.uniform(-1, 1, s), *place) for s, place in zip(shapes, places[1:], strict=True)
    ]
    dst = zeros(shape, *places[0])
    a, b, c = (source.values for source in sources)
    views = [source.view for source in sources]
    run_all_ways(lambda: _formula.steps(dst.view, views, [0.5, 0.25]), [dst])
    check(dst, np.broadcast_to(a * 0.5 + b * c - 0.25, shape), terms=3)


@given(shape=_SHAPES, dtype=st.sampled_from(_FLOATS), layout=_LAYOUTS)
def test_elementwise_result_may_take_over_a_source(shape, dtype, layout):
    x = Operand(rng_of(2).uniform(-1, 1, shape), dtype, layout)
    want = 2 * x.values
    run_all_ways(lambda: _double.steps(x.view, [x.view]), [x])
    check(x, want)


@given(
    kept=st.lists(st.sampled_from([1, 2, 3, 70, 300]), max_size=2).map(tuple),
    tiles=st.lists(st.sampled_from([1, 2, 3, 9]), min_size=2, max_size=4).map(tuple),
    source=_PLACES,
    target=_PLACES,
)
@example(kept=(1,), tiles=(3, 9000), source=("f32", "rows"), target=("f32", "rows"))
@example(kept=(1,), tiles=(3, 9000), source=("bf16", "sparse"), target=("f32", "rows"))
def test_sum_to_adds_the_tiles(kept, tiles, source, target):
    kept = kept[: len(tiles)]
    aligned = (1,) * (len(tiles) - len(kept)) + kept
    shape = tuple(k * t for k, t in zip(aligned, tiles, strict=True))
    x = Operand(rng_of(3).uniform(-1, 1, shape), *source)
    y = zeros(kept, *target)
    run_all_ways(lambda: reduce.sum_to(y.view, x.view), [y])
    split = x.values.reshape([m for pair in zip(tiles, aligned, strict=True) for m in pair])
    check(y, split.sum(axis=tuple(range(0, 2 * len(tiles), 2))).reshape(kept), terms=4)


@given(shape=_SHAPES, place=_PLACES)
@example(shape=(3, 20000), place=("f32", "rows"))
def test_sum_all_adds_everything_and_scales(shape, place):
    x, y, workspace = Operand(rng_of(4).uniform(-1, 1, shape), *place), zeros(()), Workspace()
    run_all_ways(lambda: reduce.sum_all(y.view, x.view, 0.5, workspace), [y])
    check(y, 0.5 * x.values.sum(), terms=2)


def test_sums_lose_no_small_numbers_among_large():
    x = np.zeros((9, 4), np.float32)
    x[0], x[1:8], x[8] = 1e8, 1.0, -1e8  # in float32 every 1 would be lost
    source, rows, total, workspace = Operand(x), zeros((4,)), zeros(()), Workspace()
    run(reduce.sum_to(rows.view, source.view))
    run(reduce.sum_all(total.view, source.view, 1.0, workspace))
    assert rows.values.tolist() == [7.0] * 4  # added up four at a time, too
    assert total.values == 28.0


def _index(rng, shape, rows, layout):
    index = Operand(rng.integers(-1, rows + 1, shape), "i32", layout)
    return index, index.values.astype(int)


@given(
    picks=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    rows=st.integers(1, 9),
    columns=st.sampled_from([1, 3, 64, 65, 130]),
    shared=st.booleans(),
    place=_PLACES,
    layout=_LAYOUTS,
)
def test_rows_come_from_the_table_and_go_back_to_it(picks, rows, columns, shared, place, layout):
    rng = rng_of(5, rows, columns)
    wide = "f64" if place[0] == "f64" else "f32"
    batch = () if shared else picks[:-1]
    index, numbers = _index(rng, picks, rows, layout)
    table = Operand(rng.uniform(-1, 1, (*batch, rows, columns)), *place)
    picked = zeros((*picks, columns), wide)
    run_all_ways(lambda: gather.get_rows(picked.view, table.view, index.view), [picked])
    grad = Operand(rng.uniform(-1, 1, (*picks, columns)), *place)
    back = zeros((*batch, rows, columns), wide)
    run_all_ways(lambda: gather.add_rows(back.view, grad.view, index.view), [back])

    want, total = np.full((*picks, columns), np.nan), np.zeros((*batch, rows, columns))
    for at in np.ndindex(*picks):
        if 0 <= numbers[at] < rows:
            to = (*(() if shared else at[:-1]), numbers[at])
            want[at] = table.values[to]
            total[to] += grad.values[at]
    check(picked, want)
    check(back, total, terms=8)


@pytest.mark.parametrize("shape", [(5000, 64), (3, 300)])
def test_rows_picked_often_are_added_in_order(shape):
    rng = rng_of(6)
    index = Operand(np.minimum(rng.zipf(1.2, 700) - 1, shape[0] - 1), "i32")
    grad = Operand(rng.normal(size=(700, shape[1])))
    back = zeros(shape)
    steps = gather.add_rows(back.view, grad.view, index.view)
    assert steps[0].chunks > 1, "two threads should share this"
    run_all_ways(lambda: steps, [back])
    want = np.zeros(shape, np.float32)
    np.add.at(want, index.array, grad.array)  # adds one after the other, in float32
    assert np.array_equal(back.values, want)


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 10000])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("settings_dtype", ["f32", "f64"])
def test_adamw_follows_its_formula_over_ten_steps(size, dtype, settings_dtype):
    rng = rng_of(7)
    param, m, v = Operand(rng.normal(size=size), dtype), zeros(size, dtype), zeros(size, dtype)
    m.array[:] = v.array[:] = 0
    x, first, second = param.values, np.zeros(size), np.zeros(size)
    for t in range(1, 11):
        grad = Operand(rng.normal(size=size), dtype)
        numbers = [1e-2, 0.9, 0.999, 1e-8, 0.1, 1 / (1 - 0.9**t), 1 / (1 - 0.999**t)]
        settings = Operand(numbers, settings_dtype)
        views = [o.view for o in (param, grad, m, v, settings)]
        run_all_ways(lambda views=views: optimise.adamw(*views), [param, m, v])
        alpha, beta1, beta2, eps, decay, hat1, hat2 = settings.values
        g = grad.values
        first, second = beta1 * first + (1 - beta1) * g, beta2 * second + (1 - beta2) * g * g
        x = x * (1 - alpha * decay) - alpha * first * hat1 / (np.sqrt(second * hat2) + eps)
    for operand, want in ((param, x), (m, first), (v, second)):
        check(operand, want, terms=30)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_sgd_follows_its_formula(dtype):
    rng = rng_of(8)
    param, grad = Operand(rng.normal(size=5000), dtype), Operand(rng.normal(size=5000), dtype)
    settings = Operand([0.1, 0.5])
    want = param.values * (1 - settings.values.prod()) - settings.values[0] * grad.values
    run_all_ways(lambda: optimise.sgd(param.view, grad.view, settings.view), [param])
    check(param, want, terms=2)


def _loss_steps(logits, targets, workspace, weights=None, **results):
    views = {name: operand.view for name, operand in results.items()}
    weights = weights.view if weights else None
    return loss.cross_entropy(logits.view, targets.view, weights, -100, workspace, **views)


@pytest.mark.parametrize("classes", [1, 2, 65, 1023, 1024, 1025, 3000])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16"])
def test_loss_and_gradient_in_one_sweep_are_those_of_two(classes, dense, dtype):
    rng = rng_of(9, classes)
    logits = rng.uniform(-5, 5, (3, 4, classes))
    logits[0] += np.linspace(0, 30, classes)  # the largest of a row comes late
    logits[1] *= 1000  # exponentials of these overflow
    x = Operand(logits, dtype)
    chosen = rng.integers(-1, classes, (3, 4))
    targets = Operand(rng.random((3, 4, classes))) if dense else Operand(chosen, "i32")
    weights = Operand(rng.random((3, 4)))
    wide, workspace = dtype == "f64", Workspace()
    kind = "f64" if wide else "f32"
    seed = Operand(-1.5)
    apart = {"loss": zeros((), kind), "gradient": zeros(logits.shape, kind)}
    run(_loss_steps(x, targets, workspace, weights, loss=apart["loss"]))
    run(_loss_steps(x, targets, workspace, weights, gradient=apart["gradient"], seed=seed))
    both = {"loss": zeros((), kind), "gradient": zeros(logits.shape, kind)}
    run_all_ways(
        lambda: _loss_steps(x, targets, workspace, weights, **both, seed=seed), [*both.values()]
    )
    for name, operand in both.items():
        assert np.array_equal(operand.values, apart[name].values), name

    t = targets.values if dense else (chosen[..., None] == np.arange(classes)).astype(float)
    w = weights.values * (1 if dense else chosen >= 0)
    log_p = x.values - x.values.max(-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    # The kernel adds up t · x, which is a thousand times the loss in some rows.
    check(both["loss"], (w * -(t * log_p).sum(-1)).sum() / w.sum(), terms=1e3 if wide else 2)
    want = t.sum(-1, keepdims=True) * np.exp(log_p) - t
    check(both["gradient"], -1.5 * w[..., None] / w.sum() * want, terms=4)


def test_gradient_of_the_loss_may_take_over_the_logits():
    rng = rng_of(10)
    values, seed, workspace = rng.normal(size=(5, 1500)), Operand(1.0), Workspace()
    x, labels = Operand(values), Operand(rng.integers(0, 1500, 5), "i32")
    apart = zeros(values.shape)
    run(_loss_steps(x, labels, workspace, gradient=apart, seed=seed))
    run_all_ways(lambda: _loss_steps(x, labels, workspace, gradient=x, seed=seed), [x])
    assert np.array_equal(x.values, apart.values)


def test_loss_of_nothing_is_zero():
    x, labels, seed = Operand(np.ones((2, 3))), Operand([-1, -100], "i32"), Operand(1.0)
    value, gradient, workspace = zeros(()), zeros((2, 3)), Workspace()
    run(_loss_steps(x, labels, workspace, loss=value, gradient=gradient, seed=seed))
    assert value.values == 0
    assert not gradient.values.any()


def test_label_that_is_no_class_shows_as_nan():
    x, labels, seed = Operand(np.ones((2, 3))), Operand([1, 3], "i32"), Operand(1.0)
    value, gradient, workspace = zeros(()), zeros((2, 3)), Workspace()
    run(_loss_steps(x, labels, workspace, loss=value, gradient=gradient, seed=seed))
    assert np.isnan(value.values)
    assert np.isnan(gradient.values).any(axis=1).tolist() == [False, True]


@given(
    shape=st.lists(st.sampled_from([1, 2, 3, 7, 16, 17, 64, 67, 130]), min_size=2, max_size=4),
    order=st.permutations(range(4)),
    place=st.tuples(st.sampled_from(["f32", "i32", "i16", "i8", "f16", "bf16"]), st.booleans()),
)
@example(shape=[17, 2, 3, 130], order=[3, 2, 1, 0], place=("f32", False))
@example(shape=[67, 130], order=[1, 0, 2, 3], place=("i32", True))
def test_copies_of_transposed_arrays(shape, order, place):
    dtype, has_gaps = place
    while np.prod(shape) > 40_000:
        shape[np.argmax(shape)] //= 2
    axes = [axis for axis in order if axis < len(shape)]
    values = rng_of(*shape).integers(-99, 99, [shape[axis] for axis in np.argsort(axes)])
    source = Operand(values, dtype)
    turned = source.array.transpose(axes)
    view = replace(source.view, shape=turned.shape, strides=turned.strides)
    result = zeros(turned.shape, dtype, "gaps" if has_gaps else "rows")
    run_all_ways(lambda: reduction.copy_steps(result.view, view), [result])
    assert (result.values == values.transpose(axes)).all()


def test_transposes_are_turned_in_registers():
    for dtype, wanted in (("f32", "tiles_32"), ("bf16", "tiles_16")):
        source, result = (zeros(shape, dtype) for shape in ((40, 50), (50, 40)))
        view = replace(source.view, shape=(50, 40), strides=source.view.strides[::-1])
        assert [step.kernel.name for step in reduction.copy_steps(result.view, view)] == [wanted]
