"""tokenizer.json, made here by the `tokenizers` package, and the same vocabulary as GGUF."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
    trainers,
)
from tokenizers import pre_tokenizers as cuts

from yupana.graphlib.errors import DataError, FileFormatError
from yupana.models.formats import GgufFile
from yupana.models.tokenizer import TokenType, load_tokenizer, read_tokenizer
from yupana.models.tokenizer_bytes import LETTERS

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="needs llama.cpp's files in ../shared/data"
)


def corpus():
    rng = random.Random(7)
    words = ["".join(rng.choices("aeiounrstlé", k=rng.randint(1, 7))) for _ in range(300)]
    return " ".join(rng.choices(words, k=4000)) + "\n1234 5's don't 🦙"


CORPUS = corpus()
TEXT = st.text("aeiour é\n'sd12🦙Ж▁", max_size=40)


def byte_level():
    """GPT-2's kind, with Qwen's expression and a chat token."""
    expression = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = cuts.Sequence(
        [cuts.Split(Regex(expression), "isolated"), cuts.ByteLevel(False, use_regex=False)]
    )
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=sorted(LETTERS), show_progress=False
    )
    engine.train_from_iterator([CORPUS], trainer)
    engine.add_special_tokens(["<|im_end|>"])
    engine.add_tokens([AddedToken("<think>", normalized=False)])
    return engine


def sentence_piece():
    """LLaMA 2's kind: spaces as U+2581, bytes for what is unknown, BOS before the text."""
    engine = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    engine.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    engine.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    # Merges learned within words hold no space but at their start, as SentencePiece's.
    teacher = Tokenizer(models.BPE())
    teacher.pre_tokenizer = cuts.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    teacher.train_from_iterator([CORPUS], trainer)
    model = json.loads(teacher.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    engine.model = models.BPE(model["vocab"], merges, byte_fallback=True, unk_token="<unk>")
    engine.add_special_tokens(special[:3])
    engine.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for each kind, as Hugging Face has it."""
    root = tmp_path_factory.mktemp("hub")
    settings = {"bytes": {"eos_token": "<|im_end|>"}, "spm": {"eos_token": {"content": "</s>"}}}
    settings["spm"]["bos_token"] = "<s>"
    for name, engine in (("bytes", byte_level()), ("spm", sentence_piece())):
        (root / name).mkdir()
        engine.enable_truncation(5)  # files often carry the settings of training
        engine.enable_padding(length=9)
        engine.save(str(root / name / "tokenizer.json"))
        (root / name / "tokenizer_config.json").write_text(json.dumps(settings[name]))
    return root


def as_gguf(folder, **values):
    """The entries that convert a tokenizer.json: merges by rank, or scores that fall with it."""
    spec = json.loads((folder / "tokenizer.json").read_text())
    hub = load_tokenizer(folder)
    merges = [tuple(merge) for merge in spec["model"]["merges"]]
    found = {"tokens": hub.tokens, "token_type": hub.types, **values}
    if values["model"] == "llama":
        scores = {left + right: -float(k) for k, (left, right) in enumerate(merges, 1)}
        found["scores"] = [scores.get(token, -1e9) for token in hub.tokens]
        is_byte = [token.startswith("<0x") for token in hub.tokens]
        found["token_type"] = [
            6 if byte else kind for byte, kind in zip(is_byte, hub.types, strict=True)
        ]
    else:
        found["merges"] = [" ".join(pair) for pair in merges]
    return read_tokenizer({f"tokenizer.ggml.{key}": value for key, value in found.items()})


@given(text=TEXT)
def test_byte_level_ids_are_those_of_the_gguf(folder, text):
    hub, gguf = (
        load_tokenizer(folder / "bytes"),
        as_gguf(folder / "bytes", model="gpt2", pre="qwen2"),
    )
    for part in (text, text + "<|im_end|>" + text + "<think>"):
        assert hub.encode(part) == gguf.encode(part)
        assert hub.decode(hub.encode(part)) == gguf.decode(hub.encode(part))
    assert hub.encode("<|im_end|>", parse_special=False) == gguf.encode(
        "<|im_end|>", parse_special=False
    )


@given(text=TEXT)
def test_sentence_piece_ids_are_those_of_the_gguf(folder, text):
    hub, gguf = load_tokenizer(folder / "spm"), as_gguf(folder / "spm", model="llama")
    assert hub.encode(text) == gguf.encode(text)
    assert hub.decode(hub.encode(text)) == text.replace("▁", " ")


@pytest.mark.parametrize("kind", ["bytes", "spm"])
@given(text=TEXT)
def test_decoding_is_that_of_the_package(folder, kind, text):
    tokenizer = load_tokenizer(folder / kind / "tokenizer.json")
    engine = Tokenizer.from_file(str(folder / kind / "tokenizer.json"))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == engine.decode(ids)
    stream = tokenizer.stream()
    shown = "".join(stream.feed(k) for k in ids) + stream.close()
    assert shown.removeprefix(" " if kind == "spm" else "") == tokenizer.decode(ids)


def test_neighbours_name_the_special_tokens(folder):
    spm = load_tokenizer(folder / "spm")
    assert (spm.bos, spm.eos, spm.ends, spm.add_bos) == (1, 2, {2}, True)
    assert spm.encode("a")[0] == 1
    assert spm.encode("a", add_special=False)[0] != 1
    assert len(spm.encode("a" * 50)) > 5  # neither cut nor filled up
    end = load_tokenizer(folder / "bytes").id_of("<|im_end|>")
    assert load_tokenizer(folder / "bytes").ends == {end}
    assert load_tokenizer(folder / "bytes").types[end] == TokenType.CONTROL


def test_several_ends_of_generation_config_are_all_ends(folder, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((folder / "bytes" / "tokenizer.json").read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4, 99999]}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos == 3
    assert tokenizer.ends == {3, 4, tokenizer.id_of("<|im_end|>")}


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(FileFormatError, match=r"no tokenizer\.json in it"):
        load_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    for content, message in (
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1]", "not a JSON object: got list"),
        (b'{"model": 3}', "not a tokenizer: got an error of the tokenizers package"),
    ):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=message):
            load_tokenizer(path)
    with pytest.raises(OSError, match="absent"):
        load_tokenizer(tmp_path / "absent.json")


def test_an_id_far_beyond_the_others_takes_no_memory(folder, tmp_path):
    spec = json.loads((folder / "spm" / "tokenizer.json").read_text())
    spec["model"]["vocab"]["far away"] = 2**31
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(FileFormatError, match="ids of tokens: got 2147483648 as the last"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["post_processor", "single", 0, "SpecialToken", "id"], "absent"),
        (["model", "continuing_subword_prefix"], "longer than a token"),
    ],
)
def test_faults_that_make_the_package_panic_are_errors(folder, tmp_path, keys, value):
    spec = json.loads((folder / "spm" / "tokenizer.json").read_text())
    place = spec
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(FileFormatError, match="got an error of the tokenizers package"):
        load_tokenizer(tmp_path)


def test_wrong_ids_and_texts_are_errors(folder):
    tokenizer = load_tokenizer(folder / "spm")
    with pytest.raises(DataError, match="no such token"):
        tokenizer.decode([len(tokenizer)])
    with pytest.raises(DataError, match="half of a surrogate pair"):
        tokenizer.encode("\udc00")


def engine_of(path):
    """The vocabulary of a GGUF file in the `tokenizers` package, a second opinion on its ids."""
    metadata = GgufFile(path).metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = {token: k for k, token in enumerate(tokens)}
    if metadata["tokenizer.ggml.model"] == "gpt2":
        merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
        engine = Tokenizer(models.BPE(ids, merges))
        engine.pre_tokenizer = cuts.Sequence([cuts.Digits(True), cuts.ByteLevel(False)])
        return engine
    scores = metadata["tokenizer.ggml.scores"].tolist()
    pairs = [
        (token[:k], token[k:])
        for token in sorted(tokens[259:], key=lambda token: -scores[ids[token]])
        for k in range(1, len(token))
        if token[:k] in ids and token[k:] in ids
    ]
    engine = Tokenizer(models.BPE(ids, pairs, byte_fallback=True, unk_token="<unk>"))
    engine.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return engine


@needs_data
@pytest.mark.parametrize("name", ["starcoder", "llama-spm"])
def test_ids_of_real_vocabularies_are_those_of_the_package(name):
    path = DATA / f"ggml-vocab-{name}.gguf"
    tokenizer, engine = load_tokenizer(path), engine_of(path)
    odd = (DATA / "ggml-vocab-gpt-2.gguf.inp").read_text("utf-8")
    docs = (DATA / "docs_tail.txt").read_bytes().decode("utf-8", "ignore")
    shakespeare = (DATA / "tinyshakespeare.txt").read_text("utf-8")
    for text in (odd, docs, shakespeare[:200_000]):
        assert tokenizer.encode(text, add_special=False) == engine.encode(text).ids
