"""L-BFGS: minima known in closed form, ggml's rules on the way, and every way to end."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
from yupana.train.lbfgs import LbfgsSettings, LbfgsState, LbfgsStatus, lbfgs

RULES = ["armijo", "wolfe", "strong_wolfe"]


def rosenbrock(x):
    """Sum over pairs of 100 (x1 - x0²)² + (1 - x0)²; minimum 0 at all ones."""
    a, b = x[::2], x[1::2]
    slope = np.empty_like(x)
    slope[::2] = -400 * a * (b - a * a) - 2 * (1 - a)
    slope[1::2] = 200 * (b - a * a)
    return float(np.sum(100 * (b - a * a) ** 2 + (1 - a) ** 2)), slope


def quadratic(scales, centre):
    def evaluate(x):
        return float(0.5 * np.sum(scales * (x - centre) ** 2)), scales * (x - centre)

    return evaluate


@pytest.mark.parametrize("rule", RULES)
def test_rosenbrock_reaches_its_minimum(rule):
    start = np.array([-1.2, 1.0, 2.0, -3.0])
    result = lbfgs(rosenbrock, start, LbfgsSettings(n_iter=500, linesearch=rule))
    assert result.status is LbfgsStatus.CONVERGED
    np.testing.assert_allclose(result.x, 1.0, atol=1e-4)
    assert np.array_equal(start, [-1.2, 1.0, 2.0, -3.0])
    assert result.n_iterations < 100


def test_ill_conditioned_quadratic_beats_steepest_descent():
    scales = np.logspace(0, 3, 40)
    centre = np.linspace(-1, 1, 40)
    evaluate = quadratic(scales, centre)
    result = lbfgs(evaluate, np.zeros(40), LbfgsSettings(n_iter=1000, eps=1e-8))
    assert result.status is LbfgsStatus.CONVERGED
    np.testing.assert_allclose(result.x, centre, atol=1e-6)
    # Steepest descent needs about 20 times the condition number, 1e3.
    assert result.n_iterations < 500


def test_direction_is_that_of_the_dense_inverse_hessian():
    """The two loops equal the BFGS matrix built from the remembered pairs."""
    points = []

    def evaluate(x):
        points.append(x.copy())
        return rosenbrock(x)

    start = np.random.default_rng(4).normal(size=6)
    part = lbfgs(rosenbrock, start, LbfgsSettings(n_iter=7, m=4))
    state, inverse = part.state, np.eye(6) * part.state.scale
    for i in range(4):
        s, y = state.s[(state.end + i) % 4], state.y[(state.end + i) % 4]
        shear = np.eye(6) - np.outer(s, y) / (y @ s)
        inverse = shear @ inverse @ shear.T + np.outer(s, s) / (y @ s)
    expected = part.x - inverse @ part.gradient
    lbfgs(evaluate, part.x, LbfgsSettings(n_iter=1, m=4), state)
    np.testing.assert_allclose(points[1], expected, rtol=1e-9)


@given(
    centre=st.lists(st.floats(-10, 10), min_size=1, max_size=12),
    exponent=st.floats(0, 3),
    m=st.integers(1, 8),
    rule=st.sampled_from(RULES),
)
@settings(deadline=None, max_examples=60)
def test_quadratics_are_solved_for_any_memory_and_rule(centre, exponent, m, rule):
    scales = np.logspace(0, exponent, len(centre))
    chosen = LbfgsSettings(m=m, n_iter=2000, linesearch=rule, eps=1e-6, max_linesearch=60)
    start = np.full(len(centre), 3.0)
    result = lbfgs(quadratic(scales, np.array(centre)), start, chosen)
    assert result.status is LbfgsStatus.CONVERGED
    np.testing.assert_allclose(result.x, centre, atol=1e-4)


def test_result_is_consistent_with_its_point():
    result = lbfgs(rosenbrock, np.array([-1.2, 1.0]), LbfgsSettings(n_iter=7))
    loss, gradient = rosenbrock(result.x)
    assert result.status is LbfgsStatus.ITERATION_LIMIT
    assert result.n_iterations == 7
    assert result.loss == loss
    assert np.array_equal(result.gradient, gradient)


def test_first_trials_follow_ggml():
    """Worked by hand: step 1/|g|, then 2.1 times it while the slope stays steep, then 1."""
    seen = []

    def evaluate(x):
        seen.append(float(x[0]))
        return float(0.5 * (x[0] - 100) ** 2), x - 100

    lbfgs(evaluate, np.array([0.0]), LbfgsSettings(n_iter=2))
    # Slope |x - 100| has to fall from 100 to 90: 1, 2.1, 4.41, 9.261, 19.4481. Then Newton's
    # step with the exact curvature 1 lands on 100.
    np.testing.assert_allclose(seen, [0.0, 1.0, 2.1, 4.41, 9.261, 19.4481, 100.0], rtol=1e-12)


def test_too_long_a_step_is_halved():
    seen = []

    def evaluate(x):
        seen.append(float(x[0]))
        return float(50 * x[0] ** 2), 100 * x

    lbfgs(evaluate, np.array([0.3]), LbfgsSettings(n_iter=1))
    # From 0.3 a step of length 1 to -0.7 goes up, one of 0.5 to -0.2 goes down enough.
    np.testing.assert_allclose(seen, [0.3, -0.7, -0.2], rtol=1e-12)


def test_wolfe_conditions_hold_at_accepted_points():
    points = []
    for n in range(1, 12):
        result = lbfgs(rosenbrock, np.array([-1.2, 1.0]), LbfgsSettings(n_iter=n))
        points.append((result.x, result.loss, result.gradient))
    for (x, loss, g), (x_new, loss_new, g_new) in itertools.pairwise(points):
        step = x_new - x
        assert loss_new <= loss + 1e-4 * (g @ step) * (1 - 1e-9)
        assert g_new @ step >= 0.9 * (g @ step)


def test_resumed_search_gives_the_same_bits():
    start = np.random.default_rng(0).normal(size=20).astype(np.float32)
    whole = lbfgs(rosenbrock, start, LbfgsSettings(n_iter=24, past=3, delta=0))
    part = lbfgs(rosenbrock, start, LbfgsSettings(n_iter=9, past=3, delta=0))
    rest = lbfgs(rosenbrock, part.x, LbfgsSettings(n_iter=15, past=3, delta=0), part.state)
    assert whole.status is rest.status is LbfgsStatus.ITERATION_LIMIT
    assert np.array_equal(whole.x, rest.x)
    assert whole.loss == rest.loss
    assert rest.state.n_iterations == 24
    np.testing.assert_array_equal(whole.state.past_losses, rest.state.past_losses)


def test_float32_stays_float32_and_float64_is_never_threaded_noise():
    start = np.random.default_rng(1).normal(size=30_000)
    for dtype in (np.float32, np.float64):
        first, again = (
            lbfgs(rosenbrock, start.astype(dtype), LbfgsSettings(n_iter=10)) for _ in range(2)
        )
        assert first.x.dtype == first.state.s.dtype == dtype
        assert np.array_equal(first.x, again.x)


def test_gradient_buffer_may_be_reused_by_the_caller():
    buffer = np.empty(2)

    def evaluate(x):
        loss, buffer[:] = rosenbrock(x)
        return loss, buffer

    start = np.array([-1.2, 1.0])
    assert np.array_equal(lbfgs(evaluate, start).x, lbfgs(rosenbrock, start).x)


def test_start_at_the_minimum_takes_one_evaluation():
    result = lbfgs(rosenbrock, np.ones(4))
    assert (result.status, result.n_evaluations) == (LbfgsStatus.CONVERGED, 1)


def test_settled_loss_ends_the_search():
    evaluate = quadratic(np.logspace(0, 6, 30), np.ones(30))
    chosen = LbfgsSettings(n_iter=5000, past=2, delta=0.5)
    result = lbfgs(lambda x: (1000 + evaluate(x)[0], evaluate(x)[1]), np.zeros(30), chosen)
    assert result.status is LbfgsStatus.LOSS_SETTLED
    assert result.n_iterations >= 2


def test_no_improvement_ends_the_search():
    # The loss hides what the gradient does: Armijo's rule is met, no loss is ever better.
    chosen = LbfgsSettings(linesearch="armijo", max_no_improvement=3, n_iter=50, ftol=1e-12)
    result = lbfgs(lambda x: (1e9, np.full_like(x, 1e-3)), np.zeros(4), chosen)
    assert (result.status, result.n_iterations) == (LbfgsStatus.NO_IMPROVEMENT, 3)


def test_callback_sees_losses_and_may_stop():
    losses = []

    def note(iteration, loss):
        losses.append((iteration, loss))
        return iteration == 3

    result = lbfgs(rosenbrock, np.array([-1.2, 1.0]), on_iteration=note)
    assert result.status is LbfgsStatus.CANCELLED
    assert [i for i, _ in losses] == [1, 2, 3]
    assert losses[-1][1] == result.loss


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_start_is_reported(bad):
    result = lbfgs(lambda x: (bad, x), np.ones(3))
    assert (result.status, result.n_evaluations) == (LbfgsStatus.NON_FINITE, 1)
    result = lbfgs(lambda x: (1.0, np.full_like(x, bad)), np.ones(3))
    assert result.status is LbfgsStatus.NON_FINITE


def test_non_finite_region_is_backed_out_of():
    """x - log(x) is undefined at and below 0; its minimum is 1 at x = 1."""

    def evaluate(x):
        with np.errstate(all="ignore"):
            return float(np.sum(x - np.log(x))), 1 - 1 / x

    result = lbfgs(evaluate, np.array([6.0, 0.01]))
    assert result.status is LbfgsStatus.CONVERGED
    np.testing.assert_allclose(result.x, 1, atol=1e-4)


def test_non_finite_all_along_keeps_the_last_good_point():
    start = np.array([2.0, 3.0])

    def evaluate(x):
        return (7.0 if np.array_equal(x, start) else math.nan), np.array([1.0, 1.0])

    result = lbfgs(evaluate, start, LbfgsSettings(max_linesearch=5))
    assert result.status is LbfgsStatus.NON_FINITE
    assert result.status.is_failure
    assert np.array_equal(result.x, start)
    assert (result.loss, result.n_iterations, result.n_evaluations) == (7.0, 0, 6)


@pytest.mark.parametrize(
    ("slope", "status", "limits"),
    [
        (1.0, LbfgsStatus.LINESEARCH_LIMIT, {}),
        (1.0, LbfgsStatus.MAXIMUM_STEP, {"max_step": 3.0}),
        (-1.0, LbfgsStatus.LINESEARCH_LIMIT, {}),
        (-1.0, LbfgsStatus.MINIMUM_STEP, {"min_step": 0.1}),
    ],
)
def test_line_searches_that_cannot_succeed_end(slope, status, limits):
    """A line without end, and a gradient that lies about the direction."""
    result = lbfgs(
        lambda x: (slope * float(x[0]), np.ones(1)), np.zeros(1), LbfgsSettings(**limits)
    )
    assert result.status is status
    assert result.n_evaluations <= 21
    assert result.x[0] == 0


def test_overflow_is_handled_without_warnings():
    """In float32 squares overflow beyond 1.8e19: warnings are errors in these tests."""
    result = lbfgs(lambda x: (float(x[0]), np.full_like(x, 1e30)), np.ones(3, np.float32))
    assert result.status is LbfgsStatus.NON_FINITE
    far = np.full(3, 1e25, np.float32)
    result = lbfgs(lambda x: (float(x.sum()), np.ones_like(x)), far, LbfgsSettings(max_step=1e38))
    assert result.status.is_failure
    assert np.array_equal(result.x, far)


def test_strong_wolfe_rejects_a_slope_of_the_other_sign():
    seen = []

    def evaluate(x):
        seen.append(float(x[0]))
        return float(x[0] ** 2), 2 * x

    # From 0.52 a step of 1 to -0.48 decreases the loss, but its slope is 0.92 of the first.
    lbfgs(evaluate, np.array([0.52]), LbfgsSettings(n_iter=1, linesearch="strong_wolfe"))
    np.testing.assert_allclose(seen, [0.52, -0.48, 0.02], atol=1e-12)
    seen.clear()
    lbfgs(evaluate, np.array([0.52]), LbfgsSettings(n_iter=1))
    np.testing.assert_allclose(seen, [0.52, -0.48], atol=1e-12)


def test_wrong_gradient_never_loops_for_ever():
    """Gradients drawn at random: whatever happens, evaluations are bounded and x is finite."""
    for rule in RULES:
        rng = np.random.default_rng(3)
        chosen = LbfgsSettings(n_iter=30, linesearch=rule)
        result = lbfgs(lambda x: (float(rng.normal()), rng.normal(size=5)), np.zeros(5), chosen)  # noqa: B023
        assert result.n_evaluations <= 1 + 30 * 20
        assert np.all(np.isfinite(result.x))


def test_negative_curvature_is_not_remembered():
    """Near the top of a cosine Armijo's rule accepts a step along which the slope steepens."""

    def evaluate(x):
        return float(np.sum(np.cos(x))), -np.sin(x)

    one = LbfgsSettings(n_iter=1, linesearch="armijo")
    assert lbfgs(evaluate, np.array([0.2]), one).state.n_pairs == 0
    result = lbfgs(evaluate, np.array([0.2]), LbfgsSettings(linesearch="armijo"))
    assert result.status is LbfgsStatus.CONVERGED
    assert math.isclose(result.loss, -1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"m": 0}, "m is out of range: got 0"),
        ({"n_iter": 0}, "n_iter"),
        ({"max_linesearch": 0}, "max_linesearch"),
        ({"eps": -1.0}, "eps"),
        ({"eps": math.nan}, "eps"),
        ({"ftol": 0.95}, "want ftol \\(0.95\\) < wolfe < 1"),
        ({"wolfe": 1.0}, "wolfe"),
        ({"min_step": 1.0, "max_step": 0.5}, "min_step"),
        ({"linesearch": "exact"}, "one of armijo, wolfe, strong_wolfe"),
        ({"past": -1}, "past"),
        ({"max_no_improvement": -1}, "max_no_improvement"),
    ],
)
def test_settings_are_checked(wrong, words):
    with pytest.raises(SettingError, match=words):
        LbfgsSettings(**wrong)


