"""Random graphs: what holds for each op must hold for what passes make of many of them."""

import contextlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yupana.graphlib import fusion, memory, ops, schedule
from yupana.graphlib.compare import CheckError, Expected, Leaves, bits
from yupana.graphlib.config import config
from yupana.graphlib.context import Context
from yupana.graphlib.errors import GradientError, GraphError
from yupana.graphlib.graph import Graph
from yupana.graphlib.reference import recorded_order, run_reference
from yupana.graphlib.sampler import Sampler, noted_numbers, random_numbers
from yupana.graphlib.task import Task
from yupana.testing import RandomGraph, draw_graph, traces


@pytest.fixture(autouse=True)
def shared_however_small(monkeypatch):
    """Small steps run on one thread otherwise, and threads would have nothing to differ in."""
    monkeypatch.setattr(schedule, "_SOLO_NS", 0.0)


@pytest.fixture(autouse=True)
def verified(monkeypatch):
    """Every program checks the order of its tasks and its plan."""
    monkeypatch.setattr(config, "verify", 1)


def drawn_again(trace, dtype=None) -> RandomGraph:
    return draw_graph(Sampler(noted_numbers(trace), dtype=dtype, smooth=True))


def graph_of(trace, dtype=None, checkpoints=None, step=False) -> Graph:
    """The drawn graph with its backward pass; checkpoints are numbers of forward nodes."""
    g = drawn_again(trace, dtype)
    graph = Graph([g.loss])
    if isinstance(checkpoints, list):
        forward = recorded_order([g.loss])
        checkpoints = [forward[k % len(forward)] for k in checkpoints]
    grads = graph.backward(g.loss, checkpoints)
    if step:
        settings = g.loss.context.tensor([0.1, 0.01], "f64" if dtype == "f64" else "f32")
        for param, grad in grads.items():
            if grad.dtype is param.dtype:
                grad = grad if grad.is_contiguous else ops.cont(grad)
                graph.expand(ops.opt_step_sgd(param, grad, settings))
    return graph


@given(traces(draw_graph), st.sampled_from(["f32", "f64", None]), st.booleans())
def test_programs_compute_what_the_reference_says(trace, dtype, step):
    graph = graph_of(trace, dtype, step=step)
    Expected(graph).check("program", graph.compile(threads=1, fuse=False), factor=4)


@given(traces(draw_graph), st.sampled_from(["f32", "f64", None]), st.booleans())
def test_fused_programs_compute_what_the_reference_says(trace, dtype, step):
    graph = graph_of(trace, dtype, step=step)
    Expected(graph).check("fused program", graph.compile(threads=1, fuse=True), factor=4)


@given(traces(draw_graph))
def test_gradients_are_those_of_difference_quotients(trace):
    g = drawn_again(trace, "f64")
    check_gradients(g.loss, Graph([g.loss]).backward(g.loss))


@given(traces(draw_graph))
def test_second_derivatives_are_those_of_difference_quotients(trace):
    g = drawn_again(trace, "f64")
    grads = Graph([g.loss]).backward(g.loss)
    weights = np.random.default_rng(2)
    total = None
    for grad in grads.values():
        part = ops.sum(grad * g.loss.context.tensor(weights.uniform(-1, 1, grad.shape), "f64"))
        total = part if total is None else total + part
    try:
        again = Graph([total]).backward(total)
    except GradientError as error:
        refusal = str(error)
    else:
        check_gradients(total, again)
        return
    # Linear in every parameter, or through an op that says it has no second derivative.
    assert re.search(r"depends on no parameter|has no gradient|overwrites later", refusal)


def check_gradients(loss, grads) -> None:
    """<v, gradient> against two central differences of the loss along v."""
    values = run_reference([loss, *grads.values()])
    for param, grad in grads.items():
        at = np.array(values[param])
        along = np.random.default_rng(1).uniform(0.2, 1.0, at.shape)
        parts = values[grad] * along

        def slope(step, param=param, at=at, along=along):
            above, below = (run_reference(loss, {param: at + s * along}) for s in (step, -step))
            return float(above[loss] - below[loss]) / (2 * step)

        wide, narrow = slope(1e-5), slope(2.5e-6)
        want = (16 * narrow - wide) / 15
        size = np.abs(parts).sum() + abs(want) + 1e-4 * abs(float(values[loss]))
        allowed = 1e-6 * size + abs(wide - narrow) + 1e-8
        assert abs(float(parts.sum()) - want) <= allowed, param.label


