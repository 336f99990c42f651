"""LLaMA files: what the gguf package and llama.cpp find in them, and what is refused."""

import os

import numpy as np
import pytest

from yupana.graphlib.context import Context
from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.baby_llama import BabyLlama, baby_config
from yupana.models.formats import GgufFile, write_gguf
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import llama_metadata, load_llama, save_llama
from yupana.models.loading import load_model
from yupana.models.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_characters("the llama's ñandú\n")
SIZES = {"n_ctx": 8, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_head_kv": 2, "n_ff": 24}
CONFIG = LlamaConfig(len(VOCABULARY), **SIZES)


def scores(model):
    return model.logits(Context().tensor([[1, 2, 3]])).numpy()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": True},
        {"n_rot": 2, "rope_base": 500.0, "rope_scale": 0.25, "rms_eps": 1e-3},
        {"head_width": 6, "rope_scale": 0.25, "yarn": True, "n_ctx_orig": 4},
        {"n_head": 3, "n_head_kv": 3, "head_width": 4, "value_width": 2, "rope_magnitude": 1.5},
        {"architecture": "qwen2", "rope_base": 1e6},
        {"architecture": "qwen3", "head_width": 6},
    ],
)
def test_a_saved_model_comes_back(tmp_path, changes):
    model = Llama(LlamaConfig(len(VOCABULARY), **{**SIZES, **changes})).init(seed=2)
    save_llama(tmp_path / "m.gguf", model, VOCABULARY)
    read, vocabulary = load_llama(tmp_path / "m.gguf")
    assert vocabulary.tokens == VOCABULARY.tokens
    for name in LlamaConfig.__dataclass_fields__:
        if name != "n_mult":  # only n_ff, which follows from it, is in the file
            got, want = getattr(read.config, name), getattr(model.config, name)
            assert got == (want if isinstance(want, str) else pytest.approx(want, rel=1e-7))
    assert list(read.weights) == list(model.weights)
    for name, weight in model.weights.items():
        np.testing.assert_array_equal(read.weights[name].numpy(), weight.numpy())
    if not changes.get("rms_eps"):  # which a file rounds to f32
        np.testing.assert_array_equal(scores(read), scores(model))


@pytest.mark.parametrize(("dtype", "bound"), [("f16", 2**-11), ("bf16", 2**-8)])
def test_half_precision_rounds_the_matrices_only(tmp_path, dtype, bound):
    model = Llama(CONFIG).init(seed=2)
    save_llama(tmp_path / "m.gguf", model, dtype=dtype)
    with GgufFile(tmp_path / "m.gguf") as file:
        kinds = {info.type for info in file.tensors.values() if len(info.shape) == 2}
        norms = {info.type for info in file.tensors.values() if len(info.shape) == 1}
    assert (kinds, norms) == ({dtype.upper()}, {"F32"})
    read, vocabulary = load_llama(tmp_path / "m.gguf")
    assert vocabulary is None
    for name, weight in model.weights.items():
        np.testing.assert_allclose(
            read.weights[name].numpy(), weight.numpy(), rtol=bound, atol=1e-7
        )
    assert (read.weights["output.weight"].numpy() != model.weights["output.weight"].numpy()).any()


def test_the_gguf_package_finds_what_llama_cpp_asks_for(tmp_path):
    gguf = pytest.importorskip("gguf")
    model = Llama(CONFIG).init(seed=2)
    save_llama(tmp_path / "m.gguf", model, VOCABULARY, dtype="f16", name="tiny")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    keys, arch = gguf.Keys, "llama"

    def value(key):
        return reader.fields[key.format(arch=arch)].contents()

    assert value(keys.General.ARCHITECTURE) == "llama"
    assert value(keys.General.NAME) == "tiny"
    assert value(keys.General.FILE_TYPE) == gguf.LlamaFileType.MOSTLY_F16
    assert value(keys.LLM.VOCAB_SIZE) == len(VOCABULARY)
    assert value(keys.LLM.CONTEXT_LENGTH) == 8
    assert value(keys.LLM.EMBEDDING_LENGTH) == 16
    assert value(keys.LLM.BLOCK_COUNT) == 2
    assert value(keys.LLM.FEED_FORWARD_LENGTH) == 24
    assert value(keys.Attention.HEAD_COUNT) == 4
    assert value(keys.Attention.HEAD_COUNT_KV) == 2
    assert value(keys.Attention.LAYERNORM_RMS_EPS) == pytest.approx(1e-5)
    assert value(keys.Rope.DIMENSION_COUNT) == 4
    assert value(keys.Rope.FREQ_BASE) == 10000.0
    assert value(keys.Tokenizer.MODEL) == "gpt2"
    assert value(keys.Tokenizer.PRE) == "gpt-2"
    assert value(keys.Tokenizer.LIST) == VOCABULARY.tokens
    assert value(keys.Tokenizer.MERGES) == ["Ã ±", "Ã º"]
    assert value(keys.Tokenizer.TOKEN_TYPE)[-1] == gguf.TokenType.CONTROL
    assert value(keys.Tokenizer.EOS_ID) == value(keys.Tokenizer.BOS_ID) == len(VOCABULARY) - 1
    tensors = {t.name: t for t in reader.tensors}
    assert list(tensors) == list(model.weights)
    q = tensors["blk.0.attn_q.weight"]
    assert q.tensor_type == gguf.GGMLQuantizationType.F16
    np.testing.assert_array_equal(
        q.data, model.weights["blk.0.attn_q.weight"].numpy().astype(np.float16)
    )


