"""Adapters whose training is stopped at any step and goes on: the same bits, whatever the data."""

import json

import pytest

from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama
from yupana.models.vocabulary import Vocabulary
from yupana.train import text
from yupana.train.finetune import finetune
from yupana.train.settings import FinetuneSettings

TEXT = "the llama eats grass; the ñandú runs, the condor flies over the mountains. " * 3
STEPS = 9  # more than an epoch of each of the data but one


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model, a text, and lines of JSON of two kinds."""
    folder = tmp_path_factory.mktemp("base")
    vocabulary = Vocabulary.train(TEXT, 280)
    sizes = {"n_ctx": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_ff": 24}
    model = Llama(LlamaConfig(n_vocab=len(vocabulary), **sizes)).init(seed=3)
    save_llama(folder / "base.gguf", model, vocabulary)
    (folder / "text.txt").write_text(TEXT)
    pairs = [{"prompt": f"{k} + 1 = ", "completion": f"{k + 1}."} for k in range(14)]
    talks = [
        [{"role": "user", "content": f"say {k}"}, {"role": "assistant", "content": f"{k}!"}]
        for k in range(14)
    ]
    lines = {"pairs": pairs, "talks": [{"messages": talk} for talk in talks]}
    for name, entries in lines.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return folder


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"
SAMPLES = {"sample_start": "the ", "sample_random_offsets": True}
PACKED = {"fill_with_next_samples": True, "batch": 1, "ctx": 32}
RUNS = {
    "dropout": {"lora_dropout": 0.3, "grad_acc": 2},
    "DoRA": {"use_dora": True, "lora_dropout": 0.1, "grad_acc": 3},
    "random offsets": SAMPLES,
    "packed random offsets": SAMPLES | {"fill_with_next_samples": True},
    "overlapping": {"sample_start": "the ", "overlapping_samples": True, "grad_acc": 2},
    "answers": {"data": "pairs.jsonl", "lora_dropout": 0.2},
    "packed answers": PACKED | {"data": "pairs.jsonl"},
    "conversations": {"data": "talks.jsonl", "chat_template": TEMPLATE, "ctx": 32},
    "lbfgs": {"optimizer": "lbfgs", "lbfgs_iter": 3, "grad_acc": 2},
    "sgd on whole weights": {"optimizer": "sgd", "adam_alpha": 0.1, "train_whole": ("*norm*",)},
    "a time of its own for some": {"param_group": ("*.lora_b=0.3,0.2",), "use_rslora": True},
}


def settings(base, folder, changes, **more):
    out = folder / ("a" if changes.get("use_dora") else "a.gguf")
    usual = {
        "model_base": base / "base.gguf", "train_data": base / changes.get("data", "text.txt"),
        "lora_out": out, "checkpoint_out": folder / "c.gguf", "ctx": 16, "batch": 2,
        "adam_iter": STEPS, "adam_alpha": 0.01, "warmup": 2, "cos_decay_steps": 5,
        "eval_every": 2, "patience": 99, "opt_past": 2, "opt_delta": 1e-12, "threads": 1,
        "model_out": folder / "m.gguf", "generate_every": 0,
    }  # fmt: skip
    given = {name: value for name, value in changes.items() if name != "data"}
    return FinetuneSettings(**{**usual, **given, **more})


@pytest.mark.parametrize("name", RUNS)
def test_an_adapter_stopped_at_any_step_gives_the_same_bits(base, tmp_path, name, monkeypatch):
    monkeypatch.setattr(text, "_BLOCK", 64)  # bytes: files are read in many pieces
    changes = RUNS[name]
    whole = finetune(settings(base, tmp_path / "whole", changes))
    losses = whole.train().history.losses
    assert len({loss for _, loss in losses}) == STEPS
    if name == "packed answers":  # in the middle of an epoch, too
        assert 1 < whole.loop.batches.epochs(STEPS) < STEPS
    for stop in range(1, STEPS) if name == "packed answers" else (STEPS // 2,):
        folder = tmp_path / str(stop)
        first = finetune(settings(base, folder, changes))
        first.files.places.make_folders()
        first.loop.run(stop=lambda loop=first.loop, stop=stop: loop.history.step == stop)
        second = finetune(settings(base, folder, changes, checkpoint_in=folder / "c.gguf"))
        assert second.loop.history.step == stop
        assert second.train().history.losses == losses
        for path in (tmp_path / "whole").rglob("*"):
            if path.suffix in (".gguf", ".safetensors"):
                again = folder / path.relative_to(tmp_path / "whole")
                assert again.read_bytes() == path.read_bytes(), path.name
