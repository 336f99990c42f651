"""Old files as GGUF: values, names, vocabularies, and the same results of the models."""

from pathlib import Path

import numpy as np
import pytest

from tests import old_files as old
from yupana.cli import main
from yupana.graphlib.context import Context
from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.graphlib.quants import dequantize, quantize
from yupana.models.adapter_files import load_adapter
from yupana.models.convert import convert
from yupana.models.formats import GgufFile, write_gguf
from yupana.models.loading import load_model
from yupana.models.starcoder import StarCoder
from yupana.models.tokenizer import load_tokenizer
from yupana.models.tokenizer_bytes import unspell
from yupana.models.vocabulary_words import bpe_entries

DATA = Path(__file__).parents[2] / "shared" / "data"
IDS = [[1, 5, 9, 2, 30, 7, 260]]


def converted(tmp_path, raw, *options):
    (tmp_path / "old.bin").write_bytes(raw)
    conversion = convert(tmp_path / "old.bin", tmp_path / "new.gguf", *options)
    return tmp_path / "new.gguf", conversion


def values_of(path):
    with GgufFile(path) as file:
        return {
            name: dequantize(info.data, info.type) if info.data.dtype == np.uint8 else info.data
            for name, info in file.tensors.items()
        }


def logits(model):
    return model.logits(Context().tensor(IDS)).numpy()


