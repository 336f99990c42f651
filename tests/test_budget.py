"""Memory budgets: the cheapest recomputation that fits, and an error where none does."""

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib.budget import MemoryBudget, recompute
from yupana.graphlib.errors import MemoryBudgetError
from yupana.graphlib.program import prepare
from yupana.graphlib.remat import Remat, find_boundaries, with_the_rest
from yupana.models.llama import Llama, LlamaConfig, weight_shapes
from yupana.train.bill import make_bill
from yupana.train.lora import TrainedAdapter
from yupana.train.lora_settings import LoraSettings
from yupana.train.optimiser import AdamWSettings
from yupana.train.run import record_step


def chain(n_layers: int = 7):
    """Blocks of growing width between narrow results; no data are needed to plan it."""
    ctx = yp.Context(no_alloc=True)
    x = ctx.input((16, 8))
    for k in range(n_layers):
        width = 16 * (1 + k % 3)
        inner = (x @ ctx.param((8, width))).silu()
        x = x + (inner.sqr().tanh() @ ctx.param((width, 8)))
    return x.sqr().sum()


def llama(n_layer: int = 3, n_vocab: int = 31):
    ctx = yp.Context(no_alloc=True)
    config = LlamaConfig(n_vocab=n_vocab, n_ctx=16, n_embd=16, n_layer=n_layer, n_head=2, n_ff=48)
    tokens, targets = (ctx.input((4, 16), "i32") for _ in range(2))
    return Llama(config, ctx).loss(tokens, targets)


def plan_of(loss, checkpoints):
    """Planned bytes of loss and gradients, and FLOPs of what is computed again."""
    grads = yp.gradients(loss, checkpoints)
    graph = yp.Graph([loss, *grads.values()])
    again = [node for node in graph.nodes if node.role == "recomputed"]
    return graph.plan().own_bytes, sum(n.op.cost_of(n).flops for n in again if n.op)


def choices(loss):
    """Every choice there is: (bytes, FLOPs computed again)."""
    forward = yp.Graph(loss).nodes
    boundaries = [*find_boundaries(forward)]
    tried = [plan_of(loss, None)]
    for distance in range(1, len(boundaries) + 1):
        spaced = boundaries[distance - 1 :: distance]
        for n in range(1, len(spaced) + 1):
            tried.append(plan_of(loss, with_the_rest(spaced[:n], forward)))
    return tried


@pytest.mark.parametrize("make", [chain, llama])
def test_the_choice_is_the_cheapest_of_all_that_fit(make) -> None:
    loss = make()
    every = choices(loss)
    sizes = sorted({nbytes for nbytes, _ in every})
    assert sizes[0] < 0.8 * sizes[-1]
    for budget in [*sizes[::3], sizes[-1] - 1, 2 * sizes[-1]]:
        nbytes, flops = plan_of(loss, MemoryBudget(budget))
        assert nbytes <= budget
        assert flops == min(cost for size, cost in every if size <= budget)


@pytest.mark.parametrize("make", [chain, llama])
def test_too_small_a_budget_is_an_error_with_the_smallest_peak(make) -> None:
    loss = make()
    least = min(nbytes for nbytes, _ in choices(loss))
    with pytest.raises(MemoryBudgetError, match="want at least") as caught:
        yp.gradients(loss, MemoryBudget(1000))
    smallest = caught.value.smallest
    assert least <= smallest <= 1.02 * least
    assert f"{smallest / 2**20:.1f} MiB" in str(caught.value)
    nbytes, _ = plan_of(loss, MemoryBudget(smallest))
    assert nbytes <= smallest


def test_a_share_of_the_work_buys_memory_that_is_not_asked_for() -> None:
    loss = llama(n_layer=8)
    sizes, costs = [], []
    for spare in (0.0, 0.02, 0.05, 0.5):
        nbytes, flops = plan_of(loss, MemoryBudget(1 << 40, spare))
        grads = yp.gradients(loss)
        total = sum(n.op.cost_of(n).flops for n in yp.Graph([*grads.values()]).nodes if n.op)
        assert flops <= spare * total
        sizes.append(nbytes)
        costs.append(flops)
    assert costs[0] == 0
    assert sizes == sorted({*sizes}, reverse=True)


