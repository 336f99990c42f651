"""Ops that users declare in files of their own."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numba
import numpy as np
import pytest

import yupana as yp
from yupana.custom import (
    Call,
    KernelError,
    Result,
    SettingError,
    Tensor,
    call,
    check_op,
    exp,
    op,
    per_array,
    per_element,
    per_row,
    real,
    row_max,
    row_sum,
)
from yupana.graphlib.errors import GraphError, YupanaError
from yupana.graphlib.kernels.compiler import Kernel, cache_folder
from yupana.graphlib.kernels.elementwise import body1
from yupana.graphlib.kernels.fingerprint import fingerprint
from yupana.graphlib.op import REGISTRY

ROOT = Path(__file__).parents[1]

FILE = """
import numpy as np
import yupana as yp
from helpers import CONSTANTS, twice
from yupana.custom import call, like, op, per_array, per_element, per_row, real
from yupana.graphlib.kernels.compiler import counts

SHIFT = 1.0
TABLE = np.array([0.5, 0.25])

def moved(x):
    return x + real(SHIFT)

def formula(x, c):
    return twice(moved(x)) + c * real(CONSTANTS[0]) + real(TABLE[1])

def row(y, x, i, p):
    for j in range(y.size):
        y[j] = moved(x[j])

def array(y, x, p):
    for j in range(y.size):
        y[j] = moved(x[j])

def declare(name, lower):
    def rule(x, c=0.0):
        "A step of the test."
        return like(x, c=c)
    return op(name=name, lower=lower, reference=lambda x, c: x, samples=lambda d: call())(rule)

elements = declare("elements", per_element(formula, params=("c",)))
rows = declare("rows", per_row(row))
arrays = declare("arrays", per_array(array))
y = [elements(yp.tensor([1.0]), 3.0).item(), rows(yp.tensor([1.0])).item()]
print(*y, arrays(yp.tensor([1.0])).item(), counts["compiled"], counts["loaded"])
"""
HELPERS = "CONSTANTS = (10.0, 20.0)\ndef twice(x):\n    return x + x\n"


def test_a_second_process_compiles_nothing_of_a_users_file_but_what_changed(tmp_path):
    # The library's own kernels come along, as far as they are compiled; those of the file are new.
    cache = tmp_path / "cache"
    ignored = shutil.ignore_patterns("*.tmp.*")  # what another process writes at the moment
    shutil.copytree(cache_folder(), cache / cache_folder().name, ignore=ignored)

    def run(*edits: tuple[str, str, str]) -> list[float]:
        for name, text in (("mine.py", FILE), ("helpers.py", HELPERS)):
            for file, old, new in edits:
                assert file != name or old in text
                text = text.replace(old, new) if file == name else text
            (tmp_path / name).write_text(text, "utf-8")
        done = subprocess.run(
            [sys.executable, "-B", "mine.py"],
            cwd=tmp_path,
            env={
                **os.environ,
                "YUPANA_CACHE_DIR": str(cache),
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        return [float(word) for word in done.stdout.split()]

    *values, compiled, loaded = run()
    assert values == [34.25, 2.0, 2.0]
    assert compiled >= 3
    total = compiled + loaded
    # What no kernel reads changes nothing.
    assert run(("mine.py", "SHIFT = 1.0", "UNUSED = 5\nSHIFT = 1.0  # m")) == [*values, 0, total]
    # One kernel of three calls `twice`, which stands in another file; all call `moved`.
    got = run(("helpers.py", "x + x", "x * x"), ("mine.py", "return x + real", "return x - real"))
    assert got == [30.25, 0.0, 0.0, 3, total - 3]
    assert run(("helpers.py", "x + x", "x * x")) == [34.25, 2.0, 2.0, 1, total - 1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SHIFT = 1.0", "SHIFT = 2.0"),  # a number
        ("TABLE = [0.5, 0.25]", "TABLE = [0.5, 0.75]"),  # an array
        ("return x + SHIFT", "return x - SHIFT"),  # a function that it calls
        ("y + TABLE", "y - TABLE"),  # a compiled one
        ("inner(x) * 3", "inner(x) * 4"),  # one that is closed over
        ("x, step=1.0", "x, step=2.0"),  # a default
        ("module.factor = 1.0", "module.factor = 2.0"),  # a name in a module
    ],
)
def test_every_thing_that_a_kernel_reads_is_in_its_fingerprint(old, new):
    text = """
SHIFT = 1.0
TABLE = [0.5, 0.25]
TABLE = np.array(TABLE)
module.factor = 1.0

