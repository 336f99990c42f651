"""Hugging Face folders as GGUF: the same logits, the same token ids, and what is refused."""

import json
import struct

import numpy as np
import pytest
from tokenizers import AddedToken

from tests import hub_models as hub
from yupana.graphlib.context import Context
from yupana.graphlib.dtypes import bf16, from_storage, to_storage
from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.convert import convert
from yupana.models.formats import GgufFile
from yupana.models.formats.hub_folder import read_hub_folder
from yupana.models.loading import load_model
from yupana.models.tokenizer import load_tokenizer

IDS = [1, 5, 9, 2, 30, 7, 7, 11, 40, 3, 22, 6]


def logits(path):
    """Of our model on the file, in f32 throughout."""
    return load_model(path).logits(Context().tensor([IDS])).numpy()[0]


def converted(tmp_path, c, tensors, tokenizer=None, dtype="auto", **files):
    hub.write(tmp_path / "hub", c, tensors, tokenizer, **files)
    conversion = convert(tmp_path / "hub", tmp_path / "m.gguf", dtype)
    return tmp_path / "m.gguf", conversion


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4, "tie_word_embeddings": True},
        {"num_key_value_heads": 1, "head_dim": 8, "rope_theta": 500.0},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_scaling": hub.LLAMA3_ROPE},
        {"rope_scaling": hub.YARN},
        {"rope_scaling": hub.YARN | {"attention_factor": 0.7, "beta_fast": 8.0}},
        hub.QWEN2,
        hub.QWEN2 | {"num_key_value_heads": 1, "tie_word_embeddings": True},
        hub.QWEN3,
        hub.QWEN3 | {"rope_scaling": hub.YARN, "num_key_value_heads": 4},
    ],
)
def test_logits_are_those_of_the_rotation_by_halves(tmp_path, changes):
    c = hub.config(48, **changes)
    tensors = hub.weights(c)
    path, _ = converted(tmp_path, c, tensors)
    np.testing.assert_allclose(logits(path), hub.logits(c, tensors, IDS), atol=1e-4)


def test_biases_are_kept_and_permuted(tmp_path):
    c = hub.config(48)
    tensors = hub.weights(c, bias=True)
    path, _ = converted(tmp_path, c, tensors)
    np.testing.assert_allclose(logits(path), hub.logits(c, tensors, IDS), atol=1e-4)


def test_rows_that_are_not_permuted_give_other_logits(tmp_path):
    c = hub.config(48)
    tensors = hub.weights(c)
    path, _ = converted(tmp_path, c, tensors)
    name = "model.layers.0.self_attn.q_proj.weight"
    other = tensors | {name: tensors[name].reshape(4, 3, 2, 24).swapaxes(1, 2).reshape(24, 24)}
    assert np.abs(logits(path) - hub.logits(c, other, IDS)).max() > 0.01


def test_the_gguf_package_finds_what_llama_cpp_wants(tmp_path):
    gguf = pytest.importorskip("gguf")
    c = hub.config(320)
    tensors = hub.weights(c)
    path, _ = converted(tmp_path, c, tensors, hub.byte_level_tokenizer("llama-bpe"), "f16")
    reader = gguf.GGUFReader(path)
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert values["general.architecture"] == "llama"
    assert values["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert values["llama.attention.head_count_kv"] == 2
    assert values["tokenizer.ggml.model"] == "gpt2"
    assert len(values["tokenizer.ggml.tokens"]) == 320
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for old, values in tensors.items():
        tensor = stored[names.get_name(old, try_suffixes=(".weight",))]
        assert tensor.tensor_type.name == ("F16" if values.ndim == 2 else "F32")
        if "q_proj" not in old and "k_proj" not in old:
            np.testing.assert_array_equal(tensor.data, values.astype(tensor.data.dtype))


def test_a_folder_in_parts_gives_the_same_file(tmp_path):
    c = hub.config(48)
    tensors = hub.weights(c)
    hub.write(tmp_path / "hub", c, tensors)
    whole = convert(tmp_path / "hub", tmp_path / "whole.gguf")
    (tmp_path / "hub" / "model.safetensors").unlink()
    hub.write(tmp_path / "hub", c, tensors, n_parts=3)
    convert(tmp_path / "hub", tmp_path / "parts.gguf")
    assert list(whole.tensors)[:2] == ["token_embd.weight", "blk.0.attn_norm.weight"]
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "parts.gguf").read_bytes()


