"""Convolutions and pooling: what they compute against PyTorch, and their gradients."""

import numpy as np
import pytest
from hypothesis import given

import yupana as yp
from yupana.graphlib import check, ops
from yupana.graphlib.errors import SettingError, ShapeError
from yupana.graphlib.kernels import windows
from yupana.testing import traces


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def run(op, arrays, **settings):
    """The result of `op` and the gradients of a weighted sum of it, in float64; and the weights."""
    leaves = [yp.Context().param(a.shape, "f64").set(a) for a in arrays]
    y = op(*leaves, **settings)
    weights = normal(9, *y.shape)
    loss = (y * yp.tensor(weights, "f64")).sum()
    graph = yp.Graph([y, loss])
    grads = graph.backward(loss)
    graph.compile().run()
    return y.numpy(), [grads[leaf].numpy() for leaf in leaves], weights


def check_against_torch(op, torch_op, arrays, settings, torch_settings=None):
    torch = pytest.importorskip("torch", reason="compares with torch, which is not installed")
    y, grads, weights = run(op, arrays, **settings)
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    want = torch_op(torch)(*leaves, **(settings if torch_settings is None else torch_settings))
    (want * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(y, want.detach().numpy(), rtol=1e-10, atol=1e-12)
    for got, leaf in zip(grads, leaves, strict=True):
        np.testing.assert_allclose(got, leaf.grad.numpy(), rtol=1e-10, atol=1e-12)


SIGNALS = [
    ((3, 2, 3), (2, 2, 9), {}),
    ((1, 1, 1), (1, 1, 1), {}),
    ((4, 3, 4), (2, 3, 50), {"stride": 2, "padding": 3, "dilation": 2}),
    ((2, 3, 5), (3, 3, 71), {"stride": 3, "padding": 1}),
    ((2, 3, 3), (3, 40), {"padding": 1}),
]
IMAGES = [
    ((3, 2, 3, 3), (2, 2, 5, 7), {}),
    ((4, 3, 2, 5), (1, 3, 9, 40), {"stride": (2, 1), "padding": (0, 4), "dilation": (3, 2)}),
    ((2, 3, 4, 1), (2, 3, 6, 5), {"stride": 2, "padding": 2}),
    ((5, 2, 3, 3), (2, 8, 8), {"padding": 1}),
]


def swapped(torch_op):
    """PyTorch takes the input first, ggml the weights."""
    return lambda w, x, **settings: torch_op(x, w, **settings)


@pytest.mark.parametrize(("w", "x", "settings"), SIGNALS)
def test_conv_1d_is_torchs(w, x, settings):
    arrays = [normal(0, *w), normal(1, *x)]
    check_against_torch(
        ops.conv_1d, lambda torch: swapped(torch.nn.functional.conv1d), arrays, settings
    )


@pytest.mark.parametrize(("w", "x", "settings"), IMAGES)
def test_conv_2d_is_torchs(w, x, settings):
    arrays = [normal(0, *w), normal(1, *x)]
    check_against_torch(
        ops.conv_2d, lambda torch: swapped(torch.nn.functional.conv2d), arrays, settings
    )


@pytest.mark.parametrize(("w", "x", "settings"), IMAGES)
def test_conv_2d_dw_is_torchs_grouped(w, x, settings):
    channels = x[-3]
    arrays = [normal(0, channels, 1, *w[2:]), normal(1, *x)]
    check_against_torch(
        ops.conv_2d_dw,
        lambda torch: swapped(torch.nn.functional.conv2d),
        arrays,
        settings,
        {**settings, "groups": channels},
    )


@pytest.mark.parametrize(("w", "x", "settings"), SIGNALS)
def test_conv_transpose_1d_is_torchs(w, x, settings):
    arrays = [normal(0, x[-2], *w[:1], *w[2:]), normal(1, *x)]
    check_against_torch(
        ops.conv_transpose_1d,
        lambda torch: swapped(torch.nn.functional.conv_transpose1d),
        arrays,
        settings,
    )


@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize(("w", "x", "settings"), IMAGES)
def test_conv_transpose_2d_is_torchs(w, x, settings, stride):
    arrays = [normal(0, x[-3], *w[:1], *w[2:]), normal(1, *x)]
    check_against_torch(
        ops.conv_transpose_2d_p0,
        lambda torch: swapped(torch.nn.functional.conv_transpose2d),
        arrays,
        {"stride": stride},
    )


def test_half_padding_and_patches():
    w, x = yp.tensor(normal(0, 4, 2, 3)), yp.tensor(normal(1, 1, 2, 10))
    np.testing.assert_array_equal(
        ops.conv_1d_ph(w, x, 1, 2).numpy(), ops.conv_1d(w, x, 1, 1, 2).numpy()
    )
    assert ops.conv_1d_ph(w, x).shape == (1, 4, 10)
    w, x = yp.tensor(normal(0, 4, 2, 3, 5)), yp.tensor(normal(1, 2, 9, 10))
    same = ops.conv_2d(w, x, padding=(1, 2))
    np.testing.assert_array_equal(ops.conv_2d_s1_ph(w, x).numpy(), same.numpy())
    assert same.shape == (4, 9, 10)
    patches = ops.conv_2d(w, x, stride=(3, 5))
    np.testing.assert_array_equal(ops.conv_2d_sk_p0(w, x).numpy(), patches.numpy())
    assert patches.shape == (4, 3, 2)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_convolution_of_other_dtypes_and_strides(dtype):
    w = yp.tensor(normal(0, 3, 3, 2, 4), dtype).permute(3, 2, 0, 1)  # (4, 2, 3, 3)
    x = yp.tensor(normal(1, 8, 9, 2, 2), dtype).permute(3, 2, 0, 1)[:, :, ::2]  # (2, 2, 4, 9)
    y = ops.conv_2d(w, x, padding=1).numpy()
    want = ops.conv_2d(yp.tensor(w.numpy(), "f64"), yp.tensor(x.numpy(), "f64"), padding=1)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, want.numpy(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["im2col", "im2col_back"])
def test_chunks_of_single_planes_change_nothing(name, monkeypatch):
    op = getattr(ops, name)
    monkeypatch.setattr(windows, "_PLANE_BYTES", 1)

    @given(traces(op.samples))
    def holds(trace):
        for name_of_property in ("forward", "threads", "gradient_f32"):
            check.check_property(op, name_of_property, trace, shrink=False)

    holds()


def test_convolution_has_second_derivatives():
    x, w = yp.Context().param((1, 2, 6), "f64"), yp.tensor(normal(0, 3, 2, 3), "f64")
    x.set(normal(1, 1, 2, 6))
    y = ops.conv_1d(w, x, padding=1)
    loss = (y * y * y).sum()
    grad = yp.gradients(loss)[x]
    second = (grad * grad).sum()
    graph = yp.Graph([second])
    found = graph.backward(second)[x]
    graph.compile().run()
    at, step, along = x.numpy(), 1e-5, normal(2, 1, 2, 6)

    def value(sign):
        x.set(at + sign * step * along)
        graph.compile().run()
        return second.item()

    got = float((found.numpy() * along).sum())
    assert got == pytest.approx((value(1) - value(-1)) / (2 * step), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda w, x: ops.conv_2d(w, x[:, :1]), ShapeError, "conv_2d: weights and input"),
        (lambda w, x: ops.conv_1d(w, x), ShapeError, "conv_1d: weights and input"),
        (lambda w, x: ops.conv_2d(w, x, stride=0), SettingError, "stride 0"),
        (lambda w, x: ops.conv_2d(w, x[:, :, :1]), ShapeError, "does not fit"),
        (lambda w, x: ops.conv_2d_dw(w, x), ShapeError, "weights (2, 1, kh, kw)"),
        (lambda w, x: ops.conv_transpose_2d_p0(w, x), ShapeError, "conv_transpose_2d_p0"),
        (lambda w, x: ops.conv_transpose_1d(w[0], x[0, 0]), ShapeError, "conv_transpose_1d"),
        (
            lambda w, x: ops.conv_transpose_1d(w[:2, 0, :], x[0, :, 0], padding=9),
            ShapeError,
            "Take less padding",
        ),
    ],
)
def test_wrong_convolutions_say_what_was_wrong(call, error, words):
    w, x = yp.tensor(normal(0, 3, 2, 3, 3)), yp.tensor(normal(1, 1, 2, 4, 4))
    with pytest.raises(error) as caught:
        call(w, x)
    assert words in str(caught.value)


