"""Tokenizers of GGUF files: ids against llama.cpp's and against merging written naively."""

import json
import random
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.work import lines_run
from yupana.graphlib.errors import DataError, FileFormatError, SettingError
from yupana.models.formats import GgufFile, write_gguf
from yupana.models.tokenizer import TokenType, load_tokenizer, read_tokenizer
from yupana.models.tokenizer_bytes import LETTERS
from yupana.models.vocabulary import Vocabulary
from yupana.models.vocabulary_gguf import vocabulary_metadata

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="needs llama.cpp's files in ../shared/data"
)

SPM_WORDS = [*"abc▁é", "ab", "bc", "▁a", "▁ab", "aa", "aaa", "▁▁", "ca", "abc"]
BPE_MERGES = ["a b", "Ġ a", "b c", "Ġa b", "ab c", "a a", "aa a", "Ã ©", "c a", "Ġ Ġ"]


def entries(**values):
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def spm_entries(seed=0, **values):
    """A vocabulary of SentencePiece's kind whose scores repeat, so that positions decide."""
    rng = random.Random(seed)
    tokens = ["<unk>", "<s>", "</s>", "<|tool|>", *(f"<0x{b:02X}>" for b in range(256)), *SPM_WORDS]
    types = [2, 3, 3, 4, *[6] * 256, *[1] * len(SPM_WORDS)]
    scores = np.array([rng.choice([-1.0, -2.0, -3.0]) for _ in tokens], np.float32)
    return entries(model="llama", tokens=tokens, token_type=types, scores=scores) | entries(
        **values
    )


def bpe_entries(pre="gpt-2", **values):
    """The 256 bytes, a few merges and two special tokens."""
    words = ["".join(merge.split(" ")) for merge in BPE_MERGES]
    tokens = [*LETTERS, *words, "<|im_end|>", "<|tool|>"]
    types = [*[1] * (256 + len(words)), 3, 4]
    both = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types}
    return entries(**both, merges=BPE_MERGES) | entries(eos_token_id=len(tokens) - 2, **values)


def join_naively(pieces, rank):
    """Join the pair of lowest rank, the leftmost among equals, until none has a rank."""
    pieces = list(pieces)
    while True:
        ranked = [(rank(a, b), k) for k, (a, b) in enumerate(pairwise(pieces))]
        ranked = [(order, k) for order, k in ranked if order is not None]
        if not ranked:
            return pieces
        _, k = min(ranked)
        pieces[k : k + 2] = [pieces[k] + pieces[k + 1]]


