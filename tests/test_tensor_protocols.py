"""Tensors under Python's own signs and functions, and as NumPy's arguments."""

import inspect

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib.errors import OperandError, PlaceError, ShapeError
from yupana.graphlib.methods import Methods

VALUES = np.array([[1.0, 2.0, 4.0], [0.5, 3.0, 9.0]], np.float32)
METHODS = [n for n in vars(Methods) if hasattr(yp.ops, n) and not n.startswith("_")]


@pytest.fixture
def x():
    return yp.tensor(VALUES)


def test_loops_go_over_the_first_axis(x):
    rows = [row.numpy() for row in x]
    np.testing.assert_array_equal(rows, VALUES)
    first, second = x
    assert first.shape == second.shape == (3,)
    assert first.root is x  # a view
    assert [float(n) for n in x[1]] == [0.5, 3.0, 9.0]
    assert [*yp.tensor(np.zeros((0, 2)))] == []
    with pytest.raises(ShapeError, match="without axes"):
        [*x.sum()]


def test_numbers_beyond_an_axis_are_index_errors(x):
    assert x[-2, -3].item() == 1.0
    for key in (2, -3, (0, 3), (0, -4)):
        with pytest.raises(PlaceError, match="want -"):
            x[key]
    assert issubclass(PlaceError, IndexError)
    assert issubclass(PlaceError, ShapeError)


def test_a_tensor_is_not_searched(x):
    with pytest.raises(TypeError, match=r"in: a tensor is not searched.*Use x\.numpy\(\)"):
        _ = 1.0 in x


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "i32", "f64"])
def test_numpy_takes_what_numpy_gives(dtype):
    x = yp.tensor([[1, 2], [3, 4]], dtype)
    made = np.asarray(x)
    assert made.dtype == x.numpy().dtype
    np.testing.assert_array_equal(made, [[1, 2], [3, 4]])
    assert np.asarray(x, np.int64).dtype == np.int64
    np.testing.assert_array_equal(np.asarray(x.T.cont()), [[1, 3], [2, 4]])
    np.testing.assert_array_equal(np.stack([*x]), [[1, 2], [3, 4]])
    made[0, 0] = 9
    assert x[0, 0].item() == 1
    with pytest.raises(ValueError, match="always a copy"):
        np.array(x, copy=False)


def test_one_element_is_a_number(x):
    assert float(x.sum()) == 19.5
    assert int(x.sum()) == 19
    with pytest.raises(ShapeError, match="want one element"):
        float(x)
    with pytest.raises(ShapeError, match="want one element"):
        int(x)
    with pytest.raises(ShapeError, match="no truth value"):
        bool(x.sum())


@pytest.mark.parametrize("power", [2, 0.5, 1, 3, -1, -2, -0.5, 2.0, -1.0])
def test_powers_that_ops_have(x, power):
    np.testing.assert_allclose((x**power).numpy(), VALUES**power, rtol=1e-6)


@pytest.mark.parametrize("power", [1.5, 0, "x", None, np.ones(3), yp.tensor(2.0)])
def test_other_powers_are_told(x, power):
    with pytest.raises(OperandError, match=r"power: got .*, want 0\.5, 1, 2, 3 or their negatives"):
        x**power


def test_powers_and_absolute_values_have_gradients():
    w = yp.Context().param((3,), name="w").set([-2.0, 1.0, 4.0])
    loss = (abs(w) ** 0.5 + w**3 + 1 / w**2).sum()
    graph = yp.Graph(loss)
    grads = graph.backward(loss)
    graph.compile().run()
    v = w.numpy()
    want = np.sign(v) * 0.5 / np.sqrt(abs(v)) + 3 * v**2 - 2 / v**3
    np.testing.assert_allclose(grads[w].numpy(), want, rtol=1e-6)


def test_methods_are_the_ops_of_their_names_with_their_arguments(x):
    assert len(METHODS) > 45
    for name in METHODS:
        op = getattr(yp.ops, name)
        rule = inspect.signature(getattr(op, "rule", op)).parameters
        method = inspect.signature(getattr(x, name)).parameters
        if name in ("reshape", "permute"):  # which take `reshape(2, 3)`, too
            continue
        assert [*method] == [*rule][1:], name
        for key, parameter in method.items():
            assert parameter.default == rule[key].default, (name, key)
    alone = [n for n in METHODS if not inspect.signature(getattr(x, n)).parameters]
    for name in alone:
        np.testing.assert_array_equal(getattr(x, name)().numpy(), getattr(yp.ops, name)(x).numpy())


def test_methods_with_arguments_pass_them_on(x):
    w, index = yp.tensor(np.eye(2, 3)), yp.tensor([1, 1, 0])
    for got, want in (
        (x.reshape(3, 2), yp.ops.reshape(x, (3, 2))),
        (x.permute(1, 0), yp.ops.permute(x, (1, 0))),
        (x.view((2, 2), (12, 4), 4), yp.ops.view(x, (2, 2), (12, 4), 4)),
        (x.repeat((4, 3)), yp.ops.repeat(x, (4, 3))),
        (x.cast("i32"), yp.ops.cast(x, "i32")),
        (x.scale(0.5), yp.ops.scale(x, 0.5)),
        (x.clamp(1, 3), yp.ops.clamp(x, 1, 3)),
        ((-x).leaky_relu(0.3), yp.ops.leaky_relu(-x, 0.3)),
        (x.cumsum(True), yp.ops.cumsum(x, True)),
        (x.argsort(True), yp.ops.argsort(x, True)),
        (x.top_k(2), yp.ops.top_k(x, 2)),
        (x.get_rows(index), yp.ops.get_rows(x, index)),
        (w.mul_mat(x), yp.ops.mul_mat(w, x)),
        (x.norm(0.1), yp.ops.norm(x, 0.1)),
        (x.rms_norm(0.1), yp.ops.rms_norm(x, 0.1)),
        (x.l2_norm(0.1), yp.ops.l2_norm(x, 0.1)),
        (x.soft_max(None, 0.5), yp.ops.soft_max(x, None, 0.5)),
    ):
        assert got.op is want.op
        np.testing.assert_array_equal(got.numpy(), want.numpy())
