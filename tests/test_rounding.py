"""Rounding as llama.cpp does it: queries and weights of attention, sums beside offsets."""

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib import quants
from yupana.graphlib.kernels.quant_panels import HAS_VNNI
from yupana.graphlib.ops import flash_attn_cells, mul_mat
from yupana.models.decoder import rounded_to


def halved(x):
    return x.astype(np.float16).astype(np.float64)


def attention(q, k, v, cells, rounded):
    """In float64, with weights and queries rounded to float16 or not."""
    q, y = rounded(q.astype(np.float64)), np.zeros((*q.shape[:2], v.shape[-1]))
    for t, (seq, last) in enumerate(divmod(int(c), k.shape[1]) for c in cells):
        for h in range(q.shape[1]):
            g = h * k.shape[2] // q.shape[1]
            z = k[seq, : last + 1, g].astype(np.float64) @ q[t, h] / np.sqrt(q.shape[2])
            p = np.exp(z - z.max())
            y[t, h] = rounded(p / p.sum()) @ v[seq, : last + 1, g].astype(np.float64)
    return y


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("n_cells", [60, 700])  # keys of one block, and of three
def test_attention_rounds_queries_and_the_weights_of_whole_rows(n_cells, rows, group):
    random = np.random.default_rng(n_cells + rows)
    k, v = (random.standard_normal((2, n_cells, 2, 48)).astype(np.float16) for _ in range(2))
    q = random.standard_normal((rows, 2 * group, 48)).astype(np.float32)
    cells = n_cells + np.arange(n_cells - rows, n_cells, dtype=np.int32)  # of the second sequence
    context = yp.Context()
    nodes = [context.tensor(x) for x in (q, k, v, cells)]
    found = flash_attn_cells(*nodes, half=True).numpy()
    error = np.abs(found - attention(q, k, v, cells, halved))
    exact = np.abs(found - attention(q, k, v, cells, lambda x: x))
    # a weight near the middle between two halves may go the other way
    assert error.mean() < 0.05 * exact.mean()
    np.testing.assert_allclose(
        flash_attn_cells(*nodes).numpy(), attention(q, k, v, cells, lambda x: x), atol=1e-5
    )


@pytest.mark.parametrize("rows", [1, 4, 7, 40])
@pytest.mark.parametrize("name", ["Q4_1", "Q5_1"])
def test_offsets_are_multiplied_with_the_sums_that_q8_1_stores(name, rows):
    if rows > 32 and not HAS_VNNI:
        pytest.skip("so many rows are multiplied as float32 on this processor")
    random = np.random.default_rng(rows)
    w = quants.quantize(random.standard_normal((35, 96)).astype(np.float32) + 3, name)
    x = quants.quantize(random.standard_normal((rows, 96)).astype(np.float32) + 1, "Q8_1")
    blocks = x.reshape(rows, 3, 36)
    scales, sums = (blocks[..., at : at + 2].copy().view(np.float16)[..., 0] for at in (0, 2))
    levels = blocks[..., 4:].view(np.int8).astype(np.float64)  # (rows, 3, 32)
    np.testing.assert_allclose(sums, levels.sum(-1) * scales, rtol=2e-3)
    offsets = w.reshape(35, 3, -1)[..., 2:4].copy().view(np.float16)[..., 0].astype(np.float64)
    above = quants.dequantize(w, name).astype(np.float64).reshape(35, 3, 32) - offsets[..., None]
    want = np.einsum("rbk,nbk->rn", levels * scales[..., None], above) + sums @ offsets.T
    context = yp.Context()
    found = mul_mat(context.wrap(w, name), context.wrap(x, "Q8_1")).numpy()
    np.testing.assert_allclose(found, want, rtol=1e-5)
    plain = quants.dequantize(x, "Q8_1").astype(np.float64) @ quants.dequantize(w, name).T
    assert np.abs(plain / want - 1).max() > 3e-5


@pytest.mark.parametrize(("kind", "bits"), [("f16", 11), ("bf16", 8)])
def test_numbers_rounded_to_a_type_keep_their_own(kind, bits):
    x = np.random.default_rng(1).standard_normal(400).astype(np.float32)
    found = rounded_to(yp.Context().tensor(x), kind).numpy()
    assert found.dtype == np.float32
    assert 2.0 ** -(bits + 2) < np.abs(found / x - 1).max() <= 2.0**-bits