def test_a_file_of_the_gguf_package_is_loaded(tmp_path):
    gguf = pytest.importorskip("gguf")
    model = Llama(CONFIG).init(seed=4)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_context_length(8)
    writer.add_embedding_length(16)
    writer.add_block_count(2)
    writer.add_feed_forward_length(24)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)
    for name, weight in model.weights.items():
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read, vocabulary = load_llama(tmp_path / "m.gguf")
    assert vocabulary is None
    assert read.config.rope_scale == 0.25
    assert read.config.n_rot == 4
    for name, weight in model.weights.items():
        np.testing.assert_array_equal(read.weights[name].numpy(), weight.numpy())


def test_a_factored_baby_llama_is_saved_multiplied_out(tmp_path):
    model = BabyLlama(baby_config(), n_lora=64).init()
    save_llama(tmp_path / "m.gguf", model)
    read, _ = load_llama(tmp_path / "m.gguf")
    np.testing.assert_allclose(scores(read), scores(model), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with pytest.raises(SettingError, match="got 257 tokens, want 15"):
        save_llama(path, Llama(CONFIG), Vocabulary.from_bytes())
    with pytest.raises(SettingError, match="dtype: got 'q4_0', want f32, f16, bf16"):
        save_llama(path, Llama(CONFIG), dtype="q4_0")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize(
    ("metadata", "tensors", "words"),
    [
        ({"general.architecture": "gpt2"}, {}, "got 'gpt2', want 'llama'"),
        ({"general.architecture": None}, {}, "no metadata 'general.architecture'"),
        ({"llama.block_count": 2**32 - 1}, {},
         r"block_count' at byte \d+: got 4294967295, want at most"),
        ({"llama.block_count": 3}, {}, r"no tensor 'blk\.2\.attn_norm\.weight'"),
        ({"llama.block_count": 0}, {}, r"block_count' at byte \d+: got 0"),
        ({"llama.block_count": 1}, {}, "got 1, want at least 2, since there is a tensor 'blk"),
        ({"llama.context_length": 0}, {}, r"context_length' at byte \d+: got 0, want at least 1"),
        ({"llama.attention.head_count_kv": 0}, {}, r"head_count_kv' at byte \d+: got 0"),
        ({"llama.attention.head_count_kv": 3}, {}, r"head_count_kv' at byte \d+: the sizes do"),
        ({"llama.feed_forward_length": [24, 0]}, {}, r"got \[0, 24\], want the same for all"),
        ({"llama.rope.dimension_count": 0}, {}, r"dimension_count' at byte \d+: got 0"),
        ({"llama.attention.key_length": 0}, {}, r"key_length' at byte \d+: got 0"),
        ({"llama.rope.freq_base": -1.0}, {}, r"freq_base' at byte \d+: the sizes do not fit"),
        ({"llama.attention.head_count": 3}, {}, "n_embd: got 16, want a multiple of n_head 3"),
        ({"llama.attention.head_count": 2**31}, {}, "want a multiple of n_head"),
        ({"llama.attention.head_count_kv": "2"}, {}, "head_count_kv.*wrong type"),
        ({"llama.attention.head_count_kv": 4}, {}, r"attn_k\.weight' at .*8, 16\), want \(16, 16"),
        ({"llama.feed_forward_length": 25}, {}, r"ffn_gate\.weight' at .*24, 16\), want \(25, "),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, {},
         "'longrope' by 2"),
        ({"llama.attention.head_count_kv": [2, 1]}, {}, r"got \[1, 2\], want the same for all"),
        ({"llama.attention.head_count": ["two"]}, {}, "got an array with 'two', want whole num"),
        ({"llama.expert_count": 8}, {}, r"expert_count' at byte \d+: got 8, want no"),
        ({"llama.attention.causal": False}, {}, r"causal' at byte \d+: got False, want True"),
        ({"llama.rope.scaling.factor": 0.0}, {}, "'linear' by 0"),
        ({"llama.rope.dimension_count": 6}, {}, "n_rot: got 6"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"],
          "tokenizer.ggml.merges": []}, {}, "got 1 tokens, want 15"),
        ({}, {"token_embd.weight": None}, r"no tensor 'token_embd\.weight'"),
        ({}, {"blk.1.ffn_up.weight": None}, r"no tensor 'blk\.1\.ffn_up\.weight'"),
        ({}, {"output_norm.weight": np.ones(15, np.float32)}, r"got \(15,\), want \(16,\)"),
        ({}, {"output_norm.weight": np.ones(16, np.int32)}, "got I32, want one of F32"),
        ({}, {"token_embd.weight": np.array(1, np.float32)}, "sizes do not fit"),
    ],
)  # fmt: skip
def test_each_fault_of_a_file_has_its_message(tmp_path, metadata, tensors, words):
    entries = llama_metadata(CONFIG) | metadata
    arrays = Llama(CONFIG).init().arrays() | tensors
    write_gguf(
        tmp_path / "m.gguf",
        {key: value for key, value in entries.items() if value is not None},
        {name: array for name, array in arrays.items() if array is not None},
    )
    with pytest.raises(FileFormatError, match=words):
        load_llama(tmp_path / "m.gguf")


