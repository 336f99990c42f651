"""Attention, forward and backward, on one thread: in one op, unfused, and PyTorch's, in turn.

    python benchmarks/attention.py [T ...]

Causal, 4 heads of 64 and a batch such that every length has the same number of rows. Memory is the
planned peak of the program beyond its leaves: for the op it grows with T, unfused with T².
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import math
import sys

import numpy as np
from measure import in_turn, report

import yupana as yp
from yupana.graphlib import ops
from yupana.graphlib.tensor import Tensor

try:
    import torch
except ImportError:  # then its column is missing
    torch = None  # type: ignore[assignment]
else:
    torch.set_num_threads(1)

_HEADS, _WIDTH, _ROWS = 4, 64, 4096
_ROUNDS = 7


def unfused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same as nodes, with the matrix of all scores."""
    scores = ops.mul_mat(k, q)
    weights = ops.soft_max(ops.diag_mask_inf(scores), scale=1 / math.sqrt(_WIDTH))
    return ops.mul_mat(v.T, weights)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ops.flash_attn(q, k, v, n_past=0)


def program(attend, arrays, back):
    """A compiled program: the result, or the gradients of its sum with weights."""
    context = yp.Context()
    *operands, weights = (context.param(a.shape).set(a) for a in arrays)
    weights.is_param = False
    y = attend(*operands)
    graph = yp.Graph([y])
    if back:
        loss = (y * weights).sum()
        graph = yp.Graph([loss])
        graph.backward(loss)
    return graph.compile(threads=1)


def torch_side(arrays, back):
    *operands, weights = (torch.tensor(a, requires_grad=back) for a in arrays)
    weights = weights.detach()

    def run() -> None:
        y = torch.nn.functional.scaled_dot_product_attention(*operands, is_causal=True)
        if back:
            (y * weights).sum().backward()

    return run


def main(lengths: list[int]) -> None:
    rng = np.random.default_rng(0)
    for t in lengths:
        batch = max(_ROWS // (_HEADS * t), 1)
        shape = (batch, _HEADS, t, _WIDTH)
        arrays = [rng.normal(size=shape).astype(np.float32) for _ in range(4)]
        for back in (False, True):
            ours, plain = (program(attend, arrays, back) for attend in (fused, unfused))
            sides = {"yupana": ours.run, "unfused": plain.run}
            if torch is not None:
                sides["torch"] = torch_side(arrays, back)
            what = "forward + backward" if back else "forward"
            report(f"B={batch} H={_HEADS} T={t} K={_WIDTH} {what}", in_turn(sides, _ROUNDS))
            mib = [p.plan.peak / 2**20 for p in (ours, plain)]
            print(f"    peak beyond leaves: {mib[0]:.1f} MiB, unfused {mib[1]:.1f} MiB")


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [64, 256, 1024, 2048])
