"""Files built by hand, byte by byte: every version and byte order, and every kind of damage."""

import os
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yupana.graphlib.errors import FileFormatError
from yupana.models.formats import GgufFile, MissingEntry, expect


def entry(order, narrow, key, kind, payload):
    return text(order, narrow, key) + struct.pack(order + "I", kind) + payload


def text(order, narrow, string):
    raw = string if isinstance(string, bytes) else string.encode()
    return struct.pack(order + ("I" if narrow else "Q"), len(raw)) + raw


def small_file(order="<", version=3, alignment=32, tensors=None, entries=None):
    """A file built by hand, independent of the writer: two entries and two tensors."""
    narrow = version == 1
    count = order + ("I" if narrow else "Q")
    if entries is None:
        words = b"".join(text(order, narrow, w) for w in ("a", "bc"))
        entries = [
            entry(order, narrow, "general.alignment", 4, struct.pack(order + "I", alignment)),
            entry(order, narrow, "words", 9, struct.pack(order + "I", 8) + struct.pack(count, 2)
                  + words),
            entry(order, narrow, "rate", 6, struct.pack(order + "f", 0.5)),
            entry(order, narrow, "ids", 9, struct.pack(order + "I", 5) + struct.pack(count, 2)
                  + struct.pack(order + "2i", -1, 70000)),
        ]  # fmt: skip
    if tensors is None:
        tensors = [("w", (3, 2), 0, 0), ("h", (4,), 1, 32)]
    head = b"GGUF" + struct.pack(order + "I", version)
    head += struct.pack(count, len(tensors)) + struct.pack(count, len(entries))
    head += b"".join(entries)
    for name, axes, kind, offset in tensors:
        head += text(order, narrow, name) + struct.pack(order + "I", len(axes))
        head += b"".join(struct.pack(count, n) for n in axes)
        head += struct.pack(order + "IQ", kind, offset)
    head += bytes(-len(head) % alignment)
    body = np.arange(6).astype(order + "f4").tobytes().ljust(32, b"\0")
    body += np.arange(4).astype(order + "f2").tobytes()
    return head + body


