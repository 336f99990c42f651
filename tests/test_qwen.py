"""Qwen 2 and 3: trained adapters and their files; scores are compared in test_convert_hub.py."""

import numpy as np
import pytest
from safetensors.numpy import load_file

import yupana as yp
from yupana.graphlib.context import Context
from yupana.graphlib.errors import SettingError
from yupana.models.adapter_files import load_adapter
from yupana.models.adapter_peft import load_peft, save_peft
from yupana.models.formats import GgufFile
from yupana.models.llama import Llama, LlamaConfig, optional_shapes
from yupana.models.llama_gguf import load_llama, save_llama
from yupana.models.vocabulary import Vocabulary
from yupana.train.finetune import finetune
from yupana.train.settings import FinetuneSettings

IDS = [7, 40, 200, 5, 101, 33]
SIZES = {"n_vocab": 257, "n_ctx": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_head_kv": 1}


@pytest.fixture(params=["qwen2", "qwen3"])
def base(request, tmp_path):
    """A model with biases, or with norms of heads, that are not what training starts from."""
    wider = {"head_width": 24} if request.param == "qwen3" else {}
    config = LlamaConfig(**SIZES, **wider, n_ff=48, architecture=request.param)
    random = np.random.default_rng(4)
    weights = {name: w.numpy() for name, w in Llama(config).init(seed=2).weights.items()}
    if request.param == "qwen2":
        biases = {
            n: s for n, s in optional_shapes(config).items() if n[-6:] in ("q.bias", "k.bias")
        }
        weights |= {name: np.zeros(shape, np.float32) for name, shape in biases.items()}
    context = Context()
    model = Llama(config, context, {name: context.tensor(a) for name, a in weights.items()})
    for weight in model.weights.values():
        weight.set(weight.numpy() + 0.2 * random.standard_normal(weight.shape).astype(np.float32))
    save_llama(tmp_path / "m.gguf", model, Vocabulary.from_bytes())
    return tmp_path / "m.gguf"


def test_what_is_learned_beside_a_qwen_is_for_a_qwen(base, tmp_path):
    (tmp_path / "t.txt").write_text("the llama eats grass; the condor flies. " * 30)
    settings = FinetuneSettings(
        model_base=base, train_data=tmp_path / "t.txt", lora_out=tmp_path / "a.gguf", lora_r=3,
        model_out=tmp_path / "merged.gguf", ctx=16, batch=2, adam_iter=4, adam_alpha=0.02, warmup=0,
        rope_freq_base=5e3, threads=1, generate_every=0,
    )  # fmt: skip
    losses = finetune(settings).train().history.losses
    assert losses[-1][1] < losses[0][1]
    architecture = yp.load(base).model.architecture
    for name in ("a", "merged"):
        with GgufFile(tmp_path / f"{name}.gguf") as file:
            assert file.metadata["general.architecture"] == architecture
            if name == "merged":
                assert file.metadata[f"{architecture}.rope.freq_base"] == 5e3
    changed = {f"{architecture}.rope.freq_base": 5e3}
    beside = yp.load(base, adapters=[tmp_path / "a.gguf"], overrides=changed).logits(IDS)
    merged = yp.load(tmp_path / "merged.gguf").logits(IDS)
    np.testing.assert_allclose(beside, merged, atol=1e-4 * merged.std() + 1e-5)
    assert np.abs(merged - yp.load(base).logits(IDS)).max() > 0.01 * merged.std()


def test_peft_has_the_rows_of_a_qwen_as_they_are(base, tmp_path):
    (tmp_path / "t.txt").write_text("the llama eats grass; the condor flies. " * 30)
    settings = FinetuneSettings(
        model_base=base, train_data=tmp_path / "t.txt", lora_out=tmp_path / "a.gguf", lora_r=2,
        ctx=16, batch=2, adam_iter=2, threads=1, generate_every=0,
    )  # fmt: skip
    finetune(settings).train()
    sizes, adapter = yp.load(base).model.config, load_adapter(tmp_path / "a.gguf")
    only = {n: pair for n, pair in adapter.pairs.items() if "norm" not in n}
    matrices = type(adapter)("a", only, adapter.alpha, adapter.architecture)
    save_peft(tmp_path / "peft", matrices, sizes)
    stored = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    rows = stored["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    np.testing.assert_array_equal(rows, adapter.pairs["blk.0.attn_q.weight"][1])
    again = load_peft(tmp_path / "peft", sizes)
    assert again.architecture == sizes.architecture
    for name, (a, b) in only.items():
        np.testing.assert_allclose(again.pairs[name][1] @ again.pairs[name][0], b @ a, rtol=1e-6)


def test_parameters_of_a_file_are_those_that_it_has(base):
    model, _ = load_llama(base)
    with GgufFile(base) as file:
        assert set(model.weights) == set(file.tensors)
    scores = model.logits(model.context.tensor([IDS])).numpy()[0]
    want = yp.load(base).logits(IDS)  # with keys and values in f16
    np.testing.assert_allclose(scores, want, atol=2e-2 * want.std())


def test_an_architecture_that_is_none_is_refused():
    with pytest.raises(
        SettingError, match="architecture: got 'qwen9', want one of 'llama', 'qwen2'"
    ):
        LlamaConfig(**SIZES, architecture="qwen9")