def test_bf16_stays_bf16(tmp_path):
    c = hub.config(48)
    tensors = hub.weights(c)
    hub.write(tmp_path / "hub", c, tensors)
    header, raw = {}, b""
    for name, values in tensors.items():  # the package writes bf16 for torch only
        half = to_storage(values, bf16).tobytes()
        offsets = [len(raw), len(raw) + len(half)]
        header[name] = {"dtype": "BF16", "shape": values.shape, "data_offsets": offsets}
        raw += half
    head = json.dumps(header).encode()
    path = tmp_path / "hub" / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + raw)
    convert(tmp_path / "hub", tmp_path / "m.gguf")
    with GgufFile(tmp_path / "m.gguf") as file:
        assert file.metadata["general.file_type"] == 32
        want = to_storage(tensors["model.layers.1.mlp.up_proj.weight"], bf16)
        info = file.tensors["blk.1.ffn_up.weight"]
        assert info.type == "BF16"
        np.testing.assert_array_equal(info.data, want)
        norm = file.tensors["output_norm.weight"]
        assert norm.type == "F32"
        rounded = from_storage(to_storage(tensors["model.norm.weight"], bf16), bf16)
        np.testing.assert_array_equal(norm.data, rounded)


@pytest.mark.parametrize("splitting", ["gpt-2", "llama-bpe", "starcoder"])
def test_byte_level_tokenizers_are_recognised_and_keep_their_ids(tmp_path, splitting):
    tokenizer = hub.byte_level_tokenizer(splitting)
    path, conversion = converted(
        tmp_path, hub.config(310), hub.weights(hub.config(310)), tokenizer,
        tokenizer_config={"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"},
                          "chat_template": "{{ messages }}"},
    )  # fmt: skip
    assert conversion.metadata["tokenizer.ggml.pre"] == splitting
    assert conversion.metadata["tokenizer.chat_template"] == "{{ messages }}"
    ours = load_tokenizer(path)
    assert (ours.bos, ours.eos, ours.add_bos) == (0, 1, splitting == "llama-bpe")
    for text in (hub.TEXT, "The LLAMA'S 12345 ñandú\r\n\r\n  ", "a<|end|>b", "\U0001f999 \t x"):
        assert ours.encode(text) == tokenizer.encode(text).ids
    assert ours.tokens[309] == "[PAD309]"
    assert ours.types[309] == 5