def test_entries_that_llama_cpp_leaves_unread_change_nothing(tmp_path):
    """Of this architecture it takes YaRN's type, factor and old context, and sizes per layer."""
    model = Llama(CONFIG).init(seed=1)
    entries = llama_metadata(CONFIG) | {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 4,
    }
    write_gguf(tmp_path / "m.gguf", entries, model.arrays())
    unread = {"ext_factor": 0.5, "attn_factor": 1.5, "beta_fast": 8.0, "beta_slow": 2.0}
    entries |= {f"llama.rope.scaling.yarn_{name}": value for name, value in unread.items()}
    entries["llama.feed_forward_length"] = [CONFIG.n_ff] * CONFIG.n_layer
    write_gguf(tmp_path / "more.gguf", entries, model.arrays())
    assert load_llama(tmp_path / "more.gguf")[0].config == load_llama(tmp_path / "m.gguf")[0].config


def test_tensors_that_are_not_used_are_told_of(tmp_path):
    arrays = Llama(CONFIG).init(seed=1).arrays()
    arrays |= {f"rope_factors_{name}.weight": np.ones(2, np.float32) for name in ("long", "short")}
    write_gguf(tmp_path / "m.gguf", llama_metadata(CONFIG), arrays)
    with pytest.warns(UserWarning, match=r"no place for: got 'rope_factors_long\.weight', 'rope"):
        load_model(tmp_path / "m.gguf")
    entries = llama_metadata(CONFIG) | {"training.type": "train_model"}
    write_gguf(tmp_path / "m.gguf", entries, arrays)
    load_model(tmp_path / "m.gguf")


def test_small_tensors_that_are_copied_are_checked_and_counted_too(tmp_path):
    path, model = tmp_path / "m.gguf", Llama(CONFIG).init(seed=1)
    tensors = {name: array.astype(np.float16) for name, array in model.arrays().items()}
    write_gguf(path, llama_metadata(CONFIG), tensors)
    taken = []
    load_model(GgufFile(path, validate=True, progress=taken.append))
    assert len(taken) == len(tensors)
    assert taken[-1] == 1
    tensors["output_norm.weight"][3] = np.nan
    write_gguf(path, llama_metadata(CONFIG), tensors)
    load_model(path)
    with pytest.raises(FileFormatError, match=r"element 3 of tensor 'output_norm.weight' \(F16\)"):
        load_model(GgufFile(path, validate=True))
