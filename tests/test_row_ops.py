"""What rows promise beyond the properties every op is tested for; fused groups of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import yupana as yp
from tests.kernel_steps import run
from yupana.graphlib import ops
from yupana.graphlib.kernels.blocks import View
from yupana.graphlib.kernels.softmax import causal_soft_max_steps, soft_max_steps
from yupana.graphlib.ops import gates
from yupana.graphlib.ops.norm import (
    add_rms_norm_steps,
    rms_norm_mul_back_steps,
    rms_norm_mul_steps,
)


def view(array):
    code = {np.float32: 0, np.float64: 2}[array.dtype.type]
    return View(array.ctypes.data, array.shape, array.strides, code, array.itemsize)


def normal(seed, *shape, kind=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(kind)


def wide(*arrays):
    return [a.astype(np.float64) for a in arrays]


sizes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 140))
kinds = st.sampled_from([np.float32, np.float64])


def close(got, want, kind):
    np.testing.assert_allclose(got, want, rtol=0, atol=20 * np.finfo(kind).eps * np.abs(want).max())


@given(sizes, kinds, st.integers(0, 150), st.sampled_from([1.0, 0.3, -2.0]))
def test_causal_soft_max_is_scale_mask_soft_max(shape, kind, n_past, scale):
    x = 4 * normal(0, *shape, kind=kind)
    y = np.full_like(x, np.nan)
    run(causal_soft_max_steps(view(y), view(x), scale, n_past))
    hidden = ops.diag_mask_inf.reference(x.astype(np.float64) * scale, n_past)
    close(y, ops.soft_max.reference(hidden), kind)
    rows, columns = np.indices(shape[1:])
    assert (y[:, columns > n_past + rows] == 0).all()


@given(sizes, kinds)
def test_norm_and_product_in_one_pass(shape, kind):
    x, g, w = normal(0, *shape, kind=kind), normal(1, *shape, kind=kind), normal(2, shape[-1])
    w = w.astype(kind)
    y, dx, total = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    run(rms_norm_mul_steps(view(y), view(x), view(w), 1e-3))
    close(y, ops.rms_norm.reference(*wide(x), 1e-3) * w, kind)
    run(rms_norm_mul_back_steps(view(dx), view(x), view(w), view(g), 1e-3))
    product = g.astype(np.float64) * w
    want = ops.rms_norm_back.reference(*wide(x), product, 1e-3)
    # Much cancels where a row has few elements: the error is that of what is subtracted.
    size = np.abs(ops.inverse_rms.reference(*wide(x), 1e-3) * product).max()
    np.testing.assert_allclose(dx, want, rtol=0, atol=30 * np.finfo(kind).eps * size)
    run(add_rms_norm_steps(view(y), view(total), view(x), view(g), 1e-3))
    np.testing.assert_array_equal(total, x + g)
    close(y, ops.rms_norm.reference(*wide(total), 1e-3), kind)


@given(sizes, kinds)
def test_gated_product_in_one_pass(shape, kind):
    a, b, g = (3 * normal(k, *shape, kind=kind) for k in range(3))
    y, da = np.empty_like(a), np.empty_like(a)
    run(gates.silu_mul_steps(view(y), view(a), view(b)))
    close(y, ops.silu.reference(*wide(a)) * b, kind)
    run(gates.silu_mul_back_steps(view(da), view(a), view(b), view(g)))
    close(da, ops.silu_back.reference(*wide(a), g.astype(np.float64) * b), kind)


def soft_max(x, mask=None):
    x = np.atleast_2d(np.array(x, np.float32))
    y = np.empty_like(x)
    masked = None if mask is None else view(np.array(mask, np.float32))
    run(soft_max_steps(view(y), view(x), masked, 1.0))
    return y


def test_soft_max_of_a_hidden_row_is_zero_and_passes_no_gradient():
    x = yp.Context().param((2, 3)).set([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    mask = yp.tensor([[-np.inf] * 3, [0.0, -np.inf, 0.0]])
    y = ops.soft_max(x, mask)
    loss = (y * y).sum()
    graph = yp.Graph([loss, y])
    grad = graph.backward(loss)[x]
    graph.compile().run()
    np.testing.assert_array_equal(y.numpy()[0], 0)
    assert y.numpy()[1, 1] == 0
    np.testing.assert_allclose(y.numpy()[1].sum(), 1, rtol=1e-6)
    np.testing.assert_array_equal(grad.numpy()[0], 0)
    assert (grad.numpy()[1, [0, 2]] != 0).all()


@pytest.mark.parametrize("n", [1, 7, 64, 100])
def test_soft_max_of_large_equal_and_broken_scores(n):
    np.testing.assert_allclose(soft_max(np.full(n, 3e38)), 1 / n, rtol=1e-6)
    np.testing.assert_allclose(soft_max(np.full(n, -3e38)), 1 / n, rtol=1e-6)
    for broken in (np.nan, np.inf):
        x = np.zeros(n)
        x[-1] = broken
        assert np.isnan(soft_max(x)).all()
    one = np.full(n, -np.inf)
    one[n // 2] = -5
    np.testing.assert_array_equal(soft_max(one)[0], np.arange(n) == n // 2)


def rope(x, positions, **settings):
    return ops.rope(yp.tensor(x, x.dtype), yp.tensor(positions), **settings).numpy()


@pytest.mark.parametrize("mode", ["normal", "neox"])
@pytest.mark.parametrize("width", [2, 4, 32, 128, 160])
def test_rope_at_far_positions(mode, width):
    x = normal(0, 4, 3, width)
    positions = np.array([0, 4095, 999_999, 2**24 + 1], np.int32)
    angle = positions[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    pairs = (np.s_[..., ::2], np.s_[..., 1::2])
    if mode == "neox":
        pairs = (np.s_[..., : width // 2], np.s_[..., width // 2 :])
    a, b = (x[p].astype(np.float64) for p in pairs)
    y = rope(x, positions, mode=mode)
    np.testing.assert_allclose(y[pairs[0]], a * c - b * s, atol=2e-6)
    np.testing.assert_allclose(y[pairs[1]], a * s + b * c, atol=2e-6)


@pytest.mark.parametrize("mode", ["normal", "neox"])
def test_rope_makes_scores_depend_on_distance_only(mode):
    q, k = normal(1, 1, 1, 16, kind=np.float64), normal(2, 1, 1, 16, kind=np.float64)

    def score(m, n):
        return float((rope(q, [m], mode=mode) * rope(k, [n], mode=mode)).sum())

    assert score(7, 3) == pytest.approx(score(1004, 1000), rel=1e-10)
    assert score(7, 3) != pytest.approx(score(7, 4), rel=1e-3)


@given(st.integers(1, 8), st.integers(1, 6), st.booleans())
def test_rope_back_undoes_rope(heads, half, in_place):
    x = normal(heads, 2, 5, heads, 2 * half, kind=np.float64)
    positions = yp.tensor(np.arange(5) * 11)
    y = ops.rope(yp.tensor(x, "f64"), positions)
    back = ops.rope_back(y if in_place else ops.cont(y), positions)
    np.testing.assert_allclose(back.numpy(), x, atol=1e-13)


def test_rope_sees_positions_through_strides():
    x = normal(0, 3, 1, 4)
    positions = yp.tensor(np.arange(6))[::2]
    np.testing.assert_array_equal(
        ops.rope(yp.tensor(x), positions).numpy(), rope(x, np.array([0, 2, 4]))
    )


def test_rows_agree_with_torch():
    torch = pytest.importorskip("torch", reason="compares with torch, which is not installed")
    x = normal(0, 4, 33, kind=np.float64)
    leaf = yp.Context().param(x.shape, "f64").set(x)
    t = torch.tensor(x, requires_grad=True)
    y = ops.soft_max(leaf.rms_norm(1e-5).silu(), scale=0.7)
    want = torch.nn.functional.rms_norm(t, (33,), eps=1e-5)
    want = torch.softmax(torch.nn.functional.silu(want) * 0.7, -1)
    loss = (y * y).sum()
    graph = yp.Graph([loss, y])
    grad = graph.backward(loss)[leaf]
    graph.compile().run()
    (want * want).sum().backward()
    np.testing.assert_allclose(y.numpy(), want.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(grad.numpy(), t.grad.numpy(), rtol=1e-9, atol=1e-12)
