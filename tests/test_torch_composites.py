"""Plain functions of ops against torch: values and gradients, in float64.

A new one has to be entered in `CASES` or, with the test that has it or the reason, in `ELSEWHERE`.
"""

import math
from types import FunctionType

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib import ops

torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
F = torch.nn.functional

ELSEWHERE = {
    **dict.fromkeys(
        ("conv_1d", "conv_1d_ph", "conv_2d", "conv_2d_s1_ph", "conv_2d_sk_p0",
         "conv_transpose_1d", "conv_transpose_2d_p0", "pool_1d"),
        "tests/test_convolution.py",
    ),
    "flash_attn": "tests/test_attention.py",
    "along": "a slice by the number of its axis",
    "arange": "no gradient: tests/test_composites.py",
    "argmax": "no gradient: tests/test_composites.py",
    "fill": "no gradient: tests/test_composites.py",
    "zero_grad": "no gradient: what a rule returns where it is zero",
    "timestep_embedding": "torch has none: tests/test_composites.py",
    "rope_xpos": "torch has none: tests/test_composites.py",
}  # fmt: skip

GATES = {
    "reglu": F.relu,
    "geglu": lambda x: F.gelu(x, approximate="tanh"),
    "geglu_erf": F.gelu,
    "geglu_quick": lambda x: x * torch.sigmoid(1.702 * x),
    "swiglu": F.silu,
}


def glu(x, gate, swapped):
    first, second = x.chunk(2, -1)
    return first * gate(second) if swapped else gate(first) * second


def swiglu_oai(a, b, alpha, limit):
    a, b = a.clamp(max=limit), b.clamp(-limit, limit)
    return a * torch.sigmoid(alpha * a) * (b + 1)


def windows(x, n):
    """(B, H, W, D) cut by F.unfold, which puts elements before windows."""
    b, h, w, d = x.shape
    image = F.pad(x.permute(0, 3, 1, 2), (0, -w % n, 0, -h % n))
    parts = F.unfold(image, n, stride=n).reshape(b, d, n, n, -1)
    return parts.permute(0, 4, 2, 3, 1).reshape(-1, n, n, d)


def feed_forward(x, w0, b0, w1, b1):
    return F.linear(F.gelu(F.linear(x, w0, b0), approximate="tanh"), w1, b1)


def resized(x, shape, mode, corners=None):
    return F.interpolate(x, shape, mode=mode, align_corners=corners)


