"""Plain functions of ops: their values, and what their gradients must be."""

import math

import numpy as np
import pytest

import yupana as yp
from yupana import ops
from yupana.graphlib.errors import SettingError, ShapeError


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def gradients(function, *arrays: np.ndarray) -> list[np.ndarray]:
    """Gradients of a weighted sum of `function` of parameters that hold `arrays`."""
    context = yp.Context()
    params = [context.param(a.shape).set(a) for a in arrays]
    y = function(*params)
    loss = (y * yp.tensor(array(*y.shape, seed=9))).sum()
    grads = yp.gradients(loss)
    return [grads[p].numpy() for p in params]


def check_gradients(function, formula, *arrays: np.ndarray) -> None:
    """The gradients agree with central differences of `formula`, a function in NumPy."""
    weights = array(*formula(*arrays).shape, seed=9).astype(np.float64)
    wide = [a.astype(np.float64) for a in arrays]
    for k, grad in enumerate(gradients(function, *arrays)):
        along = array(*arrays[k].shape, seed=5).astype(np.float64)
        moved = [[*wide[:k], wide[k] + h * along, *wide[k + 1 :]] for h in (-1e-5, 1e-5)]
        below, above = ((formula(*m) * weights).sum() for m in moved)
        got, want = (grad * along).sum(), (above - below) / 2e-5
        assert abs(got - want) <= 1e-4 * max(1.0, np.abs(grad * along).sum())


def group_norm(x, n_groups, eps=1e-6):
    rows = x.reshape(*x.shape[:-3], n_groups, -1)
    centred = rows - rows.mean(-1, keepdims=True)
    return (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)).reshape(x.shape)


def win_part(x, window):
    tall, wide = (-n % window for n in x.shape[1:3])
    x = np.pad(x, ((0, 0), (0, tall), (0, wide), (0, 0)))
    return np.stack(
        [
            image[i : i + window, j : j + window]
            for image in x
            for i in range(0, x.shape[1], window)
            for j in range(0, x.shape[2], window)
        ]
    )


def rel_pos(table, queries, keys):
    q = np.arange(queries)[:, None] * max(keys / queries, 1.0)
    k = np.arange(keys)[None, :] * max(queries / keys, 1.0)
    return table[((q - k) + (keys - 1) * max(queries / keys, 1.0)).astype(int)]


def add_rel_pos(a, w, h):
    b, q = a.shape[:2]
    scores = a.reshape(b, q, h.shape[-1], w.shape[-1])
    return (scores + h[:, :, :, None] + w[:, :, None, :]).reshape(a.shape)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


GATES = {
    "reglu": lambda x: np.maximum(x, 0),
    "swiglu": lambda x: x * sigmoid(x),
    "geglu": gelu,
    "geglu_erf": gelu_erf,
    "geglu_quick": lambda x: x * sigmoid(1.702 * x),
}


def swiglu_oai(a, b, alpha, limit):
    u, v = np.minimum(a, limit), np.clip(b, -limit, limit)
    return u * sigmoid(alpha * u) * (v + 1)


def xpos(x, positions, base, down):
    """Two pairs of four numbers, written out."""
    zeta = ((np.array([0, 0, 2, 2]) + 1.6) / 5.6) ** (positions[:, None] / base)
    turn = np.exp(1j * positions[:, None] * np.array([1.0, 0.01]))[:, None]
    pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
    y = np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)
    return y / zeta[:, None] if down else y * zeta[:, None]


def timestep_embedding(t, dim):
    half = dim // 2
    angles = t[:, None] * 10000.0 ** (-np.arange(half) / half)
    return np.concatenate([np.cos(angles), np.sin(angles), np.zeros((t.size, dim % 2))], axis=1)


def feed_forward(x, w0, b0, w1, b1):
    h = x @ w0.T + b0
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return h @ w1.T + b1


