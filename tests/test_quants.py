"""Quantised types: ggml's own bytes, and the kernels beside the definition."""

import hashlib
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import ggml_library
from yupana.graphlib import quants
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.kernels import quant_rows
from yupana.graphlib.kernels.compiler import function_type
from yupana.graphlib.kernels.quant_rows import quantize_rows

NAMES = list(quants.FORMATS)
STORED = [name for name in NAMES if name != "Q8_1"]  # in files, or in ggml's library of them
SHARED = Path(__file__).parents[2] / "shared" / "data" / "quant_reference.npz"
# SHA-256, its first 16 digits, of what ggml makes of `drawn_rows()`, and of what it expands that
# to; test_definition_is_that_of_ggml_itself shows where they come from.
GGML = {
    "Q4_0": ("e8728d7d2f11e6a8", "aa99b740fdb60d13"),
    "Q4_1": ("7963c229c743521a", "a2aafab092e657df"),
    "Q5_0": ("3ca2010ed53af3d1", "4e374610bf989472"),
    "Q5_1": ("821d93d085ca0c56", "36ab783ca7ea86e2"),
    "Q8_0": ("9f5fcf79c685fe38", "029a314233159a4c"),
    "Q2_K": ("8d73f1074527c4f2", "15f84b0ced74fcc8"),
    "Q3_K": ("487ceeceb4142258", "68d66448369ccfea"),
    "Q4_K": ("0e39a72cc61c09af", "2cd1fbb99b80efce"),
    "Q5_K": ("bc2e356c55860bb3", "e843ef3dac166293"),
    "Q6_K": ("82541f38ffa6a3e6", "7087b8e5f246f788"),
    "Q8_K": ("3572aa468c314f6a", "fad49358586d53dc"),
    "IQ4_NL": ("0c1afe00ebee9527", "aaf95ccb55ee0c82"),
    "IQ4_XS": ("05d29e27f05dcac5", "f5ae4fa92aac3263"),
}


def differing_blocks(got: Any, want: Any, nbytes: int) -> int:
    return int((got != want).reshape(-1, nbytes).any(1).sum())


def drawn_rows() -> Any:
    """(400, 512) float32 that are the same on every machine: sizes apart, signs, zeros, ties."""
    words = np.random.PCG64(11).random_raw(4 * 400 * 512).astype(np.float64) * 2.0**-64
    x = words.reshape(4, 400, 512).sum(0) - 2.0
    x[::7] *= 2.0 ** (np.arange(58.0) - 40.0)[:, None]
    x[::11, ::3] = 0
    x[::13] = np.abs(x[::13])
    x[::17] = np.round(x[::17] * 8)
    return x.astype(np.float32)


def digest(found: Any) -> str:
    return hashlib.sha256(found.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", STORED)
def test_definition_is_that_of_ggml_byte_for_byte(name: str) -> None:
    stored = quants.quantize(drawn_rows(), name)
    expanded = quants.dequantize(stored, name)
    assert expanded.dtype == np.float32
    assert (digest(stored), digest(expanded)) == GGML[name]


@pytest.mark.parametrize("name", STORED)
def test_definition_is_that_of_ggml_itself(name: str) -> None:
    nbytes = quants.FORMATS[name].nbytes
    x = drawn_rows()
    stored = ggml_library.quantize(x, name)
    expanded = ggml_library.dequantize(stored, name)
    assert (digest(stored), digest(expanded)) == GGML[name]
    assert differing_blocks(quants.quantize(x, name), stored, nbytes) == 0
    np.testing.assert_array_equal(quants.dequantize(stored, name), expanded)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="ggml rounds a little otherwise there")
@pytest.mark.parametrize("name", ["Q8_1", "Q8_K"])
def test_what_meets_a_matrix_is_rounded_as_ggml_does(name: str) -> None:
    x = drawn_rows()
    stored = ggml_library.rounded(x, name)
    assert differing_blocks(quants.quantize(x, name), stored, quants.FORMATS[name].nbytes) == 0


@pytest.mark.parametrize("name", [name for name in STORED if name != "Q8_K" and name[0] == "Q"])
def test_definition_is_that_of_the_reference_file(name: str) -> None:
    if not SHARED.is_file():
        pytest.skip("the shared test data are not there")
    reference, nbytes = np.load(SHARED), quants.FORMATS[name].nbytes
    for quantize in (quants.quantize, quantize_rows):
        stored = quantize(reference["x"].copy(), name)
        assert differing_blocks(stored, reference[name], nbytes) <= stored.size // nbytes // 10_000
    expanded = quants.dequantize(reference[name], name)
    np.testing.assert_array_equal(expanded, reference[f"{name}_f32"])


