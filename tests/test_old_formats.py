"""Readers of formats other than GGUF: what they give, and that bytes that lie only raise."""

import contextlib
import json
import os
import re
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from tests import old_files as old
from yupana.graphlib.errors import FileFormatError
from yupana.models.formats.ggla import read_ggla
from yupana.models.formats.ggml_container import read_ggml
from yupana.models.formats.identify import identify
from yupana.models.formats.llama2c import read_llama2c, read_llama2c_words
from yupana.models.formats.safetensors_file import read_safetensors

A = np.arange(12, dtype=np.float32).reshape(6, 2)
TINY = {"n_vocab": 3, "n_ctx": 4, "n_embd": 4, "n_head": 2, "n_layer": 1}
FILES = {
    "ggml": (
        read_ggml,
        old.ggml_file({"output_norm.weight": A[0], "token_embd.weight": A}, None, 1, TINY,
                      [b"a", b"b", b"ab"]),
    ),
    "ggla": (read_ggla, old.ggla_file({"w": (A, A.astype(np.float16))}, 2, 4)),
    "llama2c": (read_llama2c, old.llama2c_file(0, old.llama2c_weights(False))),
    "llama2c-1": (read_llama2c, old.llama2c_file(1, old.llama2c_weights(True))),
    "llama2c-2": (read_llama2c, old.llama2c_file(2, old.llama2c_weights(False))),
    "words": (read_llama2c_words, old.tokenizer_bin(True)),
    "safetensors": (read_safetensors, save({"a": A, "b": A.astype(np.float16)}, {"format": "np"})),
}  # fmt: skip


def opened(tmp_path, name, raw):
    path = tmp_path / "file.bin"
    path.write_bytes(raw)
    read = FILES[name][0]
    found = read(path)
    for tensor in getattr(found, "tensors", {}).values():
        values = tensor.load()  # within the file, or the process dies
        assert values.shape[: len(tensor.shape) - 1] == tensor.shape[:-1]
        values.tobytes()
    return found


def test_values_come_as_they_were_written(tmp_path):
    tensors = opened(tmp_path, "safetensors", FILES["safetensors"][1]).tensors
    assert {name: (t.shape, t.type) for name, t in tensors.items()} == {
        "a": ((6, 2), "F32"), "b": ((6, 2), "F16"),
    }  # fmt: skip
    np.testing.assert_array_equal(tensors["a"].load(), A)
    np.testing.assert_array_equal(tensors["b"].load(), A.astype(np.float16))
    adapter = opened(tmp_path, "ggla", FILES["ggla"][1])
    assert (adapter.rank, adapter.alpha) == (2, 4)
    np.testing.assert_array_equal(adapter.tensors["w.loraB"].load(), A.astype(np.float16))
    model = opened(tmp_path, "ggml", FILES["ggml"][1])
    assert (model.sizes, model.file_type, model.words) == (TINY, 1, [b"a", b"b", b"ab"])
    np.testing.assert_array_equal(model.tensors["model/wte"].load(), A)


@pytest.mark.parametrize("name", FILES)
def test_files_are_told_apart(tmp_path, name):
    (tmp_path / "file").write_bytes(FILES[name][1])
    if name == "words":
        with pytest.raises(FileFormatError, match=r"magic at byte 0: got .* not a model file"):
            identify(tmp_path / "file")
    else:
        assert identify(tmp_path / "file") == name.partition("-")[0]


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="pipe: not a model file: got a device, want a file"):
        identify(tmp_path / "pipe")


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_an_error_wherever_it_is_cut(tmp_path, name):
    raw = FILES[name][1]
    whole = {0, len(raw)}
    if name == "words":  # a list without a count may end after any word
        whole |= {4} | set(np.cumsum([4, *_word_sizes(raw)]))
    if name == "ggml":  # and so may a list of tensors
        whole |= {raw.index(b"model/ln_f/g") - 16, raw.index(b"model/wte") - 20}
    if name == "ggla":
        whole |= {16, raw.index(b"w.loraB") - 20}
    step = 1 if len(raw) < 1000 else 20011
    for size in [*range(1, min(len(raw), 200)), *range(200, len(raw), step)]:
        if size not in whole:
            with pytest.raises(FileFormatError, match=r"file\.bin"):
                opened(tmp_path, name, raw[:size])