IDS = [[0, 2], [2, 1]]
PLACES = torch.arange(4)
CASES = {
    **{
        f"{name}{' swapped' * swapped}": (
            lambda x, name=name, swapped=swapped: getattr(ops, name)(x, swapped),
            lambda x, gate=gate, swapped=swapped: glu(x, gate, swapped),
            [(3, 8)],
        )
        for name, gate in GATES.items()
        for swapped in (False, True)
    },
    **{
        f"{name}_split": (
            getattr(ops, f"{name}_split"),
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
    "group_norm": (
        lambda x: ops.group_norm(x, 3, 1e-3),
        lambda x: F.group_norm(x, 3, eps=1e-3),
        [(2, 6, 4, 3)],
    ),
    "upscale": (
        lambda x: ops.upscale(x, 3),
        lambda x: F.interpolate(x, scale_factor=3, mode="nearest"),
        [(2, 2, 3, 4)],
    ),
    "upscale linear": (
        lambda x: ops.upscale(x, 2, "linear"),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        [(2, 2, 3, 4)],
    ),
    "resize": (
        lambda x: ops.resize(x, (1, 2, 7, 3), "cubic"),
        lambda x: resized(x, (7, 3), "bicubic"),
        [(1, 2, 4, 5)],
    ),
    "resize by corners": (
        lambda x: ops.resize(x, (1, 2, 7, 3), "linear", align_corners=True),
        lambda x: resized(x, (7, 3), "bilinear", True),
        [(1, 2, 4, 5)],
    ),
    "pad": (
        lambda x: ops.pad(x, [(1, 0), (0, 2), (3, 1)]),
        lambda x: F.pad(x, (3, 1, 0, 2, 1, 0)),
        [(2, 3, 4)],
    ),
    "pad in a circle": (
        lambda x: ops.pad(x, [(0, 0), (0, 0), (2, 1), (0, 3)], circular=True),
        lambda x: F.pad(x, (0, 3, 2, 1), mode="circular"),
        [(1, 2, 2, 3)],
    ),
    "roll": (
        lambda x: ops.roll(x, (1, 7), (0, 2)),
        lambda x: torch.roll(x, (1, 7), (0, 2)),
        [(3, 2, 5)],
    ),
    "diag": (ops.diag, torch.diag_embed, [(2, 3, 4)]),
    "win_part": (lambda x: ops.win_part(x, 3), lambda x: windows(x, 3), [(2, 5, 7, 2)]),
    "win_unpart": (
        lambda x: ops.win_unpart(ops.win_part(x, 3), 5, 7, 3),
        torch.clone,
        [(2, 5, 7, 2)],
    ),
    "get_rel_pos": (
        lambda t: ops.get_rel_pos(t, 4, 4),
        lambda t: F.embedding(PLACES[:, None] - PLACES + 3, t),
        [(7, 3)],
    ),
    "add_rel_pos": (
        ops.add_rel_pos,
        lambda a, w, h: a + (h[..., None] + w[..., None, :]).flatten(-2),
        [(2, 5, 12), (2, 5, 4), (2, 5, 3)],
    ),
    "alibi": (
        lambda x: ops.alibi(x, 8.0),
        lambda x: x + 2.0 ** -(2 * (PLACES + 1.0))[:, None, None] * torch.arange(5),
        [(2, 4, 3, 5)],
    ),
    "add1": (ops.add1, torch.add, [(3, 4), (1,)]),
    "add_id": (
        lambda x, bias: ops.add_id(x, bias, yp.tensor(IDS)),
        lambda x, bias: x + F.embedding(torch.tensor(IDS), bias),
        [(2, 2, 4), (3, 4)],
    ),
    "add_cast": (lambda a, b: ops.add_cast(a, b, "f64"), torch.add, [(3, 4), (4,)]),
    "scale_bias": (lambda x: ops.scale_bias(x, -2.0, 0.5), lambda x: 0.5 - 2 * x, [(3, 2)]),
    "dup": (lambda x: ops.dup(x.T), lambda x: x.mT.clone(), [(3, 4)]),
    "contiguous": (lambda x: ops.contiguous(x.T), lambda x: x.mT.contiguous(), [(3, 4)]),
    "index": (lambda x: x[1, :, ::2], lambda x: x[1, :, ::2], [(2, 3, 5)]),
    "flash_ff": (ops.flash_ff, feed_forward, [(5, 4), (7, 4), (7,), (4, 7), (4,)]),
}


def test_every_composite_is_compared_or_says_where():
    composites = {
        name
        for name, value in vars(ops).items()
        if isinstance(value, FunctionType) and not name.startswith("_")
    }
    known = {*ELSEWHERE, *(case.split()[0] for case in CASES)}
    assert composites == known, f"enter in CASES or ELSEWHERE: {composites ^ known}"


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_torch(case):
    ours, theirs, shapes = CASES[case]
    rng = np.random.default_rng(len(case))
    arrays = [rng.normal(size=shape) for shape in shapes]
    context = yp.Context()
    params = [context.param(a.shape, "f64").set(a) for a in arrays]
    y = ours(*params)
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    want = theirs(*leaves)
    weights = rng.normal(size=y.shape)
    (want * torch.tensor(weights)).sum().backward()
    grads = yp.gradients((y * yp.tensor(weights, "f64")).sum())
    yp.Graph([y, *grads.values()]).compile(threads=1).run()
    for got, right in [
        (y, want.detach()),
        *((grads[p], leaf.grad) for p, leaf in zip(params, leaves, strict=True)),
    ]:
        assert got.shape == tuple(right.shape)
        error = np.abs(got.numpy() - right.numpy()).max()
        assert error <= 1e-12 * math.prod(right.shape) ** 0.5, f"{case}: off by {error}"