def moved(x, step=1.0):
    return x + SHIFT

@numba.njit
def compiled(y):
    return y + TABLE[0]

def outer(inner):
    return lambda x: inner(x) * 3

closed = outer(lambda x: x)

def formula(x):
    return compiled(moved(x)) + closed(x) * module.factor
"""
    assert old in text

    def read(source: str) -> str:
        module = types.ModuleType("of_the_test")
        names = {"np": np, "numba": numba, "module": module, "__name__": "of_the_test"}
        exec(source, names)
        return fingerprint(names["formula"])

    assert read(text) == read(text + "\nSPARE = 5")
    assert read(text) != read(text.replace(old, new))


def test_names_of_a_users_file_are_not_mistaken_for_those_of_the_kernel():
    names = {"real": float, "__name__": "of_the_test"}
    exec("array = row = a0 = 3.0\ndef formula(x):\n    return x + real(array + row + a0)", names)
    for name, lower in (
        ("by_element", per_element(names["formula"])),
        ("by_array", per_array(named_as_in_kernels)),
    ):
        assert declared(name, lower, lambda x: x, one)(yp.tensor([1.0])).item() == 10.0


def test_functions_of_a_notebook_are_stored_under_a_module_that_can_be_imported():
    # numba imports the module of what it loads; `gone` exists in no other process.
    names = {"__name__": "gone"}
    exec("def formula(x, p0, p1, p2, p3):\n    return x", names)
    kernel = Kernel(body1, formula=names["formula"])
    module = kernel._compiled(names["formula"]).py_func.__module__
    assert importlib.import_module(module) is sys.modules[body1.__module__]


a0 = 9.0


def named_as_in_kernels(y, x, p):
    for j in range(y.size):
        y[j] = x[j] + a0


def declared(name: str, lower, reference, samples, **fields):
    """An op of this file that takes and gives back one shape."""

    def rule(x: Tensor, *rest: Tensor, **params: float) -> Result:
        """An op of the tests."""
        return Result((x, *rest), x.shape, x.dtype, params)

    return op(name=name, lower=lower, reference=reference, samples=samples, **fields)(rule)


def one(draw) -> Call:
    return call(draw.floats(draw.shape()))


def logistic(x, rate, top):
    return top / (real(1) + exp(-rate * x))


def soft_max_of(y, x, i, p):
    largest = row_max(x)
    for j in range(y.size):
        y[j] = exp(x[j] - largest)
    total = real(row_sum(y))
    for j in range(y.size):
        y[j] /= total


def flip(y, x, p):
    n = x.shape[0]
    for i in range(n):
        y[i] = x[n - 1 - i]


def mix(y, a, b, c, d, begin, end, p):
    for i in range(begin, end):
        y[i] = (a[i] - b[i]) * (c[i] - d[i]) * p[0]


def four_alike(draw) -> Call:
    shape = draw.shape(1, 1)
    return call(*(draw.floats(shape) for _ in range(4)), factor=0.5)


def stable_soft_max(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=-1, keepdims=True)


def finite(draw) -> Call:
    return call(draw.floats((draw.integer(1, 4), draw.integer(1, 9)), -2.0, 2.0))


OPS = {
    "my_logistic": (
        per_element(logistic, params=("rate", "top")),
        lambda x, rate, top: top / (1 + np.exp(-rate * x)),
        lambda draw: call(draw.floats(draw.shape(), -2.0, 2.0), rate=0.5, top=3.0),
        {},
    ),
    "my_soft_max": (per_row(soft_max_of), stable_soft_max, finite, {"inplace": (0,)}),
    "my_flip": (
        per_array(flip),
        lambda x: x[::-1],
        lambda draw: call(draw.floats(draw.shape(1, 1))),
        {"vjp": (lambda y, g: REGISTRY["my_flip"](g),)},
    ),
    "my_mix": (
        per_array(mix, params=("factor",), split=True),
        lambda a, b, c, d, factor: (a - b) * (c - d) * factor,
        four_alike,
        {"tolerance": 4.0},
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_each_kind_of_kernel_passes_the_prover(name):
    lower, reference, samples, fields = OPS[name]
    report = check_op(declared(name, lower, reference, samples, **fields), examples=10)
    assert report.worst["forward"] <= 1


def test_the_prover_catches_a_wrong_kernel_and_a_wrong_gradient():
    broken = declared("broken", per_element(lambda x: x * real(1.001)), lambda x: x, one)
    with pytest.raises(YupanaError, match=r"broken: .* differs from the reference"):
        check_op(broken)
    crooked = declared(
        "crooked", per_element(lambda x: x * x), np.square, one, vjp=(lambda y, g: g * y.srcs[0],)
    )
    with pytest.raises(YupanaError, match="crooked: wrong gradient"):
        check_op(crooked)


def test_an_op_runs_inside_a_compiled_program_with_its_gradient():
    scaled = declared(
        "scaled_exp",
        per_element(lambda x: exp(x * real(0.5))),
        lambda x: np.exp(x / 2),
        one,
        vjp=(lambda y, g: g * y * 0.5,),
    )
    w = yp.Context().param((2, 3)).set(np.arange(6.0).reshape(2, 3) / 5)
    loss = (scaled(w @ w.T) * 2.0).sum()
    graph = yp.Graph(loss)
    grads = graph.backward(loss)
    program = graph.compile(threads=2)
    program.run()
    assert [t.nodes[0].op.name for t in program.tasks].count("scaled_exp") == 1
    product = w.numpy() @ w.numpy().T
    slope = np.exp(product / 2)
    assert np.allclose(loss.item(), 2 * slope.sum(), rtol=1e-6)
    assert np.allclose(grads[w].numpy(), (slope + slope.T) @ w.numpy(), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "bf16", "i32"])
def test_arrays_come_in_every_dtype_and_shape(dtype):
    twice = declared("twice_of", per_array(double), lambda x: 2 * x, one)
    for shape in [(), (3,), (2, 3), (0, 2)] + [(2, 1, 3), (1, 2, 2, 2)] * (dtype == "f32"):
        values = np.arange(np.prod(shape)).reshape(shape)
        got = twice(yp.tensor(values, dtype)).numpy()
        assert got.shape == shape
        assert np.array_equal(got, 2 * values)
    matrix = yp.tensor([[1.0, 2.0], [3.0, 4.0]], dtype)
    assert twice(matrix.T).numpy().tolist() == [[2.0, 6.0], [4.0, 8.0]]


def double(y, x, p):
    for at, value in np.ndenumerate(x):
        y[at] = 2 * value


def test_functions_may_close_over_numbers_and_call_compiled_ones():
    half = numba.njit(lambda x: x / 2)

    def made(factor):
        return declared(
            f"times_{factor}", per_element(lambda x: x * real(factor)), lambda x: x * factor, one
        )

    three, four = made(3), made(4)
    x = yp.tensor([1.0])
    assert (three(x).item(), four(x).item()) == (3.0, 4.0)
    globals()["half_of"] = half
    halved = declared("halved", per_element(lambda x: half_of(x)), lambda x: x / 2, one)  # noqa: F821
    assert halved(x).item() == 0.5


def test_a_kernel_that_numba_cannot_compile_says_why_and_where():
    bad = declared("bad", per_element(lambda x: x.stretched), lambda x: x, one)
    with pytest.raises(KernelError, match=r"lambda_f32: does not compile: .*stretched") as e:
        bad(yp.tensor([1.0])).numpy()
    assert "test_custom.py" in str(e.value)
    assert "\n" not in str(e.value)


def test_wrong_numbers_of_arguments_are_refused():
    with pytest.raises(SettingError, match=r"got arguments \(x0, x1, x2, x3\), want"):
        per_element(lambda x0, x1, x2, x3: x0)
    with pytest.raises(SettingError, match="y, sources, i, p"):
        per_row(lambda y, i, p: None)
    with pytest.raises(SettingError, match="begin, end, p"):
        per_array(lambda y, x, p: None, split=True)
    alone = declared("alone", per_element(lambda x: x), lambda x: x, one)
    with pytest.raises(GraphError, match="2 sources, want the 1"):
        alone(yp.tensor([1.0]), yp.tensor([2.0])).numpy()


def test_a_declaration_may_be_run_again_but_takes_no_name_of_others():
    declared("again", per_array(flip), lambda x: x[::-1], one)
    again = declared("again", per_array(double), lambda x: 2 * x, one)
    assert REGISTRY["again"] is again
    with pytest.raises(YupanaError, match="add: an op of this name exists"):
        declared("add", per_element(lambda x: x), lambda x: x, one)


def test_the_guide_is_the_whole_list_of_kernels():
    text = (ROOT / "docs" / "custom_ops.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(per_\w+)`", text, re.MULTILINE)) == {
        name for name in yp.custom.__all__ if name.startswith("per_")
    }