CASES = {
    **{
        f"{name}{' swapped' * swapped}": (
            lambda x, name=name, swapped=swapped: getattr(ops, name)(x, swapped),
            lambda x, gate=gate, swapped=swapped: (
                x[..., :3] * gate(x[..., 3:]) if swapped else gate(x[..., :3]) * x[..., 3:]
            ),
            [(4, 6)],
        )
        for name, gate in GATES.items()
        for swapped in (False, True)
    },
    **{
        f"{name}_split": (
            lambda a, b, name=name: getattr(ops, f"{name}_split")(a, b),
            lambda a, b, gate=gate: gate(a) * b,
            [(3, 4), (3, 4)],
        )
        for name, gate in GATES.items()
    },
    "swiglu_oai": (
        lambda a, b: ops.swiglu_oai(a, b, 1.5, 0.8),
        lambda a, b: swiglu_oai(a, b, 1.5, 0.8),
        [(5, 4), (5, 4)],
    ),
    "alibi of six heads": (
        lambda x: ops.alibi(x, 8.0),
        lambda x: x + 0.5 ** np.array([2, 4, 6, 8, 1, 3])[:, None, None] * np.arange(4),
        [(2, 6, 3, 4)],
    ),
    "soft_max with ALiBi": (
        lambda x: ops.soft_max(x, yp.tensor([[0.0, -1.0, -2.0]]), 0.5, 8.0),
        lambda x: np.stack(
            [
                np.exp(h) / np.exp(h).sum(-1, keepdims=True)
                for h in (0.5 * x[k] - [0, m, 2 * m] for k, m in enumerate((1 / 16, 1 / 256)))
            ]
        ),
        [(2, 4, 3)],
    ),
    "rope_xpos": (
        lambda x: ops.rope_xpos(x, yp.tensor([0, 7, 300]), base=64.0),
        lambda x: xpos(x, np.array([0, 7, 300]), 64.0, down=False),
        [(2, 3, 2, 4)],
    ),
    "rope_xpos of keys": (
        lambda x: ops.rope_xpos(x, yp.tensor([5, 9]), base=64.0, down=True),
        lambda x: xpos(x, np.array([5, 9]), 64.0, down=True),
        [(2, 1, 4)],
    ),
    "group_norm": (lambda x: ops.group_norm(x, 3), lambda x: group_norm(x, 3), [(2, 6, 4, 3)]),
    "group_norm of one image": (
        lambda x: ops.group_norm(x, 2, 0.1),
        lambda x: group_norm(x, 2, 0.1),
        [(4, 2, 3)],
    ),
    "add1": (ops.add1, lambda a, b: a + b, [(3, 4), (1,)]),
    "add1 of a number": (ops.add1, lambda a, b: a + b, [(2, 3), ()]),
    "scale_bias": (lambda x: ops.scale_bias(x, -2.0, 0.5), lambda x: 0.5 - 2 * x, [(3, 2)]),
    "pad": (
        lambda x: ops.pad(x, [(1, 0), (0, 2), (3, 1)]),
        lambda x: np.pad(x, [(1, 0), (0, 2), (3, 1)]),
        [(2, 3, 4)],
    ),
    "pad of a view": (
        lambda x: ops.pad(x.T, [(1, 1), (0, 2)]),
        lambda x: np.pad(x.T, [(1, 1), (0, 2)]),
        [(3, 4)],
    ),
    "pad in a circle": (
        lambda x: ops.pad(x, [(2, 1), (0, 3)], circular=True),
        lambda x: np.pad(x, [(2, 1), (0, 3)], mode="wrap"),
        [(2, 3)],
    ),
    "roll": (lambda x: ops.roll(x, -2), lambda x: np.roll(x, -2, -1), [(2, 5)]),
    "roll of two axes": (
        lambda x: ops.roll(x, (1, 7), (0, 2)),
        lambda x: np.roll(x, (1, 7), (0, 2)),
        [(3, 2, 5)],
    ),
    "diag": (ops.diag, lambda x: x[..., None] * np.eye(4), [(2, 3, 4)]),
    "diag of a view": (lambda x: ops.diag(x.T), lambda x: x.T[..., None] * np.eye(3), [(3, 2)]),
    "upscale": (
        lambda x: ops.upscale(x, 3),
        lambda x: x.repeat(3, -1).repeat(3, -2),
        [(2, 3, 2)],
    ),
    "win_part": (lambda x: ops.win_part(x, 3), lambda x: win_part(x, 3), [(2, 5, 7, 2)]),
    "win_part that fits": (lambda x: ops.win_part(x, 2), lambda x: win_part(x, 2), [(1, 4, 6, 3)]),
    "get_rel_pos": (lambda t: ops.get_rel_pos(t, 4, 4), lambda t: rel_pos(t, 4, 4), [(7, 3)]),
    "get_rel_pos, fewer keys": (
        lambda t: ops.get_rel_pos(t, 6, 3),
        lambda t: rel_pos(t, 6, 3),
        [(11, 2)],
    ),
    "get_rel_pos, more keys": (
        lambda t: ops.get_rel_pos(t, 2, 6),
        lambda t: rel_pos(t, 2, 6),
        [(11, 2)],
    ),
    "timestep_embedding": (
        lambda t: ops.timestep_embedding(t, 7),
        lambda t: timestep_embedding(t, 7),
        [(5,)],
    ),
    "dup of a view": (lambda x: ops.dup(x.T), lambda x: x.T, [(3, 4)]),
    "flash_ff": (ops.flash_ff, feed_forward, [(5, 4), (7, 4), (7,), (4, 7), (4,)]),
    "add_rel_pos": (ops.add_rel_pos, add_rel_pos, [(2, 5, 12), (2, 5, 4), (2, 5, 3)]),
}


