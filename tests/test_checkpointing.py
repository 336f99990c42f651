"""Gradient checkpointing: the same bits from less memory, each node computed again at most once."""

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib.errors import GraphError
from yupana.graphlib.remat import choose_checkpoints
from yupana.models.llama import Llama, LlamaConfig


def deep(n_layers: int = 9):
    """A chain of small blocks with views in them, its parameters and its boundaries."""
    ctx = yp.Context()
    random = np.random.default_rng(3)
    x = ctx.tensor(random.standard_normal((4, 6)))
    params, boundaries = [], []
    for k in range(n_layers):
        w = ctx.param((6, 6), name=f"w{k}").set(random.standard_normal((6, 6)) * 0.3)
        hidden = (x @ w).silu()
        x = x + hidden.T.cont().reshape(4, 6).tanh()
        params.append(w)
        boundaries.append(x)
    return x.sqr().sum(), params, boundaries


def results(loss, params, checkpoints, **options):
    grads = yp.gradients(loss, checkpoints)
    program = yp.Graph([loss, *grads.values()]).compile(**options)
    program.run()
    return [loss.numpy(), *(grads[p].numpy() for p in params)], program


@pytest.mark.parametrize("choice", ["sqrt", "all", "none", "every second", "odd ones"])
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_keep_their_bits(choice: str, threads: int) -> None:
    loss, params, boundaries = deep()
    lists = {"none": [], "every second": boundaries[::2], "odd ones": [boundaries[5], params[3]]}
    want, plain = results(loss, params, None, threads=1)
    got, lean = results(loss, params, lists.get(choice, choice), threads=threads)
    for a, b in zip(want, got, strict=True):
        assert a.tobytes() == b.tobytes()
    assert lean.plan.peak < plain.plan.peak or choice == "none"


def test_each_node_is_cloned_at_most_once_and_only_if_needed() -> None:
    loss, _, boundaries = deep()
    grads = yp.gradients(loss, boundaries[2::3])
    nodes = yp.Graph([loss, *grads.values()]).nodes
    forward = [n for n in nodes if n.role == "" and n.op]
    clones = [n for n in nodes if n.role == "recomputed"]
    assert 0 < len(clones) <= len(forward)
    made = {(n.op.name, n.srcs, tuple(n.params.items())) for n in clones if n.op}
    assert len(made) == len(clones)
    for clone in clones:  # nothing computed again reads what was given up, views included
        assert clone.root.role == "recomputed" or clone.root in boundaries
    for node in nodes:
        if node.role in ("backward", "gradient"):
            kept = {*boundaries[2::3], loss}
            assert all(s.role != "" or s.root in kept or s.root.is_leaf for s in node.srcs)


def test_clones_run_right_before_they_are_used() -> None:
    loss, _, boundaries = deep()
    grads = yp.gradients(loss, boundaries[2::3])
    nodes = yp.Graph([loss, *grads.values()]).nodes
    first_backward = next(k for k, n in enumerate(nodes) if n.role == "backward")
    last_clone = max(k for k, n in enumerate(nodes) if n.role == "recomputed")
    assert last_clone > first_backward  # not all at once


def test_sqrt_picks_layer_boundaries() -> None:
    loss, _, boundaries = deep(16)
    chosen = choose_checkpoints(yp.Graph(loss).nodes)
    assert len(chosen) in (3, 4, 5)
    assert set(chosen) <= set(boundaries)


def llama_plan(checkpoints: str | None):
    config = LlamaConfig(n_vocab=65, n_ctx=64, n_embd=128, n_layer=16, n_head=4, n_mult=8)
    model = Llama(config, yp.Context(no_alloc=True))
    tokens, targets = (model.context.input((8, 64), "i32") for _ in range(2))
    loss = model.loss(tokens, targets)
    grads = yp.gradients(loss, checkpoints)  # type: ignore[arg-type]
    return yp.Graph([loss, *grads.values()]).plan()


def test_sqrt_halves_the_activations_of_a_llama_of_16_layers_at_least() -> None:
    everything, few = llama_plan(None), llama_plan("sqrt")
    assert few.by_class["activations"] <= 0.5 * everything.by_class["activations"]
    assert few.peak <= 0.5 * everything.peak


def test_checkpoints_that_make_no_sense_are_refused() -> None:
    loss, _, _ = deep(2)
    with pytest.raises(GraphError, match="not part of the graph"):
        yp.gradients(loss, [yp.tensor(1.0)])
    with pytest.raises(GraphError, match="'often', want a list, 'sqrt', 'all'"):
        yp.gradients(loss, "often")  # type: ignore[arg-type]