def _word_sizes(raw):
    sizes, at = [], 4
    while at < len(raw):
        sizes.append(8 + struct.unpack_from("<I", raw, at + 4)[0])
        at += sizes[-1]
    return sizes


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rank", 0, "rank at byte 8: got 0, want 1 to 65536"),
        ("rank", -1, "rank at byte 8: got -1, want 1 to 65536"),
        ("rank", 10**9, "rank at byte 8: got 1000000000, want 1 to 65536"),
        ("rank", 50, "rank at byte 8: got 50, want at most {}, the longest axis of the tensors"),
        ("alpha", -3, "alpha at byte 12: got -3, want 0 to 65536"),
        ("alpha", 10**9, "alpha at byte 12: got 1000000000, want 0 to 65536"),
    ],
)
def test_numbers_of_an_adapter_that_make_no_sense_are_refused(tmp_path, field, value, words):
    raw = bytearray(FILES["ggla"][1])
    struct.pack_into("<i", raw, {"rank": 8, "alpha": 12}[field], value)
    with pytest.raises(FileFormatError, match=re.escape(words.format(max(A.shape)))):
        opened(tmp_path, "ggla", bytes(raw))


def test_a_tensor_of_an_adapter_is_refused_where_it_stands(tmp_path):
    raw = FILES["ggla"][1]
    at = raw.index(b"w.loraB") - 20
    with pytest.raises(FileFormatError, match=rf"name of tensor 'w\.loraC' at byte {at}: got"):
        opened(tmp_path, "ggla", raw.replace(b"w.loraB", b"w.loraC"))
    flat = old.ggla_file({"w": (A, A.reshape(-1))}, 2, 4)
    at = flat.index(b"w.loraB") - 16
    with pytest.raises(FileFormatError, match=rf"tensor 'w\.loraB' at byte {at}: got F32 \("):
        opened(tmp_path, "ggla", flat)


@pytest.mark.parametrize("name", FILES)
def test_extremes_in_every_field_of_the_header_only_raise(tmp_path, name):
    raw = FILES[name][1]
    tracemalloc.start()
    try:
        for at in range(min(len(raw) - 4, 72)):
            for value in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
                changed = raw[:at] + struct.pack("<I", value) + raw[at + 4 :]
                with contextlib.suppress(FileFormatError):
                    opened(tmp_path, name, changed)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@given(
    name=st.sampled_from(sorted(FILES)),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    near_start=st.booleans(),
)
def test_bytes_changed_at_random_only_raise(tmp_path_factory, name, places, near_start):
    raw = bytearray(FILES[name][1])
    for where, value in places:
        raw[int(where * min(len(raw) - 1, 300 if near_start else len(raw)))] = value
    folder = tmp_path_factory.mktemp("mutated")
    with contextlib.suppress(FileFormatError):
        opened(folder, name, bytes(raw))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, "dtype of tensor 'a'"),
        ({"a": {"dtype": "F32", "shape": [2, -1], "data_offsets": [0, 8]}}, "shape of tensor 'a'"),
        ({"a": {"dtype": "F32", "shape": [1] * 5, "data_offsets": [0, 4]}}, "at most 4 axes"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "shape of tensor 'a'"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 12]}}, "8 bytes between them"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}}, "where the file ends"),
        ({"a": []}, "tensor 'a': got .*, want a JSON object"),
        ({"__metadata__": {"k": 1}}, "texts by key"),
    ],
)
def test_headers_of_safetensors_are_checked(tmp_path, change, words):
    good = {"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    header = json.dumps(good | change).encode()
    (tmp_path / "f").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(FileFormatError, match=words):
        read_safetensors(tmp_path / "f")


def test_tensors_that_overlap_are_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [2]}
    header = {"a": entry | {"data_offsets": [0, 8]}, "b": entry | {"data_offsets": [4, 12]}}
    raw = json.dumps(header).encode()
    (tmp_path / "f").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(16))
    with pytest.raises(FileFormatError, match="offset of 'b': got 4, want 8 or more, behind 'a'"):
        read_safetensors(tmp_path / "f")
