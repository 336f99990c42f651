"""AdamW in the graph, the training step, and where values that are not finite come from."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import yupana as yp
from yupana.graphlib.config import config
from yupana.graphlib.errors import NonFiniteError, SettingError
from yupana.graphlib.finite import first_nonfinite
from yupana.train.optimiser import AdamW, AdamWSettings
from yupana.train.step import TrainingStep


def adamw_by_hand(weights, gradients, s: AdamWSettings, factors):
    """AdamW with clipping from the papers, in float64; `gradients` is called at each step."""
    m = [np.zeros_like(w) for w in weights]
    v = [np.zeros_like(w) for w in weights]
    for t, factor in enumerate(factors, 1):
        grads = gradients(weights)
        norm = math.sqrt(sum((g**2).sum() for g in grads))
        clip = min(1.0, s.clip / norm) if s.clip and norm else 1.0
        for k, g in enumerate(grads):
            g = g * clip
            m[k] = s.beta1 * m[k] + (1 - s.beta1) * g
            v[k] = s.beta2 * v[k] + (1 - s.beta2) * g**2
            rate = s.alpha * factor
            decay = s.decay if weights[k].ndim >= s.decay_min_axes else 0.0
            change = m[k] / (1 - s.beta1**t) / (np.sqrt(v[k] / (1 - s.beta2**t)) + s.eps)
            weights[k] = weights[k] * (1 - rate * decay) - rate * change
    return weights


@given(
    clip=st.sampled_from([0.0, 0.5, 1e6]), decay=st.sampled_from([0.0, 0.3]), seed=st.integers(0)
)
def test_adamw_in_the_graph_follows_the_formula(clip, decay, seed):
    random = np.random.default_rng(seed)
    matrix, vector = random.normal(size=(3, 4)), random.normal(size=4)
    s = AdamWSettings(alpha=0.1, decay=decay, clip=clip)
    ctx = yp.Context()
    w = ctx.param((3, 4), "f64", "w").set(matrix)
    b = ctx.param((4,), "f64", "b").set(vector)
    loss = (w * b).sqr().sum()
    adamw = AdamW(loss, yp.gradients(loss), s)
    program = yp.Graph([loss, adamw.norm, adamw.scale, *adamw.updates]).compile(threads=1)
    factors = [1.0, 0.5, 0.25]
    for step, factor in enumerate(factors):
        adamw.set(step, factor)
        program.run()

    def gradients(weights):
        m, v = weights
        return [2 * m * v**2, (2 * m**2 * v).sum(axis=0)]

    expected = adamw_by_hand([matrix, vector], gradients, s, factors)
    # The settings are float32.
    np.testing.assert_allclose(w.numpy(), expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(b.numpy(), expected[1], rtol=1e-5, atol=1e-6)


def test_norm_is_that_of_all_gradients_before_clipping():
    ctx = yp.Context()
    a, b = ctx.param((2,), name="a").set([3.0, 0.0]), ctx.param((), name="b").set(4.0)
    loss = ((a * a).sum() + b * b) / 2
    step = TrainingStep(loss, [], AdamWSettings(clip=0.1))
    assert step.run([], 0).norm == pytest.approx(5.0)
    assert step.optimiser.scale.item() == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("name", "value"), [("alpha", -1.0), ("alpha", math.inf), ("beta1", 1.0), ("clip", math.nan)]
)
def test_optimiser_settings_out_of_range_are_refused(name, value):
    with pytest.raises(SettingError, match=name):
        AdamWSettings(**{name: value})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_step_that_is_not_finite_changes_nothing(bad, clip):
    ctx = yp.Context()
    w, x = ctx.param((2, 2), name="w").set([[1, 2], [3, 4]]), ctx.input((2,), name="x")
    step = TrainingStep((w * x).exp().sum(), [x], AdamWSettings(clip=clip))
    step.run([[0.1, 0.2]], 0)
    before = [t.numpy() for t in (w, *step.state.values())]
    with pytest.raises(NonFiniteError, match="step 2"):
        step.run([[0.1, bad]], 1)
    after = [t.numpy() for t in (w, *step.state.values())]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))
    step.run([[0.1, 0.2]], 1)  # and it can go on
    assert (w.numpy() != before[0]).all()


def test_error_of_a_step_names_the_first_node(monkeypatch):
    ctx = yp.Context()
    w, x = ctx.param((2,), name="w").set([1.0, 1.0]), ctx.input((2,), name="x")
    hidden = (w * x).named("hidden")
    step = TrainingStep(hidden.log().named("logarithm").sum(), [x], AdamWSettings())
    with pytest.raises(NonFiniteError, match=r"log logarithm \(2,\): 1 infinite of 2 values"):
        step.run([[0.0, 1.0]], 0)
    monkeypatch.setattr(config, "debug", 1)
    with pytest.raises(NonFiniteError, match=r"recorded at .*test_optimiser\.py:\d+"):
        step.run([[0.0, 1.0]], 0)


def test_first_nonfinite_starts_with_leaves_and_passes_by_masks():
    ctx = yp.Context()
    w = ctx.param((2, 2), name="w").set([[1, 2], [3, 4]])
    scores = yp.ops.diag_mask_inf(w)
    attention = yp.ops.soft_max(scores)
    late = (attention.sum() - 2.0).log().named("late")
    found = first_nonfinite(yp.Graph(late))
    assert found is not None
    assert found.tensor is late  # and not the mask, whose infinities were wanted
    w.set([[1, 2], [np.nan, 4]])
    found = first_nonfinite(yp.Graph(late))
    assert found is not None
    assert (found.tensor, found.n_nan) == (w, 1)
    w.set(0.0)
    assert first_nonfinite(yp.Graph(attention)) is None


def test_first_nonfinite_leaves_no_trace():
    ctx = yp.Context()
    w, x = ctx.param((2,), name="w").set([1.0, 2.0]), ctx.param((2,), name="x").set([0.0, 1.0])
    loss = (w * x).sum()
    adamw = AdamW(loss, yp.gradients(loss), AdamWSettings())
    adamw.set(0)
    assert first_nonfinite(yp.Graph([loss, *adamw.updates])) is None
    assert w.numpy().tolist() == [1.0, 2.0]
    assert (adamw.state["w.first_moments"].numpy() == 0).all()