def opened(tmp_path, raw, **options):
    path = tmp_path / "m.gguf"
    path.unlink(missing_ok=True)  # to write over a file waits for the disk
    path.write_bytes(raw)
    return GgufFile(path, **options)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_all_versions_and_byte_orders_are_read(tmp_path, order, version):
    file = opened(tmp_path, small_file(order, version))
    assert file.version == version
    assert file.byte_order == ("little" if order == "<" else "big")
    assert file.metadata["words"] == ["a", "bc"]
    assert file.metadata["rate"] == 0.5
    ids = file.metadata["ids"]
    assert ids.dtype == np.dtype("=i4")
    assert ids.tolist() == [-1, 70000]
    assert file.tensors["w"].shape == (2, 3)
    np.testing.assert_array_equal(file.tensors["w"].data, np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(file.tensors["h"].data, np.arange(4))


# Bytes that lie


def whole(file):
    """Touch everything a file offers."""
    values = [file.metadata[key] for key in file.metadata]
    return values, [info.data.sum() for info in file.tensors.values()]


@pytest.mark.parametrize("version", [1, 3])
def test_a_file_cut_anywhere_in_its_header_is_refused(tmp_path, version):
    raw = small_file(version=version)
    end = raw.rindex(np.arange(6, dtype="f4").tobytes())
    for size in range(end):
        with pytest.raises(FileFormatError, match=r"m.gguf: .*: got"):
            whole(opened(tmp_path, raw[:size]))
    with pytest.raises(FileFormatError, match="inside the file"):
        opened(tmp_path, raw[:-1])


FIELDS = {  # what the message names: byte of the little-endian 64-bit field
    "number of tensors": 8,
    "number of metadata entries": 16,
    "length of key 0": 24,
}


@pytest.mark.parametrize("value", [2**16, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("field", FIELDS)
def test_extreme_counts_are_refused_at_once(tmp_path, field, value):
    raw = bytearray(small_file())
    raw[FIELDS[field] : FIELDS[field] + 8] = struct.pack("<Q", value)
    tracemalloc.start()
    with pytest.raises(FileFormatError, match=f"{field}.* at byte {FIELDS[field]}: got {value}"):
        opened(tmp_path, bytes(raw))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def one(kind, payload):
    return {"entries": [entry("<", False, "k", kind, payload)]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tensors": [("w", (3, 2), 0, 0), ("w", (4,), 1, 32)]}, "'w' again"),
        ({"tensors": [("w", (3, 2), 0, 0), ("h", (4,), 1, 0)]}, "inside 'w'"),
        ({"tensors": [("w", (3, 2), 0, 8)]}, "offset of tensor 'w'.*got 8, want a multiple of 32"),
        ({"tensors": [("w", (3, 2), 0, 2**63)]}, "data inside the file"),
        ({"tensors": [("w", (2**40, 2**40), 0, 0)]}, "2\\^60"),
        ({"tensors": [("w", (0, 2**63), 0, 0)]}, "2\\^60"),
        ({"tensors": [("w", (2**59,), 0, 0)]}, "data inside the file"),
        ({"tensors": [("w", (1,) * 5, 0, 0)]}, "number of axes of tensor 'w'.*got 5"),
        ({"tensors": [("w", (32,), 4, 0)]}, "type of tensor 'w'.*got 4, want one of"),
        ({"tensors": [("w", (33,), 8, 0)]}, "blocks of 32"),
        ({"tensors": [(b"\xff", (3,), 0, 0)]}, "name of tensor 0 .*byte 0xff"),
        ({"alignment": 24}, "general.alignment.*UINT32 24, want a power of two"),
        ({"entries": [entry("<", False, "general.alignment", 4, bytes(4))]}, "power of two"),
        ({"entries": [entry("<", False, "k", 0, b"1")] * 2}, "'k' again"),
        ({"entries": [entry("<", False, b"k\xc3", 0, b"1")]}, "key 0 .*byte 0xc3 at 33, want UTF"),
        (one(13, b""), "type of value of 'k' at byte 33: got 13"),
        (one(9, struct.pack("<I", 13)), "type of value of 'k' at byte 37: got 13"),
        (one(9, struct.pack("<IQ", 9, 1) * 9), "element type .* at byte 121: .*at most 8 arrays"),
        (one(9, struct.pack("<IQ", 9, 2**61)), "length of value of 'k' at byte 41: got 2305843"),
        (one(9, struct.pack("<IQIQ", 9, 1, 4, 2**61)), "length of value of 'k' at byte 53: got 23"),
        (one(9, struct.pack("<IQ", 6, 2**62)), "length of value of 'k'.*got 4611686018427387904"),
        (one(9, struct.pack("<IQ", 8, 2) + struct.pack("<Q", 2**64 - 9)), "out of the file"),
        (one(8, struct.pack("<Q", 2**64 - 1)), "string of value of 'k' .*out of the file"),
        (one(8, text("<", False, b"a\xff")), "value of 'k'.*byte 0xff at 46, want UTF-8"),
        (one(9, struct.pack("<IQ", 8, 1) + text("<", False, b"a\xff")), "element 0 of 'k'"),
    ],
)  # fmt: skip
def test_each_fault_has_its_message(tmp_path, change, words):
    raw = small_file(**{"entries": None, **change})
    with pytest.raises(FileFormatError, match=words):
        whole(opened(tmp_path, raw))


@pytest.mark.parametrize("version", [0, 4, 2**31, 0xFFFF])
def test_unknown_versions_are_refused(tmp_path, version):
    with pytest.raises(FileFormatError, match="version at byte 4"):
        opened(tmp_path, small_file(version=version))


def test_what_is_no_model_file_is_refused(tmp_path):
    with pytest.raises(FileFormatError, match="magic at byte 0: got b'PK"):
        opened(tmp_path, b"PK\x03\x04 something else")
    with pytest.raises(FileFormatError, match="at byte 0: got an empty file"):
        opened(tmp_path, b"")
    with pytest.raises(FileFormatError, match="folder"):
        GgufFile(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="device"):
        GgufFile(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        GgufFile(tmp_path / "absent")


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_mutated_files_are_read_or_refused(tmp_path_factory, data):
    """No damage does more than raise FileFormatError, here or when values are read."""
    order, version = data.draw(st.sampled_from("<>")), data.draw(st.sampled_from([1, 2, 3]))
    raw = bytearray(small_file(order, version))
    signed = [b"\xff" * 7 + b"\x7f", b"\x7f" + b"\xff" * 7]
    extremes = [b"\xff" * 8, b"\0" * 8, *signed, b"\1", b"\x80"]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, len(raw) - 1))
        patch = data.draw(st.sampled_from(extremes) | st.binary(min_size=1, max_size=8))
        raw[at : at + len(patch)] = patch[: len(raw) - at]
    del raw[data.draw(st.integers(4, len(raw)) | st.just(len(raw))) :]
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.unlink(missing_ok=True)  # to write over a file waits for the disk
    path.write_bytes(raw)
    message = ""
    try:
        whole(GgufFile(path))
    except FileFormatError as e:
        message = str(e)
    assert not message or (str(path) in message and len(message) < 1200)


def test_missing_entries_and_wrong_types_are_named(tmp_path):
    file = opened(tmp_path, small_file())
    with pytest.raises(MissingEntry, match="no metadata 'absent'"):
        file.metadata["absent"]
    with pytest.raises(FileFormatError, match="no tensor 'absent'"):
        file.tensors["absent"]
    assert file.metadata.get("absent") is None
    assert "absent" not in file.tensors
    assert expect(file.metadata, "ids", list) == [-1, 70000]
    assert expect(file.metadata, "rate", float) == 0.5
    assert expect(file.metadata, "absent", int, 3) == 3
    with pytest.raises(FileFormatError, match=r"'rate' at byte \d+ has .*0\.5, want int"):
        expect(file.metadata, "rate", int)
    with pytest.raises(MissingEntry, match="absent"):
        expect(file.metadata, "absent", int)
