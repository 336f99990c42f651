"""The row driver, with row functions that show which rows and numbers they were given."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yupana.graphlib.context import aligned_bytes
from yupana.graphlib.dtypes import DTYPES, from_storage, to_storage
from yupana.graphlib.kernels.blocks import View
from yupana.graphlib.kernels.compiler import function_type
from yupana.graphlib.kernels.rowwise import Rows, row_dot, row_sum

FLOATS = ("f32", "f64", "f16", "bf16")


def _probe1(y, a, i, p):
    for j in range(y.size):
        y[j] = a[j % a.size] * p[0] + i


def _probe2(y, a, b, i, p):
    for j in range(y.size):
        y[j] = a[j % a.size] * p[0] + b[j % b.size] * p[1] + i


def _probe3(y, a, b, c, i, p):
    for j in range(y.size):
        y[j] = a[j % a.size] * p[0] + b[j % b.size] * p[1] + c[j % c.size] * p[2] + i


def _probe4(y, a, b, c, d, i, p):
    for j in range(y.size):
        rest = c[j % c.size] * p[2] + d[j % d.size] * p[7]
        y[j] = a[j % a.size] * p[0] + b[j % b.size] * p[1] + rest + i


PROBES = {n: Rows(probe, n) for n, probe in enumerate((_probe1, _probe2, _probe3, _probe4), 1)}
PARAMS = (1.0, 2.0, -1.0, 0.0, 0.0, 0.0, 0.0, 3.0)
FACTORS = (1.0, 2.0, -1.0, 3.0)  # those the probes read


class Memory:
    """Room for operands; what no operand covers must stay as it was."""

    def __init__(self):
        self.bytes = np.zeros(0, np.uint8)

    def place(self, draw, shape, dtype, packed=False):
        """Where a new operand lies: axes in any order, gaps between elements, an offset."""
        size = dtype.itemsize
        axes = draw(st.permutations(range(len(shape)))) if not packed else range(len(shape))
        strides, step = [0] * len(shape), size
        for axis in reversed(axes):
            strides[axis] = step * (1 if packed else draw(st.sampled_from([1, 1, 1, 2])))
            step = strides[axis] * max(shape[axis], 1)
        start = self.bytes.size + size * (0 if packed else draw(st.integers(0, 3)))
        end = start + step + 64
        self.bytes = aligned_bytes(-(-end // 64) * 64)
        self.bytes[:] = 0xA5
        return start, shape, tuple(strides), dtype

    def view(self, start, shape, strides, dtype):
        address = self.bytes.ctypes.data + start
        return View(address, shape, strides, dtype.code, dtype.itemsize)

    def array(self, start, shape, strides, dtype):
        return np.ndarray(shape, dtype.storage, self.bytes, start, strides)

    def write(self, place, values):
        self.array(*place)[...] = to_storage(values, place[-1])

    def read(self, place):
        return from_storage(self.array(*place), place[-1]).astype(np.float64)


def run(steps, groups):
    """Run a step's chunks in groups, last first, each with scratch memory of its own."""
    for step in steps:
        record = np.array(step.record, np.int64)
        kernel = function_type(4)(step.kernel.address)
        bounds = sorted({0, step.chunks, *(g % (step.chunks + 1) for g in groups)})
        for begin, end in reversed(list(itertools.pairwise(bounds))):
            scratch = np.full(step.scratch + 128, 0xFF, np.uint8)
            address = -(-scratch.ctypes.data // 64) * 64
            kernel(record.ctypes.data, begin, end, address)
            left = scratch.ctypes.data + scratch.size - (address + step.scratch)
            assert (scratch[-left:] == 0xFF).all()  # no more scratch memory than it asked for


@st.composite
def cases(draw):
    n_in = draw(st.integers(1, 4))
    outer = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    if draw(st.integers(0, 5)) == 5:
        outer = (draw(st.sampled_from([0, 67, 300])),)
    memory, places = Memory(), []
    for k in range(n_in + 1):
        dtype = DTYPES[draw(st.sampled_from(FLOATS))]
        length = draw(st.sampled_from([1, 2, 3, 4, 8, 16, 33, 64, 70]))
        axes = outer if k == 0 else outer[draw(st.integers(0, len(outer))) :]
        axes = tuple(n if k == 0 or draw(st.booleans()) else 1 for n in axes)
        places.append(memory.place(draw, (*axes, length), dtype))
    splits = draw(st.lists(st.integers(0, 1000), max_size=3))
    return memory, places, splits, draw(st.sampled_from([0, 0, 1, 5]))


def expected(arrays, outer, length, period):
    """What the probes compute, by NumPy; whole numbers small enough for every dtype."""
    total = np.zeros((*outer, length))
    for array, factor in zip(arrays, FACTORS, strict=False):
        picked = array[..., np.arange(length) % array.shape[-1]]
        total += factor * picked
    rows = np.arange(int(np.prod(outer))).reshape(outer) % (period or (outer[-1] if outer else 1))
    return total + rows[..., None]


@given(cases(), st.integers(0, 2**32 - 1))
def test_rows_get_their_elements_number_and_parameters(case, seed):
    memory, (dst, *sources), splits, period = case
    rng = np.random.default_rng(seed)
    values = [rng.integers(-4, 5, shape).astype(np.float64) for _, shape, _, _ in sources]
    for place, value in zip(sources, values, strict=True):
        memory.write(place, value)
    before = memory.bytes.copy()
    views = [memory.view(*place) for place in sources]
    run(PROBES[len(views)].steps(memory.view(*dst), views, PARAMS, period), splits)
    *outer, length = dst[1]
    want = expected(values, tuple(outer), length, period)
    after = memory.bytes.copy()
    memory.bytes[:] = before
    memory.write(dst, want)
    np.testing.assert_array_equal(after, memory.bytes)  # and nothing else was written


@given(st.data(), st.sampled_from(FLOATS), st.integers(1, 2))
def test_result_may_take_over_the_memory_of_a_source(data, name, n_in):
    shape = (data.draw(st.integers(1, 30)), data.draw(st.integers(1, 70)))
    memory = Memory()
    places = [memory.place(data.draw, shape, DTYPES[name], packed=True) for _ in range(n_in)]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = [rng.integers(-4, 5, shape).astype(np.float64) for _ in places]
    for place, value in zip(places, values, strict=True):
        memory.write(place, value)
    taken = places[data.draw(st.integers(0, n_in - 1))]
    views = [memory.view(*place) for place in places]
    run(PROBES[n_in].steps(memory.view(*taken), views, PARAMS), [data.draw(st.integers(0, 40))])
    np.testing.assert_array_equal(memory.read(taken), expected(values, shape[:-1], shape[-1], 0))


def _shifted(y, a, b, i, p):
    # Reads what an earlier element's result could have overwritten.
    for j in range(y.size):
        y[j] = a[y.size - 1 - j] + b[0]


def test_a_row_is_not_overwritten_while_it_is_read():
    rows, x = Rows(_shifted, 2), np.arange(12, dtype=np.float32).reshape(3, 4)
    want = x[:, ::-1] + x[:, :1]
    view = View(x.ctypes.data, x.shape, x.strides, 0, 4)
    run(rows.steps(view, [view, view]), [1])
    np.testing.assert_array_equal(x, want)


def test_no_steps_for_nothing():
    for shape in ((0, 3), (3, 0), (0,)):
        view = View(64, shape, (4,) * len(shape), 0, 4)
        assert PROBES[1].steps(view, [view], PARAMS) == []


def _sums(y, a, b, i, p):
    y[0] = row_sum(a)
    y[1] = row_dot(a, b)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 7, 64, 65, 1000])