@given(traces(draw_graph), st.booleans(), st.booleans())
def test_same_bits_whatever_the_threads_and_the_memory(trace, fuse, step):
    graph = graph_of(trace, step=step)
    first = bits(graph, threads=1, fuse=fuse, reuse=False)
    for threads in (1, 2, 3):
        assert bits(graph, threads=threads, fuse=fuse) == first


@given(traces(draw_graph), st.lists(st.integers(0, 40), max_size=4), st.booleans())
def test_same_bits_with_checkpoints(trace, checkpoints, step):
    plain = bits(graph_of(trace, step=step), threads=1, fuse=False)
    for chosen in (checkpoints, "sqrt"):
        graph = graph_of(trace, checkpoints=chosen, step=step)
        assert bits(graph, threads=1, fuse=False) == plain
        assert bits(graph, threads=2, fuse=False, reuse=False) == plain


@given(traces(draw_graph), st.sampled_from(["left", "right"]))
def test_same_bits_in_both_orders(trace, order):
    graph = graph_of(trace)
    other = Graph(graph.outputs, order)
    assert bits(other, threads=1, fuse=False) == bits(graph, threads=1, fuse=False)


def test_leaves_are_put_back():
    graph = graph_of([0] * 8, step=True)
    before = [leaf.data.copy() for leaf in graph.leaves]
    written = Leaves(graph).written
    assert written
    bits(graph, threads=1)
    assert all(np.array_equal(a, b.data) for a, b in zip(before, graph.leaves, strict=True))


def test_a_gradient_that_needs_overwritten_memory_is_refused():
    context = Context()
    x = context.param((2,)).set([1.0, 2.0])
    memory = context.tensor([3.0, 4.0])
    before = x * memory
    loss = (before + ops.cpy(x, memory)).sum()
    with pytest.raises(GradientError, match=r"mul: its gradient needs .* which cpy overwrites"):
        Graph([loss]).backward(loss)
    safe = (x * memory.cont() + ops.cpy(x, memory)).sum()
    grads = Graph([safe]).backward(safe)
    assert run_reference(grads[x])[grads[x]].tolist() == [4.0, 5.0]


def some_graphs(n: int = 40, **options):
    for seed in range(n):
        sampler = Sampler(random_numbers(np.random.default_rng(seed)))
        draw_graph(sampler)
        yield graph_of(sampler.trace, **options)


def test_a_planner_that_reuses_memory_too_early_is_caught(monkeypatch):
    def too_early(task, dst, k, last_use):
        return honest(task, dst, k, dict.fromkeys(last_use, k))

    honest = memory._taken_over
    monkeypatch.setattr(memory, "_taken_over", too_early)
    caught = 0
    for graph in some_graphs():
        with contextlib.suppress(GraphError):  # of the verifier; what it lets pass must be right
            caught += bits(graph, threads=1) != bits(graph, threads=1, reuse=False)
            continue
        caught += 1
    assert caught > 10


def test_a_wrong_joint_kernel_is_caught(monkeypatch):
    def wrong(node, uses):
        if node.op is not ops.silu:
            return None
        return Task((node,), node.srcs, (node,), ops.tanh.lower)

    monkeypatch.setattr(fusion, "PATTERNS", (wrong,))
    caught = 0
    for graph in some_graphs():
        has_silu = any(node.op is ops.silu for node in graph.nodes)
        try:
            Expected(graph).check("fused program", graph.compile(threads=1), factor=4)
        except CheckError:
            assert has_silu
            caught += 1
    assert caught > 5


def test_random_graphs_use_every_pattern_and_recompute():
    names, recomputed = set(), 0
    for graph in some_graphs(100):
        tasks = graph.compile(threads=1).tasks
        names |= {task.name for task in tasks if len(task.nodes) > 1}
    for graph in some_graphs(checkpoints="sqrt"):
        recomputed += any(node.role == "recomputed" for node in graph.nodes)
    assert {"silu+mul", "mul+silu_back", "rms_norm+mul", "add+rms_norm", "mul_mat+add"} <= names
    assert "scale+diag_mask_inf+soft_max" in names
    assert "cross_entropy_loss+cross_entropy_loss_back" in names
    assert recomputed > 10