def test_wolfe_is_not_asked_of_armijo():
    assert LbfgsSettings(linesearch="armijo", wolfe=2.0).wolfe == 2.0


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"got \(2, 2\), want \(N,\)"):
        lbfgs(rosenbrock, np.ones((2, 2)))
    with pytest.raises(DtypeError, match="got int64"):
        lbfgs(rosenbrock, np.ones(2, np.int64))
    with pytest.raises(ShapeError, match=r"gradient has a wrong shape: got \(3,\), want \(2,\)"):
        lbfgs(lambda x: (0.0, np.zeros(3)), np.ones(2))
    state = LbfgsState.new(3, LbfgsSettings())
    with pytest.raises(ShapeError, match="state is of another problem"):
        lbfgs(rosenbrock, np.ones(2, np.float32), state=state)
    with pytest.raises(SettingError, match="`past` differs"):
        lbfgs(rosenbrock, np.ones(3, np.float32), LbfgsSettings(past=2), state)


def test_memory_survives_being_written_out():
    """The state is plain numbers and arrays: what a checkpoint needs."""
    start = np.array([-1.2, 1.0])
    part = lbfgs(rosenbrock, start, LbfgsSettings(n_iter=5))
    state = part.state
    values = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(state).items()}
    read = json.loads(json.dumps(values))
    copy = LbfgsState(**{k: np.array(v) if isinstance(v, list) else v for k, v in read.items()})
    again = lbfgs(rosenbrock, part.x, LbfgsSettings(n_iter=5), copy)
    assert np.array_equal(again.x, lbfgs(rosenbrock, start, LbfgsSettings(n_iter=10)).x)
