"""Tensors of a graph that lie in a mapped file."""

import gc
import struct
from pathlib import Path

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib import quants
from yupana.graphlib.dtypes import DTYPES, dtype_of, to_storage
from yupana.graphlib.errors import ContextError, DtypeError
from yupana.models.formats import GgufFile, MissingEntry, write_gguf
from yupana.models.formats.gguf_types import TENSOR_TYPE_BY_NAME, TENSOR_TYPES

QUANTIZED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
QUANTIZED += ["IQ4_NL", "IQ4_XS"]
PLAIN = ["F32", "F16", "BF16", "F64"]


def model_file(path: Path) -> np.ndarray:
    """One matrix in every type that kernels know, and one in a type they do not."""
    x = np.random.default_rng(7).normal(size=(8, 512)).astype(np.float32)
    tensors = {name: (name, x.shape, quants.quantize(x, name)) for name in QUANTIZED}
    for name in PLAIN:
        tensors[name] = (name, x.shape, to_storage(x, dtype_of(name.lower())))
    tensors["I32"] = np.arange(6, dtype=np.int32).reshape(2, 3)
    tensors["I8"] = np.arange(6, dtype=np.int8)
    tensors["I16"] = np.arange(-3, 3, dtype=np.int16)
    tensors["I64"] = np.arange(6, dtype=np.int64)
    write_gguf(path, {}, tensors)
    return x


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "F16", "BF16", "F32"])
def test_matrix_products_read_weights_where_they_lie_in_the_file(tmp_path, name):
    model_file(tmp_path / "m.gguf")
    context = yp.Context()
    w = GgufFile(tmp_path / "m.gguf").tensor(context, name)
    x = yp.tensor(np.random.default_rng(1).normal(size=(3, 512)))
    gc.collect()  # the tensor alone keeps the map
    own = yp.Context().leaf(w.shape, w.dtype)
    own.data[...] = w.data
    got, want = yp.ops.mul_mat(w, x).numpy(), yp.ops.mul_mat(own, x).numpy()
    np.testing.assert_array_equal(got, want)
    # as inputs are rounded to eight bits for the product, the result is only near
    np.testing.assert_allclose(got, x.numpy() @ w.numpy().T, atol=0.2)
    assert context[name] is w
    assert context.used_mem == 0


@pytest.mark.parametrize("name", [*QUANTIZED, *PLAIN, "I32", "I16", "I8"])
def test_every_type_lies_in_the_map(tmp_path, name):
    model_file(tmp_path / "m.gguf")
    file = GgufFile(tmp_path / "m.gguf")
    leaf = file.tensor(yp.Context(), name)
    info = file.tensors[name]
    assert leaf.dtype.name.upper() == name
    assert leaf.shape == info.shape
    assert leaf.address == info.raw.ctypes.data
    assert leaf.data.tobytes() == info.raw.tobytes()


# Numbers of more than one byte in a block: byte, size (structs of ggml-common.h; ggml copies the
# fifth bits of Q5 from and to one 32-bit number, so that they stand in the machine's order).
NUMBERS = {
    "Q4_0": [(0, 2)],
    "Q4_1": [(0, 2), (2, 2)],
    "Q5_0": [(0, 2), (2, 4)],
    "Q5_1": [(0, 2), (2, 2), (4, 4)],
    "Q8_0": [(0, 2)],
    "Q2_K": [(80, 2), (82, 2)],
    "Q3_K": [(108, 2)],
    "Q4_K": [(0, 2), (2, 2)],
    "Q5_K": [(0, 2), (2, 2)],
    "Q6_K": [(208, 2)],
    "IQ4_NL": [(0, 2)],
    "IQ4_XS": [(0, 2), (2, 2)],
    "F32": [(0, 4)],
    "F16": [(0, 2)],
    "BF16": [(0, 2)],
    "F64": [(0, 8)],
    "I32": [(0, 4)],
}


