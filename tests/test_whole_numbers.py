"""i32, i16 and i8: what they hold, how they are copied and cast, and what refuses them."""

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib.compare import Expected
from yupana.graphlib.dtypes import dtype_of
from yupana.graphlib.errors import DtypeError, YupanaError
from yupana.graphlib.op import REGISTRY
from yupana.graphlib.sampler import Sampler, random_numbers
from yupana.models.formats import GgufFile, write_gguf

WHOLE = ["i8", "i16", "i32"]
VALUES = np.array([0.0, -0.9, 1.9, -1.9, 127, 128, -128, -129, 300, 32767, 32768, -32769, 1e9, 3e9,
                   -3e9, np.inf, -np.inf, np.nan, 2.5, -2.5])  # fmt: skip


def cut(values, dtype):
    """What C promises, and beyond that the nearest; 0 for NaN."""
    limits = np.iinfo(dtype_of(dtype).storage)
    whole = np.trunc(np.nan_to_num(values, nan=0.0, posinf=1e18, neginf=-1e18))
    return np.clip(whole, limits.min, limits.max).astype(np.int64)


@pytest.mark.parametrize("dtype", WHOLE)
@pytest.mark.parametrize("source", ["f32", "f64"])
def test_casts_cut_fractions_off_and_stay_within_the_range(dtype, source):
    x = yp.tensor(np.resize(VALUES, 83), source)  # vectors, and what is left over
    got = x.cast(dtype).numpy()
    assert got.dtype == dtype_of(dtype).storage
    np.testing.assert_array_equal(got, cut(x.numpy().astype(np.float64), dtype))
    np.testing.assert_array_equal(yp.tensor(x.numpy(), dtype).numpy(), got)  # as leaves are set


@pytest.mark.parametrize("source", WHOLE)
@pytest.mark.parametrize("target", [*WHOLE, "f32", "f64"])
def test_whole_numbers_are_exact_in_wider_types(source, target):
    limits = np.iinfo(dtype_of(source).storage)
    values = np.random.default_rng(0).integers(limits.min, limits.max, (37, 5), endpoint=True)
    x = yp.tensor(values, source)
    got = x.T.cast(target).numpy()
    if target in WHOLE:
        np.testing.assert_array_equal(got, cut(values.T, target))
    else:
        np.testing.assert_array_equal(got, values.T.astype(got.dtype))


@pytest.mark.parametrize("dtype", ["i8", "i16"])
def test_they_are_viewed_copied_and_written_into(dtype):
    values = np.arange(-12, 12).reshape(4, 6)
    x = yp.tensor(values, dtype)
    assert (x.nbytes, x.nb[:2]) == (24 * x.dtype.itemsize, (x.dtype.itemsize, 6 * x.dtype.itemsize))
    np.testing.assert_array_equal(x[1:, ::2].T.cont().numpy(), values[1:, ::2].T)
    np.testing.assert_array_equal(x.reshape(2, 12)[1].numpy(), values.reshape(2, 12)[1])
    np.testing.assert_array_equal(yp.ops.concat(x, x, axis=0).numpy(), np.r_[values, values])
    np.testing.assert_array_equal(x.repeat((8, 6)).numpy(), np.r_[values, values])
    kept = yp.Context().leaf((4, 6), dtype)
    yp.Graph(yp.ops.cpy(yp.tensor(values * 1.0), kept)).compile().run()
    np.testing.assert_array_equal(kept.numpy(), values)


@pytest.mark.parametrize("dtype", ["i8", "i16"])
def test_every_op_refuses_them_or_gives_what_its_formula_says(dtype):
    accepting = set()
    for name, op in REGISTRY.items():
        rng = np.random.default_rng(0)
        for _ in range(8):
            sampler = Sampler(random_numbers(rng), dtype=dtype)
            try:
                call = op.samples(sampler)
                node = op(*call.args, **call.kwargs)
            except YupanaError:
                continue
            if any(leaf.dtype.name == dtype for leaf in sampler.leaves):
                accepting.add(name)
                graph = yp.Graph(node)
                Expected(graph).check(name, graph.compile(threads=1))
    assert accepting == {
        "argsort", "cast", "concat", "cont", "cpy", "detach", "permute", "repeat", "reshape",
        "slice", "top_k", "transpose", "view",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["i8", "i16"])
def test_arithmetic_says_what_to_do(dtype):
    x = yp.tensor([[1, 2]], dtype)
    for run in (lambda: x + x, lambda: x.gelu(), lambda: x * 2.0, lambda: x @ x.T):
        with pytest.raises(DtypeError, match=rf"got {dtype} .*cast\(x, 'f32'\)"):
            run()
    with pytest.raises(DtypeError, match=r"holds no sum.*cast\(x, 'i32'\)"):
        x.sum()
    with pytest.raises(DtypeError, match="must be a float type"):
        yp.Context().param((2,), dtype)


def test_files_hold_them(tmp_path):
    values = {"a": np.arange(-3, 3, dtype=np.int8), "b": np.arange(-300, 300, dtype=np.int16)}
    write_gguf(tmp_path / "m.gguf", {}, values)
    with GgufFile(tmp_path / "m.gguf") as file:
        for name, want in values.items():
            x = file.tensor(yp.Context(), name)
            assert x.dtype is dtype_of(want.dtype)
            np.testing.assert_array_equal(x.cast("f32").numpy(), want)


@pytest.mark.parametrize(
    ("name", "want"),
    [("F32", "f32"), ("BF16", "bf16"), ("I8", "i8"), ("q4_0", "Q4_0"), ("Q4_K", "Q4_K"),
     ("q4_k", "Q4_K"), ("i8", "i8"), (np.int16, "i16")],
)  # fmt: skip
def test_names_of_types_in_either_case(name, want):
    assert dtype_of(name).name == want