@pytest.mark.parametrize("name", STORED)
def test_definition_is_that_of_the_gguf_package(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    fmt, kind = quants.FORMATS[name], gguf.GGMLQuantizationType[name]
    assert (fmt.block, fmt.nbytes) == gguf.GGML_QUANT_SIZES[kind]
    assert fmt.ggml_id == kind.value
    if name == "Q8_K":  # the package knows no more of it
        return
    rng = np.random.default_rng(0)
    # Any bytes are a block, also with scales that are no numbers
    stored = rng.integers(0, 256, (50, 4 * fmt.nbytes), np.uint8)
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(stored, kind)
    got = quants.dequantize(stored, name)
    np.testing.assert_array_equal(got, want)


def test_rows_that_are_not_whole_blocks_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 100\), want the last axis a multiple of 256"):
        quants.quantize(np.zeros((2, 100)), "Q4_K")
    with pytest.raises(ShapeError, match="multiple of 18"):
        quants.dequantize(np.zeros(17, np.uint8), "Q4_0")
    with pytest.raises(DtypeError, match="'Q9_X', want one of Q4_0"):
        quants.quantize(np.zeros(32), "Q9_X")


def kernel_load(stored: Any, name: str) -> Any:
    fmt = quants.FORMATS[name]
    out = np.zeros((*stored.shape[:-1], stored.shape[-1] // fmt.nbytes * fmt.block), np.float32)
    run = function_type(5)(quant_rows.LOAD[name].address)
    run(stored.ctypes.data, fmt.nbytes, 0, out.size, out.ctypes.data)
    return out


def assert_same_bits(got: Any, want: Any) -> None:
    """Equal to the last bit, but for which of the NaNs it is."""
    differ = (got.view(np.uint32) != want.view(np.uint32)) & ~(np.isnan(got) & np.isnan(want))
    assert not differ.any(), f"{differ.sum()} of {differ.size} differ"


@pytest.mark.parametrize("name", NAMES)
def test_kernels_write_the_bytes_of_the_definition(name: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 1024)).astype(np.float32)
    x[::7] *= 10.0 ** rng.integers(-12, 6, (58, 1)).astype(np.float32)
    x[::11, ::3] = 0
    x[::13] = np.abs(x[::13])
    x[::17] = np.round(x[::17])  # ties
    nbytes = quants.FORMATS[name].nbytes
    assert differing_blocks(quantize_rows(x, name), quants.quantize(x, name), nbytes) == 0
    if name in STORED:
        assert digest(quantize_rows(drawn_rows(), name)) == GGML[name][0]


@pytest.mark.parametrize("name", NAMES)
def test_kernels_expand_any_bytes_as_the_definition(name: str) -> None:
    rng = np.random.default_rng(2)
    stored = rng.integers(0, 256, (200, 4 * quants.FORMATS[name].nbytes), np.uint8)
    assert_same_bits(kernel_load(stored, name), quants.dequantize(stored, name))


@pytest.mark.parametrize("name", NAMES)
def test_kernels_survive_numbers_that_cannot_be_quantised(name: str) -> None:
    """Whatever comes out, nothing else is written and nothing crashes."""
    odd = np.array([np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, -0.0, 1.0], np.float32)
    x = np.random.default_rng(3).choice(odd, (64, 256))
    fmt = quants.FORMATS[name]
    guarded = np.full(x.size // fmt.block * fmt.nbytes + 64, 0xA5, np.uint8)
    run = function_type(5)(quant_rows.STORE[name].address)
    run(x.ctypes.data, x.size, 0, guarded.ctypes.data, fmt.nbytes)
    assert (guarded[-64:] == 0xA5).all()


def test_rounding_halves_of_q8_0_go_away_from_zero() -> None:
    x = np.zeros(32, np.float32)
    x[:8] = [127.0, 0.5, -0.5, 1.5, np.nextafter(np.float32(0.5), np.float32(0)), 2.5, -2.5, 126.5]
    got = quantize_rows(x, "Q8_0")[2:].view(np.int8)
    assert got[:8].tolist() == [127, 1, -1, 2, 0, 3, -3, 127]
