"""Every op against torch, where torch has it: values, gradients, and gradients of gradients.

Calls are those that the ops' own samples draw, in float64. A new op has to be entered in `TORCH`
(torch_counterparts.py, torch_windows.py) or, with the reason, in `WITHOUT`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib.op import REGISTRY, Call
from yupana.graphlib.sampler import Sampler, random_numbers
from yupana.graphlib.tensor import Tensor

torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
from tests import torch_counterparts, torch_windows  # noqa: E402 - they import torch

TORCH = {**torch_counterparts.TORCH, **torch_windows.TORCH}
CALLS = 8
WITHOUT = {
    "dropout": "torch drops other elements; which ones its reference says, bit by bit",
    "opt_step_adamw": "torch makes the corrections of a step itself: see the run of steps below",
    "rope_multi": "torch has none; its reference repeats the sections as ggml does",
    "rope_multi_back": "the gradient of rope_multi, which is checked against differences",
}


def test_every_op_is_compared_or_says_why_not():
    library = "yupana.graphlib.ops."
    names = {n for n, op in REGISTRY.items() if op.rule.__module__.startswith(library)}
    missing = names - {*TORCH, *WITHOUT}
    assert not missing, f"enter {missing} in TORCH or in WITHOUT of {__file__}"
    assert not set(TORCH) & set(WITHOUT)
    assert {*TORCH, *WITHOUT} <= names, "no op of this name"


def drawn(name: str, seed: int) -> tuple[Tensor, list[Tensor]]:
    """A call with fresh sources in float64, contiguous; and those that are parameters."""
    sampler = Sampler(random_numbers(np.random.default_rng(seed)), dtype="f64", smooth=True)
    call, context = REGISTRY[name].samples(sampler), yp.Context()
    params: list[Tensor] = []

    def fresh(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if not value.dtype.is_float:
            return context.tensor(value.numpy(), value.dtype)
        params.append(context.param(value.shape, value.dtype).set(value.numpy()))
        return params[-1]

    made = Call(tuple(map(fresh, call.args)), {k: fresh(v) for k, v in call.kwargs.items()})
    return REGISTRY[name](*made.args, **made.kwargs), params


def weighted(y: Tensor, rng: np.random.Generator) -> tuple[Tensor, Any]:
    weights = rng.uniform(-1.0, 1.0, y.shape)
    loss = (y * y.context.tensor(weights, y.dtype)).sum()
    return loss, torch.from_numpy(weights)


# Of the largest element, by the dtype of the result; f32 where quantised operands are.
TOLERANCE = {"f64": 1e-9, "f32": 1e-5, "f16": 2.0**-10, "bf16": 2.0**-7}
TOLERANCE |= dict.fromkeys(("i32", "i16", "i8"), 0.0)


def check(what: str, got: Any, want: Any, dtype: str) -> None:
    want = want.detach().numpy(force=True)
    assert got.shape == want.shape, f"{what}: {got.shape}, torch {want.shape}"
    finite = want[np.isfinite(want)]
    size = float(np.abs(finite).max(initial=1.0))
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] * size, err_msg=what)


def in_torch(y: Tensor, params: list[Tensor]) -> tuple[Any, list[Any]]:
    """The node's value in torch, and its sources there that are parameters."""
    arrays = [np.array(src.numpy()) for src in y.srcs]
    srcs = [torch.from_numpy(a if a.dtype.kind == "i" else a.astype(np.float64)) for a in arrays]
    at = [next(k for k, src in enumerate(y.srcs) if src is p) for p in params]
    for k in at:
        srcs[k].requires_grad_()
    return TORCH[y.op.name](*srcs, **y.params), [srcs[k] for k in at]


def gradients_in_torch(y: Any, sources: list[Any], weights: Any) -> list[Any]:
    """Gradients of the sum of weights · y; zeros where torch sees no way."""
    found = [None] * len(sources)
    if y.requires_grad:
        found = torch.autograd.grad(y, sources, weights, allow_unused=True, create_graph=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(sources, found, strict=True)]


def calls(name: str, count: int) -> Iterator[tuple[Tensor, list[Tensor], np.random.Generator]]:
    """Drawn calls, and their sources that a gradient reaches, which alone are parameters.

    None whose results are quantised, which torch has not.
    """
    made = 0
    for seed in range(4 * count):
        y, floats = drawn(name, seed)
        own = all(src.op is None for src in y.srcs)  # else the rule made a copy
        if made < count and own and not y.dtype.is_quantized:
            made += 1
            for param in floats:
                param.is_param = _flows(y, param)
            yield y, [p for p in floats if p.is_param], np.random.default_rng(seed)
    assert made >= count // 2


