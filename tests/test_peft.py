"""Adapters that go to PEFT and come from it, on Llamas of transformers: the same logits."""

import warnings

import numpy as np
import pytest

from tests import hub_models as hub
from yupana.graphlib.context import Context
from yupana.models.adapter_files import load_adapter
from yupana.models.adapter_peft import save_peft
from yupana.models.convert import convert
from yupana.models.loading import load_model
from yupana.models.lora import Adapter

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

IDS = [1, 5, 9, 2, 30, 7, 7, 11, 40, 3, 22, 6]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def model(tmp_path):
    """A folder of the hub's form, and our file of the same model."""
    c = hub.config(48)
    hub.write(tmp_path / "hub", c | {"model_type": "llama"}, hub.weights(c))
    convert(tmp_path / "hub", tmp_path / "m.gguf", "f32")
    return tmp_path / "hub", tmp_path / "m.gguf"


def theirs(folder):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def their_logits(model):
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


def our_logits(path, adapter=None):
    model = load_model(path, rounds=False)
    if adapter is not None:
        model.attach(adapter)
    return model.logits(Context().tensor([IDS])).numpy()[0]


def made_adapter(path, dora):
    """Pairs of several ranks beside every matrix; with lengths of rows if asked."""
    random, pairs, lengths = np.random.default_rng(3), {}, {}
    for name, w in load_model(path).weights.items():
        if w.ndim == 2:
            if dora and name == "token_embd.weight":
                continue  # PEFT has another meaning of lengths there
            rank = 2 if "ffn" in name else 3
            a, b = (
                random.standard_normal((rank, w.shape[1])),
                random.standard_normal((w.shape[0], rank)),
            )
            pairs[name] = (a * 0.2).astype(np.float32), (b * 0.2).astype(np.float32)
            if dora:
                lengths[name] = random.uniform(1, 2, w.shape[0]).astype(np.float32)
    return Adapter("made", pairs, 5.0, magnitudes=lengths)


@pytest.mark.parametrize("dora", [False, True])
def test_peft_loads_what_is_written(model, tmp_path, dora):
    from peft import PeftModel

    folder, path = model
    adapter = made_adapter(path, dora)
    save_peft(tmp_path / "a", adapter, load_model(path).sizes, str(folder))
    base = theirs(folder)
    plain = their_logits(base)
    got = their_logits(PeftModel.from_pretrained(base, tmp_path / "a"))
    want = our_logits(path, adapter)
    assert np.abs(want - plain).max() > 0.1
    np.testing.assert_allclose(got, want, atol=2e-4)


CONFIGS = {
    "plain": {"target_modules": LINEAR},
    "rsLoRA": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "ranks": {
        "target_modules": LINEAR,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 3},
    },
    "DoRA": {"target_modules": LINEAR, "use_dora": True},
    "embedding and output": {"target_modules": ["embed_tokens", "lm_head", "k_proj"]},
    "one layer": {"target_modules": ["up_proj"], "layers_to_transform": [1]},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_peft_wrote_is_read(model, tmp_path, name):
    from peft import LoraConfig, get_peft_model

    folder, path = model
    torch.manual_seed(4)
    made = get_peft_model(theirs(folder), LoraConfig(r=4, lora_alpha=6, **CONFIGS[name])).eval()
    with torch.no_grad():
        for key, p in made.named_parameters():
            if "lora_" in key:
                p += 0.2 * torch.randn_like(p)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a base that is in no hub
        made.save_pretrained(str(tmp_path / "a"))
    want = their_logits(made)
    adapter = load_adapter(tmp_path / "a", load_model(path).sizes)
    got = our_logits(path, adapter)
    assert np.abs(got - our_logits(path)).max() > 0.05
    np.testing.assert_allclose(got, want, atol=2e-4)