POOLS = [
    ((2, 3, 6, 8), (2, 2), None, 0),
    ((1, 2, 7, 50), (3, 5), (1, 2), (1, 2)),
    ((3, 9, 9), (4, 4), (3, 1), 2),
    ((2, 1, 1), (1, 1), 1, 0),
]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("shape", "window", "stride", "padding"), POOLS)
def test_mean_pooling_is_torchs(shape, window, stride, padding, whole):
    settings = {"stride": stride, "padding": padding}
    check_against_torch(
        lambda x, **p: ops.pool_2d(x, "avg", window, **p),
        lambda torch: lambda x, **p: torch.nn.functional.avg_pool2d(x, window, **p),
        [normal(0, *shape)],
        {**settings, "count_padding": whole},
        {**settings, "count_include_pad": whole},
    )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("shape", "window", "stride", "padding"), POOLS)
def test_max_pooling_is_torchs(shape, window, stride, padding, ties):
    x = normal(0, *shape)
    check_against_torch(
        lambda x, **p: ops.pool_2d(x, "max", window, **p),
        lambda torch: lambda x, **p: torch.nn.functional.max_pool2d(x, window, **p),
        [np.round(x) if ties else x],  # PyTorch, too, gives the first of equals the gradient
        {"stride": stride, "padding": padding},
    )


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize(("n", "window", "stride", "padding"), [(11, 3, 2, 1), (40, 4, 4, 0)])
def test_pool_1d_is_torchs(kind, n, window, stride, padding):
    def torch_pool(torch):
        if kind == "max":
            return lambda x: torch.nn.functional.max_pool1d(x, window, stride, padding)
        return lambda x: torch.nn.functional.avg_pool1d(
            x, window, stride, padding, count_include_pad=False
        )

    check_against_torch(
        lambda x: ops.pool_1d(x, kind, window, stride, padding),
        torch_pool,
        [normal(0, 2, 3, n)],
        {},
    )


def test_the_first_of_equal_elements_gets_the_gradient():
    x = yp.Context().param((3, 3)).set(np.zeros((3, 3)))
    y = ops.pool_2d(x, "max", 2, 1)
    loss = (y * yp.tensor([[1.0, 2.0], [4.0, 8.0]])).sum()
    graph = yp.Graph([loss])
    grad = graph.backward(loss)[x]
    graph.compile().run()
    np.testing.assert_array_equal(grad.numpy(), [[1, 2, 0], [4, 8, 0], [0, 0, 0]])


def test_padding_counts_in_two_axes_and_not_in_one():
    x = yp.tensor([[6.0, 6.0]])
    np.testing.assert_array_equal(ops.pool_2d(x, "avg", (1, 2), padding=(0, 1)).numpy(), [[3, 3]])
    np.testing.assert_array_equal(ops.pool_1d(x, "avg", 2, padding=1).numpy(), [[6, 6]])


def test_pooling_keeps_nan_and_infinity():
    x = yp.tensor([[np.nan, 5.0, 1.0, np.inf, -np.inf, -np.inf]])
    largest = ops.pool_2d(x, "max", (1, 2)).numpy()
    np.testing.assert_array_equal(largest, [[np.nan, np.inf, -np.inf]])