def _flows(y: Tensor, param: Tensor) -> bool:
    k = next((k for k, src in enumerate(y.srcs) if src is param), None)
    rules = y.op.vjp if y.op is not None else None
    return k is not None and rules is not None and k < len(rules) and rules[k] is not None


@pytest.mark.parametrize("name", TORCH)
def test_values_and_gradients_are_those_of_torch(name):
    compared = 0
    for y, params, rng in calls(name, CALLS):
        want, sources = in_torch(y, params)
        if want is None:
            continue
        compared += 1
        grads, wanted = [], []
        if params and y.dtype.is_float:
            loss, weights = weighted(y, rng)
            found = yp.gradients(loss)
            grads, wanted = [found[p] for p in params], gradients_in_torch(want, sources, weights)
        program = yp.Graph([y, *grads]).compile(threads=1)
        program.run()
        check(name, program.value(y), want, y.dtype.name)
        for got, grad in zip(grads, wanted, strict=True):
            check(f"gradient of {name}", program.value(got), grad, y.dtype.name)
    assert compared >= CALLS // 2


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_steps_of_adamw_are_those_of_torch(decay):
    rng, (alpha, beta1, beta2, eps) = np.random.default_rng(1), (0.05, 0.8, 0.97, 1e-6)
    start, factor = rng.normal(size=(3, 5)), 0.4
    x, g, m, v = (yp.tensor(a, "f64") for a in (start, 0 * start, 0 * start, 0 * start))
    settings = yp.tensor(np.zeros(7), "f64")
    step = yp.ops.opt_step_adamw(x, g, m, v, settings, yp.tensor(factor, "f64"))
    program = yp.Graph(step).compile(threads=1)
    param = torch.tensor(start, requires_grad=True)
    optimiser = torch.optim.AdamW([param], alpha, (beta1, beta2), eps, decay)
    for t in range(1, 8):
        grad = rng.normal(size=start.shape) / t
        corrections = 1 / (1 - beta1**t), 1 / (1 - beta2**t)
        settings.set([alpha, beta1, beta2, eps, decay, *corrections])
        g.set(grad)
        program.run()
        param.grad = torch.tensor(grad * factor)
        optimiser.step()
        check("opt_step_adamw", x.numpy(), param, "f64")


def test_a_difference_of_one_part_in_a_million_is_seen(monkeypatch):
    silu = TORCH["silu"]
    monkeypatch.setitem(TORCH, "silu", lambda x: silu(x) + 1e-6 * (x - x.detach()))
    with pytest.raises(AssertionError, match="gradient of silu"):
        test_values_and_gradients_are_those_of_torch("silu")


REFUSED = ("cross_entropy_loss", "linear_cross_entropy", "flash_attn_packed")


@pytest.mark.parametrize("name", [n for n in TORCH if REGISTRY[n].vjp and n not in REFUSED])
def test_second_derivatives_are_those_of_torch(name):
    for y, params, rng in calls(name, CALLS // 2):
        want, sources = in_torch(y, params)
        if not params or want is None or not y.dtype.is_float:
            continue
        loss, weights = weighted(y, rng)
        firsts = list(yp.gradients(loss).items())
        for param, first in firsts:
            grad = gradients_in_torch(want, sources, weights)[params.index(param)]
            loss, along = weighted(first, rng)
            second = dict(yp.gradients(loss)) if _depends(first, params) else {}
            wanted = gradients_in_torch(grad, sources, along)
            for p, x in zip(params, wanted, strict=True):
                got = second[p].numpy() if p in second else np.zeros(p.shape)
                check(f"second derivative of {name}", got, x, first.dtype.name)


@pytest.mark.parametrize("name", REFUSED)
def test_second_derivatives_that_are_not_there_are_refused(name):
    y, _, rng = next(call for call in calls(name, CALLS) if call[1])
    first = next(iter(yp.gradients(weighted(y, rng)[0]).values()))
    with pytest.raises(yp.errors.GradientError, match="_back: has no gradient"):
        yp.gradients((first * first).sum())


def _depends(node: Tensor, params: list[Tensor]) -> bool:
    return node in params or any(_depends(src, params) for src in node.srcs)
