"""Models in several files."""

import os
import re
import shutil
import struct
from itertools import islice

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib.errors import FileFormatError
from yupana.models.formats import GgufFile, write_gguf

WEIGHTS = {f"w{k}": np.full((2, 8), k, np.float32) for k in range(5)}
SIZES = (2, 0, 3)  # tensors of each part; gguf-split can leave a part without any


def write_parts(folder, sizes=SIZES, **keys):
    """What gguf-split writes: metadata in the first part only, and three keys in each."""
    names = iter(WEIGHTS)
    paths = []
    for number, size in enumerate(sizes):
        path = folder / f"model-{number + 1:05}-of-{len(sizes):05}.gguf"
        metadata = {"general.name": "split"} if number == 0 else {}
        metadata["split.no"] = np.uint16(number)
        metadata["split.count"] = np.uint16(len(sizes))
        metadata["split.tensors.count"] = np.int32(sum(sizes))
        write_gguf(path, metadata | keys, {name: WEIGHTS[name] for name in islice(names, size)})
        paths.append(path)
    return paths


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("mmap", [True, False])
def test_all_parts_are_opened_by_any_of_them(tmp_path, part, mmap):
    paths = write_parts(tmp_path)
    with GgufFile(paths[part], mmap=mmap) as file:
        assert file.parts == paths
        assert file.metadata["general.name"] == "split"
        assert list(file.tensors) == list(WEIGHTS)
        assert [info.path for info in file.tensors.values()] == [paths[0]] * 2 + [paths[2]] * 3
        context = yp.Context()
        for name, weight in WEIGHTS.items():
            np.testing.assert_array_equal(file.tensor(context, name).numpy(), weight)
    with pytest.raises(FileFormatError, match="closed"):
        file.tensors["w4"].raw


def test_files_that_the_gguf_package_splits_are_opened(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    for name, weight in WEIGHTS.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for path in sorted(tmp_path.iterdir()):
        file = GgufFile(path)
        assert len(file.parts) == 3
        assert file.metadata["general.architecture"] == "llama"
        for name, weight in WEIGHTS.items():
            np.testing.assert_array_equal(file.tensors[name].data, weight)


def test_links_with_the_names_of_parts_are_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    for k, path in enumerate(write_parts(tmp_path)):
        path.rename(tmp_path / "blobs" / str(k))
        path.symlink_to(tmp_path / "blobs" / str(k))
    assert list(GgufFile(path).tensors) == list(WEIGHTS)


def test_a_file_put_together_from_parts_stands_alone(tmp_path):
    write_gguf(
        tmp_path / "m.gguf", {"split.no": np.uint16(0), "split.count": np.uint16(0)}, WEIGHTS
    )
    assert list(GgufFile(tmp_path / "m.gguf").tensors) == list(WEIGHTS)


def position(path, key):
    """Where a number of a file stands, found without the reader: behind its key and type."""
    raw = path.read_bytes()
    return raw.index(struct.pack("<Q", len(key)) + key.encode()) + 8 + len(key) + 4


def test_missing_parts_are_named(tmp_path):
    paths = write_parts(tmp_path)
    paths[1].unlink()
    where = position(paths[0], "split.count")
    words = (
        f"model-00001-of-00003.gguf: value of 'split.count' at byte {where}: "
        "got 2 of 3 parts: 'model-00002-of-00003.gguf' is missing"
    )
    with pytest.raises(FileFormatError, match=words):
        GgufFile(paths[0])
    paths[1].symlink_to(paths[1])  # a link in a circle is no file either
    with pytest.raises(FileFormatError, match=r"'model-00002-of-00003.gguf' is missing"):
        GgufFile(paths[2])


@pytest.mark.parametrize("link", [False, True])
def test_a_part_in_place_of_another_is_refused(tmp_path, link):
    paths = write_parts(tmp_path)
    where = position(paths[0], "split.no")
    paths[1].unlink()
    if link:
        paths[1].symlink_to(paths[0])
    else:
        shutil.copy(paths[0], paths[1])
    words = f"00002-of-00003.gguf: value of 'split.no' at byte {where}: got 0, want 1 in this part"
    with pytest.raises(FileFormatError, match=words):
        GgufFile(paths[2])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"split.no": np.uint16(7)}, "value of 'split.no' at byte .* got 7, want 0"),
        ({"split.no": "0"}, "value of 'split.no' at byte .* got STRING '0', want a whole number"),
        ({"split.count": np.float32(3)}, "'split.count' at byte .* got FLOAT32 3.0, want a whole"),
        ({"split.count": np.int32(-1)}, "'split.count' at byte .* got INT32 -1, want a whole"),
        ({"split.count": np.uint16(4)}, r"4 in a file called .*, want a name .*-of-00004"),
        ({"split.count": np.uint16(65535)}, "65535 in a file called"),
        ({"split.tensors.count": np.int32(6)}, "'split.tensors.count' at byte .* got 6, want 5"),
        ({"split.tensors.count": np.uint64(2**63)}, "got UINT64 9223372036854775808, want a whole"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, keys, words):
    with pytest.raises(FileFormatError, match=words):
        GgufFile(write_parts(tmp_path, **keys)[1])


def test_a_part_without_its_number_is_refused(tmp_path):
    paths = write_parts(tmp_path)
    write_gguf(paths[1], {}, {})
    with pytest.raises(FileFormatError, match=r"00002-of-00003.gguf: no metadata 'split.no'"):
        GgufFile(paths[0])


def test_a_name_in_two_parts_is_refused(tmp_path):
    paths = write_parts(tmp_path, (1, 1))
    metadata = GgufFile(paths[0]).metadata.typed()
    write_gguf(paths[1], metadata | {"split.no": np.uint16(1)}, {"w0": WEIGHTS["w0"]})
    words = rf"{paths[1].name}: tensor before at byte \d+: got 'w0', which is in {paths[0].name}"
    with pytest.raises(FileFormatError, match=words):
        GgufFile(paths[0])


def test_a_renamed_part_says_what_it_was_called(tmp_path):
    path = write_parts(tmp_path)[0]
    os.rename(path, tmp_path / "m.gguf")
    words = "got 3 in a file called 'm.gguf', want a name that ends in -00001-of-00003.gguf"
    with pytest.raises(FileFormatError, match=re.escape(words)):
        GgufFile(tmp_path / "m.gguf")
