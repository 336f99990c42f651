"""Models of a file trained as a whole, in all weights or in some, whatever their type."""

import numpy as np
import pytest

from tests.test_finetune import TEXT, settings
from tests.test_finetune import base as base
from yupana.cli import main
from yupana.graphlib.errors import SettingError
from yupana.models.formats import GgufFile
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama
from yupana.models.loading import load_model
from yupana.models.quantize import quantize_model
from yupana.models.vocabulary import Vocabulary
from yupana.train.finetune import finetune
from yupana.train.pretrain import prepare
from yupana.train.settings import FinetuneSettings, RunSettings

WHOLE = {"lora_r": 0, "train_whole": ("*",)}


def weights_of(path):
    with GgufFile(path) as file:
        model = load_model(file, rounds=False)
        return {name: np.array(w.numpy()) for name, w in model.weights.items()}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_all_of_a_model_is_trained_and_written(base, tmp_path, kind):
    source, out = tmp_path / "base.gguf", tmp_path / "m.gguf"
    quantize_model(base / "f32.gguf", source, kind)
    before = source.read_bytes()
    run = finetune(
        settings(base, tmp_path, **WHOLE, model_base=source, model_out=out, adam_iter=40)
    )
    outcome = run.train()
    losses = [loss for _, loss in outcome.history.losses]
    assert losses[-1] < losses[0] - 1.0
    assert source.read_bytes() == before
    assert set(run.files.written) == {"model", "best model", "loss curve", "log"}
    assert (tmp_path / "m-best.gguf").is_file()
    assert not (tmp_path / "a.gguf").exists()
    old, new = weights_of(source), weights_of(out)
    assert all((new[name] != old[name]).any() for name in old)
    with GgufFile(source) as a, GgufFile(out) as b:
        assert {n: i.type for n, i in a.tensors.items()} == {
            n: i.type for n, i in b.tensors.items()
        }
    with GgufFile(out) as file:
        model = load_model(file, rounds=False)
        tokens = model.context.tensor(np.arange(12)[None])
        got, want = model.logits(tokens).numpy(), run.model.logits(tokens).numpy()
    atol = {"F32": 0, "F16": 0.02, "BF16": 0.15, "Q8_0": 0.15}[kind]
    np.testing.assert_allclose(got, want, atol=atol, rtol=0)


def test_it_learns_as_a_model_from_scratch_does(base, tmp_path):
    """The same numbers as pretraining on the same weights: no other step, no other order."""
    from yupana.models.llama_gguf import load_llama

    model, _ = load_llama(base / "f32.gguf")
    how = {"ctx": 16, "batch": 4, "adam_iter": 5, "warmup": 0, "threads": 1, "use_flash": True}
    run = finetune(
        settings(
            base,
            tmp_path,
            **WHOLE,
            **how,
            model_base=base / "f32.gguf",
            model_out=tmp_path / "m.gguf",
        )
    )
    c = model.config
    sizes = {
        "embd": c.n_embd,
        "ff": c.n_ff,
        "head": c.n_head,
        "head_kv": c.n_head_kv,
        "layer": c.n_layer,
    }
    scratch = RunSettings(
        model_out=tmp_path / "p" / "m.gguf", vocab_model=base / "f32.gguf",
        adam_alpha=0.01, eval_every=3, **how, **sizes,
    )  # fmt: skip
    other = prepare(base / "text.txt", scratch)
    for name, weight in model.weights.items():
        other.model.weights[name].set(weight.numpy())
    assert run.train().history.losses == other.train().history.losses
    new, same = weights_of(tmp_path / "m.gguf"), weights_of(tmp_path / "p" / "m.gguf")
    assert all((new[name] == same[name]).all() for name in new)


def test_frozen_blocks_stay_as_they_are(base, tmp_path):
    out = tmp_path / "m.gguf"
    how = WHOLE | {"freeze": ("blk.[0-0].*", "token_embd.weight")}
    run = finetune(settings(base, tmp_path, **how, model_out=out))
    assert {name for name in run.whole if "blk.0." in name} == set()
    run.train()
    with GgufFile(base / "q8.gguf") as a, GgufFile(out) as b:
        same = {name for name in a.tensors if a.array(name).tobytes() == b.array(name).tobytes()}
    assert same == {name for name in run.model.weights if "blk.0." in name} | {"token_embd.weight"}


