"""`yupana cost`: the bills it prints are those of the runs it is asked about."""

import json

import pytest

from yupana.cli import main
from yupana.commands import cost
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama
from yupana.models.quantize import quantize_model
from yupana.models.vocabulary import Vocabulary
from yupana.train.finetune import finetune
from yupana.train.settings import FinetuneSettings

TEXT = "the quick brown fox jumps over the lazy dog. " * 540


@pytest.fixture
def file(tmp_path):
    """A quantised model of a file, of a context of 64."""
    sizes = {"n_ctx": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_mult": 32}
    vocabulary = Vocabulary.from_bytes()
    model = Llama(LlamaConfig(n_vocab=len(vocabulary), **sizes)).init(seed=3)
    save_llama(tmp_path / "f32.gguf", model, vocabulary)
    quantize_model(tmp_path / "f32.gguf", tmp_path / "q8.gguf", "Q8_0")
    return tmp_path / "q8.gguf"


@pytest.mark.parametrize(
    "how",
    [
        {"lora_r": 8, "target_modules": ("q_proj", "v_proj")},
        {"lora_r": 3, "batch": 2, "ctx": 32, "grad_acc": 3, "optimizer": "sgd"},
        {"lora_r": 2, "train_whole": ("*_norm.weight",), "ctx": 16},
        {"lora_r": 0, "train_whole": ("*",), "freeze": ("blk.0.*",), "ctx": 16},
        {"lora_r": 0, "rank_wq": 4, "ctx": 16, "use_flash": False, "optimizer": "lbfgs"},
    ],
)
@pytest.mark.parametrize("way", ["all kept", "checkpointing"])
def test_cost_of_an_adapter_is_the_bill_of_its_run(file, how, way):
    (file.parent / "t.txt").write_text(TEXT)
    before = file.read_bytes()
    costs = cost.costs_of(cost.Settings(model=file, threads=1, **how))
    files = {"model_base": file, "train_data": file.parent / "t.txt"}
    files |= {"lora_out": file.parent / "a.gguf", "model_out": file.parent / "m.gguf"}
    word = {"all kept": "none", "checkpointing": "sqrt"}[way]
    run = finetune(FinetuneSettings(**files, **how, threads=1, adam_iter=1, checkpointing=word))
    got, want = costs.bills[way], run.bill
    assert (got.by_class, got.total, got.peak) == (want.by_class, want.total, want.peak)
    assert (got.flops, got.seconds) == pytest.approx((want.flops, want.seconds))
    assert costs.n_trained == sum(p.size for p in run.step.params)
    assert got.by_class["mapped file"] > 0
    assert file.read_bytes() == before
    assert not (file.parent / "a.gguf").exists()


def test_cost_on_the_command_line_tells_of_adapter_and_mapped_file(file, capsys):
    lora = ["--lora-r=8", "--target-modules", "q_proj", "v_proj", "-t=1"]
    assert main(["cost", f"--model={file}", *lora]) == 0
    out = capsys.readouterr().out
    assert f"{2 * 2 * 8 * 64:,} trained" in out
    assert "of 128 tokens" in out  # finetune's default
    assert [line.split()[0] for line in out.splitlines() if "file" in line] == ["mapped"]
    assert "\nadapter " in out


def test_cost_takes_the_context_that_is_given(file, capsys):
    def ctx(*more):
        assert main(["cost", f"--model={file}", "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)["ctx"]

    assert ctx() == 64
    assert ctx("--ctx=16") == 16
    assert ctx("-c", "128") == 128  # the default, but given
    assert main(["cost", f"--model={file}", "--embd=64"]) == 2
    assert "embd: got it with model" in capsys.readouterr().err
    assert main(["cost", "--lora-r=4"]) == 2
    assert "cost: model: got none" in capsys.readouterr().err
