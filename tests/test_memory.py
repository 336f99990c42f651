"""The memory planner: no two live results share bytes, outputs survive, little is wasted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import yupana as yp
from yupana.graphlib.context import ALIGNMENT
from yupana.graphlib.errors import ContextError, GraphError
from yupana.graphlib.memory import Block, _live, _place
from yupana.graphlib.program import prepare
from yupana.graphlib.verify import verify
from yupana.models.llama import Llama, LlamaConfig


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 30), st.integers(0, 12)), max_size=40))
def test_live_blocks_never_overlap(spans: list[tuple[int, int, int]]) -> None:
    blocks = [Block(64 * n, first, first + more, "activations", []) for n, first, more in spans]
    bound = int(_live(((b.size, b.first, b.last) for b in blocks), 50).max(initial=0))
    peak = _place(blocks, bound)
    for k, a in enumerate(blocks):
        assert a.offset % ALIGNMENT == 0
        assert 0 <= a.offset <= a.offset + a.size <= peak
        for b in blocks[k + 1 :]:
            if a.first <= b.last and b.first <= a.last:
                assert a.offset + a.size <= b.offset or b.offset + b.size <= a.offset
    assert bound <= peak <= sum(b.size for b in blocks)


def llama_graph(n_layer: int, n_head_kv: int = 0, checkpoints: str | None = None) -> yp.Graph:
    config = LlamaConfig(
        n_vocab=65, n_ctx=64, n_embd=128, n_layer=n_layer, n_head=4, n_head_kv=n_head_kv, n_mult=8
    )
    model = Llama(config, yp.Context(no_alloc=True))
    tokens, targets = (model.context.input((8, 64), "i32") for _ in range(2))
    loss = model.loss(tokens, targets)
    grads = yp.gradients(loss, checkpoints)  # type: ignore[arg-type]
    return yp.Graph([loss, *grads.values()])


@pytest.mark.parametrize("checkpoints", [None, "sqrt"])
@pytest.mark.parametrize(("n_layer", "n_head_kv"), [(1, 0), (4, 2), (16, 0)])
@pytest.mark.parametrize("fuse", [True, False])
def test_llama_peak_is_within_5_percent_of_the_bound(
    n_layer: int, n_head_kv: int, checkpoints: str | None, fuse: bool
) -> None:
    prepared = prepare(llama_graph(n_layer, n_head_kv, checkpoints), fuse)
    verify(prepared.tasks, prepared.plan)
    assert prepared.plan.lower_bound <= prepared.plan.peak <= 1.05 * prepared.plan.lower_bound


def test_a_chain_runs_in_the_memory_of_one_result() -> None:
    y = yp.tensor(np.ones(1000))
    for _ in range(10):
        y = y.tanh()
    assert yp.Graph(y).plan().peak == 4032  # 4000 bytes, to the next multiple of 64
    assert yp.Graph(y).plan(reuse=False).peak == 10 * 4032


def test_what_is_read_later_is_not_taken_over() -> None:
    x = yp.tensor(np.arange(4.0))
    a = x.exp()
    b = a.sqrt()  # must not overwrite a
    c = a + b
    yp.Graph(c).compile(threads=1).run()
    assert np.allclose(c.numpy(), np.exp(x.numpy()) + np.sqrt(np.exp(x.numpy())))


def test_another_view_of_the_same_memory_stops_a_takeover() -> None:
    x = yp.tensor(np.arange(9.0).reshape(3, 3))
    a = x * 2.0
    b = a + a.T
    yp.Graph(b).compile(threads=1).run()
    assert (b.numpy() == 2 * (x.numpy() + x.numpy().T)).all()


def test_outputs_stay_readable_and_leaves_untouched() -> None:
    x = yp.tensor([1.0, 2.0])
    a = x * 3.0
    b = a * 5.0
    c = b * 7.0
    yp.Graph([c, a]).compile(threads=1).run()
    assert a.numpy().tolist() == [3.0, 6.0]
    assert c.numpy().tolist() == [105.0, 210.0]
    assert x.numpy().tolist() == [1.0, 2.0]


def test_plan_counts_every_class() -> None:
    config = LlamaConfig(n_vocab=65, n_ctx=64, n_embd=128, n_layer=4, n_head=4, n_mult=8)
    model = Llama(config, yp.Context(no_alloc=True))
    ctx = model.context
    tokens, targets = (ctx.input((8, 64), "i32") for _ in range(2))
    loss = model.loss(tokens, targets)
    settings = ctx.leaf((7,))
    updates = [
        yp.ops.opt_step_adamw(w, g, ctx.leaf(w.shape), ctx.leaf(w.shape), settings)
        for w, g in yp.gradients(loss).items()
    ]
    plan = yp.Graph([loss, *updates]).plan()
    weights = sum(w.nbytes for w in model.weights.values())
    assert plan.by_class["weights"] == weights
    assert plan.by_class["optimiser"] == 2 * weights
    assert plan.by_class["gradients"] > 0
    assert plan.by_class["activations"] <= plan.peak
    assert plan.total == plan.peak + sum(plan.leaf_bytes.values())
    assert "above the lower bound" in str(plan)


def test_verify_catches_a_planted_overlap_and_a_planted_order() -> None:
    prepared = prepare(llama_graph(1))
    big = sorted(prepared.plan.blocks, key=lambda b: b.last - b.first)[-2:]
    before = big[0].offset
    big[0].offset = big[1].offset
    with pytest.raises(GraphError, match="overlap"):
        verify(prepared.tasks, prepared.plan)
    big[0].offset = before
    with pytest.raises(GraphError, match="before it is computed"):
        verify(prepared.tasks[::-1], prepared.plan)
    verify(prepared.tasks, prepared.plan)


def test_arena_too_small_says_needed_and_given_bytes() -> None:
    ctx = yp.Context(mem_size=1000)
    ctx.leaf((100,))
    with pytest.raises(ContextError, match=r"needs 832 bytes, 552 of 1000.*at least 1280"):
        ctx.leaf((200,))


def test_the_order_updates_are_listed_in_does_not_matter() -> None:
    config = LlamaConfig(n_vocab=65, n_ctx=64, n_embd=128, n_layer=4, n_head=4, n_mult=8)
    model = Llama(config, yp.Context(no_alloc=True))
    tokens, targets = (model.context.input((8, 64), "i32") for _ in range(2))
    loss = model.loss(tokens, targets)
    grads, rate = yp.gradients(loss, "sqrt"), model.context.leaf((2,))
    updates = [yp.ops.opt_step_sgd(w, grads[w], rate) for w in model.weights.values()]
    peaks = [yp.Graph([loss, *listed]).plan().peak for listed in (updates, updates[::-1])]
    assert peaks[0] == peaks[1] < 9_000_000