@pytest.mark.parametrize("name", CASES)
def test_composites_are_their_formulas(name):
    function, formula, shapes = CASES[name]
    arrays = [array(*shape, seed=k) for k, shape in enumerate(shapes)]
    got, want = function(*map(yp.tensor, arrays)).numpy(), formula(*arrays)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 2e-6 * max(1.0, np.abs(want).max())
    check_gradients(function, formula, *arrays)


def test_timestep_embedding_takes_whole_numbers():
    got = ops.timestep_embedding(yp.tensor([0, 3, 999]), 16)
    assert got.dtype is yp.f32
    assert np.allclose(got.numpy(), timestep_embedding(np.array([0, 3, 999]), 16), atol=1e-4)


def test_win_unpart_undoes_win_part():
    x = array(2, 5, 7, 3)
    windows = ops.win_part(yp.tensor(x), 3)
    assert np.array_equal(ops.win_unpart(windows, 5, 7, 3).numpy(), x)
    parts = win_part(x, 3)
    grad = gradients(lambda p: ops.win_unpart(p, 5, 7, 3), parts)[0]
    assert np.array_equal(grad, win_part(array(2, 5, 7, 3, seed=9), 3))


def test_the_gradient_of_the_number_that_add1_adds_is_the_sum():
    # ggml takes the mean of the gradient here.
    a, b = gradients(ops.add1, array(3, 4), array(1))
    weights = array(3, 4, seed=9)
    assert np.array_equal(a, weights)
    assert np.allclose(b, weights.sum(), rtol=1e-6)


def test_fill_takes_shape_and_dtype_and_passes_no_gradient_on():
    x = yp.tensor(array(2, 3), "bf16")
    y = ops.fill(x, 2.5)
    assert y.dtype is yp.bf16
    assert np.array_equal(y.numpy(), np.full((2, 3), 2.5))
    with pytest.raises(yp.errors.GradientError, match="depends on no parameter"):
        gradients(lambda p: ops.fill(p, 1.0), array(2))


def test_whole_numbers_stay_exact_in_concat_and_roll():
    x = yp.tensor([2**24 + 1, 1 - 2**31, 7])
    assert ops.concat(x, x).numpy().tolist() == [2**24 + 1, 1 - 2**31, 7] * 2
    assert ops.roll(x, 1).numpy().tolist() == [7, 2**24 + 1, 1 - 2**31]


