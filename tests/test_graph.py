"""Graph: order of evaluation, writes into shared memory, gradients and their refusals."""

import dataclasses

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib.errors import GradientError, GraphError
from yupana.graphlib.ops import (
    cpy,
    cross_entropy_loss_back,
    mul_mat,
    opt_step_sgd,
    soft_max,
)


def test_order_puts_every_node_behind_its_sources() -> None:
    x = yp.tensor(np.ones((3, 3)))
    y = (x @ x).silu() + x.T @ (x * x)
    for order in ("left", "right"):
        graph = yp.Graph([y, y.sum()], order=order)
        position = {node: k for k, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            assert all(position[src] < position[node] for src in node.srcs if src.op)
        assert len(position) == len(graph.nodes) == 9


def test_left_and_right_visit_the_other_source_first() -> None:
    x = yp.tensor([1.0])
    a, b = x.exp(), x.sqrt()
    y = a + b
    assert yp.Graph(y, order="left").nodes == [a, b, y]
    assert yp.Graph(y, order="right").nodes == [b, a, y]
    with pytest.raises(GraphError, match="'up', want 'left', 'right' or None"):
        yp.Graph(y, order="up")  # type: ignore[arg-type]


def test_what_nobody_needs_is_not_in_the_graph() -> None:
    x = yp.tensor([1.0])
    y, unused = x.exp(), x.log()
    graph = yp.Graph(y)
    assert unused not in graph.nodes
    assert graph.leaves == [x]
    with pytest.raises(GraphError, match="want a Tensor"):
        yp.Graph([3])  # type: ignore[list-item]


def test_reader_recorded_before_a_write_sees_the_old_values_and_one_after_it_the_new() -> None:
    ctx = yp.Context()
    cache = ctx.tensor([1.0, 2.0])
    before = cache * 10.0
    written = cpy(ctx.tensor([5.0, 6.0]), cache)
    after = cache * 100.0
    through = written * 1000.0
    # Outputs are named in the most misleading order.
    graph = yp.Graph([through, after, written, before])
    graph.compile(threads=1).run()
    assert before.numpy().tolist() == [10.0, 20.0]
    assert after.numpy().tolist() == [500.0, 600.0]
    assert through.numpy().tolist() == [5000.0, 6000.0]
    assert cache.numpy().tolist() == [5.0, 6.0]


def test_updates_run_after_the_last_reader_of_the_weight_and_right_there() -> None:
    ctx = yp.Context()
    w1 = ctx.param((4, 4), name="w1").set(np.eye(4))
    w2 = ctx.param((4, 4), name="w2").set(np.eye(4))
    x = ctx.tensor(np.ones((2, 4)))
    loss = mul_mat(w2, mul_mat(w1, x).silu()).sqr().sum()
    grads = yp.gradients(loss)
    settings = ctx.tensor([0.1, 0.0])
    updates = {w: opt_step_sgd(w, g, settings) for w, g in grads.items()}
    nodes = yp.Graph([loss, *updates.values()]).nodes
    for w, update in updates.items():
        readers = [k for k, n in enumerate(nodes) if n is not update and w in n.srcs]
        readers += [
            k for k, n in enumerate(nodes) if any(s.root is w for s in n.srcs) and n is not update
        ]
        assert nodes.index(update) > max(readers)
    # w2 is read for the last time long before the end, and its update waits no longer than that.
    assert nodes.index(updates[w2]) < len(nodes) - 3


def test_a_training_step_is_one_run_and_moves_the_weights() -> None:
    ctx = yp.Context()
    w = ctx.param((2,), name="w").set([3.0, -4.0])
    loss = (w * w).sum()
    update = opt_step_sgd(w, yp.gradients(loss)[w], ctx.tensor([0.25, 0.0]))
    program = yp.Graph([loss, update]).compile()
    losses = []
    for _ in range(4):
        program.run()
        losses.append(loss.item())
    assert losses == [25.0, 6.25, 1.5625, 0.390625]
    assert w.numpy().tolist() == [0.1875, -0.25]


def test_a_tensor_used_twice_gets_both_gradients_and_a_frozen_one_none() -> None:
    ctx = yp.Context()
    w = ctx.param((3,), name="w").set([1.0, 2.0, 3.0])
    frozen = ctx.tensor([10.0, 20.0, 30.0])
    loss = (w * w * frozen + w).sum()
    graph = yp.Graph(loss)
    grads = graph.backward(loss)
    assert list(grads) == [w]
    graph.compile().run()
    assert grads[w].numpy().tolist() == [21.0, 81.0, 181.0]
    assert not any(frozen is p for p in grads)


def test_gradient_of_a_gradient() -> None:
    ctx = yp.Context()
    x = ctx.param((3,), name="x").set([0.5, 1.0, 2.0])
    first = yp.gradients((x * x * x).sum())[x]
    second = yp.gradients(first.sum())[x]
    assert np.allclose(second.numpy(), 6 * x.numpy())


def test_backward_names_the_op_without_gradient_and_the_path() -> None:
    ctx = yp.Context()
    w = ctx.param((2,), name="w").set([1.0, 2.0])
    rough = dataclasses.replace(yp.REGISTRY["exp"], name="rough", vjp=None)
    loss = (rough(w.exp()) * w).sum()
    with pytest.raises(GradientError) as error:
        yp.gradients(loss)
    text = str(error.value)
    assert "rough: has no gradient" in text
    assert "exp (2,) <- w (2,)" in text
    assert "test_graph.py" in text


def test_backward_through_an_op_without_any_rule_is_refused_when_it_is_built() -> None:
    ctx = yp.Context()
    x = ctx.param((1, 2), name="x")
    grad = cross_entropy_loss_back(ctx.tensor(1.0), x, ctx.tensor([0]))
    with pytest.raises(GradientError, match="cross_entropy_loss_back: has no gradient"):
        yp.gradients(grad.sum())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda ctx, w: w * 2.0, "one element"),
        (lambda ctx, w: ctx.tensor([1.0]).sum(), "depends on no parameter"),
        (lambda ctx, w: ctx.tensor(3), "must be a float"),
    ],
)
def test_backward_says_what_is_wrong_with_a_loss(make, words) -> None:
    ctx = yp.Context()
    w = ctx.param((2,), name="w")
    loss = make(ctx, w)
    with pytest.raises(GradientError, match=words):
        yp.Graph(loss).backward(loss)


def test_gradients_say_which_parameter_is_missing() -> None:
    ctx = yp.Context()
    w, other = ctx.param((2,), name="w"), ctx.param((2,), name="other")
    with pytest.raises(GradientError, match="other"):
        yp.gradients(w.sum())[other]


def test_roles_tell_what_the_passes_recorded() -> None:
    ctx = yp.Context()
    w = ctx.param((2, 2), name="w")
    hidden = soft_max(w)
    loss = (hidden * hidden).sum()
    grads = yp.gradients(loss, checkpoints=[])
    nodes = yp.Graph([loss, *grads.values()]).nodes
    assert loss.role == hidden.role == ""
    assert grads[w].role == "gradient"
    assert grads[w].name == "w.grad"
    assert {node.role for node in nodes} == {"", "backward", "gradient", "recomputed"}


def test_what_set_overwrites_gets_no_gradient_even_an_infinite_one() -> None:
    a = yp.Context().param((3,), name="a").set([1.0, 2.0, 3.0])
    y = yp.ops.set(a, yp.tensor([5.0]), (4,), 4)
    loss = (y * yp.tensor([1.0, np.inf, 2.0])).sum()
    grad = yp.gradients(loss)[a]
    assert grad.numpy().tolist() == [1.0, 0.0, 2.0]
