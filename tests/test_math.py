"""Mathematical functions in float32: error in ulp, ends of the range, roundings, vector code.

benchmarks/accuracy.py tries every float; here are a sample of them and the ends of every binade.
"""

import math
import re

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib.kernels import compiler, gates, trigonometry
from yupana.graphlib.kernels import math as kernels
from yupana.graphlib.kernels.elementwise import Map
from yupana.graphlib.op import REGISTRY

INF, NAN = np.inf, np.nan


def each(function):
    """A function of Python floats over arrays."""
    return lambda x: np.asarray(np.frompyfunc(function, 1, 1)(x), np.float64)


def gated(x, t):
    return np.where(x == -INF, -0.0, x / (1.0 + np.exp(-t)))


def gelu_erf(x):
    return np.where(x == -INF, -0.0, 0.5 * x * each(math.erfc)(-x * math.sqrt(0.5)))


# In float64; and the most ulp that the kernel's documentation admits.
EXACT = {
    "exp": (np.exp, 1.1),
    "expm1": (np.expm1, 2.0),
    "log": (np.log, 1.0),
    "sin": (np.sin, 2.4),
    "cos": (np.cos, 2.4),
    "tanh": (np.tanh, 2.6),
    "erf": (each(math.erf), 2.0),
    "sigmoid": (lambda x: 1.0 / (1.0 + np.exp(-x)), 2.0),
    "softplus": (lambda x: np.logaddexp(x, 0.0), 2.0),
    "silu": (lambda x: gated(x, x), 3.3),
    "gelu": (lambda x: gated(x, math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)), 3.5),
    "gelu_quick": (lambda x: gated(x, 1.702 * x), 3.4),
    "gelu_erf": (gelu_erf, 2.0),
}
# Of -inf, -0, 0, inf.
LIMITS = {
    "exp": (0, 1, 1, INF),
    "expm1": (-1, 0, 0, INF),
    "log": (NAN, -INF, -INF, INF),
    "sin": (NAN, 0, 0, NAN),
    "cos": (NAN, 1, 1, NAN),
    "tanh": (-1, 0, 0, 1),
    "erf": (-1, 0, 0, 1),
    "sigmoid": (0, 0.5, 0.5, 1),
    "softplus": (0, np.float32(math.log(2)), np.float32(math.log(2)), INF),
    "silu": (0, 0, 0, INF),
    "gelu": (0, 0, 0, INF),
    "gelu_quick": (0, 0, 0, INF),
    "gelu_erf": (0, 0, 0, INF),
}


def floats():
    """Every 2^15-th float32 by its bits, and the neighbours of every power of two."""
    edges = (np.arange(512, dtype=np.int64)[:, None] << 23) + np.arange(-3, 4)
    bits = np.concatenate([np.arange(12345, 1 << 32, 1 << 15), edges.reshape(-1)])
    return (bits & 0xFFFFFFFF).astype(np.uint32).view(np.float32)


def computed(name, x, *args):
    return REGISTRY[name](yp.tensor(np.asarray(x, np.float32)), *args).numpy()


def ulps(got, want):
    """Error in ulp; where the exact value is beyond the floats, whether infinity came out."""
    got = got.astype(np.float64)
    want = np.where(np.abs(want) >= 2.0**128 - 2.0**103, np.copysign(INF, want), want)
    exponent = np.maximum(np.frexp(np.where(np.isfinite(want), want, 1.0))[1] - 1, -126)
    with np.errstate(invalid="ignore"):
        error = np.abs(got - want) / 2.0 ** (exponent - 23)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    return np.where(same, 0.0, np.where(np.isnan(error), INF, error))


@pytest.mark.parametrize("name", EXACT)
def test_error_is_a_few_ulp_for_every_float(name):
    exact, most = EXACT[name]
    x = floats()
    with np.errstate(all="ignore"):
        error = ulps(computed(name, x), exact(x.astype(np.float64)))
    worst = int(np.argmax(error))
    assert most <= 4
    assert error[worst] <= most, f"{name}({x[worst]!r}) is off by {error[worst]} ulp"


@pytest.mark.parametrize("name", LIMITS)
def test_limits_come_out(name):
    assert set(LIMITS) == set(EXACT)
    got = computed(name, [-INF, -0.0, 0.0, INF, NAN])
    np.testing.assert_array_equal(got, np.array([*LIMITS[name], NAN], np.float32))


