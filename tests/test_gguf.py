import math
import mmap
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.mounts import mounted
from yupana.graphlib.errors import DtypeError, FileFormatError, ShapeError, YupanaError
from yupana.models.formats import GgufFile, atomic_write, write_gguf
from yupana.models.formats.gguf_types import TENSOR_TYPES

METADATA = {
    "general.architecture": "llama",
    "a.bool": True,
    "a.int": 7,
    "a.negative": -3,
    "a.large": 2**63 + 1,
    "a.float": 0.5,
    "a.text": "ñandú 🦙",
    "a.texts": ["", "x", "日本"],
    "a.ints": [1, 2, 3],
    "a.floats": [0.25, -1.5],
    "a.bools": [True, False],
    "a.none": [],
}
TENSORS = {
    "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "f16": np.linspace(-1, 1, 5, dtype=np.float16),
    "i8": np.arange(-4, 4, dtype=np.int8).reshape(2, 2, 2),
    "bf16": ("BF16", (2, 2), np.array([[0x3F80, 0], [0xBF80, 1]], np.uint16)),
    "q8": ("Q8_0", (2, 64), bytes(range(136))),
}


@pytest.mark.parametrize("mapped", [True, False])
def test_write_and_read_give_the_same_values(tmp_path, mapped):
    path = tmp_path / "m.gguf"
    write_gguf(path, METADATA, TENSORS)
    with GgufFile(path, mmap=mapped) as file:
        assert (file.version, file.byte_order, file.alignment) == (3, "little", 32)
        assert list(file.metadata) == list(METADATA)
        for key, value in METADATA.items():
            got = file.metadata[key]
            assert (got.tolist() if isinstance(got, np.ndarray) else got) == value
        names = ["STRING", "BOOL", "UINT32", "INT64", "UINT64", "FLOAT32", "STRING"]
        assert [file.metadata.type_name(k) for k in METADATA][:7] == names
        assert file.metadata.type_name("a.bools") == "ARRAY[BOOL]"
        assert file.metadata.length("a.texts") == 3
        assert list(file.tensors) == list(TENSORS)
        for name in ("f32", "f16", "i8"):
            data = file.tensors[name].data
            assert data.dtype == TENSORS[name].dtype
            np.testing.assert_array_equal(data, TENSORS[name])
            assert data.flags.writeable is not mapped  # what was read is the caller's own
            assert file.tensors[name].offset % 32 == 0
        np.testing.assert_array_equal(file.tensors["bf16"].data, TENSORS["bf16"][2])
        q8 = file.tensors["q8"]
        assert (q8.shape, q8.type, q8.data.shape) == ((2, 64), "Q8_0", (2, 68))
        assert q8.raw.tobytes() == q8.data.tobytes() == TENSORS["q8"][2]


def test_tensors_are_views_of_the_map_and_outlive_close(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, {}, TENSORS)
    file = GgufFile(path)
    data = file.tensors["f32"].data
    base = data
    while isinstance(base, np.ndarray):
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    assert isinstance(base, mmap.mmap)
    file.close()
    np.testing.assert_array_equal(data, TENSORS["f32"])
    with pytest.raises(FileFormatError, match="closed"):
        file.tensors["f32"].data
    with pytest.raises(ValueError, match="read-only"):
        data[0, 0] = 1


