"""The loss over a large vocabulary in pieces: same loss and gradients, less memory."""

import numpy as np
import pytest

import yupana as yp
from yupana.models import loss as module
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.loss import vocabulary_loss

N, D, V, R = 150, 24, 97, 3


def recorded(chunk, *, pair=True, trains_w=True, seed=1):
    """Loss and gradients of logits x · wᵀ (+ u · bᵀ); in pieces unless `chunk` is 0."""
    random = np.random.default_rng(seed)
    ctx = yp.Context()

    def leaf(name, *shape, trains=True):
        made = (ctx.param if trains else ctx.leaf)(shape, name=name)
        return made.set(random.standard_normal(shape))

    x, w = leaf("x", N, D), leaf("w", V, D, trains=trains_w)
    terms = [leaf("a", R, D), leaf("b", V, R)] if pair else []
    labels = ctx.tensor(np.where(random.random(N) < 0.3, -1, random.integers(0, V, N)), "i32")
    u = [yp.ops.mul_mat(terms[0], x), terms[1]] if pair else []
    if chunk:
        loss = yp.ops.linear_cross_entropy(x, w, labels, *u, chunk=chunk)
    else:
        logits = yp.ops.mul_mat(w, x)
        if pair:
            logits = logits + yp.ops.mul_mat(u[1], u[0])
        loss = yp.ops.cross_entropy_loss(logits, labels)
    return loss, yp.gradients(loss)


def results(loss, grads, **options):
    program = yp.Graph([loss, *grads.values()]).compile(
        threads=options.pop("threads", 1), **options
    )
    program.run()
    return {"loss": loss.numpy(), **{p.name: g.numpy() for p, g in grads.items()}}, program


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("trains_w", [True, False])
@pytest.mark.parametrize("chunk", [1, 64, 149, 1000])
def test_loss_and_gradients_are_those_of_whole_logits(chunk, trains_w, pair):
    wanted, _ = results(*recorded(0, pair=pair, trains_w=trains_w))
    got, program = results(*recorded(chunk, pair=pair, trains_w=trains_w))
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.abs(got[name] - value).max() <= 2e-5 * np.abs(value).max(), name
    fused = [task for task in program.tasks if "linear_cross_entropy" in task.name]
    assert len(fused) == 1  # the logits are computed once for all


def test_pieces_have_the_same_bits_on_two_threads_and_without_fusion():
    one, _ = results(*recorded(64))
    two, _ = results(*recorded(64), threads=2)
    apart, program = results(*recorded(64), fuse=False)
    assert len([task for task in program.tasks if "linear_cross" in task.name]) == 5
    for name, value in one.items():
        assert value.tobytes() == two[name].tobytes() == apart[name].tobytes(), name


def test_a_seed_that_depends_on_the_loss_is_not_fused():
    loss, _ = recorded(64)
    squared = loss * loss
    got, program = results(squared, yp.gradients(squared))
    plain, _ = recorded(0)
    wanted, _ = results(plain * plain, yp.gradients(plain * plain))
    assert not any("+linear_cross" in task.name for task in program.tasks)
    for name, value in wanted.items():
        assert np.abs(got[name] - value).max() <= 2e-5 * np.abs(value).max(), name


@pytest.mark.parametrize("kind", ["f16", "bf16", "Q8_0", "Q4_0", "Q6_K"])
def test_frozen_matrices_of_any_type(kind):
    random = np.random.default_rng(2)
    ctx = yp.Context()
    x = ctx.param((40, 256), name="x").set(random.standard_normal((40, 256)))
    w = ctx.tensor(random.standard_normal((33, 256))).cast(kind)
    labels = ctx.tensor(random.integers(0, 33, 40))
    whole = yp.ops.cross_entropy_loss(yp.ops.mul_mat(w, x), labels)
    pieces = yp.ops.linear_cross_entropy(x, w, labels, chunk=16)
    (wanted, _), (got, _) = (results(y, yp.gradients(y)) for y in (whole, pieces))
    for name, value in wanted.items():
        assert np.abs(got[name] - value).max() <= 2e-5 * np.abs(value).max(), name