@pytest.mark.parametrize("n_ctx", [8, 16])
def test_memory_in_plenty_is_never_too_small(n_ctx) -> None:
    """Here more checkpoints than the spare work pays for need more memory, by a little."""
    sizes = {"n_vocab": 320, "n_embd": 64, "n_ff": 128, "n_head": 4, "n_head_kv": 2}
    config = LlamaConfig(n_ctx=n_ctx, n_layer=2, tied=True, **sizes)
    ctx = yp.Context(no_alloc=True)
    weights = {n: ctx.leaf(shape, name=n) for n, shape in weight_shapes(config).items()}
    model = Llama(config, ctx, weights)
    adapter = TrainedAdapter(weights, LoraSettings(), no_alloc=True)
    model.attach_part("trained", adapter)

    def bill(checkpoints):
        return make_bill(record_step(model, 2, AdamWSettings(), checkpoints, adapter=adapter))

    plain, spared = bill(None), bill(MemoryBudget(1 << 40, 0.05))
    assert spared.total <= plain.total
    assert spared.recomputed <= 0.05 * plain.flops


def test_what_products_of_pairs_pack_counts() -> None:
    x = yp.Context(no_alloc=True).input((300, 128))
    for _ in range(3):
        x = x @ x.context.param((128, 128))
    loss = x.sum()
    outputs = [loss, *yp.gradients(loss).values()]
    graph = yp.Graph(outputs)
    limit = graph.plan().own_bytes  # where float32 is read where it lies, pairs are packed
    recompute(loss, outputs, MemoryBudget(limit, matmul="bf16"))
    assert prepare(graph, matmul="bf16").plan.own_bytes <= limit


def test_what_follows_the_gradients_counts_too() -> None:
    """The plan is that of the whole graph, and updates run after clones have read parameters."""
    ctx = yp.Context()
    random = np.random.default_rng(5)
    x, params = ctx.tensor(random.standard_normal((32, 8))), []
    for k in range(6):
        params.append(ctx.param((8, 8), name=f"w{k}").set(random.standard_normal((8, 8))))
        x = x + (x @ params[-1]).silu()
    loss, want = x.sqr().sum(), []
    start = [p.numpy() for p in params]
    for checkpoints in (None, "all", "sqrt"):
        grads = yp.gradients(loss)
        news = [yp.ops.cpy(p - g * 1e-3, p) for p, g in grads.items()]
        graph = yp.Graph([loss, *news])
        plain = graph.plan()
        recompute(loss, graph.outputs, checkpoints)
        graph.compile(threads=1).run()
        assert checkpoints is None or graph.plan().peak < plain.peak
        got = [loss.numpy(), *(p.numpy() for p in params)]
        want = want or got
        assert [a.tobytes() for a in got] == [a.tobytes() for a in want]
        for param, value in zip(params, start, strict=True):
            param.set(value)


def test_a_pass_can_be_set_back() -> None:
    loss = chain()
    outputs = [loss, *yp.gradients(loss).values()]
    before = yp.Graph(outputs).plan()
    remat = Remat(loss, outputs)
    remat.apply(with_the_rest([*find_boundaries(remat.forward)], remat.forward))
    assert remat.flops
    assert yp.Graph(outputs).plan().own_bytes < before.own_bytes
    remat.apply(remat.forward)
    assert not remat.flops
    assert yp.Graph(outputs).plan().own_bytes == before.own_bytes


def test_a_mapped_file_does_not_count() -> None:
    ctx = yp.Context()
    values = np.ones((64, 64), np.float32)
    values.flags.writeable = False
    w, x = ctx.wrap(values, name="w"), ctx.param((4, 64), name="x")
    plan = yp.Graph((x @ w.T).sum()).plan()
    assert plan.mapped_bytes == values.nbytes
    assert plan.own_bytes == plan.total - values.nbytes