def test_typed_values_survive_a_copy(tmp_path):
    types = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
    values = {f"v.{d}": np.dtype(d).type(3) for d in types}
    values |= {f"a.{d}": np.array([1, 2], d) for d in types}
    values |= {"flag": True, "flags": np.array([True, False]), "text": "t", "texts": ["a"]}
    values |= {"lists": [np.array([1, 2], "i1"), np.array([3], "u2"), ["a", ""], [["b"], []]]}
    write_gguf(tmp_path / "a", values, {})
    first = GgufFile(tmp_path / "a")
    write_gguf(tmp_path / "b", first.metadata.typed(), {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert first.metadata.type_name("v.f8") == "FLOAT64"
    assert first.metadata.type_name("a.i2") == "ARRAY[INT16]"
    assert first.metadata.type_name("lists") == "ARRAY[ARRAY]"
    assert first.metadata["lists"] == [[1, 2], [3], ["a", ""], [["b"], []]]


def test_our_file_opens_in_the_gguf_package(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    write_gguf(path, METADATA, TENSORS)
    reader = gguf.GGUFReader(path)
    for key, value in METADATA.items():
        if value != []:  # the package cannot show an empty array
            assert reader.fields[key].contents() == value
    tensors = {t.name: t for t in reader.tensors}
    assert list(tensors) == list(TENSORS)
    np.testing.assert_array_equal(tensors["f32"].data, TENSORS["f32"])
    np.testing.assert_array_equal(tensors["i8"].data, TENSORS["i8"])
    assert tensors["bf16"].data.tobytes() == TENSORS["bf16"][2].tobytes()
    assert tensors["q8"].tensor_type == gguf.GGMLQuantizationType.Q8_0
    assert tensors["q8"].data.tobytes() == TENSORS["q8"][2]


@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_a_file_of_the_gguf_package_opens_here(tmp_path, endian):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian[endian])
    writer.add_uint32("u", 5)
    writer.add_float64("d", math.pi)
    writer.add_string("s", "añu")
    writer.add_bool("b", True)
    writer.add_array("texts", ["a", "é"])
    writer.add_array("ids", [1, -2])
    writer.add_array("lists", [[["a"], ["b", "ü"]], [["c"]]])
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("w", weights)
    writer.add_tensor("h", weights.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    assert file.byte_order == endian.lower()
    values = {k: file.metadata[k] for k in ("u", "d", "s", "b", "texts")}
    assert values == {"u": 5, "d": math.pi, "s": "añu", "b": True, "texts": ["a", "é"]}
    assert file.metadata["ids"].tolist() == [1, -2]
    assert file.metadata["lists"] == [[["a"], ["b", "ü"]], [["c"]]]
    np.testing.assert_array_equal(file.tensors["w"].data, weights)
    np.testing.assert_array_equal(file.tensors["h"].data, weights)


def test_tensor_types_are_those_of_the_gguf_package():
    gguf = pytest.importorskip("gguf")
    ours = {t.number: t for t in TENSOR_TYPES.values()}
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        if kind.name == "Q8_1":  # never stored; the package counts it with two float32
            continue
        if int(kind) in ours:  # newer packages know newer types
            t = ours[int(kind)]
            assert (t.name, t.block, t.size) == (kind.name, block, size)


def test_a_large_vocabulary_is_not_decoded_on_opening(tmp_path):
    words = [f"word number {i}" for i in range(32_000)]
    write_gguf(tmp_path / "m.gguf", {"tokenizer.ggml.tokens": words}, {})
    tracemalloc.start()
    file = GgufFile(tmp_path / "m.gguf")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000  # 32,000 decoded words take 2 MB
    assert file.metadata.length("tokenizer.ggml.tokens") == 32_000
    assert file.metadata["tokenizer.ggml.tokens"] == words


# What the writer refuses, and what it leaves behind


@pytest.mark.parametrize(
    ("metadata", "tensors", "kind", "words"),
    [
        ({"k": None}, {}, DtypeError, "'k'.*NoneType"),
        ({"k": [1, "a"]}, {}, DtypeError, "int, str"),
        ({"k": [[1], 2]}, {}, DtypeError, "int, list"),
        ({"k": 2**64}, {}, DtypeError, "64 bits"),
        ({"k": 1e300}, {}, DtypeError, "float32"),
        ({"k": "\ud800"}, {}, DtypeError, "surrogate"),
        ({"k": np.zeros((2, 2))}, {}, DtypeError, "one axis"),
        ({"k": np.float16(1)}, {}, DtypeError, "float16"),
        ({"": 1}, {}, DtypeError, "1 to 65535"),
        ({"general.alignment": 48}, {}, YupanaError, "power of two"),
        ({}, {"w": np.zeros(2, complex)}, DtypeError, "complex128"),
        ({}, {"w": np.zeros(2, np.uint16)}, DtypeError, "BF16"),
        ({}, {"w" * 64: np.zeros(2)}, ShapeError, "64 bytes"),
        ({}, {"w": np.zeros((1,) * 5)}, ShapeError, "at most 4 axes"),
        ({}, {"w": ("Q9_9", (32,), b"")}, DtypeError, "Q9_9"),
        ({}, {"w": ("Q8_0", (33,), b"")}, ShapeError, "blocks of 32"),
        ({}, {"w": ("Q8_0", (32,), bytes(33))}, ShapeError, "33 bytes, want 34"),
        ({}, {"w": ("BF16", (2,), np.zeros(2, np.float16))}, DtypeError, "float16, want uint8"),
    ],
)
def test_writer_refuses_what_the_format_lacks(tmp_path, metadata, tensors, kind, words):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with pytest.raises(kind, match=words):
        write_gguf(path, metadata, tensors)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, {"state": "old"}, {})

    def stops():
        assert len(list(tmp_path.iterdir())) == 2  # the new file is under way beside the old one
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(path, {"state": "new"}, {"w": ("F32", (2,), stops)})
    assert GgufFile(path).metadata["state"] == "old"
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_a_write_keeps_permissions_and_follows_links(tmp_path):
    path, link = tmp_path / "m.gguf", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    with atomic_write(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_errors_name_the_file_that_was_to_be_written(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        write_gguf(tmp_path / "nowhere" / "m.gguf", {}, {})
    assert error.value.filename == str(tmp_path / "nowhere" / "m.gguf")
    with pytest.raises(IsADirectoryError) as error:
        write_gguf(tmp_path, {}, {})
    assert error.value.filename == str(tmp_path)
    with mounted(tmp_path / "small", "size=64k") as small:
        with pytest.raises(OSError, match="No space left") as error:
            write_gguf(small / "m.gguf", {}, {"w": np.zeros(1 << 16, np.float32)})
        assert error.value.filename == str(small / "m.gguf")
        assert not list(small.iterdir())


def test_writer_takes_odd_arrays(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {
        "transposed": base.transpose(2, 0, 1),
        "strided": base[:, ::2, ::-1],
        "big": base.astype(">f4"),
        "scalar": np.array(3, np.float32),
        "empty": np.zeros((2, 0), np.float32),
    }
    made = ("F32", (24,), lambda: base.tobytes())
    write_gguf(tmp_path / "m", {"general.alignment": 64}, {**arrays, "made": made})
    file = GgufFile(tmp_path / "m")
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.tensors[name].data, array)
        assert file.tensors[name].shape == array.shape
        assert file.tensors[name].offset % 64 == 0
    np.testing.assert_array_equal(file.tensors["made"].data, np.arange(24))


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=9).filter(lambda k: k != "general.alignment"),
        st.one_of(
            st.booleans(),
            st.integers(-(2**63), 2**64 - 1),
            st.floats(width=32, allow_nan=False),
            st.text(),
            st.lists(st.text()),
            st.lists(st.booleans(), min_size=1),
            st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
            st.lists(st.lists(st.text()) | st.lists(st.booleans(), min_size=1), min_size=1),
        ),
    )
)
@settings(max_examples=100, deadline=None)
def test_any_metadata_survives(tmp_path_factory, metadata):
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    write_gguf(path, metadata, {})
    read = GgufFile(path).metadata
    got = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in read.items()}
    assert got == metadata
    assert {k: type(v) for k, v in got.items()} == {k: type(v) for k, v in metadata.items()}
