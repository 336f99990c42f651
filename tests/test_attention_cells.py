"""Attention to a cache against plain sums in float64, here and on other processors."""

import platform

import numpy as np
import pytest

import yupana as yp
from tests.targets import TARGETS, in_process, shared_cache
from yupana.graphlib.dtypes import dtype_of
from yupana.graphlib.ops import cast, flash_attn_cells

TYPES = ("f32", "f16", "bf16", "Q8_0", "Q5_1", "Q4_K")


def draw(seed):
    """Queries, a cache of several types and sizes, and the cells of the rows."""
    rng = np.random.default_rng(seed)
    rows, heads, group = (int(rng.choice(n)) for n in ([1, 1, 3], [1, 2], [1, 3, 4, 8, 16, 17]))
    width, values = int(rng.choice([8, 32, 40, 128])), int(rng.choice([1, 8, 33, 48, 80]))
    n_seq, n_cells = int(rng.choice([1, 2])), int(rng.choice([5, 300, 600]))
    k_type, v_type = (str(rng.choice(TYPES)) for _ in range(2))
    width, values = (
        -(-n // dtype_of(name).block) * dtype_of(name).block
        for n, name in ((width, k_type), (values, v_type))
    )
    q = rng.normal(size=(rows, heads * group, width)).astype(np.float32)
    k, v = (rng.normal(size=(n_seq, n_cells, heads, n)).astype(np.float32) for n in (width, values))
    cells = rng.choice(n_seq * n_cells + 1, rows, replace=False).astype(np.int32) - 1
    return q, cast(yp.tensor(k), k_type), cast(yp.tensor(v), v_type), cells


def attention(q, k, v, cells, half):
    """In float64; with `half`, q and the weights are rounded to float16."""
    y = np.zeros((*q.shape[:2], v.shape[3]))
    group = q.shape[1] // k.shape[2]
    for (t, h), _ in np.ndenumerate(y[..., 0]):
        if cells[t] < 0:
            continue
        seq, last = divmod(int(cells[t]), k.shape[1])
        line = q[t, h].astype(np.float16 if half else np.float64).astype(np.float64)
        scores = k[seq, : last + 1, h // group] @ line / np.sqrt(q.shape[2])
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        if half:
            weights = weights.astype(np.float32).astype(np.float16).astype(np.float64)
        y[t, h] = weights @ v[seq, : last + 1, h // group]
    return y


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("seed", range(64))
def test_rows_see_what_their_cells_say(seed, half):
    q, k, v, cells = draw(seed)
    found = flash_attn_cells(yp.tensor(q), k, v, yp.tensor(cells), half=half).numpy()
    keys, values = (cast(x, "f32").numpy().astype(np.float64) for x in (k, v))
    # A weight next to the middle of two float16 may be rounded to the other.
    np.testing.assert_allclose(
        found, attention(q, keys, values, cells, half), atol=5e-4 if half else 1e-5
    )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="for other x86 processors")
@pytest.mark.parametrize("target", TARGETS)
def test_other_processors(target, tmp_path_factory):
    """Sums may be rearranged in these kernels; without fused products more can be."""
    chosen = ("13-True", "62-False")  # of few types: all is compiled anew
    some = [f"{__file__}::test_rows_see_what_their_cells_say[{name}]" for name in chosen]
    arguments = ("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *some)
    done = in_process(*arguments, target=target, cache=shared_cache(tmp_path_factory, target))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "2 passed" in done.stdout