def test_starcoder_becomes_what_llama_cpp_loads(tmp_path):
    gguf = pytest.importorskip("gguf")
    weights = old.starcoder_weights()
    stored = weights | {
        name: old.repeated(values) for name, values in weights.items() if "attn_qkv" in name
    }
    stored["output.weight"] = weights["token_embd.weight"]  # which GGUF leaves out
    path, _ = converted(tmp_path, old.ggml_file(stored))
    found = values_of(path)
    assert found.keys() == weights.keys()
    for name, values in weights.items():
        np.testing.assert_array_equal(found[name], values)
    reader = gguf.GGUFReader(path)
    entries = {key: field.contents() for key, field in reader.fields.items()}
    assert entries["general.architecture"] == "starcoder"
    assert entries["starcoder.attention.head_count_kv"] == 1
    assert entries["starcoder.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert entries["general.file_type"] == 0
    names = {t.format(bid=i) for t in gguf.TENSOR_NAMES.values() for i in (0, 1)}
    assert {name.rpartition(".")[0] for name in found} <= names
    model = load_model(path)
    assert isinstance(model, StarCoder)
    assert np.isfinite(logits(model)).all()


def test_heads_that_differ_are_kept_and_give_the_same_logits(tmp_path):
    one = old.starcoder_weights()
    many = {n: old.repeated(v) if "attn_qkv" in n else v for n, v in one.items()}
    path, _ = converted(tmp_path, old.ggml_file(many))
    want = logits(load_model(path))
    row = many["blk.1.attn_qkv.weight"][33]
    row[0] = np.nextafter(row[0], 9, dtype=np.float32)  # of the second copy of a head, one bit
    path, conversion = converted(tmp_path, old.ggml_file(many))
    assert conversion.metadata["starcoder.attention.head_count_kv"] == 4
    assert values_of(path)["blk.1.attn_qkv.weight"].shape == (96, 32)
    np.testing.assert_allclose(logits(load_model(path)), want, atol=1e-5)


def test_quantised_blocks_of_old_files_are_taken_over(tmp_path):
    weights = old.starcoder_weights()
    full = {n: old.repeated(v) if "attn_qkv" in n else v for n, v in weights.items()}
    stored = {
        name: (quantize(values, "Q4_0"), 2, values.shape)
        for name, values in full.items()
        if values.ndim == 2 and "position" not in name
    }
    path, conversion = converted(tmp_path, old.ggml_file(full, stored, 2002))
    assert conversion.metadata["general.file_type"] == 2
    assert conversion.metadata["general.quantization_version"] == 2
    with GgufFile(path) as file:
        assert file.tensors["blk.0.attn_qkv.weight"].type == "Q4_0"
        for name in weights:
            if name in stored:
                want = quantize(weights[name], "Q4_0")
                np.testing.assert_array_equal(file.tensors[name].data, want)
    with pytest.raises(FileFormatError, match="got 1002, version 1 of the blocks, want version 2"):
        converted(tmp_path, old.ggml_file(full, stored, 1002))


def test_words_of_old_files_become_a_bpe_vocabulary(tmp_path):
    weights = old.starcoder_weights()
    full = {n: old.repeated(v) if "attn_qkv" in n else v for n, v in weights.items()}
    path, _ = converted(tmp_path, old.ggml_file(full))
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("the abbé<|endoftext|>") == [257, 32, 259, 98, 195, 169, 260]
    assert tokenizer.eos == 260
    assert tokenizer.tokens[261:] == ["[PAD261]", "[PAD262]"]


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")
def test_merges_of_starcoder_are_found_again():
    with GgufFile(DATA / "ggml-vocab-starcoder.gguf") as file:
        tokens = file.metadata["tokenizer.ggml.tokens"]
        merges = file.metadata["tokenizer.ggml.merges"]
        types = file.metadata["tokenizer.ggml.token_type"]
    count = 6000  # of 49152: the rest takes a second
    entries = bpe_entries([unspell(t) for t in tokens[:count]], "starcoder")
    found = entries["tokenizer.ggml.merges"]
    assert found == merges[: len(found)]
    alone = sum(len(token) == 1 for token in tokens[:count])
    assert len(found) == count - alone - np.count_nonzero(types[:count] == 3)
    np.testing.assert_array_equal(entries["tokenizer.ggml.token_type"], types[:count])
    assert entries["tokenizer.ggml.tokens"] == tokens[:count]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_llama2c_of_every_version_keeps_its_values(tmp_path, version, tied):
    weights = old.llama2c_weights(tied)
    path, conversion = converted(tmp_path, old.llama2c_file(version, weights))
    found = values_of(path)
    assert list(found) == list(weights)
    for name, values in weights.items():
        want = old.grouped(values, 32)[1] if version == 2 and values.ndim == 2 else values
        np.testing.assert_array_equal(found[name], want)
    assert conversion.metadata["llama.attention.head_count_kv"] == 2
    assert conversion.metadata["llama.context_length"] == 16
    assert "--vocab" in conversion.notes[0]
    assert np.isfinite(logits(load_model(path))).all()


@pytest.mark.parametrize("as_characters", [True, False])
def test_vocabulary_of_llama2c(tmp_path, as_characters):
    (tmp_path / "tokenizer.bin").write_bytes(old.tokenizer_bin(as_characters))
    raw = old.llama2c_file(1, old.llama2c_weights(True))
    path, conversion = converted(tmp_path, raw, "f32", tmp_path / "tokenizer.bin")
    assert conversion.notes == []
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("the the\nñ") == [1, 263, 263, 13, 198, 180]
    assert tokenizer.decode([263, 13, 198, 180]) == "the\nñ"
    other, _ = converted(tmp_path, raw, "f32", path)  # from the GGUF file just written
    assert load_tokenizer(other).tokens == tokenizer.tokens


def test_a_vocabulary_of_another_size_is_refused(tmp_path):
    write_gguf(tmp_path / "v.gguf", {"tokenizer.ggml.tokens": ["a", "b"]}, {})
    raw = old.llama2c_file(1, old.llama2c_weights(True))
    with pytest.raises(SettingError, match="got 2 tokens, want 264"):
        converted(tmp_path, raw, "f32", tmp_path / "v.gguf")


@pytest.mark.parametrize(
    ("dtype", "kind", "bound"),
    [("f16", "F16", 2**-11), ("bf16", "BF16", 2**-8), ("q8_0", "Q8_0", 1 / 200)],
)
def test_types_of_the_matrices(tmp_path, dtype, kind, bound):
    weights = old.llama2c_weights(True)
    path, _ = converted(tmp_path, old.llama2c_file(1, weights), dtype)
    with GgufFile(path) as file:
        for name, info in file.tensors.items():
            fits = kind != "Q8_0" or weights[name].shape[-1] % 32 == 0
            wanted = "F32" if len(info.shape) == 1 else kind if fits else "F16"
            assert info.type == wanted
        context = Context()
        got = {name: file.tensor(context, name).numpy() for name in weights}
        for name, values in weights.items():
            if got[name].dtype == np.float32:
                assert np.abs(got[name] - values).max() <= bound * np.abs(values).max()


def test_an_adapter_is_turned_and_scaled(tmp_path):
    random = np.random.default_rng(0)

    def drawn(*shape):
        return random.standard_normal(shape).astype(np.float32)

    pairs = {
        "token_embd.weight": (drawn(6, 4), drawn(9, 4)),
        "blk.0.attn_q.weight": (drawn(6, 4), drawn(8, 4)),
        "blk.0.attn_norm.weight": (drawn(6, 1), drawn(1, 1)),
        "output.weight": (drawn(6, 2), drawn(9, 2).astype(np.float16)),
    }
    path, conversion = converted(tmp_path, old.ggla_file(pairs, rank=4, alpha=8))
    found = values_of(path)
    assert found["token_embd.weight.lora_a"].shape == (9, 4)  # rows are looked up
    assert found["blk.0.attn_q.weight.lora_a"].shape == (4, 6)
    assert conversion.metadata["adapter.lora.alpha"] == 8.0
    for source in (path, tmp_path / "old.bin"):
        adapter = load_adapter(source)
        for name, (a, b) in pairs.items():
            want = 8 / 4 * b.astype(np.float32) @ a.T  # alpha over the rank of the whole file
            first, second = adapter.pairs[name]
            got = adapter.scale_of(name) * second @ first
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)


