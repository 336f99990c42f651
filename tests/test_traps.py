"""Where ggml's backward pass was wrong or missing, trap by trap: what comes out here.

The traps are those that ggml's users met (its training examples, its issues); the name of each
test says what must hold instead, its first line what happened there.
"""

import numpy as np
import pytest

import yupana as yp
from yupana import ops
from yupana.graphlib.errors import GradientError


def array(*shape, seed=0, low=-2.0, high=2.0):
    return np.random.default_rng((seed, *shape)).uniform(low, high, shape)


def gradients(function, *arrays):
    """The result of `function`, and the gradients of its sum, weighted by `array`; in float64."""
    context = yp.Context()
    params = [context.param(a.shape, "f64").set(a) for a in arrays]
    y = function(*params)
    grads = yp.gradients((y * yp.tensor(array(*y.shape, seed=9), "f64")).sum())
    yp.Graph([y, *grads.values()]).compile().run()
    return y.numpy(), *(grads[p].numpy() for p in params)


def same(got, want):
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def of_groups(g, heads):
    """Gradients of heads that consecutive heads share: their sums."""
    return g.reshape(g.shape[0], heads, -1, *g.shape[2:]).sum(2)


class TestSharedHeads:
    # mul_mat's forward let consecutive heads share a matrix; its backward summed every n-th
    # head, and flash_attn paired heads in that other way, too.
    w, x = array(2, 3, 5, 4), array(2, 6, 7, 4, seed=1)

    def test_products_and_their_gradients_pair_consecutive_heads(self):
        y, dw, dx = gradients(ops.mul_mat, self.w, self.x)
        each = np.repeat(self.w, 2, axis=1)
        g = array(*y.shape, seed=9)
        same(y, self.x @ each.swapaxes(-1, -2))
        same(dw, of_groups(g.swapaxes(-1, -2) @ self.x, 3))
        same(dx, g @ each)

    def test_outer_products_take_shared_operands(self):
        a, b = array(1, 3, 5, 4), array(1, 6, 5, 2, seed=1)
        y, da, db = gradients(ops.out_prod, a, b)
        each = np.repeat(a, 2, axis=1)
        g = array(*y.shape, seed=9)
        same(y, b.swapaxes(-1, -2) @ each)
        same(da, of_groups(b @ g, 3))
        same(db, each @ g.swapaxes(-1, -2))

    @pytest.mark.parametrize("n_past", [None, 0])
    def test_attention_in_one_op_pairs_heads_as_products_do(self, n_past):
        def unfused(q, k, v):
            scores = ops.mul_mat(k, q) * 0.5
            scores = scores if n_past is None else ops.diag_mask_inf(scores, n_past)
            return ops.mul_mat(ops.cont(v.T), ops.soft_max(scores))

        q, k, v = array(2, 6, 5, 4), array(2, 3, 5, 4, seed=1), array(2, 3, 5, 4, seed=2)
        for shared in (unfused, lambda *qkv: ops.flash_attn(*qkv, n_past=n_past)):
            y, dq, dk, dv = gradients(shared, q, k, v)
            # The same with a head of k and v for each of q.
            wide = gradients(unfused, q, np.repeat(k, 2, 1), np.repeat(v, 2, 1))
            for got, want in zip((y, dq), wide[:2], strict=True):
                same(got, want)
            for got, want in zip((dk, dv), wide[2:], strict=True):
                same(got, of_groups(want, 3))


def test_the_gradient_of_a_number_added_to_all_is_a_sum():
    # It was the mean, by a comment that said it ought to be the sum.
    _, da, db = gradients(ops.add1, array(3, 4), array(1, seed=1))
    g = array(3, 4, seed=9)
    same(da, g)
    same(db, g.sum().reshape(1))


def test_a_factor_that_is_a_tensor_has_a_gradient():
    # A factor as a tensor was given up for one that is a number.
    x = array(3, 4)
    _, dx, ds = gradients(ops.mul, x, array(1, seed=1))
    same(dx, array(3, 4, seed=9) * array(1, seed=1))
    same(ds, (array(3, 4, seed=9) * x).sum().reshape(1))


SHAPES = [((2, 3, 4), (4,)), ((4,), (2, 3, 4)), ((2, 1, 4), (3, 1)), ((), (2, 2))]
PARTIALS = {
    "add": lambda a, b: (np.ones_like(a), np.ones_like(b)),
    "sub": lambda a, b: (np.ones_like(a), -np.ones_like(b)),
    "mul": lambda a, b: (b, a),
    "div": lambda a, b: (1 / b, -a / b**2),
}


@pytest.mark.parametrize(("first", "second"), SHAPES)
@pytest.mark.parametrize("name", PARTIALS)
def test_what_was_broadcast_gets_the_sum_of_its_gradients(name, first, second):
    # Backward wanted equal shapes: programs wrote ggml_repeat before every bias. sub and div
    # still take no sums.
    a, b = array(*first, low=0.5), array(*second, seed=1, low=0.5)
    y, *found = gradients(getattr(ops, name), a, b)
    g = array(*y.shape, seed=9)
    partials = PARTIALS[name](*np.broadcast_arrays(a, b))
    for source, partial, got in zip((a, b), partials, found, strict=True):
        part = (g * partial).reshape(-1, *y.shape)
        extra = tuple(range(y.ndim - source.ndim))
        kept = (k for k, n in enumerate(source.shape) if n == 1)
        ones = tuple(len(extra) + k for k in kept)
        same(got, part[0].sum(extra + ones).reshape(source.shape))