def test_sums_of_rows(kind, n):
    a, b = np.random.default_rng(n).normal(size=(2, n)).astype(kind)
    out = np.zeros(2, kind)
    code = 0 if kind is np.float32 else 2
    views = [View(x.ctypes.data, x.shape, x.strides, code, x.itemsize) for x in (out, a, b)]
    run(Rows(_sums, 2).steps(views[0], views[1:]), [])
    wide = a.astype(np.longdouble), b.astype(np.longdouble)
    want = [wide[0].sum(), (wide[0] * wide[1]).sum()]
    sizes = [np.abs(wide[0]).sum(), np.abs(wide[0] * wide[1]).sum()]
    assert (np.abs(out - np.array(want)) <= 4 * np.finfo(kind).eps * np.array(sizes)).all()


def test_bits_do_not_depend_on_where_rows_lie():
    """Vector loops need memory that does not overlap within a vector; others run element-wise."""
    from yupana.graphlib.kernels import softmax
    from yupana.graphlib.ops.norm import rms_norm_mul_back_steps, rms_norm_mul_steps

    rng = np.random.default_rng(0)
    x, w, g = rng.normal(size=(3, 37)).astype(np.float32)
    memory = np.zeros(4096, np.uint8)

    def placed(at, values):
        part = np.ndarray((1, 37), np.float32, memory, at)
        part[...] = values
        return View(part.ctypes.data, part.shape, part.strides, 0, 4)

    def bits(make, gap):
        sources = [placed(1024 * k, v) for k, v in enumerate((x, w, g))]
        out = np.ndarray((1, 37), np.float32, memory, 2048 + 37 * 4 + gap)
        run(make(View(out.ctypes.data, out.shape, out.strides, 0, 4), *sources), [])
        return out.tobytes()

    for make in (
        lambda y, x, w, g: rms_norm_mul_steps(y, g, w, 1e-6),
        lambda y, x, w, g: rms_norm_mul_back_steps(y, x, w, g, 1e-6),
        lambda y, x, w, g: softmax.soft_max_steps(y, g, None, 0.3),
        lambda y, x, w, g: softmax.soft_max_steps(y, x, g, 0.3),
        lambda y, x, w, g: softmax.soft_max_back_steps(y, x, g, 0.3),
    ):
        assert len({bits(make, gap) for gap in (0, 4, 60, 64, 128, 400)}) == 1
