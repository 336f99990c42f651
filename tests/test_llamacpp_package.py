"""What the programs write, opened by llama.cpp itself; skipped without llama-cpp-python."""

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest

import yupana as yp
from tests import hub_models as hub
from tests import old_files as old
from yupana.cli import main
from yupana.models.file_types import FILE_TYPES

llama_cpp = pytest.importorskip("llama_cpp")
DATA = Path(__file__).parents[2] / "shared" / "data"
TEXT = "Once upon a time there was a llama's ñandú, 1234 times.\n\n  The end"


@llama_cpp.llama_log_callback
def silent(level, text, data):
    """llama.cpp logs from C, past what pytest captures."""


class LlamaCpp:
    """A model in llama.cpp, on one thread.

    Args:
        adapter: LoRA file, used with scale 1.
    """

    def __init__(self, path, adapter=None):
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        lora = {} if adapter is None else {"lora_path": str(adapter)}
        self.llama = llama_cpp.Llama(
            str(path), n_ctx=256, n_batch=256, n_threads=1, n_threads_batch=1, verbose=False,
            logits_all=True, **lora,
        )  # fmt: skip

    def logits(self, ids, position=0):
        """(T, V): scores after each token; position 0 forgets what was read before."""
        context, batch = self.llama._ctx, self.llama._batch
        if position == 0:
            context.kv_cache_clear()
        batch.set_batch(batch=[*ids], n_past=position, logits_all=True)
        context.decode(batch)
        found = llama_cpp.llama_get_logits(context.ctx)
        return np.ctypeslib.as_array(found, (len(ids), self.llama.n_vocab())).copy()

    def greedy(self, ids, count=40):
        row, found = self.logits(ids)[-1], []
        for k in range(count):
            found.append(int(row.argmax()))
            row = self.logits(found[-1:], len(ids) + k)[-1]
        return found

    def encode(self, text):
        return self.llama.tokenize(text.encode(), add_bos=True, special=True)


def greedy(model, ids, count=40):
    session, found = model.session(threads=1), []
    row = session.eval([*ids])
    for _ in range(count):
        found.append(int(row.argmax()))
        row = session.eval(found[-1:])
    return found


def agree(path, ids, close=3e-3, adapter=None):
    """Scores within a part of their spread, and the same 40 greedy tokens."""
    theirs = LlamaCpp(path, adapter)
    model = yp.load(path, adapters=[adapter] if adapter else [], threads=1)
    want = theirs.logits(ids)
    assert np.abs(model.logits(ids) - want).max() < close * want.std()
    assert greedy(model, ids[:16]) == theirs.greedy(ids[:16])
    return model, theirs