def test_an_adapter_without_effect_has_none(tmp_path):
    a = np.ones((6, 4), np.float32)
    path, conversion = converted(tmp_path, old.ggla_file({"w": (a, a)}, rank=4, alpha=0))
    assert conversion.notes == ["alpha is 0: the adapter has no effect."]
    for source in (path, tmp_path / "old.bin"):  # 0 in GGUF means a scale of 1
        assert not load_adapter(source).pairs["w"][1].any()


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")
def test_a_real_adapter_fits_its_model(tmp_path):
    convert(DATA / "lora-r4a8-f32.ggla.bin", tmp_path / "a.gguf")
    adapter = load_adapter(tmp_path / "a.gguf")
    for name, weight in load_model(DATA / "sh-Q8_0.gguf").weights.items():
        a, b = adapter.pairs[name]
        shape = (1, *weight.shape) if weight.ndim == 1 else weight.shape
        assert (b.shape[0], a.shape[1]) == shape
    assert (len(adapter.pairs), adapter.alpha) == (39, 8.0)


def test_an_adapter_with_half_a_pair_is_refused(tmp_path):
    a = np.ones((6, 4), np.float32)
    with pytest.raises(FileFormatError, match=r"ranks of w: got A \(6, 4\) and B \(6, 2\)"):
        converted(tmp_path, old.ggla_file({"w": (a, a[:, :2].copy())}, 4, 4))
    whole = old.ggla_file({"w": (a, a)}, 4, 4)
    with pytest.raises(FileFormatError, match=r"got 1 tensors .loraA of 1, want half of them"):
        converted(tmp_path, whole[: whole.index(b"w.loraB") - 20])
    with pytest.raises(FileFormatError, match=r"got w.loraA alone, want w.loraB as well"):
        converted(tmp_path, whole.replace(b"w.loraB", b"v.loraB"))


def test_what_is_read_is_never_the_target(tmp_path):
    raw = old.llama2c_file(1, old.llama2c_weights(tied=True))
    source, words = tmp_path / "old.bin", tmp_path / "tokenizer.bin"
    source.write_bytes(raw)
    words.write_bytes(old.tokenizer_bin(as_characters=True))
    for target in (source, words):
        with pytest.raises(SettingError, match=f"convert: got {target} as file to read and as"):
            convert(source, target, vocabulary=words)
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    with pytest.raises(SettingError, match=r"model\.safetensors as file to read and"):
        convert(folder, folder / "model.safetensors")
    assert source.read_bytes() == raw
    convert(source, tmp_path / "new.gguf")
    convert(source, tmp_path / "new.gguf")  # what was written before is replaced


@pytest.mark.parametrize(("kind", "name"), [("ggml", "ggml's former"), ("llama2c", "llama2.c")])
def test_models_of_other_formats_are_told_what_to_do(tmp_path, capsys, kind, name):
    weights = old.starcoder_weights() if kind == "ggml" else old.llama2c_weights(tied=True)
    raw = old.ggml_file(weights) if kind == "ggml" else old.llama2c_file(1, weights)
    (tmp_path / "old.bin").write_bytes(raw)
    assert main(["generate", str(tmp_path / "old.bin"), "-p", "a"]) == 1
    said = capsys.readouterr().err
    assert f"not a GGUF file: got a file of {name}" in said
    assert f"Make it with `yupana convert {tmp_path / 'old.bin'} model.gguf`.\n" in said
