"""Samples packed side by side: losses and gradients are those of each sample on its own."""

import numpy as np
import pytest

import yupana as yp
from yupana.models.llama import Llama, LlamaConfig
from yupana.train.corpus import make_corpus
from yupana.train.data import Batches, even_batch
from yupana.train.optimiser import AdamWSettings
from yupana.train.rows import PackedRows, SampleRows
from yupana.train.run import record_step
from yupana.train.step import count

T, V = 24, 61
CONFIGS = {
    "plain": {},
    "grouped, part rotated": {"n_head_kv": 2, "n_rot": 4, "rope_base": 300.0},
    "one block": {"n_layer": 1},
}


def make_model(**changes):
    sizes = {"n_vocab": V, "n_ctx": T, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_mult": 8}
    return Llama(LlamaConfig(**{**sizes, **changes})).init(seed=3)


def make_samples(bos=None, n=14):
    random = np.random.default_rng(5)
    parts = []
    for size in random.integers(2, 18, n):
        ids = random.integers(0, V, size)
        ids[: size // 3] = ~ids[: size // 3]  # a prompt, which is not learned
        parts.append((ids, True))
    return SampleRows(make_corpus(parts, T, bos is not None), np.arange(n), T, bos)


def loss_and_gradients(model, batch, **options):
    """Sum over the tokens that count of the loss, and its gradients."""
    ctx = yp.Context()
    inputs = {
        name: ctx.tensor(values, "i32")
        for name, values in batch._asdict().items()
        if values is not None
    }
    loss = model.loss(**inputs)
    grads = yp.gradients(loss, **options)
    yp.Graph([loss, *grads.values()]).compile(threads=1).run()
    n = count(batch)
    return n, n * loss.item(), {param.name: n * grad.numpy() for param, grad in grads.items()}


@pytest.mark.parametrize("checkpoints", [None, "sqrt"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_samples_do_not_mix(name, checkpoints):
    model, samples = make_model(**CONFIGS[name]), make_samples(bos=0)
    rows = PackedRows(samples)
    packed = even_batch(rows, 99)
    assert len(rows) < len(samples) / 2
    n, loss, grads = loss_and_gradients(model, packed, checkpoints=checkpoints)
    alone = [loss_and_gradients(model, even_batch_of(samples, k)) for k in range(len(samples))]
    assert n == sum(part[0] for part in alone)
    assert loss == pytest.approx(sum(part[1] for part in alone), rel=1e-5)
    for param, grad in grads.items():
        wanted = sum(part[2][param] for part in alone)
        assert np.abs(grad - wanted).max() < 1e-4 * np.abs(wanted).max(), param


def even_batch_of(samples, k):
    return even_batch(SampleRows(samples.corpus, samples.chosen[k : k + 1], T, samples.bos), 1)


def test_mixing_would_be_noticed():
    """The same rows without segments give another loss."""
    model, rows = make_model(), PackedRows(make_samples())
    batch = even_batch(rows, 99)
    apart = loss_and_gradients(model, batch)[1]
    mixed = loss_and_gradients(model, batch._replace(segments=None, positions=None))[1]
    assert abs(apart - mixed) > 1e-4 * apart


def test_checkpoints_save_memory_with_segments_too():
    def peak(checkpoints):
        model = Llama(
            LlamaConfig(n_vocab=65, n_ctx=32, n_embd=64, n_layer=12, n_head=4, n_mult=8),
            yp.Context(no_alloc=True),
        )
        settings = AdamWSettings()
        step = record_step(model, 4, settings, checkpoints, is_packed=True)
        return step.graph.plan().by_class["activations"]

    assert peak("sqrt") < 0.5 * peak(None)


def test_training_on_packed_rows_learns():
    model = make_model()
    rows = PackedRows(make_samples())
    step = record_step(model, 2, AdamWSettings(alpha=0.01), n_parts=2, is_packed=True)
    step.compile(1)
    batches = Batches(rows, 4)
    losses = [step.run(batches.at(k), k).loss for k in range(30)]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
