"""Attention in one op against the matrix of all scores, PyTorch, and its own promises."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import yupana as yp
from yupana.graphlib import check, ops
from yupana.graphlib.errors import GradientError
from yupana.graphlib.kernels import attention as kernels
from yupana.graphlib.op import REGISTRY
from yupana.testing import traces


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def unfused(q, k, v, mask=None, n_past=None, scale=None, max_bias=0.0, logit_softcap=0.0):
    """The same with the matrix of all scores; `mul_mat` groups heads as they should be."""
    scores = ops.mul_mat(k, q) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if logit_softcap:
        scores = ops.tanh(scores / logit_softcap) * logit_softcap
    if n_past is not None:
        scores = ops.diag_mask_inf(scores, n_past)
    return ops.mul_mat(ops.cont(v.T), ops.soft_max(scores, mask, max_bias=max_bias))


def run(attend, arrays, dtype="f64", mask=None, threads=1, **settings):
    """The result, and the gradients of a weighted sum of it."""
    context = yp.Context()
    leaves = [context.param(a.shape, dtype).set(a) for a in arrays]
    if mask is not None:
        settings["mask"] = context.tensor(mask, dtype)
    y = attend(*leaves, **settings)
    loss = (y * context.tensor(normal(9, *y.shape), dtype)).sum()
    graph = yp.Graph([y, loss])
    grads = graph.backward(loss)
    graph.compile(threads=threads).run()
    return [y.numpy(), *(grads[leaf].numpy() for leaf in leaves)]


def operands(batch, heads, group, rows, keys, width, values):
    shapes = [
        (batch, heads * group, rows, width),
        *((batch, heads, keys, n) for n in (width, values)),
    ]
    return [normal(k, *shape) for k, shape in enumerate(shapes)]


# Batch, heads of k, heads of q for each, T, S, K, V: around the sizes of blocks and vectors, and
# few heads with many rows, which are cut in pieces.
SIZES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 2, 7, 9, 5, 3),
    (2, 1, 4, 1, 65, 16, 16),
    (1, 2, 3, 33, 31, 17, 48),
    (1, 1, 1, 257, 255, 8, 33),
    (2, 2, 1, 64, 512, 64, 64),
    (1, 1, 2, 300, 530, 24, 16),
]
WAYS = [{}, {"n_past": 0}, {"n_past": 250, "scale": -0.3}]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sizes", SIZES)
def test_results_and_gradients_are_those_with_all_scores(sizes, way):
    arrays = operands(*sizes)
    want = run(unfused, arrays, **way)
    for dtype, digits in (("f64", 1e-11), ("f32", 3e-5)):
        for got, right in zip(run(ops.flash_attn, arrays, dtype, **way), want, strict=True):
            np.testing.assert_allclose(got, right, rtol=digits, atol=digits)


@pytest.mark.parametrize("shape", [(6, 40, 70), (1, 40, 70), (40, 70), (1, 70), (70,)])
def test_masks_are_added_and_broadcast(shape):
    arrays = operands(2, 3, 2, 40, 70, 9, 12)
    mask = normal(7, *shape)
    mask[..., 3:9] = -np.inf
    want = run(unfused, arrays, mask=mask)
    for got, right in zip(run(ops.flash_attn, arrays, mask=mask), want, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("settings", [{"max_bias": 8.0}, {"logit_softcap": 2.0}, {}])
@pytest.mark.parametrize("sizes", [(1, 3, 2, 40, 70, 9, 12), (2, 1, 3, 1, 300, 16, 16)])
def test_slopes_and_caps_bend_the_scores(sizes, settings):
    arrays, n_keys = operands(*sizes), sizes[4]
    mask = -np.abs(np.arange(sizes[3])[:, None] - np.arange(n_keys)) / 4.0
    settings = settings or {"max_bias": 3.0, "logit_softcap": 1.5, "n_past": n_keys // 2}
    want = run(unfused, arrays, mask=mask, **settings)
    for dtype, digits in (("f64", 1e-11), ("f32", 3e-5)):
        found = run(ops.flash_attn, arrays, dtype, mask, **settings)
        for got, right in zip(found, want, strict=True):
            np.testing.assert_allclose(got, right, rtol=digits, atol=digits)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("dtype", "digits"), [("f64", 1e-10), ("f32", 3e-5)])
def test_torch_gets_the_same(sizes, causal, dtype, digits):
    torch = pytest.importorskip("torch", reason="compares with torch, which is not installed")
    arrays = operands(*sizes)
    kind = {"f64": torch.float64, "f32": torch.float32}[dtype]
    q, k, v = leaves = [torch.tensor(a, dtype=kind, requires_grad=True) for a in arrays]
    group = sizes[2]
    want = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), is_causal=causal
    )
    (want * torch.tensor(normal(9, *want.shape), dtype=kind)).sum().backward()
    found = run(ops.flash_attn, arrays, dtype, n_past=0 if causal else None)
    for got, right in zip(found, [want.detach(), *(x.grad for x in leaves)], strict=True):
        np.testing.assert_allclose(got, right.numpy(), rtol=digits, atol=digits)


@pytest.mark.parametrize("name", ["flash_attn_packed", "flash_attn_back"])
@pytest.mark.parametrize("name_of_property", ["forward", "gradient_f32", "memory", "threads"])
def test_small_blocks_and_pieces_change_nothing(name, name_of_property, monkeypatch):
    for constant, value in (("_ROW_BLOCK", 8), ("_KEY_BLOCK", 16), ("_PIECE", 8)):
        monkeypatch.setattr(kernels, constant, value)

    @given(traces(REGISTRY[name].samples))
    def holds(trace):
        check.check_property(REGISTRY[name], name_of_property, trace, shrink=False)

    holds()


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1030, 500, 16, 16), (2, 2, 2, 70, 90, 32, 8)])
def test_threads_do_not_change_a_bit(sizes):
    first, *others = (
        run(ops.flash_attn, operands(*sizes), "f32", threads=n, n_past=3) for n in (1, 2, 3)
    )
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert a.tobytes() == b.tobytes()


def peak(attend, rows):
    q, k, v = (yp.Context().param((1, 2, rows, 16)) for _ in range(3))
    loss = attend(q, k, v, n_past=0).sum()
    graph = yp.Graph([loss])
    graph.backward(loss)
    plan = graph.plan()
    return plan.peak


def test_memory_grows_with_the_rows_and_not_with_their_square():
    assert peak(ops.flash_attn, 4096) < 2.1 * peak(ops.flash_attn, 2048)
    assert peak(unfused, 4096) > 3.5 * peak(unfused, 2048)
    assert peak(ops.flash_attn, 4096) < peak(unfused, 4096) / 100


@given(st.integers(1, 5000), st.booleans())
def test_scratch_memory_does_not_grow_with_the_keys(keys, back):
    def scratch(n):
        q, k, v = (yp.Context().param((1, 2, m, 16)) for m in (64, n, n))
        y = ops.flash_attn(q, k, v)
        graph = yp.Graph([y])
        if back:
            loss = y.sum()
            graph = yp.Graph([loss])
            graph.backward(loss)
        program = graph.compile(threads=1)
        return max(step.scratch for steps in program.steps for step in steps)

    assert scratch(keys) <= 1.05 * scratch(2000)  # keys are cut in even blocks


def test_a_row_that_sees_nothing_is_zero_and_passes_no_gradient():
    arrays = operands(1, 1, 1, 3, 300, 4, 4)
    mask = np.zeros((3, 300))
    mask[1] = -np.inf
    for dtype in ("f32", "f64"):
        y, dq, dk, dv = run(ops.flash_attn, arrays, dtype, mask=mask)
        np.testing.assert_array_equal(y[0, 0, 1], 0)
        np.testing.assert_array_equal(dq[0, 0, 1], 0)
        rest = [a[:, :, [0, 2]] if k == 0 else a for k, a in enumerate(arrays)]
        assert np.isfinite([dk, dv]).all()
        assert (y[0, 0, 0] != 0).all()
        seen = run(ops.flash_attn, rest, dtype)[0]
        np.testing.assert_array_equal(seen, y[:, :, [0, 2]])


@pytest.mark.parametrize("keys", [0, 5])
@pytest.mark.parametrize("rows", [0, 4])
def test_nothing_to_see_and_nobody_to_see_it(rows, keys):
    arrays = operands(2, 1, 2, rows, keys, 3, 4)
    for found in run(ops.flash_attn, arrays, "f32"):
        assert np.isfinite(found).all()
        if 0 in (rows, keys):
            np.testing.assert_array_equal(found, 0)


def test_huge_scores_do_not_overflow():
    q, k = (np.full((1, 1, 2, 4), x) for x in (300.0, 1.0))
    k = np.repeat(k, 150, 2)
    k[0, 0, 3:] = -1
    y = run(ops.flash_attn, [q, k, normal(0, 1, 1, 300, 4)], "f32")
    want = run(ops.flash_attn, [q, k, normal(0, 1, 1, 300, 4)], "f64")
    for got, right in zip(y, want, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_types_and_views_are_read_where_they_lie(dtype):
    q, k, v = (yp.tensor(normal(n, 2, 50, 4, 20), dtype) for n in range(3))
    heads = [x.permute(0, 2, 1, 3)[..., 1:18] for x in (q, k, v)]
    y = ops.flash_attn(*heads, n_past=2)
    wide = [yp.tensor(x.numpy(), "f64") for x in heads]
    assert y.dtype.name == "f32"
    np.testing.assert_allclose(y.numpy(), unfused(*wide, n_past=2).numpy(), rtol=3e-5, atol=3e-5)


def test_the_three_gradients_are_one_node_and_heads_join_without_a_copy():
    q, k, v = (yp.Context().param((2, 50, 4, 8)) for _ in range(3))
    heads = [x.permute(0, 2, 1, 3) for x in (q, k, v)]
    y = ops.flash_attn(*heads).permute(0, 2, 1, 3)
    assert y.is_contiguous
    loss = (y.reshape(2, 50, 32) * 2.0).sum()
    graph = yp.Graph([loss])
    grads = graph.backward(loss)
    names = [node.op.name for node in graph.nodes]
    assert names.count("flash_attn_back") == names.count("flash_attn_packed") == 1
    assert "cont" not in names
    assert all(grads[x].is_contiguous for x in (q, k, v))


def test_the_logarithms_have_a_gradient_too():
    leaves = [yp.Context().param(a.shape, "f64").set(a) for a in operands(1, 2, 1, 5, 6, 3, 4)]
    packed = ops.flash_attn_packed(*leaves, n_past=1)
    rows = yp.Graph([packed])  # what is looked at twice gets both gradients
    loss = (packed * packed).sum() + packed[-3:].sum()
    graph = yp.Graph([loss, *rows.outputs])
    grads = graph.backward(loss)
    program = graph.compile(threads=1)
    program.run()
    for leaf in leaves:
        at, along, step = leaf.numpy(), normal(4, *leaf.shape), 1e-5
        got, values = float((grads[leaf].numpy() * along).sum()), []
        for sign in (1, -1):
            leaf.set(at + sign * step * along)
            program.run()
            values.append(loss.item())
        leaf.set(at)
        program.run()
        assert got == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


def test_losses_of_one_result_keep_their_gradients_apart():
    arrays = operands(1, 1, 1, 4, 4, 3, 3)
    leaves = [yp.Context().param(a.shape, "f64").set(a) for a in arrays]
    y = ops.flash_attn(*leaves)
    found = []
    for factor in (1.0, 3.0):
        loss = (y * yp.tensor(factor, "f64")).sum()
        found.append(yp.gradients(loss)[leaves[2]])
    graph = yp.Graph(found)
    graph.compile().run()
    np.testing.assert_allclose(3 * found[0].numpy(), found[1].numpy(), rtol=1e-12)


def test_second_derivatives_are_refused_when_backward_is_built():
    q, k, v = (yp.Context().param((1, 1, 3, 4)) for _ in range(3))
    grad = yp.gradients(ops.flash_attn(q, k, v).sum())[q]
    with pytest.raises(GradientError, match="flash_attn_back: has no gradient"):
        yp.gradients((grad * grad).sum())


def test_a_mask_with_a_gradient_is_refused():
    q, k, v = (yp.tensor(normal(n, 3, 4)) for n in range(3))
    with pytest.raises(GradientError, match="flash_attn_packed: has no gradient"):
        yp.gradients(ops.flash_attn(q, k, v, yp.Context().param((3, 3))).sum())


def test_recomputed_attention_gives_the_same_gradients():
    def gradient(checkpoints):
        x = yp.Context().param((2, 2, 9, 8)).set(normal(0, 2, 2, 9, 8))
        first = ops.flash_attn(x, x, x, n_past=0)
        second = ops.flash_attn(first, first, first, n_past=0)
        loss = (second * second).sum()
        found = yp.gradients(loss, [first] if checkpoints else None)[x]
        graph = yp.Graph([found])
        graph.compile().run()
        return found.numpy()

    np.testing.assert_array_equal(gradient(True), gradient(False))
