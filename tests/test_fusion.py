"""Fusion: which nodes become one kernel, which must not, and that results agree."""

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib.fusion import find_groups
from yupana.graphlib.ops import (
    cpy,
    cross_entropy_loss,
    diag_mask_inf,
    mul_mat,
    rms_norm,
    silu,
    soft_max,
)


def leaf(*shape: int, seed: int = 0) -> yp.Tensor:
    return yp.tensor(np.random.default_rng(seed).standard_normal(shape))


def param(*shape: int, seed: int = 0) -> yp.Tensor:
    values = np.random.default_rng(seed).standard_normal(shape)
    return yp.Context().param(shape, name=f"p{seed}").set(values)


def task_names(*outputs: yp.Tensor) -> list[str]:
    """Names of the tasks of a fused program whose results agree with those of a plain one."""
    fused = yp.Graph(outputs).compile(threads=1)
    fused.run()
    got = [fused.value(output) for output in outputs]
    plain = yp.Graph(outputs).compile(threads=1, fuse=False)
    plain.run()
    for value, output in zip(got, outputs, strict=True):
        np.testing.assert_allclose(value, plain.value(output), rtol=3e-6, atol=3e-6)
    return [task.name for task in fused.tasks]


def test_attention_weights_are_one_kernel() -> None:
    y = soft_max(diag_mask_inf(leaf(2, 5, 5) * 0.5, 0), scale=0.3)
    assert task_names(y) == ["scale+diag_mask_inf+soft_max"]


def test_and_so_is_their_gradient() -> None:
    x = param(2, 5, 5)
    y = soft_max(diag_mask_inf(x * 0.5, 0))
    grads = yp.gradients((y * leaf(2, 5, 5, seed=1)).sum())
    names = task_names(grads[x])
    assert "soft_max_back+diag_mask_zero+scale" in names
    assert "scale+diag_mask_inf+soft_max" in names


def test_a_negative_scale_keeps_the_mask_apart() -> None:
    y = soft_max(diag_mask_inf(leaf(3, 3), 0), scale=-1.0)  # -inf becomes +inf: NaN, not zero
    assert [t.name for t in yp.Graph(y).compile().tasks] == ["diag_mask_inf", "soft_max"]


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: rms_norm(leaf(4, 8)) * leaf(8, seed=1), ["rms_norm+mul"]),
        (lambda: leaf(8, seed=1) * rms_norm(leaf(4, 8)), ["rms_norm+mul"]),
        (lambda: silu(leaf(4, 8)) * leaf(4, 8, seed=1), ["silu+mul"]),
        (lambda: mul_mat(leaf(6, 8), leaf(4, 8)) + leaf(4, 6, seed=1), ["mul_mat+add"]),
        (lambda: leaf(4, 6, seed=1) + mul_mat(leaf(6, 8), leaf(4, 8)), ["mul_mat+add"]),
        # A row that is added to every row is broadcast, which the product cannot do.
        (lambda: mul_mat(leaf(6, 8), leaf(4, 8)) + leaf(6, seed=1), ["mul_mat", "add"]),
        (lambda: rms_norm(leaf(4, 8)) * leaf(4, 8, seed=1), ["rms_norm", "mul"]),
    ],
)
def test_pairs(make, names) -> None:
    assert task_names(make()) == names


def test_sum_and_norm_are_one_kernel_and_the_sum_stays_readable() -> None:
    total = leaf(4, 8) + leaf(4, 8, seed=1)
    y = rms_norm(total)
    z = y + total
    assert task_names(z, total) == ["add+rms_norm", "add"]


def test_gradients_of_norm_and_gate_are_fused() -> None:
    x, w = param(4, 8), param(8, seed=1)
    y = rms_norm(x) * w
    loss = (silu(y) * y.tanh()).sum()
    grads = yp.gradients(loss)
    names = task_names(loss, grads[x], grads[w])
    assert "mul+rms_norm_back" in names
    assert "mul+silu_back" in names


def test_loss_and_its_gradient_take_one_sweep() -> None:
    x = param(6, 5)
    labels = yp.tensor([0, 1, 2, 3, 4, 0])
    loss = cross_entropy_loss(x, labels)
    grads = yp.gradients(loss)
    names = task_names(loss, grads[x])
    assert names == ["cross_entropy_loss+cross_entropy_loss_back"]


def test_what_others_read_is_not_fused_away() -> None:
    gate = silu(leaf(4, 8))
    y = gate * leaf(4, 8, seed=1)
    assert task_names(y, gate) == ["silu", "mul"]  # an output
    assert task_names(y + gate)[:2] == ["silu", "mul"]  # read twice


def test_a_write_between_two_nodes_keeps_them_apart() -> None:
    ctx = yp.Context()
    w, x = ctx.tensor([2.0, 3.0]), leaf(4, 2)
    norm = rms_norm(x) * 1.0
    product = silu(norm)
    stored = cpy(ctx.tensor([7.0, 7.0]), w)
    y = product * w  # recorded after the write: sees sevens
    yp.Graph([y, stored]).compile(threads=1).run()
    assert np.allclose(y.numpy() / silu(norm).numpy(), 7.0)
    graph = yp.Graph([y, stored])
    groups = find_groups(graph.nodes, graph.outputs)
    assert all("mul" not in group.name for group in groups)


def test_updates_wait_for_the_whole_group_that_reads_the_weight() -> None:
    x, w = param(4, 8), param(8, seed=1)
    loss = (rms_norm(x) * w).sqr().sum()
    grads = yp.gradients(loss)
    rate = yp.tensor([0.5, 0.0])
    updates = [yp.ops.opt_step_sgd(p, g, rate) for p, g in grads.items()]
    want = {}
    for fuse in (False, True):
        x.set(np.random.default_rng(0).standard_normal((4, 8)))
        w.set(np.random.default_rng(1).standard_normal(8))
        yp.Graph([loss, *updates]).compile(threads=1, fuse=fuse).run()
        want[fuse] = np.concatenate([x.numpy().ravel(), w.numpy()])
    np.testing.assert_allclose(want[True], want[False], rtol=1e-6, atol=1e-6)
