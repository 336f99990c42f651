"""Steps with other optimisers, with groups of parameters, and with batches in parts."""

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib.errors import NonFiniteError, SettingError
from yupana.models.llama import Llama, LlamaConfig
from yupana.train.data import Batch
from yupana.train.lbfgs import LbfgsSettings
from yupana.train.lbfgs_step import LbfgsStep
from yupana.train.optimiser import AdamWSettings, ParamGroup, Sgd, SgdSettings
from yupana.train.pretrain import prepare
from yupana.train.run import record_step
from yupana.train.settings import RunSettings
from yupana.train.step import Evaluation, TrainingStep, count

T, V = 10, 23


def batch_of(rows, seed=0, learned=0.6):
    random = np.random.default_rng(seed)
    tokens, targets = random.integers(0, V, (2, rows, T)).astype(np.int32)
    targets[random.random((rows, T)) > learned] = -1
    targets[-1, :-1] = -1  # parts differ much in what counts
    return Batch(tokens, targets)


def trained(settings, n_parts, steps=4, **options):
    sizes = {"n_vocab": V, "n_ctx": T, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_mult": 8}
    model = Llama(LlamaConfig(**sizes)).init(seed=2)
    step = record_step(model, 8 // n_parts, settings, n_parts=n_parts, **options)
    step.compile(1)
    results = [step.run(batch_of(8, k), k, 1.0 - 0.1 * k) for k in range(steps)]
    return model, step, results


@pytest.mark.parametrize("n_parts", [2, 8])
@pytest.mark.parametrize(
    "settings",
    [AdamWSettings(alpha=0.01, clip=0.5), SgdSettings(alpha=0.3), LbfgsSettings(n_iter=3)],
)
@pytest.mark.parametrize("checkpoints", [None, "sqrt"])
def test_parts_give_the_result_of_the_whole_batch(settings, n_parts, checkpoints):
    whole, _, wanted = trained(settings, 1, checkpoints=checkpoints)
    parts, step, got = trained(settings, n_parts, checkpoints=checkpoints)
    assert step.inputs[0].shape == (8 // n_parts, T)
    for a, b in zip(wanted, got, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-5)
        assert b.norm == pytest.approx(a.norm, rel=2e-3)
    for name, weight in whole.weights.items():
        change = np.abs(weight.numpy() - parts.weights[name].numpy()).max()
        assert change < 2e-3 * max(np.abs(weight.numpy()).max(), 0.1), name


def test_parts_take_less_memory_than_the_whole_batch():
    def plan(n_parts):
        config = LlamaConfig(n_vocab=65, n_ctx=64, n_embd=64, n_layer=4, n_head=4, n_mult=8)
        model = Llama(config, yp.Context(no_alloc=True))
        return record_step(model, 8 // n_parts, AdamWSettings(), None, n_parts).graph.plan()

    whole, parts = plan(1), plan(8)
    assert parts.peak < 0.25 * whole.peak
    assert parts.by_class["optimiser"] > whole.by_class["optimiser"]  # the sums of gradients


def test_a_bad_part_changes_nothing_and_the_next_batch_goes_on():
    ctx = yp.Context()
    w, x = ctx.param((2,), name="w").set([1.0, 2.0]), ctx.input((1, 2), name="x")
    step = TrainingStep((w * x).exp().sum(), [x], AdamWSettings(), n_parts=3)
    good, bad = np.full((3, 2), 0.1), np.full((3, 2), 0.1)
    bad[1, 1] = np.nan
    step.run([good], 0)
    before = [t.numpy() for t in (w, *step.state.values())]
    with pytest.raises(NonFiniteError, match="step 2"):
        step.run([bad], 1)
    assert all(
        (a == t.numpy()).all() for a, t in zip(before, (w, *step.state.values()), strict=True)
    )
    step.run([good], 1)
    assert np.isfinite(w.numpy()).all()
    assert (w.numpy() != before[0]).all()


def test_counts_of_what_a_loss_is_a_mean_over():
    batch = batch_of(3)
    assert count(batch) == (batch.targets >= 0).sum()
    assert count([np.zeros((5, 2))]) == 5
    assert count([]) == 1


def test_evaluation_weighs_by_what_counts():
    sizes = {"n_vocab": V, "n_ctx": T, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_mult": 8}
    model = Llama(LlamaConfig(**sizes)).init(seed=2)
    batch = batch_of(6, learned=0.3)
    whole = record_step(model, 6, AdamWSettings()).loss_of(batch)
    for rows, parts in ((2, 1), (1, 1), (1, 3)):
        step = record_step(model, rows, AdamWSettings(), None, parts)
        assert Evaluation(step, batch).run() == pytest.approx(whole, rel=1e-5)


def test_sgd_follows_its_formula():
    ctx = yp.Context()
    w = ctx.param((2, 2), "f64", "w").set([[1.0, 2.0], [3.0, 4.0]])
    b = ctx.param((2,), "f64", "b").set([1.0, -1.0])
    settings = SgdSettings(alpha=0.1, decay=0.5, clip=2.0)
    step = TrainingStep((w * b).sqr().sum(), [], settings)
    values = [w.numpy(), b.numpy()]
    for k, factor in enumerate([1.0, 0.5]):
        m, v = values
        grads = [2 * m * v**2, (2 * m**2 * v).sum(axis=0)]
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        assert step.run([], k, factor).norm == pytest.approx(norm)
        rate, scale = 0.1 * factor, min(1.0, 2.0 / norm)
        values = [m * (1 - rate * 0.5) - rate * scale * grads[0], v - rate * scale * grads[1]]
    np.testing.assert_allclose(w.numpy(), values[0], rtol=1e-6)
    np.testing.assert_allclose(b.numpy(), values[1], rtol=1e-6)
    assert isinstance(step.optimiser, Sgd)
    assert not step.state


@pytest.mark.parametrize("kind", [AdamWSettings, SgdSettings])
def test_groups_have_their_own_rate_and_decay(kind):
    groups = (
        ParamGroup("head.*", rate=0.0),
        ParamGroup("*.norm", decay=0.5),
        ParamGroup("*", rate=0.5),
    )
    shapes = {"head.w": (2, 2), "a.norm": (2,), "b.w": (2, 2), "head.norm": (2,)}
    found = {}
    for chosen in ((), groups):
        ctx = yp.Context()
        params = {n: ctx.param(shape, name=n).set(1.0) for n, shape in shapes.items()}
        loss = sum((p.sum() for p in params.values()), start=ctx.tensor(0.0))
        step = TrainingStep(loss, [], kind(alpha=0.1, decay=0.2, clip=0.0, groups=chosen))
        step.run([], 0)
        found[bool(chosen)] = {n: 1 - float(p.numpy().ravel()[0]) for n, p in params.items()}
    plain, grouped = found[False], found[True]
    assert plain["head.w"] == pytest.approx(0.1 * (1 + 0.2), rel=1e-4)
    assert plain["a.norm"] == pytest.approx(0.1, rel=1e-4)  # too few axes to decay
    assert grouped["head.w"] == grouped["head.norm"] == 0  # the first that fits counts
    assert grouped["a.norm"] == pytest.approx(0.1 * (1 + 0.5), rel=1e-4)
    assert grouped["b.w"] == pytest.approx(0.05 * (1 + 0.2), rel=1e-4)


@pytest.mark.parametrize("text", ["", "a", "=1", "a=", "a=x", "a=1,2,3", "a=1,"])
def test_groups_of_another_form_are_refused(text):
    with pytest.raises(SettingError, match="want NAMES=RATE"):
        ParamGroup.parse(text)


def test_groups_out_of_range_are_refused():
    assert ParamGroup.parse("a=b=2") == ParamGroup("a=b", 2.0)
    with pytest.raises(SettingError, match="rate is out of range: got -1"):
        ParamGroup.parse("a=-1")
    with pytest.raises(SettingError, match="decay is out of range: got inf"):
        ParamGroup.parse("a=1,inf")
    loss = yp.Context().param((1,), name="w").sum()
    with pytest.raises(SettingError, match="grad_acc is out of range: got 0"):
        TrainingStep(loss, [], AdamWSettings(), n_parts=0)


def test_lbfgs_keeps_the_parameters_when_values_are_not_finite():
    ctx = yp.Context()
    w, x = ctx.param((2,), name="w").set([1.0, 2.0]), ctx.input((2,), name="x")
    step = LbfgsStep((w * x).exp().sum(), [x], LbfgsSettings(n_iter=2))
    with pytest.raises(NonFiniteError, match="step 1"):
        step.run([[0.1, np.nan]], 0)
    assert w.numpy().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lbfgs"])
def test_every_optimizer_trains_and_goes_on_with_the_same_bits(tmp_path, optimizer):
    text = "the llama eats grass, the ñandú runs; " * 60
    sizes = {"ctx": 8, "batch": 2, "grad_acc": 2, "embd": 16, "ff": 24, "head": 2, "layer": 1}
    rates = {"warmup": 2, "adam_alpha": 0.01, "lbfgs_iter": 2}
    if optimizer != "lbfgs":
        rates["param_group"] = ("*norm*=0.1",)
    usual = {"vocab": "characters", "threads": 1, "eval_every": 4, "adam_iter": 12}

    def run(folder, **changes):
        every = {**sizes, **rates, **usual, "optimizer": optimizer, **changes}
        return prepare(text, RunSettings(model_out=tmp_path / folder / "m.gguf", **every)).train()

    path = tmp_path / "b" / "c.gguf"
    whole = run("a")
    losses = [loss for _, loss in whole.history.losses]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    run("b", adam_iter=5, checkpoint_out=path)
    assert run("b", checkpoint_in=path).history.losses == whole.history.losses
    assert (tmp_path / "a/m.gguf").read_bytes() == (tmp_path / "b/m.gguf").read_bytes()
    other = "sgd" if optimizer == "adamw" else "adamw"
    with pytest.raises(SettingError, match="made with another optimiser"):
        run("b", checkpoint_in=path, optimizer=other)
