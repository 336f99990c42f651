"""Rules that end a run, alone and in the loop, and across a checkpoint."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.small_runs import TEXT, settings
from yupana.graphlib.errors import SettingError
from yupana.train.pretrain import prepare
from yupana.train.stop import StopRules, StopState, after_step, after_validation


def end(losses, **rules):
    """Number of the step after which a run ends, and why."""
    state = StopState()
    for k, loss in enumerate(losses, 1):
        reason = after_step(StopRules(**rules), state, loss, 0.0)
        if reason:
            return k, reason
    return None


def test_past_and_delta():
    losses = [4.0, 3.0, 2.0, 1.9999, 1.9998, 1.0]
    assert end(losses, past=1, delta=1e-3)[0] == 4
    assert end(losses, past=2, delta=1e-3)[0] == 5
    assert end(losses, past=1, delta=1e-6) is None
    assert "in 2 steps" in end(losses, past=2, delta=1e-3)[1]


def test_no_improvement_counts_from_the_lowest_loss():
    losses = [3.0, 2.0, 2.5, 1.9, 1.9, 2.0, 1.95]
    assert end(losses, max_no_improvement=2)[0] == 6
    assert end(losses, max_no_improvement=3)[0] == 7
    assert end(losses, max_no_improvement=4) is None


def test_change_from_step_to_step_and_time():
    assert end([3.0, 2.0, 2.01, 1.0], epsf=0.01)[0] == 3
    state = StopState()
    assert after_step(StopRules(seconds=5.0), state, 1.0, 4.9) is None
    assert after_step(StopRules(seconds=5.0), state, 0.9, 5.0) == "5 seconds are over"


@given(st.lists(st.floats(-5, 5), max_size=30))
def test_without_rules_nothing_ends(losses):
    assert end(losses) is None


def test_losses_of_zero_and_below_are_no_trap():
    """ggml divides by the loss: by zero it is NaN, and below zero everything is a small change."""
    assert end([1.0, 0.0, 1.0], past=1, delta=1e-3) is None
    assert end([-1.0, -2.0, -3.0], past=1, delta=1e-3) is None
    assert end([-1.0, -2.0, -2.0], past=1, delta=1e-3)[0] == 3


def test_validation():
    rules, state = StopRules(patience=2), StopState()
    found = [after_validation(rules, state, best) for best in (True, False, True, False, False)]
    assert found[:4] == [None] * 4
    assert found[4] == "no lower validation loss in 2 looks"


@pytest.mark.parametrize("name", ["past", "delta", "max_no_improvement", "epsf", "seconds"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_settings_are_checked(name, value):
    with pytest.raises(SettingError, match=f"stop: {name} is out of range"):
        StopRules(**{name: value})


def test_a_run_ends_early_and_says_why(tmp_path):
    changes = {"adam_iter": 50, "adam_alpha": 0.0, "opt_max_no_improvement": 4, "eval_every": 0}
    outcome = prepare(TEXT, settings(tmp_path, **changes)).train()
    assert "no lower loss in 4 steps" in outcome.reason
    assert 5 <= outcome.history.step < 50
    assert outcome.history.validation[-1][0] == outcome.history.step  # looked at in the end
    assert (tmp_path / "m.gguf").exists()
    changes = {"adam_iter": 50, "adam_alpha": 0.0, "patience": 3, "eval_every": 2}
    outcome = prepare(TEXT, settings(tmp_path, **changes)).train()
    assert outcome.history.step == 8
    assert outcome.reason == "no lower validation loss in 3 looks"


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path):
    rules = {"adam_iter": 60, "opt_past": 3, "opt_delta": 0.02, "opt_max_no_improvement": 9}
    rules |= {"warmup": 0, "eval_every": 50}
    whole = prepare(TEXT, settings(tmp_path / "a", **rules)).train()
    assert whole.reason
    for stop in (2, whole.history.step - 1):
        folder = tmp_path / str(stop)
        path = folder / "c.gguf"
        first = settings(folder, **{**rules, "adam_iter": stop, "checkpoint_out": path})
        prepare(TEXT, first).train()
        (folder / "m.jsonl").unlink()  # what the rules need is in the checkpoint
        rest = prepare(TEXT, settings(folder, **rules, checkpoint_in=path)).train()
        assert (rest.history.step, rest.reason) == (whole.history.step, whole.reason)