def ids_below(n_vocab, count=24):
    return np.random.default_rng(7).integers(3, n_vocab, count).tolist()


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def test_converted_starcoder(tmp_path, monkeypatch):
    monkeypatch.setitem(old.STARCODER, "n_ctx", 64)
    weights = old.starcoder_weights()
    stored = {n: old.repeated(v) if "attn_qkv" in n else v for n, v in weights.items()}
    (tmp_path / "old.bin").write_bytes(old.ggml_file(stored))
    run("convert", tmp_path / "old.bin", tmp_path / "m.gguf")
    model, theirs = agree(tmp_path / "m.gguf", ids_below(len(old.WORDS) - 1))
    assert model.tokenizer.encode(TEXT) == theirs.encode(TEXT)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_converted_llama2c(tmp_path, monkeypatch, version, tied):
    monkeypatch.setitem(old.LLAMA2C, "seq_len", 64)
    (tmp_path / "old.bin").write_bytes(old.llama2c_file(version, old.llama2c_weights(tied)))
    (tmp_path / "tokenizer.bin").write_bytes(old.tokenizer_bin(as_characters=True))
    vocabulary = tmp_path / "tokenizer.bin"
    run("convert", tmp_path / "old.bin", tmp_path / "m.gguf", "--vocab", vocabulary)
    model, theirs = agree(tmp_path / "m.gguf", ids_below(old.LLAMA2C["vocab_size"]))
    assert model.tokenizer.encode(TEXT) == theirs.encode(TEXT)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt-2", {}),
        ("llama-bpe", {"rope_scaling": hub.LLAMA3_ROPE}),
        ("starcoder", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
        ("spm", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("spm", {"rope_scaling": hub.YARN, "head_dim": 16}),
        ("spm", {"rope_scaling": hub.YARN | {"beta_fast": 8.0, "beta_slow": 2.0}}),
        ("gpt-2", hub.QWEN2),
        ("gpt-2", hub.QWEN3 | {"tie_word_embeddings": True}),
    ],
)
def test_converted_folders(tmp_path, kind, changes, dtype):
    spm = kind == "spm"
    tokenizer = hub.sentencepiece_tokenizer() if spm else hub.byte_level_tokenizer(kind)
    width = {"hidden_size": 64, "intermediate_size": 96}
    c = hub.config(tokenizer.get_vocab_size(), **width, **changes)
    # not so wide that rounding the last bit decides about a token
    tensors = {n: w if w.ndim == 1 else w * np.float32(0.4) for n, w in hub.weights(c).items()}
    hub.write(tmp_path / "hub", c, tensors, tokenizer)
    run("convert", tmp_path / "hub", tmp_path / "m.gguf", "--dtype", dtype)
    model, theirs = agree(tmp_path / "m.gguf", ids_below(c["vocab_size"]), 0.03)
    assert model.tokenizer.encode(TEXT) == theirs.encode(TEXT)


def test_converted_adapter(tmp_path, monkeypatch):
    monkeypatch.setitem(old.LLAMA2C, "seq_len", 64)
    weights = old.llama2c_weights(tied=False)
    random, pairs = np.random.default_rng(3), {}
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output.weight"):
        rows, columns = weights[name].shape
        a, b = random.standard_normal((columns, 2)), random.standard_normal((rows, 2))
        pairs[name] = a.astype(np.float32), b.astype(np.float32) * np.float32(0.1)
    (tmp_path / "old.bin").write_bytes(old.llama2c_file(1, weights))
    (tmp_path / "tokenizer.bin").write_bytes(old.tokenizer_bin(as_characters=True))
    (tmp_path / "lora.bin").write_bytes(old.ggla_file(pairs, rank=2, alpha=4))
    vocabulary, lora = tmp_path / "tokenizer.bin", tmp_path / "lora.gguf"
    run("convert", tmp_path / "old.bin", tmp_path / "m.gguf", "--vocab", vocabulary)
    run("convert", tmp_path / "lora.bin", lora)
    ids = ids_below(old.LLAMA2C["vocab_size"])
    model, _ = agree(tmp_path / "m.gguf", ids, adapter=lora)
    assert np.abs(yp.load(tmp_path / "m.gguf").logits(ids) - model.logits(ids)).max() > 0.1


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_quantised_models(tmp_path, kind):
    if not (DATA / "sh-Q8_0.gguf").exists():
        pytest.skip("needs the shared model files")
    path = tmp_path / "m.gguf"
    run("quantize", DATA / "sh-Q8_0.gguf", path, kind, "--allow-requantize")
    case = json.loads((DATA / "llamacpp_reference.json").read_text())["sh-Q8_0.gguf"]
    agree(path, case["tokens"], 0.02)


@pytest.mark.parametrize("vocab", ["bytes", "bpe"])
def test_pretrained_model(tmp_path, monkeypatch, vocab):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text((TEXT + "\n") * 40, encoding="utf-8")
    sizes = "--embd 32 --ff 64 --head 4 --head-kv 2 --layer 2 --ctx 64 --batch 4 --adam-iter 30"
    run(*f"pretrain --train-data text.txt --vocab {vocab} {sizes} --model-out m.gguf".split())
    tokenizer = yp.load_tokenizer("m.gguf")
    ids = tokenizer.encode(TEXT)
    _, theirs = agree("m.gguf", ids[:60])
    assert ids == theirs.encode(TEXT)
    assert theirs.llama.detokenize(ids).decode() == tokenizer.decode(ids)
