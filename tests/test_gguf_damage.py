"""Real files with bytes that lie: each is read, or refused with one clear error."""

import contextlib
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import yupana as yp
from yupana.graphlib.errors import DtypeError, FileFormatError
from yupana.models.formats import GgufFile, write_gguf

DATA = Path(__file__).parents[2] / "shared" / "data"
MODELS = ["sh-Q8_0.gguf", "lora-r4a8-f32-ck.gguf", "ggml-vocab-gpt-2.gguf"]
METADATA = {
    "general.architecture": "llama",
    "general.alignment": 64,
    "a.flag": True,
    "a.rate": 0.5,
    "a.text": "ñandú",
    "a.texts": ["", "x", "日本"],
    "a.ids": np.array([1, -2], np.int16),
}
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of value types


def written(path):
    """A file of our writer, and what the reader finds in it."""
    w = yp.Context().leaf((2, 64), "Q8_0").set(np.linspace(-1, 1, 128).reshape(2, 64))
    tensors = {
        "w": ("Q8_0", w.shape, w.data),
        "norm.weight": np.ones(6, np.float32),
        "h": np.ones((2, 1, 3), np.float16),
    }
    write_gguf(path, METADATA, tensors)
    return path.read_bytes()


def put(path, raw):
    """Write a file anew; to write over one waits for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(raw)


def whole(path, **options):
    """Touch everything a file offers."""
    with GgufFile(path, **options) as file:
        values = [file.metadata[key] for key in file.metadata]
        total = sum(int(info.raw.sum()) for info in file.tensors.values())
        for name, info in file.tensors.items():
            info.data
            with contextlib.suppress(DtypeError):  # damage can make it a type without kernels
                file.tensor(yp.Context(), name).data.tobytes()
        return values, total


def header_fields(raw):
    """What each length and count of a file is, with its byte: a second reader of version 3."""
    at = 8

    def number(what, letter="Q"):
        nonlocal at
        (value,) = struct.unpack_from("<" + letter, raw, at)
        if letter == "Q":
            yield_to.append((what, at))
        at += struct.calcsize(letter)
        return value

    def text(what):
        nonlocal at
        size = number(what)
        at += size
        return raw[at - size : at].decode()

    def value(kind, key):
        nonlocal at
        if kind == 8:
            text(f"string of value of '{key}'")
        else:
            at += SIZES[kind]

    yield_to = []
    n_tensors, n_entries = number("number of tensors"), number("number of metadata entries")
    for k in range(n_entries):
        key = text(f"length of key {k}")
        kind = number("", "I")
        if kind == 9:
            kind = number("", "I")
            for _ in range(number(f"length of value of '{key}'")):
                value(kind, key)
        else:
            value(kind, key)
    for k in range(n_tensors):
        name = text(f"length of name of tensor {k}")
        axes = number("", "I")
        first = at
        for _ in range(axes):
            number("")
        yield_to[-axes:] = [(f"tensor '{name}'", at) for at in range(first, at, 8)]
        number("", "I")
        number(f"offset of tensor '{name}'")
    return yield_to, at


def test_a_written_file_cut_anywhere_in_its_header_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    raw = written(path)
    path.with_name("whole").write_bytes(raw)
    _, end = header_fields(raw)
    for size in range(end):
        message = refusal(path, raw[:size])
        assert message.startswith(f"{path}: ")
        assert "got" in message
        assert "want" in message
        if size >= 4:
            assert int(re.search(r" at byte (\d+)", message)[1]) <= size, message
    with GgufFile(path.with_name("whole")) as file:
        last = max(info.offset + info.nbytes for info in file.tensors.values())
    for size in range(end, last):
        assert "data inside the file" in refusal(path, raw[:size])


def refusal(path, raw):
    """What opening a file of these bytes says, if it is not opened."""
    put(path, raw)
    try:
        whole(path)
    except FileFormatError as e:
        return str(e)
    return ""


EXTREMES = [2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]


def test_every_length_and_count_is_checked_against_what_is_there(tmp_path):
    path = tmp_path / "m.gguf"
    raw = written(path)
    fields, _ = header_fields(raw)
    assert len(fields) == 2 + 7 + 2 + 4 + 1 + 3 + 6 + 3  # nothing is left out: see METADATA
    tracemalloc.start()
    for what, at in fields:
        for value in EXTREMES:
            message = refusal(path, raw[:at] + struct.pack("<Q", value) + raw[at + 8 :])
            assert what in message, (what, value)
            if not what.startswith("tensor"):  # axes are judged together
                assert f" at byte {at}: got" in message
            assert re.search(r" at byte \d+: got .*, want ", message)
            assert len(message) < 1200
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_counts_above_any_model_are_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 10**9, 0))
        file.truncate(1 << 40)  # a hole: room for that many, in a file that takes no space
    with pytest.raises(FileFormatError, match="number of tensors at byte 8: got 1000000000, want"):
        GgufFile(path)
    with path.open("r+b") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 30))
    with pytest.raises(FileFormatError, match="number of metadata entries at byte 16: got"):
        GgufFile(path)


def damaged(data, raw, lowest, highest):
    """`raw` with a few bytes replaced between two places, and perhaps cut short."""
    raw = bytearray(raw)
    numbers = st.sampled_from([0, 1, 31, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1])
    patches = numbers.map(lambda n: struct.pack("<Q", n)) | st.binary(min_size=1, max_size=9)
    for _ in range(data.draw(st.integers(1, 3))):
        at, patch = data.draw(st.integers(lowest, highest)), data.draw(patches)
        raw[at : at + len(patch)] = patch
    return raw


def read_or_refused(path, **options):
    """Anything but FileFormatError fails the test, and so does a message that says too little."""
    try:
        whole(path, **options)
    except FileFormatError as e:
        message = str(e)
    else:
        return
    assert str(path.parent) in message
    assert "got" in message
    assert "want" in message
    assert len(message) < 1500


@given(data=st.data())
def test_damaged_files_of_the_writer_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "written.gguf"
    raw = written(path)
    for _ in range(8):
        bad = damaged(data, raw, 4, len(raw) - 10)
        put(path, bad[: data.draw(st.just(len(bad)) | st.integers(1, len(bad)))])
        read_or_refused(path, mmap=data.draw(st.booleans()), validate=data.draw(st.booleans()))


@given(data=st.data())
def test_damaged_parts_are_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("parts")
    paths = [folder / f"m-{k}-of-00002.gguf" for k in ("00001", "00002")]
    for k, path in enumerate(paths):
        keys = {"split.no": np.uint16(k), "split.count": np.uint16(2)}
        keys |= {"split.tensors.count": np.int32(2)}
        write_gguf(path, keys, {f"w{k}": np.ones(4, np.float32)})
    whole(paths[0])
    for _ in range(4):
        path = data.draw(st.sampled_from(paths))
        raw = path.read_bytes()
        put(path, damaged(data, raw, 4, len(raw) - 10))
        read_or_refused(data.draw(st.sampled_from(paths)))
        put(path, raw)


@pytest.mark.parametrize("name", MODELS)
@given(data=st.data())
def test_damaged_files_of_other_programs_are_read_or_refused(tmp_path_factory, name, data):
    if not (DATA / name).exists():
        pytest.skip("needs the shared model files")
    path = tmp_path_factory.getbasetemp() / name
    size = (DATA / name).stat().st_size
    with (DATA / name).open("rb") as file:
        head = file.read(2_000_000)
    with GgufFile(DATA / name) as file:
        end = min(file.data_offset, size - 10)
    lowest = data.draw(st.sampled_from([4, max(4, end - 4000)]))  # entries, or tensors
    bad = damaged(data, head, lowest, min(end, lowest + 4000))
    put(path, bad)
    with path.open("r+b") as file:
        file.truncate(size)  # numbers are left out: a hole reads as zeros
    read_or_refused(path)