def test_rows_that_do_not_count():
    ctx = yp.Context()
    x = ctx.param((4, 2), name="x").set(np.ones((4, 2)))
    w, labels = ctx.tensor(np.ones((3, 2))), ctx.tensor([-1, -5, -1, -1])
    loss = yp.ops.linear_cross_entropy(x, w, labels, chunk=2)
    got, _ = results(loss, yp.gradients(loss))
    assert got["loss"] == 0
    assert not got["x"].any()
    labels.set([-1, -1, 2, -1])  # of the first piece none, of the second one
    assert results(loss, yp.gradients(loss))[0]["loss"] == pytest.approx(np.log(3))
    labels.set([0, 0, 3, 0])
    assert np.isnan(results(loss, yp.gradients(loss))[0]["loss"])


def plan_of_llama(monkeypatch, room, adapters=False, checkpoints=None):
    monkeypatch.setattr(module.vocabulary_loss, "__defaults__", (None, room))
    config = LlamaConfig(n_vocab=32000, n_ctx=128, n_embd=64, n_layer=2, n_head=4, n_mult=8)
    model = Llama(config, yp.Context(no_alloc=True))
    if adapters:
        for weight in model.weights.values():
            weight.is_param = False

        class Low:
            def add_product(self, name, x, y):
                if name != "output.weight":
                    return y
                a = model.context.param((4, 64), name="a")
                b = model.context.param((32000, 4), name="b")
                return y + yp.ops.mul_mat(b, yp.ops.mul_mat(a, x) * 2.0)

            def add_rows(self, name, index, y):
                return y

            def add_delta(self, name, w):
                return w

        model.attach_part("low", Low())
    tokens, targets = (model.context.input((8, 128), "i32") for _ in range(2))
    loss = model.loss(tokens, targets)
    grads = yp.gradients(loss, checkpoints)
    return loss, yp.Graph([loss, *grads.values()]).plan()


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("checkpoints", [None, "sqrt"])
def test_the_planned_peak_of_a_llama_has_no_whole_logits(monkeypatch, adapters, checkpoints):
    logits = 8 * 128 * 32000 * 4
    _, whole = plan_of_llama(monkeypatch, 10 * logits, adapters, checkpoints)
    loss, pieces = plan_of_llama(monkeypatch, 1 << 25, adapters, checkpoints)
    assert loss.op.name == "linear_cross_entropy"
    assert whole.peak > logits
    assert pieces.peak < whole.peak - (0.7 if adapters else 0.45) * logits
    assert pieces.peak < (0.4 if adapters else 0.7) * whole.peak


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_learns_the_same_in_pieces(monkeypatch, tied):
    found = []
    for room in (1 << 25, 1):
        monkeypatch.setattr(module.vocabulary_loss, "__defaults__", (None, room))
        sizes = {"n_vocab": 61, "n_ctx": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_mult": 8}
        model = Llama(LlamaConfig(**sizes, tied=tied)).init(seed=1)
        random = np.random.default_rng(4)
        tokens = model.context.tensor(random.integers(0, 61, (3, 40)))
        targets = model.context.tensor(random.integers(-9, 61, (3, 40)))
        loss = model.loss(tokens, targets)
        found.append(results(loss, yp.gradients(loss))[0])
    assert loss.op.name == "linear_cross_entropy"
    for name, value in found[0].items():
        assert np.abs(found[1][name] - value).max() <= 2e-5 * np.abs(value).max(), name


def test_logits_that_are_more_than_products_stay_whole():
    ctx = yp.Context()
    x, w = ctx.tensor(np.ones((128, 3))), ctx.tensor(np.ones((5, 3)))
    labels, logits = ctx.tensor([1] * 128), yp.ops.mul_mat(w, x)
    more = {
        "scaled": logits * 2.0,
        "three": logits + logits + logits,
        "bias": logits + ctx.tensor([1.0] * 5),
    }
    for y in more.values():
        assert vocabulary_loss(y, labels, room=1).op.name == "cross_entropy_loss"
    assert vocabulary_loss(logits + logits, labels, room=1).op.name == "linear_cross_entropy"
    weighed = vocabulary_loss(logits, labels, ctx.tensor(np.ones(128)), room=1)
    assert weighed.op.name == "cross_entropy_loss"