@pytest.mark.parametrize(
    ("name", "rare", "low", "high"),
    [("log", -1.0, 1e-30, 1e30), ("sin", 1e30, -3200.0, 3200.0), ("cos", INF, -3200.0, 3200.0)],
)
def test_a_rare_neighbour_does_not_change_a_bit(name, rare, low, high):
    x = floats()
    x = np.concatenate([x, np.random.default_rng(3).uniform(-30, 30, 1 << 16).astype(np.float32)])
    x = x[(x >= low) & (x <= high)]
    among = np.insert(x, np.arange(0, x.size, 100), np.float32(rare))
    usual, mixed = computed(name, x), computed(name, among)
    mixed = np.delete(mixed, np.arange(0, x.size, 100) + np.arange(len(range(0, x.size, 100))))
    assert x.size > 10_000
    assert usual.tobytes() == mixed.tobytes()


def test_an_error_of_one_part_in_a_million_is_seen():
    x = floats()
    with np.errstate(all="ignore"):
        want = np.tanh(x.astype(np.float64))
        wrong = np.where(np.abs(x) < 1e-3, want * (1 + 1e-6), want).astype(np.float32)
    assert ulps(wrong, want).max() > 8
    assert ulps(np.array([3e38], np.float32), np.array([INF])) == INF
    assert ulps(np.array([NAN], np.float32), np.array([1.0])) == INF


# What float32 arithmetic rounds as written, or exactly.
OTHERS = [
    *("sqr", "sqrt", "abs", "sgn", "step", "floor", "ceil", "trunc", "round"),
    *("relu", "leaky_relu", "elu", "hardsigmoid", "hardswish"),
]


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_of_one_element_follow_their_reference_for_every_float(name):
    x = floats()
    args = (0.1,) if name == "leaky_relu" else ()
    slope = (float(np.float32(0.1)),) if name == "leaky_relu" else ()
    with np.errstate(all="ignore"):
        want = REGISTRY[name].reference(x.astype(np.float64), *slope)
        assert ulps(computed(name, x, *args), want).max() <= 2.5


def test_every_function_of_one_element_is_held_to_ulps():
    modules = [f"yupana.graphlib.ops.{m}" for m in ("unary", "activation", "gates", "gaussian")]
    modules.append("yupana.graphlib.ops.rounding")
    names = {n for n, op in REGISTRY.items() if op.__module__ in modules}
    assert {n for n in names if not n.endswith("_back")} == {*EXACT, *OTHERS}


@pytest.mark.parametrize("name", ["floor", "ceil", "trunc", "round"])
def test_rounding_of_halves_and_their_neighbours(name):
    halves = np.arange(-6.5, 7.0, 0.5)
    large = [2.0**22 + 0.5, 2.0**23 - 0.5, 2.0**23 + 1, 2.0**31, 1e30]
    x = np.concatenate([halves, large, -np.array(large)]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, INF), np.nextafter(x, -INF)])
    away = {"floor": math.floor, "ceil": math.ceil, "trunc": math.trunc}
    one = away.get(name, lambda v: math.copysign(math.floor(abs(v) + 0.5), v))
    for dtype in ("f32", "f64"):  # sums with 1/2 are exact in float64
        got = REGISTRY[name](yp.tensor(x, dtype)).numpy()
        np.testing.assert_array_equal(got, [float(one(v)) for v in x.astype(np.float64)])
    assert REGISTRY["round"](yp.tensor(np.nextafter(0.5, 0), "f64")).numpy() == 0


# Written out: a formula may not close over the function it calls.
FORMULAS = {
    "exp": lambda x, p0, p1, p2, p3: kernels.exp(x),
    "expm1": lambda x, p0, p1, p2, p3: kernels.expm1(x),
    "log": lambda x, p0, p1, p2, p3: kernels.log(x),
    "sin": lambda x, p0, p1, p2, p3: trigonometry.sin(x),
    "cos": lambda x, p0, p1, p2, p3: trigonometry.cos(x),
    "tanh": lambda x, p0, p1, p2, p3: kernels.tanh(x),
    "erf": lambda x, p0, p1, p2, p3: kernels.erf(x),
    "sigmoid": lambda x, p0, p1, p2, p3: kernels.sigmoid(x),
    "softplus": lambda x, p0, p1, p2, p3: kernels.softplus(x),
    "silu": lambda x, p0, p1, p2, p3: gates.silu(x),
    "gelu": lambda x, p0, p1, p2, p3: gates.gelu(x),
    "gelu_quick": lambda x, p0, p1, p2, p3: gates.gelu_quick(x),
    "gelu_erf": lambda x, p0, p1, p2, p3: gates.gelu_erf(x),
}


@pytest.mark.parametrize("name", EXACT)
def test_kernels_are_vector_code_without_calls(name, monkeypatch):
    monkeypatch.setattr(compiler, "cache_folder", lambda: None)  # cached code cannot be read
    kernel = Map(FORMULAS[name], 1).bodies[False]
    assert kernel.address
    code = kernel._keep._library.get_llvm_str()
    assert re.search(r"<\d+ x float>", code)
    assert not re.findall(r"^declare .*@(?:llvm\.)?(?:exp|log|sin|cos|tanh|erf|pow)\w*", code, re.M)
