"""Mixtures of experts: what the samples of the ops do not draw."""

import numpy as np
import pytest

import yupana as yp
from yupana import ops


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def formula(w: np.ndarray, x: np.ndarray, ids: np.ndarray) -> np.ndarray:
    y = np.full((*ids.shape, w.shape[1]), np.nan)
    for t, u in np.ndindex(*ids.shape):
        if 0 <= ids[t, u] < len(w):
            y[t, u] = w[ids[t, u]].astype(np.float64) @ x[t, u if x.shape[1] > 1 else 0]
    return y


@pytest.mark.parametrize("dtype", ["f32", "f16", "Q8_0", "Q4_K"])
@pytest.mark.parametrize("tokens", [1, 5, 100])
def test_every_row_meets_the_matrix_it_picked_and_nan_where_there_is_none(dtype, tokens):
    w, x = yp.tensor(rows(6, 20, 256), dtype), rows(tokens, 1, 256, seed=1)
    ids = np.random.default_rng(2).integers(-1, 8, (tokens, 3))
    ids[:, 0] = 4  # one expert has far more rows than the others
    got = ops.mul_mat_id(w, yp.tensor(x), yp.tensor(ids)).numpy()
    matrices = ops.cast(w, "f32").numpy() if dtype != "f32" else w.numpy()
    want = formula(matrices, x, ids)
    assert np.array_equal(np.isnan(got), np.isnan(want))
    assert np.nanmax(np.abs(got - want)) < 2e-4


def test_rows_reach_a_trained_matrix_through_frozen_quantised_experts():
    context = yp.Context()
    a, w = context.param((4, 32)).set(rows(4, 32)), yp.tensor(rows(3, 5, 32), "Q8_0")
    x, ids = rows(7, 4, seed=1), np.array([[0, 2]] * 4 + [[1, 1]] * 3)
    hidden = ops.reshape(yp.tensor(x) @ a, (7, 1, 32))
    loss = ops.mul_mat_id(w, hidden, yp.tensor(ids)).sum()
    grad = yp.gradients(loss)[a].numpy()
    expanded = ops.cast(w, "f32").numpy()
    want = sum(np.outer(x[t], expanded[e].sum(0)) for t in range(7) for e in ids[t])
    assert np.allclose(grad, want, rtol=1e-5, atol=1e-5)


def test_no_tokens_and_experts_that_nobody_picks():
    w = yp.tensor(rows(3, 2, 4))
    none = ops.mul_mat_id(w, yp.tensor(rows(0, 1, 4)), yp.tensor(np.zeros((0, 2), int)))
    assert none.numpy().shape == (0, 2, 2)
    ids = yp.tensor([[1, 1], [7, -1]])
    x, g = yp.tensor(rows(2, 1, 4)), yp.tensor(rows(2, 2, 2))
    got = ops.out_prod_id(x, g, ids, 3).numpy()
    assert not got[[0, 2]].any()
    assert np.allclose(got[1], np.outer(g.numpy()[0].sum(0), x.numpy()[0, 0]), rtol=1e-5)


def test_results_are_the_same_bits_on_any_number_of_threads():
    w, x = yp.tensor(rows(5, 70, 300)), yp.tensor(rows(60, 2, 300, seed=1))
    ids = yp.tensor(np.random.default_rng(0).integers(0, 5, (60, 2)))
    y = ops.mul_mat_id(w, x, ids)
    outputs = [y, ops.out_prod_id(x, y, ids, 5)]
    found = []
    for threads in (1, 2, 3):
        program = yp.Graph(outputs).compile(threads=threads)
        program.run()
        found.append([program.value(o).tobytes() for o in outputs])
    assert found[0] == found[1] == found[2]


def test_biases_are_those_of_the_experts():
    bias, x = rows(3, 4), rows(2, 2, 4, seed=1)
    ids = np.array([[0, 2], [2, 1]])
    got = ops.add_id(yp.tensor(x), yp.tensor(bias), yp.tensor(ids)).numpy()
    assert np.array_equal(got, x + bias[ids])
    with pytest.raises(yp.errors.ShapeError, match=r"want \(T, U, N\)"):
        ops.add_id(yp.tensor(x), yp.tensor(bias), yp.tensor([0, 2]))