def big_endian_file(path, version, name, shape, raw):
    """A file with one tensor whose numbers have the other byte order, built by hand."""
    kind = TENSOR_TYPE_BY_NAME[name]
    body = bytearray(raw)
    for block in range(0, len(body), kind.size):
        for at, size in NUMBERS[name]:
            place = slice(block + at, block + at + size)
            body[place] = body[place][::-1]
    count = "I" if version == 1 else "Q"
    head = b"GGUF" + struct.pack(f">I{count}{count}", version, 1, 0)
    head += struct.pack(f">{count}", 1) + b"w"
    head += struct.pack(f">I{count}{count}IQ", 2, *reversed(shape), kind.number, 0)
    path.write_bytes(head + bytes(-len(head) % 32) + body)
    return bytes(body)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("version", [1, 3])
def test_big_endian_tensors_are_converted(tmp_path, name, version):
    model_file(tmp_path / "m.gguf")
    native = GgufFile(tmp_path / "m.gguf", validate=True)
    info = native.tensors[name]
    path = tmp_path / "big.gguf"
    body = big_endian_file(path, version, name, info.shape, info.raw.tobytes())
    file = GgufFile(path, validate=True)
    assert (file.version, file.byte_order) == (version, "big")
    leaf = file.tensor(yp.Context(), "w")
    assert leaf.data.tobytes() == info.raw.tobytes()
    np.testing.assert_array_equal(leaf.numpy(), native.tensor(yp.Context(), name).numpy())
    assert file.tensors["w"].raw.tobytes() == body


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q4_K", "Q6_K"])
def test_the_gguf_package_converts_blocks_to_the_same_bytes(tmp_path, name):
    gguf = pytest.importorskip("gguf")
    from gguf.scripts.gguf_convert_endian import byteswap_tensors

    model_file(tmp_path / "m.gguf")
    info = GgufFile(tmp_path / "m.gguf").tensors[name]
    body = big_endian_file(tmp_path / "b", 3, name, info.shape, info.raw.tobytes())

    class Stored:
        data = info.raw.copy()

    swap = byteswap_tensors[gguf.GGMLQuantizationType[name]]
    for at in range(0, info.nbytes, TENSOR_TYPE_BY_NAME[name].size):
        swap(Stored, at)
    assert Stored.data.tobytes() == body


def test_a_tensor_between_two_elements_is_copied(tmp_path):
    weight = np.arange(6, dtype=np.float64).reshape(2, 3)
    metadata = {"general.alignment": 2, "odd": "odd"}
    for length in range(4):
        path = tmp_path / "m.gguf"
        write_gguf(path, metadata | {"pad": "x" * 2 * length}, {"w": weight})
        file = GgufFile(path)
        leaf = file.tensor(yp.Context(), "w")
        lies = file.tensors["w"].offset % 8 == 0
        assert (leaf.address == file.tensors["w"].raw.ctypes.data) == lies
        assert leaf.address % 8 == 0
        np.testing.assert_array_equal(leaf.numpy(), weight)


def test_writing_into_a_mapped_tensor_is_an_error(tmp_path):
    model_file(tmp_path / "m.gguf")
    w = GgufFile(tmp_path / "m.gguf").tensor(yp.Context(), "F32")
    with pytest.raises(ContextError, match=r"set: cannot write into F32 \(8, 512\): got memory"):
        w.set(0)
    with pytest.raises(ValueError, match="read-only"):
        w.data[0, 0] = 1
    for place in (w, w[2:4]):
        written = yp.ops.cpy(yp.tensor(np.zeros(place.shape)), place)
        with pytest.raises(ContextError, match="cpy: cannot write into F32"):
            yp.Graph([written]).compile()


def test_files_and_kernels_agree_about_types():
    for dtype in DTYPES.values():
        kind = TENSOR_TYPES[dtype.ggml_id]
        assert kind.name.lower() == dtype.name.lower()
        assert (kind.block, kind.size) == (dtype.block, dtype.itemsize)
        assert kind.dtype is None or np.dtype(kind.dtype) == dtype.storage


def test_tensors_that_cannot_be_used_are_named(tmp_path):
    model_file(tmp_path / "m.gguf")
    file, context = GgufFile(tmp_path / "m.gguf"), yp.Context()
    with pytest.raises(DtypeError, match=r"m.gguf: type of tensor 'I64': got I64, want one of f3"):
        file.tensor(context, "I64")
    with pytest.raises(MissingEntry, match="no tensor 'absent'"):
        file.tensor(context, "absent")
    file.tensor(context, "F32")
    with pytest.raises(ContextError, match="'F32' is taken"):
        file.tensor(context, "F32")