def test_tokenizers_of_sentencepiece_keep_their_ids(tmp_path):
    tokenizer = hub.sentencepiece_tokenizer()
    c = hub.config(tokenizer.get_vocab_size())
    path, conversion = converted(
        tmp_path, c, hub.weights(c), tokenizer,
        tokenizer_config={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    )  # fmt: skip
    ours = load_tokenizer(path)
    assert conversion.metadata["tokenizer.ggml.model"] == "llama"
    assert conversion.notes == []
    for text in ("the llama", "lllamaa them, themal.", "ñ the\n", "malt all alamal", ""):
        assert ours.encode(text) == tokenizer.encode(text).ids
    assert ours.decode(ours.encode("a ñ llama")) == "a ñ llama"


def test_added_words_keep_their_spelling(tmp_path):
    """Words that the tokenizer normalises, as it does unless told, stand in texts as they are."""
    tokenizer = hub.sentencepiece_tokenizer()
    tokenizer.add_tokens(["<|im_end|>", "llama's", AddedToken("  end", normalized=False)])
    c = hub.config(tokenizer.get_vocab_size())
    path, _ = converted(tmp_path, c, hub.weights(c), tokenizer)
    ours, there = load_tokenizer(path), load_tokenizer(tmp_path / "hub" / "tokenizer.json")
    first = len(ours) - 3
    assert ours.tokens[first:] == ["<|im_end|>", "llama's", "  end"]
    assert [*ours.types[first:]] == [3, 4, 4]
    assert first in ours.ends
    assert first in there.ends
    text = "the llama's  end<|im_end|>"
    assert ours.encode(text, add_special=False)[-3:] == [first + 1, first + 2, first]
    assert ours.decode(ours.encode(text)) == "the llama's  end"
    assert there.encode(text) == tokenizer.encode(text).ids
    want = tokenizer.decode(there.encode("the llama's lama"), skip_special_tokens=False)
    assert there.decode(there.encode("the llama's lama")) == want.removeprefix("<s> ")


def test_a_pair_that_is_no_merge_is_told(tmp_path):
    tokenizer = hub.sentencepiece_tokenizer()
    spec = json.loads(tokenizer.to_str())
    spec["model"]["merges"].pop()
    folder = tmp_path / "hub"
    c = hub.config(tokenizer.get_vocab_size())
    hub.write(folder, c, hub.weights(c))
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    assert "1 pairs of tokens" in convert(folder, tmp_path / "m.gguf").notes[0]


def test_without_a_tokenizer_the_file_says_so(tmp_path):
    c = hub.config(48)
    _, conversion = converted(tmp_path, c, hub.weights(c))
    assert conversion.metadata["tokenizer.ggml.model"] == "none"
    assert "no tokenizer.json" in conversion.notes[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "'architectures': got .*, want one of Llama"),
        ({"quantization_config": {"bits": 4}}, "want an unquantised model"),
        ({"hidden_act": "gelu"}, "'hidden_act': got 'gelu', want 'silu'"),
        ({"vocab_size": "9"}, "'vocab_size': got '9', want a whole number"),
        ({"vocab_size": 50}, r"shape of (token_embd|output).weight: got \(48, 24\), want \(50"),
        ({"num_attention_heads": 5}, "n_head_kv"),
        ({"num_hidden_layers": 3}, "no tensor for blk.2"),
        ({"num_hidden_layers": 1}, r"want no such tensor in 1 layers by config.json"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: got 1000000000, want at most the"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'rope_type': got 'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'factor': got None"),
        (
            {"rope_scaling": hub.LLAMA3_ROPE | {"high_freq_factor": 1.0}},
            "more than low_freq_factor",
        ),
        ({"rope_theta": float("nan")}, "'rope_theta': got nan, want a positive number"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, changes, words):
    c = hub.config(48)
    with pytest.raises(FileFormatError, match=words):
        converted(tmp_path, c | changes, hub.weights(c))
    assert not (tmp_path / "m.gguf").exists()


def test_folders_that_are_not_whole_are_refused(tmp_path):
    folder, c = tmp_path / "hub", hub.config(48)
    tensors = hub.weights(c)
    hub.write(folder, c, tensors, n_parts=2)
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    for change, words in (
        ({"lm_head.weight": "../x.safetensors"}, "want files of the folder itself"),
        ({"another": "model-00001-of-00002.safetensors"}, "no tensor 'another'"),
    ):
        index.write_text(json.dumps({"weight_map": good["weight_map"] | change}))
        with pytest.raises(FileFormatError, match=words):
            read_hub_folder(folder)
    index.write_text("{")
    with pytest.raises(FileFormatError, match="not JSON"):
        read_hub_folder(folder)
    index.unlink()
    with pytest.raises(FileFormatError, match="the folder has no weights"):
        convert(folder, tmp_path / "m.gguf")
    hub.write(folder, c, tensors | {"model.layers.0.lora_A.weight": tensors["model.norm.weight"]})
    with pytest.raises(FileFormatError, match="unknown tensor: got 'model"):
        convert(folder, tmp_path / "m.gguf")
    with pytest.raises(SettingError, match="dtype: got 'q4_0'"):
        convert(folder, tmp_path / "m.gguf", "q4_0")