def test_arange_counts_as_numpy():
    assert ops.arange(2, 11, 3).numpy().tolist() == [2, 5, 8]
    assert ops.arange(3.0).dtype is yp.f32
    with pytest.raises(SettingError, match="step 0"):
        ops.arange(1, 2, 0)


def test_order_of_special_values_is_that_of_numpy():
    x = np.array([0.0, -0.0, np.nan, -np.inf, np.inf, 1.0, -np.nan, -1.0, 1e-45], np.float32)
    assert np.array_equal(ops.argsort(yp.tensor(x)).numpy(), np.argsort(x, kind="stable"))
    assert ops.argsort(yp.tensor(x), descending=True).numpy().tolist() == [
        2, 6, 4, 5, 8, 0, 1, 7, 3,
    ]  # fmt: skip
    assert ops.top_k(yp.tensor(x), 3).numpy().tolist() == [2, 6, 4]


@pytest.mark.parametrize("k", [1, 40, 3000, 5000])
def test_top_k_of_long_rows_is_the_head_of_the_sorted_row(k):
    x = np.round(array(3, 5000) * 20) / 20  # with many ties
    want = np.argsort(-x, axis=-1, kind="stable")[:, :k]
    assert np.array_equal(ops.top_k(yp.tensor(x), k).numpy(), want)


def test_argmax_is_that_of_numpy():
    x = np.round(array(2, 3, 50))
    assert np.array_equal(ops.argmax(yp.tensor(x)).numpy(), x.argmax(-1))


@pytest.mark.parametrize(
    ("run", "error", "words"),
    [
        (lambda x: ops.group_norm(x, 4), SettingError, "6 channels"),
        (lambda x: ops.group_norm(x[0, 0], 2), ShapeError, "(2, 2)"),
        (lambda x: ops.add1(x, x), ShapeError, "one element"),
        (lambda x: ops.swiglu(x[..., :1]), ShapeError, "odd"),
        (lambda x: ops.geglu_split(x, x[0]), ShapeError, "differ"),
        (lambda x: ops.swiglu_oai(x, x, limit=-1.0), SettingError, "limit=-1.0"),
        (lambda x: ops.alibi(x[0, 0]), ShapeError, "at least 3 axes"),
        (lambda x: ops.alibi(x, -8.0), SettingError, "max_bias"),
        (lambda x: ops.rope_xpos(x, yp.tensor([0, 1]), base=0.0), SettingError, "base"),
        (lambda x: ops.pad(x, [(1, 1)]), ShapeError, "per axis"),
        (lambda x: ops.pad(x, [(0, 0)] * 3 + [(-1, 0)]), SettingError, "widths from 0"),
        (lambda x: ops.pad(x, [(0, 0)] * 3 + [(3, 0)], True), SettingError, "at most 2"),
        (lambda x: ops.roll(x, (1, 2), 0), ShapeError, "one for each"),
        (lambda x: ops.diag(x), ShapeError, "at most 3"),
        (lambda x: ops.argmax(x[..., 0:0]), ShapeError, "at least one"),
        (lambda x: ops.upscale(x, 0), SettingError, "factor=0"),
        (lambda x: ops.resize(x, (2, 2)), ShapeError, "as many axes"),
        (lambda x: ops.win_part(x[0, 0], 2), ShapeError, "(B, H, W, D)"),
        (lambda x: ops.win_part(x, 0), SettingError, "window=0"),
        (lambda x: ops.win_unpart(x, 3, 3, 2), ShapeError, "windows of 2"),
        (lambda x: ops.get_rel_pos(x[0, 0], 2, 2), ShapeError, "(3, D)"),
        (lambda x: ops.timestep_embedding(x[0, 0, 0], 1), SettingError, "dim=1"),
        (lambda x: ops.timestep_embedding(x, 4), ShapeError, "(T,)"),
        (lambda x: ops.add_rel_pos(x[0], x[0], x[0]), ShapeError, "(B, Q, H · W)"),
    ],
)
def test_errors_say_what_is_wrong(run, error, words):
    x = yp.tensor(array(1, 6, 2, 2))
    with pytest.raises(error) as caught:
        run(x)
    assert words in str(caught.value)
