"""Reading training text in pieces, and cutting it into samples."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yupana.graphlib.errors import DataError
from yupana.models.vocabulary import Vocabulary
from yupana.train import text as module
from yupana.train.python_texts import documentation_text, source_text
from yupana.train.text import (
    in_pieces,
    overlapping_samples,
    read_blocks,
    split_samples,
)


def read(path):
    return "".join(read_blocks(path))


def test_text_is_read_as_it_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("ñandú\r\nllama\n".encode())
    assert read(path) == "ñandú\r\nllama\n"
    path.write_bytes("\ufeffñ".encode())
    assert read(str(path)) == "ñ"


def test_characters_across_blocks_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 3)
    path = tmp_path / "a.txt"
    path.write_bytes("aañ€𝄞\nb".encode())
    assert len([*read_blocks(path)]) > 3
    assert read(path) == "aañ€𝄞\nb"
    path.write_bytes("uno\ndos ñ\ntres".encode("latin-1"))
    with pytest.raises(DataError, match=r"byte 0xf1 at byte 8 \(line 2\)"):
        read(path)
    path.write_bytes("uno ñ".encode()[:-1])
    with pytest.raises(DataError, match=r"byte 0xc3 at byte 4 \(line 1\)"):
        read(path)


def test_unusable_files_are_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"none\.txt: no such file.*counted from"):
        read("none.txt")
    with pytest.raises(DataError, match="cannot be read: got Is a directory"):
        read(tmp_path)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty\.txt: got an empty file"):
        read("empty.txt")
    (tmp_path / "latin.txt").write_bytes("uno\ndos ñ".encode("latin-1"))
    with pytest.raises(DataError, match=r"byte 0xf1 at byte 8 \(line 2\).*iconv.*latin\.txt"):
        read("latin.txt")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        read("zip")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.touch(mode=0)
    with pytest.raises(DataError, match="Permission denied"):
        read(path)


def test_documentation_text_is_long_real_text():
    text = documentation_text()
    assert text == documentation_text()
    assert len(text) > 300_000
    assert text.count("the ") > 3000


def test_source_text_is_long_and_program_text():
    text = source_text()
    assert text == source_text()
    assert len(text) > 300_000
    assert text.count("\n    def ") > 500


def test_a_python_without_sources_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="no sources"):
        source_text()


blocks = st.lists(st.text("ab#\n ñ", max_size=6), min_size=1, max_size=12)


@given(blocks, st.integers(1, 8))
def test_pieces_are_the_text_and_do_not_depend_on_blocks(parts, size):
    whole = "".join(parts)
    pieces = [*in_pieces(parts, size)]
    assert "".join(pieces) == whole
    assert all(1 <= len(piece) <= size for piece in pieces)
    assert pieces == [*in_pieces([whole], size)]


def test_ids_of_pieces_are_those_of_the_whole_text():
    text = documentation_text()[:60_000]
    vocabulary = Vocabulary.train(text, 400)
    ids = [k for piece in in_pieces([text], 1000) for k in vocabulary.encode(piece).tolist()]
    assert ids == vocabulary.encode(text).tolist()


def joined(parts):
    """Samples whose parts have been put together."""
    samples, buffer = [], ""
    for text, ends in parts:
        buffer += text
        if ends:
            samples.append(buffer)
            buffer = ""
    assert not buffer
    return samples


@given(blocks, st.sampled_from(["#", "##", "a#", "\n\n"]), st.booleans())
def test_samples_lie_between_delimiters(parts, delimiter, include):
    whole = "".join(parts)
    if delimiter not in whole:
        with pytest.raises(DataError, match="sample_start"):
            joined(split_samples(parts, delimiter, include))
        return
    head = delimiter if include else ""
    wanted = [head + part for part in whole.split(delimiter)[1:]]
    assert joined(split_samples(parts, delimiter, include)) == wanted


def test_long_samples_come_in_parts(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 4)
    parts = [*split_samples(["##abc", "defgh", "ijk#", "l##m"], "##")]
    assert [ends for _, ends in parts].count(False) > 0
    assert joined(parts) == ["abcdefghijk#l", "m"]


@given(blocks, st.sampled_from(["#", "ab"]), st.integers(1, 9), st.booleans())
def test_overlapping_samples_go_on_for_so_many_bytes(parts, delimiter, n_bytes, include):
    whole = "".join(parts)
    if delimiter not in whole:
        with pytest.raises(DataError, match="sample_start"):
            joined(overlapping_samples(parts, delimiter, n_bytes, include))
        return
    wanted, at = [], whole.find(delimiter)
    while at >= 0:  # finetune's loop over bytes
        raw = whole[at if include else at + len(delimiter) :].encode()
        end = n_bytes
        while end < len(raw) and raw[end] & 0xC0 == 0x80:
            end += 1
        wanted.append(raw[:end].decode())
        at = whole.find(delimiter, at + len(delimiter))
    assert joined(overlapping_samples(parts, delimiter, n_bytes, include)) == wanted