@given(text=st.text("abc é▁\n🦙", max_size=30), seed=st.integers(0, 5))
def test_spm_joins_by_score_as_written_naively(text, seed):
    metadata = spm_entries(seed)
    tokens = metadata["tokenizer.ggml.tokens"]
    scores = dict(zip(tokens, metadata["tokenizer.ggml.scores"].tolist(), strict=True))
    ids = {token: k for k, token in enumerate(tokens)}

    def rank(left, right):
        return -scores[left + right] if left + right in scores else None

    want = [1]
    for piece in join_naively("▁" + text.replace(" ", "▁"), rank) if text else []:
        fallback = [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
        want += [ids[piece]] if piece in ids else fallback
    assert read_tokenizer(metadata).encode(text) == want


@given(text=st.text("abcé🦙 ", max_size=30))
def test_bpe_joins_by_rank_as_written_naively(text):
    metadata = bpe_entries()
    tokenizer = read_tokenizer(metadata)
    ranks = {tuple(merge.split(" ")): k for k, merge in enumerate(BPE_MERGES)}
    want = []
    for word in tokenizer.splitter.split(text):
        letters = (tokenizer.tokens[byte] for byte in word.encode())
        pieces = join_naively(letters, lambda a, b: ranks.get((a, b)))
        want += [tokenizer.id_of(piece) for piece in pieces]
    assert tokenizer.encode(text) == want


@pytest.mark.parametrize("metadata", [spm_entries(), bpe_entries()], ids=["spm", "bpe"])
@given(text=st.text(max_size=40))
def test_any_text_comes_back_whole_and_in_a_stream(metadata, text):
    text = text.encode("utf-8", "ignore").decode().replace("▁", "")  # it is a space to SPM
    tokenizer = read_tokenizer(metadata)
    ids = tokenizer.encode(text, parse_special=False)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    shown = "".join(stream.feed(token) for token in ids) + stream.close()
    assert shown == (" " + text if tokenizer.add_space_prefix and text else text)


def test_a_long_word_is_joined_from_the_left():
    tokenizer = read_tokenizer(bpe_entries())
    pair, three = tokenizer.id_of("aa"), tokenizer.id_of("aaa")
    assert tokenizer.encode("a" * 301) == [pair] * 149 + [three]


@pytest.mark.parametrize("metadata", [spm_entries(), bpe_entries()], ids=["spm", "bpe"])
def test_the_work_of_a_text_and_of_a_long_word_grows_as_their_length(metadata):
    mixed = "".join(random.Random(1).choices("abc aé", k=2000))
    for text in (mixed, "a" * 2000):
        once, twice = (
            lines_run(lambda part=part: read_tokenizer(metadata).encode(part))
            for part in (text[:1000], text)
        )
        assert twice < 2.2 * once


def test_a_stream_never_shows_half_a_character():
    tokenizer = read_tokenizer(bpe_entries())
    stream = tokenizer.stream()
    assert [stream.feed(k) for k in tokenizer.encode("a🦙")] == ["a", "", "", "", "🦙"]
    assert stream.feed(0xF0) == ""
    assert stream.close() == "\ufffd"


def test_special_tokens_are_cut_out_and_followed_by_a_space():
    tokenizer = read_tokenizer(spm_entries())
    a, tool, end = (tokenizer.id_of(t) for t in ("▁a", "<|tool|>", "</s>"))
    assert tokenizer.encode("a</s>a<|tool|>a") == [1, a, end, a, tool, a]
    plain = tokenizer.encode("a</s><|tool|>a", parse_special=False)
    assert end not in plain
    assert plain[-2:] == [tool, a]  # the maker's own words are found either way
    assert tokenizer.decode([1, a, end, tool]) == "a<|tool|>"
    assert tokenizer.decode([1, a, end], special=True) == "<s>a</s>"


def test_the_longest_special_token_wins():
    words = ["<<", "<", "<<a"]
    tokenizer = read_tokenizer(
        entries(model="gpt2", pre="gpt-2", merges=["a b"], tokens=[*words, "a", "b", "ab"])
        | entries(token_type=[4, 4, 4, 1, 1, 1])
    )
    assert tokenizer.encode("<<<ab<") == [1, 2, 4, 1]
    assert tokenizer.encode("ab<<<b") == [5, 0, 1, 4]


def test_begin_and_end_follow_the_file():
    ids = read_tokenizer(spm_entries(add_bos_token=False, add_eos_token=True)).encode("a")
    assert ids[-1] == 2
    assert ids[0] != 1
    assert read_tokenizer(spm_entries()).encode("a", add_special=False)[0] != 1
    assert read_tokenizer(spm_entries(add_space_prefix=False)).encode("a")[1:] == [264 - 4]
    assert read_tokenizer(spm_entries()).encode("") == [1]
    assert read_tokenizer(bpe_entries(pre="llama-bpe", bos_token_id=3)).encode("a")[0] == 3


def test_an_id_outside_the_vocabulary_means_none():
    tokenizer = read_tokenizer(spm_entries(padding_token_id=2**32 - 1, eos_token_id=10**6))
    assert tokenizer.special == {"bos": 1, "eos": 2, "unknown": 0}


def test_ends_are_known_by_their_text():
    tokenizer = read_tokenizer(bpe_entries())
    end = tokenizer.id_of("<|im_end|>")
    assert tokenizer.ends == {end}
    assert tokenizer.eos == end
    metadata = bpe_entries()
    metadata["tokenizer.ggml.token_type"][end] = 1
    assert read_tokenizer(metadata).types[end] == TokenType.CONTROL


def test_phi_3_drops_white_space_behind_special_tokens():
    metadata = spm_entries() | {"general.name": "Phi-3 mini"}
    tokenizer = read_tokenizer(metadata)
    assert tokenizer.encode("</s>\n a") == tokenizer.encode("</s>a")
    assert tokenizer.encode("<s>\na") != tokenizer.encode("<s>a")


def test_bytes_without_tokens_are_an_error_or_lost():
    spm = entries(model="llama", tokens=["▁", "a"], token_type=[1, 1], add_bos_token=False)
    with pytest.raises(DataError, match=r"a byte of the text is no token: got 0x62 of 'b'"):
        read_tokenizer(spm).encode("ab")
    bpe = entries(model="gpt2", tokens=["a", "b"], merges=["a b"])  # "ab" itself is missing
    assert read_tokenizer(bpe).encode("abñ") == [0, 1]  # as llama.cpp does


WRONG = {
    "no vocabulary": ({}, "has no vocabulary"),
    "none": (entries(model="none"), "has no vocabulary"),
    "unknown family": (entries(model="rwkv"), "model is not known: got 'rwkv'"),
    "unknown splitting": (bpe_entries(pre="gpt-99"), "pre is not known: got 'gpt-99'"),
    "no tokens": (entries(model="llama"), "no 'tokenizer.ggml.tokens'"),
    "empty": (entries(model="llama", tokens=[]), "tokens cannot be used"),
    "numbers": (entries(model="llama", tokens=np.arange(3)), "tokens cannot be used"),
    "a token twice": (entries(model="llama", tokens=["a", "a"]), "'a' 2 times"),
    "no merges": (entries(model="gpt2", tokens=["a"]), "no 'tokenizer.ggml.merges'"),
    "half a merge": (bpe_entries(merges=["ab"]), "merges cannot be used: got 'ab'"),
    "few scores": (spm_entries(scores=np.zeros(3)), "scores cannot be used"),
    "scores of text": (spm_entries(scores=["a"]), "scores cannot be used"),
    "NaN": (spm_entries(scores=np.full(400, np.nan)), "NaN for token 0"),
    "few types": (spm_entries(token_type=[1]), "token_type cannot be used"),
    "a byte without number": (spm_entries(token_type=[6] * 400), "of type BYTE"),
    "no begin": (bpe_entries(add_bos_token=True, bos_token_id=10**9), "add_bos_token is true"),
    "add_bos of text": (spm_entries(add_bos_token="yes"), "has the wrong type"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_entries_are_named(case):
    metadata, message = WRONG[case]
    if case == "no begin":  # beyond Falcon's default too
        metadata |= entries(tokens=["a", "b"], token_type=[1, 1], merges=["a b"])
    with pytest.raises(FileFormatError, match=message):
        read_tokenizer(metadata)


def test_wrong_ids_and_texts_are_errors():
    tokenizer = read_tokenizer(bpe_entries())
    for ids in ([len(tokenizer)], [-1], np.array([3, 10**6])):
        with pytest.raises(DataError, match="no such token"):
            tokenizer.decode(ids)
    with pytest.raises(DataError, match="ids are no integers"):
        tokenizer.decode([0.5])
    with pytest.raises(DataError, match="half of a surrogate pair"):
        tokenizer.encode("a\ud800")
    with pytest.raises(DataError, match="got bytes b'a', want a text"):
        tokenizer.encode(b"a")
    with pytest.raises(SettingError, match="no such token: got 'zzz'"):
        tokenizer.id_of("zzz")
    assert tokenizer.decode([]) == ""


def test_a_file_is_read_and_named_in_errors(tmp_path):
    path = tmp_path / "v.gguf"
    write_gguf(path, bpe_entries(), {})
    assert load_tokenizer(path).encode("ab c") == read_tokenizer(bpe_entries()).encode("ab c")
    write_gguf(path, {"general.name": "no words"}, {})
    with pytest.raises(FileFormatError, match=r"v\.gguf: tokenizer: the file has no vocabulary"):
        load_tokenizer(path)
    path.write_bytes(b"not a model at all")
    with pytest.raises(FileFormatError):
        load_tokenizer(path)
    with pytest.raises(OSError, match=r"missing\.gguf"):
        load_tokenizer(tmp_path / "missing.gguf")


def test_opening_a_file_goes_past_its_words_without_decoding_them(tmp_path):
    words = [f"{random.Random(k).random()}x{k}" for k in range(4000)]
    path = tmp_path / "v.gguf"
    write_gguf(path, entries(model="llama", tokens=words, scores=np.zeros(4000, "f4")), {})
    assert lines_run(lambda: GgufFile(path)) < 4 * len(words)
    tracemalloc.start()
    try:
        file = GgufFile(path)
        assert file.metadata.length("tokenizer.ggml.tokens") == len(words)
        _, opened = tracemalloc.get_traced_memory()
        assert file.metadata["tokenizer.ggml.tokens"] == words
        _, decoded = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert opened < 2 * len(words)  # bytes, of which one string has about 70
    assert decoded > 60 * len(words)


@needs_data
def test_gpt2_ids_are_those_of_llama_cpp():
    path = DATA / "ggml-vocab-gpt-2.gguf"
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().split("\n")
    tokenizer = load_tokenizer(path)
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        assert tokenizer.encode(text, add_special=False) == [int(k) for k in line.split()]
        assert tokenizer.decode(tokenizer.encode(text)) == text


@needs_data
def test_llama_ids_are_those_of_llama_cpp():
    found = json.loads((DATA / "llamacpp_reference.json").read_text())
    assert found
    for name, reference in found.items():
        tokenizer = load_tokenizer(DATA / name)
        ids = tokenizer.encode(reference["text"])
        want = reference["tokens"]  # the first of them
        assert len(want) > 90
        assert ids[: len(want)] == want
        assert tokenizer.decode(ids) == reference["text"]


@needs_data
@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "starcoder"])
def test_a_megabyte_comes_back(name):
    text = (DATA / "tinyshakespeare.txt").read_text()
    tokenizer = load_tokenizer(DATA / f"ggml-vocab-{name}.gguf")
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe"])
def test_vocabularies_of_training_give_the_same_ids_from_their_files(kind):
    text = "a llama's ñandú, two llamas' 33 ñandúes\n" * 3
    make = {
        "bytes": Vocabulary.from_bytes,
        "characters": lambda: Vocabulary.from_characters(text),
        "bpe": lambda: Vocabulary.train(text, 290),
    }
    vocabulary = make[kind]()
    tokenizer = read_tokenizer(vocabulary_metadata(vocabulary))
    assert tokenizer.encode(text) == vocabulary.encode(text).tolist()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.ends == {vocabulary.end}
