"""Vocabularies: any text comes back, ids are those of llama.cpp, errors say what is wrong."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yupana.graphlib.errors import DataError, FileFormatError, SettingError
from yupana.models import vocabulary as module
from yupana.models.formats import GgufFile, write_gguf
from yupana.models.vocabulary import END, Vocabulary
from yupana.models.vocabulary_gguf import read_vocabulary, vocabulary_metadata

TRICKY = [
    "plain words, and numbers 12345",
    "  two leading, trailing two  ",
    "\n\n\ttabs\r\nand lines\n",
    "ñandú über naïve cafe\u0301",
    "日本語のテキスト",
    "🦙 👨‍👩‍👧‍👦 🇵🇪",
    "שלום مرحبا",
    "\0\x01\x7f\x80\xa0\xad\uffff\U0010ffff",
    END,
    "▁Ġ",
]
CORPUS = "\n".join(TRICKY) + "the llama and the other llama went to the river " * 20
texts = st.text(st.characters(codec="utf-8"))
from_corpus = st.text(st.sampled_from(sorted(set(CORPUS))))


@pytest.fixture(scope="module")
def vocabularies():
    return {
        "bytes": Vocabulary.from_bytes(),
        "characters": Vocabulary.from_characters(CORPUS),
        "bpe": Vocabulary.train(CORPUS, 320),
    }


KINDS = ["bytes", "characters", "bpe"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TRICKY)
def test_tricky_texts_come_back(vocabularies, kind, text):
    vocabulary = vocabularies[kind]
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32
    assert vocabulary.end not in ids
    assert vocabulary.decode(ids) == text


@given(text=texts)
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_any_text_comes_back(vocabularies, kind, text):
    vocabulary = vocabularies[kind]
    assert vocabulary.decode(vocabulary.encode(text)) == text


@given(text=from_corpus)
@pytest.mark.parametrize("kind", KINDS)
def test_streaming_gives_the_same_text_in_whole_characters(vocabularies, kind, text):
    vocabulary = vocabularies[kind]
    stream = vocabulary.stream()
    pieces = [stream.feed(k) for k in vocabulary.encode(text).tolist()]
    assert "".join(pieces) + stream.close() == text
    assert "\ufffd" not in "".join(pieces)


@given(ids=st.lists(st.integers(0, 256)))
def test_streaming_any_bytes_equals_decoding_them_at_once(ids):
    vocabulary = Vocabulary.from_bytes()
    stream = vocabulary.stream()
    assert "".join(stream.feed(k) for k in ids) + stream.close() == vocabulary.decode(ids)


def test_ids_of_bytes_are_their_values():
    vocabulary = Vocabulary.from_bytes()
    assert vocabulary.encode("ñ\n").tolist() == [0xC3, 0xB1, 0x0A]
    assert len(vocabulary) == 257
    assert vocabulary.decode([0xC3, 256, 0xB1]) == "ñ"


def test_ids_of_characters_follow_code_points():
    vocabulary = Vocabulary.from_characters("zebra é")
    assert vocabulary.encode(" abe").tolist() == [0, 1, 2, 3]
    assert vocabulary.encode("zé").tolist() == [5, 6]
    assert len(vocabulary) == 8


def test_trained_merges_shorten_what_is_frequent():
    vocabulary = Vocabulary.train("abcabcabc" * 9, 262)
    assert len(vocabulary) <= 262
    assert vocabulary.end == len(vocabulary) - 1
    assert len(vocabulary.encode("abcabc")) <= 2
    assert Vocabulary.train(CORPUS, 300).merges == Vocabulary.train(CORPUS, 300).merges


@given(text=st.lists(from_corpus | st.sampled_from(["a\nb", "a\n\nb", "a \n b"])).map("".join))
def test_cutting_long_texts_changes_no_id(vocabularies, text):
    vocabulary = vocabularies["bpe"]
    whole = vocabulary.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", 3)
        np.testing.assert_array_equal(vocabulary.encode(text), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_keeps_the_vocabulary(vocabularies, kind, tmp_path):
    vocabulary = vocabularies[kind]
    write_gguf(tmp_path / "v.gguf", vocabulary_metadata(vocabulary), {})
    with GgufFile(tmp_path / "v.gguf") as file:
        read = read_vocabulary(file.metadata)
        assert file.metadata["tokenizer.ggml.token_type"].tolist()[-2:] == [1, 3]
    for name in ("kind", "tokens", "merges", "special", "end"):
        assert getattr(read, name) == getattr(vocabulary, name)
    np.testing.assert_array_equal(read.encode(CORPUS), vocabulary.encode(CORPUS))


@pytest.mark.parametrize("kind", KINDS)
def test_merging_by_rank_gives_the_same_ids(vocabularies, kind):
    """What llama.cpp does with the stored entries, written here from its description."""
    vocabulary = vocabularies[kind]
    entries = vocabulary_metadata(vocabulary)
    ids = {t: k for k, t in enumerate(entries["tokenizer.ggml.tokens"])}
    ranks = {m: k for k, m in enumerate(entries["tokenizer.ggml.merges"])}
    letters = module.LETTERS
    for word in ["llama", " the", "ñandú", "語", "🦙", "\n", " "]:
        parts = [letters[b] for b in word.encode()]
        while True:
            pairs = [(ranks.get(" ".join(p)), i) for i, p in enumerate(pairwise(parts))]
            found = sorted(pair for pair in pairs if pair[0] is not None)
            if not found:
                break
            at = found[0][1]
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
        assert [ids[part] for part in parts] == vocabulary.encode(word).tolist()


def test_no_vocabulary_is_stored_as_none():
    assert vocabulary_metadata(None) == {"tokenizer.ggml.model": "none"}
    assert read_vocabulary(vocabulary_metadata(None)) is None
    assert read_vocabulary({}) is None


def test_bad_input_is_named(vocabularies):
    with pytest.raises(DataError, match=r"character 2 .*got 'ж' \(U\+0436\)"):
        vocabularies["characters"].encode("llж")
    with pytest.raises(DataError, match="text is empty"):
        Vocabulary.from_characters("")
    with pytest.raises(DataError, match="text is empty"):
        Vocabulary.train("", 300)
    with pytest.raises(SettingError, match="got 256, want at least 257"):
        Vocabulary.train("abc", 256)
    with pytest.raises(DataError, match="got id 257, want 0 to 256"):
        vocabularies["bytes"].decode([1, 257])
    with pytest.raises(DataError, match="got id -1"):
        vocabularies["bytes"].stream().feed(-1)
    for kind in KINDS:
        with pytest.raises(DataError, match="surrogate"):
            vocabularies[kind].encode("a\ud800")
    with pytest.raises(SettingError, match="no such kind: got 'words'"):
        Vocabulary("words", ["a"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "llama"}, "got model 'llama'"),
        ({"pre": "qwen2"}, "splitting 'qwen2'"),
        ({"tokens": []}, "no tokens"),
        ({"tokens": ["a", "a"]}, "a token twice"),
        ({"tokens": [1, 2]}, "another type"),
        ({"token_type": [1]}, "1 token types, want 3"),
        ({"eos_token_id": 3}, "end token 3, want an id below 3"),
        ({"merges": ["ab"]}, "no pair: got 'ab'"),
        ({"merges": ["a x"]}, "merges do not fit"),
    ],
)
def test_contradicting_entries_are_refused(change, words):
    entries = {"model": "gpt2", "tokens": ["a", "b", "ab"], "merges": ["a b"], **change}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in entries.items()}
    with pytest.raises(FileFormatError, match=words):
        read_vocabulary(metadata)


@pytest.mark.parametrize("kind", ["bytes", "characters", "words"])
def test_entries_of_another_kind_are_refused(kind):
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "ab"],
        "tokenizer.ggml.merges": ["a b"],
        "yupana.vocabulary": kind,
    }
    with pytest.raises(FileFormatError, match=kind):
        read_vocabulary(metadata)


def test_control_tokens_are_silent_and_user_defined_ones_are_text():
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "<s>", "<tool call>"],
        "tokenizer.ggml.token_type": [1, 3, 4],
        "tokenizer.ggml.merges": [],
    }
    assert read_vocabulary(metadata).decode([0, 1, 2]) == "a<tool call>"


def test_a_text_beyond_a_partial_vocabulary_is_refused():
    vocabulary = Vocabulary("bpe", ["a", "b"])
    with pytest.raises(DataError, match="a byte of the text is no token"):
        vocabulary.encode("abc")