class TestFullContexts:
    # The backward pass made its scalars in the context of the computation, which ran out of
    # memory or had none to give.
    def test_backward_takes_nothing_of_the_arena(self):
        context = yp.Context(mem_size=64)
        w = context.param((16,)).set(np.arange(16.0))
        assert context.used_mem == context.mem_size
        loss = (w * w - 3 * w + 1.5).mean()
        grad = yp.gradients(loss)[w]
        np.testing.assert_allclose(grad.numpy(), (2 * np.arange(16.0) - 3) / 16)
        assert context.used_mem == 64

    def test_a_context_without_data_records_gradients(self):
        context = yp.Context(no_alloc=True)
        w = context.param((16, 4))
        graph = yp.Graph(loss := (2 * w * w).sum())
        assert graph.backward(loss)[w].shape == (16, 4)
        assert context.used_mem == 0
        assert graph.plan().peak > 0


def test_targets_that_do_not_add_up_to_one_have_their_gradient():
    # It was (soft-max - target) / rows, whatever the targets added up to.
    x, targets = array(3, 5), array(3, 5, seed=1, low=0.0, high=0.7)
    _, dx = gradients(lambda x: ops.cross_entropy_loss(x, yp.tensor(targets, "f64")), x)
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    same(dx, array(seed=9) * (targets.sum(-1, keepdims=True) * p - targets) / 3)


def test_a_loss_counts_the_least_likely_class_in_full():
    # Probabilities were moved into [1e-9, 1]: the loss stopped at 20.7, without a slope there.
    x = np.array([[0.0, 1000.0]])
    loss, dx = gradients(lambda x: ops.cross_entropy_loss(x, yp.tensor([0])), x)
    assert loss == 1000.0
    same(dx, array(seed=9) * np.array([[-1.0, 1.0]]))


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_quick", "soft_max"])
def test_activations_are_not_looked_up_for_rounded_arguments(name):
    # Tables of 65,536 entries, by the argument as f16; silu's gradient was that of the rounded
    # argument. These differ by less than f16 sees.
    x = 1.0 + np.arange(8) * 2.0**-16
    leaf = yp.Context().param((8, 2)).set(np.stack([x, -x], -1))
    y = getattr(ops, name)(leaf)
    grad = yp.gradients((y * y).sum())[leaf]
    for found in (y.numpy(), grad.numpy()):
        assert len(np.unique(found[:, 0])) > 4


def test_results_that_take_over_memory_keep_their_gradient():
    # The in-place variants of ops were no nodes: what lay behind them got no gradient.
    x = array(3, 4, low=0.2)

    def chain(x):
        return ops.sqrt(ops.scale(ops.neg(ops.silu(ops.sqr(x + x))), -3.0))

    dx = gradients(chain, x)[1]
    h = 1e-6
    above, below = (chain(yp.tensor(x + s, "f64")).numpy() for s in (h, -h))
    assert yp.Graph(chain(yp.tensor(x))).plan(fuse=False).peak == 64
    np.testing.assert_allclose(dx, array(3, 4, seed=9) * (above - below) / (2 * h), rtol=1e-8)


AGAIN = {
    "silu": ops.silu,
    "soft_max": ops.soft_max,
    "rms_norm": ops.rms_norm,
    "norm": ops.norm,
    "mul_mat": lambda x: ops.mul_mat(x, x),
    "out_prod": lambda x: ops.out_prod(x, x),
    "get_rows": lambda x: ops.get_rows(ops.sqr(x), yp.tensor([2, 0, 2])),
    "rope": lambda x: ops.rope(ops.sqr(x.reshape(3, 1, 4)), yp.tensor([0, 3, 9])),
    "concat": lambda x: ops.concat(ops.sqr(x), x, axis=0),
}


@pytest.mark.parametrize("name", AGAIN)
def test_gradients_have_gradients(name):
    # What backward built had no gradient of its own: none of silu, soft_max, rms_norm, mul_mat,
    # get_rows; rope_back was no node.
    x = array(3, 4)
    leaf = yp.Context().param(x.shape, "f64").set(x)
    y = AGAIN[name](leaf)
    first = yp.gradients((y * yp.tensor(array(*y.shape, seed=9), "f64")).sum())[leaf]
    along, g = array(3, 4, seed=5), array(3, 4, seed=6)
    second = yp.gradients((first * yp.tensor(g, "f64")).sum())[leaf]
    above, below = (gradients(AGAIN[name], x + s * along)[1] for s in (1e-5, -1e-5))
    want = ((above - below) * g).sum() / 2e-5
    assert abs((second.numpy() * along).sum() - want) <= 1e-7 * max(1.0, abs(want))


def test_what_has_no_gradient_is_refused_when_backward_is_built():
    # The process ended in the middle of a run, by an assertion.
    x = yp.Context().param((2, 3))
    with pytest.raises(GradientError, match="depends on no parameter"):
        yp.gradients(ops.cast(ops.argsort(x), "f32").sum())
    first = yp.gradients(ops.cross_entropy_loss(x, yp.tensor([0, 1])))[x]
    with pytest.raises(GradientError, match="cross_entropy_loss_back"):
        yp.gradients((first * first).sum())
