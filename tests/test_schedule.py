"""Learning-rate schedules: against ggml's formula where it is right, and their properties."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yupana.graphlib.errors import SettingError
from yupana.train.schedule import (
    Schedule,
    cosine_decay,
    cosine_decay_restart,
    linear_decay,
)

KINDS = ["constant", "linear", "cosine", "cosine_restart"]
schedules = st.builds(
    Schedule,
    kind=st.sampled_from(KINDS),
    warmup=st.integers(0, 50),
    steps=st.integers(1, 100),
    minimum=st.floats(0, 1),
    restart=st.floats(1, 3),
    floor=st.floats(0, 1),
)


def restarts_written_out(step, steps, minimum, multiplier):
    """The definition, one step at a time."""
    position = 0
    for _ in range(step):
        position += 1
        if position > steps:
            position, steps = 1, int(multiplier * steps)
    return cosine_decay(position, steps, minimum)


@given(schedules, st.integers(0, 2000))
def test_factor_lies_between_floor_and_one(schedule, step):
    assert 0 <= schedule.floor <= schedule.factor(step) + 1e-12
    assert schedule.factor(step) <= 1 + 1e-12


@given(schedules)
def test_warmup_rises_to_one_and_then_decays(schedule):
    rise = [schedule.factor(step) for step in range(schedule.warmup + 1)]
    assert all(a <= b for a, b in itertools.pairwise(rise))
    assert math.isclose(rise[-1], 1)
    if schedule.floor < 0.99:
        assert rise[0] > schedule.floor  # no update is wasted
    if schedule.kind != "cosine_restart":
        last = schedule.warmup + schedule.steps
        fall = [schedule.factor(step) for step in range(schedule.warmup, last + 1)]
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(fall))


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_decay_starts_at_one_and_ends_at_the_minimum(kind):
    schedule = Schedule(kind, warmup=7, steps=20, minimum=0.25)
    assert schedule.factor(7) == 1
    assert math.isclose(schedule.factor(17), 0.625)
    assert math.isclose(schedule.factor(27), 0.25)
    assert schedule.factor(27) == schedule.factor(10**9)


def test_constant_stays():
    schedule = Schedule("constant", warmup=3)
    assert [schedule.factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_floor_is_the_smallest_rate():
    """ggml: min + factor * (1 - min), with min the smallest rate over the rate."""
    bare, lifted = Schedule(minimum=0.0), Schedule(minimum=0.0, floor=0.3)
    for step in (0, 50, 100, 600, 1100, 5000):
        assert math.isclose(lifted.factor(step), 0.3 + 0.7 * bare.factor(step))


@given(
    step=st.integers(0, 400),
    steps=st.integers(1, 40),
    minimum=st.floats(0, 1),
    multiplier=st.floats(1, 3),
)
def test_restarts_equal_their_definition(step, steps, minimum, multiplier):
    value = cosine_decay_restart(step, steps, minimum, multiplier)
    assert value == restarts_written_out(step, steps, minimum, multiplier)


def test_restarts_of_one_length_are_found_at_once():
    assert cosine_decay_restart(10**15 + 3, 5, 0.0, 1.1) == cosine_decay(3, 5)


def test_decays_take_known_values():
    assert cosine_decay(0, 10) == linear_decay(0, 10) == 1
    assert math.isclose(cosine_decay(1, 3), 0.75)
    assert math.isclose(cosine_decay(2, 3, 0.2), 0.4)
    assert math.isclose(linear_decay(1, 4, 0.2), 0.8)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "step"}, "got 'step', want one of constant, linear"),
        ({"warmup": -1}, "warmup"),
        ({"steps": 0}, "steps is out of range: got 0, want at least 1"),
        ({"minimum": 1.5}, "minimum"),
        ({"minimum": math.nan}, "minimum"),
        ({"restart": 0.9}, "restart"),
        ({"restart": math.inf}, "restart"),
        ({"floor": -0.1}, "floor"),
    ],
)
def test_settings_are_checked(wrong, words):
    with pytest.raises(SettingError, match=words):
        Schedule(**wrong)


def test_negative_step_is_refused():
    with pytest.raises(SettingError, match="step is negative: got -1"):
        Schedule().factor(-1)
