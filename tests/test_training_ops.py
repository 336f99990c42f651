"""Dropout and detach: what their samples in the registry do not show."""

import numpy as np
import pytest

import yupana as yp


def masks(*keys: tuple[int, int, int], p: float) -> np.ndarray:
    """Which of 200,000 ones are dropped for (seed, seed, salt)."""
    ones = yp.tensor(np.ones((40, 5000), np.float32))
    made = [yp.ops.dropout(ones, yp.tensor([a, b]), p, salt) for a, b, salt in keys]
    return np.stack([y.numpy().ravel() == 0 for y in made])


@pytest.mark.parametrize("p", [0.0, 0.05, 0.5])
def test_the_asked_share_is_dropped_and_the_mean_stays(p):
    x = yp.tensor(np.ones((100, 3000), np.float32))
    y = yp.ops.dropout(x, yp.tensor([3, 4]), p).numpy()
    assert abs((y == 0).mean() - p) < 5 * np.sqrt(p * (1 - p) / y.size) + 1e-12
    np.testing.assert_allclose(y[y != 0], 1 / (1 - p), rtol=1e-6)


def test_seeds_salts_and_neighbours_are_independent():
    dropped = masks((1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1), p=0.3)
    shifted = np.concatenate([dropped[:, 1:], dropped[:, :1]], axis=1)
    below = np.concatenate([dropped[:, 5000:], dropped[:, :5000]], axis=1)
    found = np.corrcoef(np.concatenate([dropped, shifted, below]))
    np.fill_diagonal(found, 0.0)
    assert np.abs(found).max() < 5 / np.sqrt(dropped.shape[1])


def test_a_compiled_step_drops_others_with_another_seed():
    x, seed = yp.tensor(np.ones((8, 64), np.float32)), yp.Context().input((2,), "i32")
    y = yp.ops.dropout(x, seed, 0.5)
    program = yp.Graph([y]).compile()
    values = []
    for step in (0, 1, 0):
        seed.set([7, step])
        program.run()
        values.append(program.value(y))
    assert (values[0] != values[1]).any()
    np.testing.assert_array_equal(values[0], values[2])


def test_nothing_flows_back_through_detach():
    ctx = yp.Context()
    a, b = (ctx.param((3,), name=name).set([1.0, 2.0, 3.0]) for name in "ab")
    loss = (a * yp.ops.detach(a * b)).sum()
    grads = yp.gradients(loss)
    assert b not in grads
    np.testing.assert_array_equal(grads[a].numpy(), [1.0, 4.0, 9.0])  # a·b as a constant