def test_another_type_is_written_where_it_is_asked_for(base, tmp_path):
    out = tmp_path / "m.gguf"
    run = finetune(settings(base, tmp_path, **WHOLE, model_out=out, model_out_type="F32"))
    run.train()
    new = weights_of(out)
    assert all((new[name] == w.numpy()).all() for name, w in run.whole.items())


def test_a_whole_model_goes_on_bit_for_bit(base, tmp_path):
    out, state = tmp_path / "m.gguf", tmp_path / "c.gguf"
    how = {**WHOLE, "freeze": ("blk.0.*",), "model_out": out, "model_out_type": "F16"}
    losses = finetune(settings(base, tmp_path, **how, adam_iter=7)).train().history.losses
    whole = out.read_bytes()
    finetune(settings(base, tmp_path, **how, adam_iter=3, checkpoint_out=state)).train()
    # All the rest is in the checkpoint.
    files = {"model_base": base / "q8.gguf", "train_data": base / "text.txt", "model_out": out}
    end = finetune(FinetuneSettings(**files, adam_iter=7, checkpoint_in=state))
    assert end.train().history.losses == losses
    assert out.read_bytes() == whole


def test_the_command_trains_writes_and_writes_again(base, tmp_path, capsys):
    files = [f"--model-base={base}/q8.gguf", f"--model-out={tmp_path}/m.gguf"]
    more = ["--lora-r=0", "--train-whole=*", "--ctx=16", "--batch=2", "-t=1", "--adam-iter=2"]
    state = f"{tmp_path}/c.gguf"
    data = f"--train-data={base}/text.txt"
    assert main(["finetune", *files, *more, data, f"--checkpoint-out={state}"]) == 0
    out = capsys.readouterr().out
    assert "trained parameters in 21 whole weights, context 16\n" in out
    assert f"  model       {tmp_path}/m.gguf\n" in out
    first = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").unlink()
    assert main(["finetune", *files, f"--checkpoint-in={state}", "--only-write-lora"]) == 0
    assert (tmp_path / "m.gguf").read_bytes() == first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_r": 0}, "lora_r: got 0 and no train_whole, want something to train"),
        (WHOLE, "train_whole: got no model_out"),
        ({**WHOLE, "model_out": "m.gguf", "freeze": ("*",)}, "match all of train_whole"),
        (
            {**WHOLE, "model_out": "m.gguf", "freeze": ("none",)},
            "freeze: got 'none', want a pattern",
        ),
        ({**WHOLE, "model_out": "m.gguf", "model_out_type": "Q9"}, "Q9"),
        ({**WHOLE, "model_out": "q8.gguf"}, "model_out: got .*, which is model_base, too"),
    ],
)
def test_what_cannot_be_is_refused(base, tmp_path, changes, words):
    if "model_out" in changes:
        folder = base if changes["model_out"] == "q8.gguf" else tmp_path
        changes = {**changes, "model_out": folder / changes["model_out"]}
    with pytest.raises(SettingError, match=words):
        finetune(settings(base, tmp_path, **changes))


def test_factors_of_angles_are_not_trained(tmp_path):
    vocabulary = Vocabulary.train(TEXT, 288)
    sizes = {"n_ctx": 32, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_mult": 32}
    model = Llama(LlamaConfig(n_vocab=len(vocabulary), **sizes)).init(seed=3)
    save_llama(tmp_path / "base.gguf", model, vocabulary)
    from yupana.train.opened import names_of_whole

    asked = FinetuneSettings(model_base=tmp_path / "base.gguf", train_whole=("*",))
    assert names_of_whole(asked, ["rope_freqs.weight", "output.weight"]) == ["output.weight"]


def test_a_context_longer_than_the_models_own_is_said_in_one_line(base, tmp_path, capsys):
    files = [f"--model-base={base}/q8.gguf", f"--lora-out={tmp_path}/a.gguf"]
    more = [f"--train-data={base}/text.txt", "--batch=1", "-t=1", "--adam-iter=1"]
    said = "the context of 48 is longer than the 32 tokens that the model says it was made for"
    for ctx, lines in ((48, 1), (32, 0)):
        assert main(["finetune", *files, *more, f"--ctx={ctx}"]) == 0
        assert sum(said in line for line in capsys.readouterr().out.splitlines()) == lines
