"""Runs that go on keep the settings that training depends on; what says how long they are."""

import json
from dataclasses import fields, replace

import pytest

from tests.small_runs import HOW, SIZES, TEXT, flags_of, settings
from yupana.cli import main
from yupana.graphlib.errors import SettingError
from yupana.models.formats import GgufFile, write_gguf
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama
from yupana.models.vocabulary import Vocabulary
from yupana.train.checkpoint import MODEL, Checkpoint
from yupana.train.course import COURSE, PREFIX, stored_course
from yupana.train.finetune import finetune
from yupana.train.given import Given
from yupana.train.pretrain import prepare
from yupana.train.settings import FinetuneSettings, RunSettings, TrainSettings

FIRST = {
    "adam_alpha": 1e-2, "warmup": 5, "batch": 4, "adam_beta2": 0.95, "adam_decay": 0.0,
    "adam_iter": 10, "cos_decay_steps": 7, "seed": 5, "eval_every": 4, "validation": 0.2,
}  # fmt: skip
# Of all that trains, these have no say in what is learned: where files go, what is shown, how it is
# computed.
NO_COURSE = {
    "log_out", "curve_out", "tensorboard", "checkpoint_in", "checkpoint_out", "pattern_fn_it",
    "fn_latest", "keep_checkpoints", "save_every", "checkpointing", "memory_budget", "threads",
    "force_reshuffle", "time_limit", "generate_every", "generate_prompt", "generate_tokens",
}  # fmt: skip


def log_of(path):
    lines = map(json.loads, path.read_text().splitlines())
    return {line["step"]: line for line in lines if "loss" in line}


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def pretrain(text, *more, **values):
    files = [f"--train-data={text}", f"--model-out={text.parent}/m.gguf"]
    return main(["pretrain", *files, *flags_of(values), *more])


def test_every_setting_is_kept_or_has_no_say():
    names = {f.name for f in fields(TrainSettings)}
    assert names == (set(COURSE) | NO_COURSE) - {"chat_template", "model_out_type"}
    assert not set(COURSE) & NO_COURSE


def test_a_run_that_goes_on_keeps_what_is_not_given(text, capsys):
    state = f"--checkpoint-out={text.parent}/c.gguf"
    whole = SIZES | HOW | FIRST | {"adam_iter": 14}
    assert pretrain(text, **whole) == 0
    wanted = log_of(text.with_name("m.jsonl"))
    assert pretrain(text, state, **SIZES | HOW | FIRST) == 0
    capsys.readouterr()
    start = f"--checkpoint-in={text.parent}/c.gguf"
    assert pretrain(text, start, "--adam-iter=14", "--threads=1") == 0
    got = log_of(text.with_name("m.jsonl"))
    assert len(got) == 14
    assert {s: (e["rate"], e["loss"]) for s, e in got.items()} == {
        s: (e["rate"], e["loss"]) for s, e in wanted.items()
    }
    out = capsys.readouterr().out
    (kept,) = [line for line in out.splitlines() if "goes on with" in line]
    assert "adam_alpha 0.01, " in kept
    assert "batch 4, " in kept
    assert "adam_iter" not in kept
    assert "adam_iter 10 in the checkpoint, 14 now\n" in out


def test_what_is_given_counts_and_is_said_even_if_it_is_the_default(text, capsys):
    state = f"--checkpoint-out={text.parent}/c.gguf"
    assert pretrain(text, state, **SIZES | HOW | FIRST) == 0
    start = f"--checkpoint-in={text.parent}/c.gguf"
    given = ["--adam_alpha", "1e-3", "-b4", "--adam-iter=12", "--embd=32", "-t=1"]
    capsys.readouterr()
    assert pretrain(text, start, *given) == 0
    entries = log_of(text.with_name("m.jsonl"))
    assert entries[11]["rate"] == pytest.approx(0.1 * entries[10]["rate"], rel=0.5)
    out = capsys.readouterr().out
    (changed,) = [line for line in out.splitlines() if " now" in line]
    assert "adam_alpha 0.01 in the checkpoint, 0.001 now" in changed
    assert "adam_iter 10 in the checkpoint, 12 now" in changed
    assert "the model keeps its sizes when it goes on: embd 16, not 32\n" in out
    assert "batch 4 in" not in out  # the same as before


def test_settings_of_python_know_what_was_given(tmp_path):
    state = tmp_path / "c.gguf"
    prepare(TEXT, settings(tmp_path, **FIRST, checkpoint_out=state)).train()
    out = {"model_out": tmp_path / "m.gguf", "checkpoint_in": state}
    later = prepare(TEXT, RunSettings(**out)).settings
    assert {name: getattr(later, name) for name in FIRST} == FIRST
    assert (later.ctx, later.embd) == (8, 16)
    given = prepare(TEXT, RunSettings(**out, adam_alpha=1e-3, seed=6)).settings
    assert (given.adam_alpha, given.seed, given.warmup) == (1e-3, 6, 5)
    every = prepare(TEXT, replace(RunSettings(**out), ctx=8, validation=0.2)).settings
    assert every.adam_alpha == RunSettings.adam_alpha  # replace gives all


def test_another_seed_takes_another_order(tmp_path):
    state = tmp_path / "c.gguf"
    prepare(TEXT, settings(tmp_path, **FIRST, checkpoint_out=state)).train()
    out = {"model_out": tmp_path / "m.gguf", "checkpoint_in": state}
    seeds = [
        prepare(TEXT, RunSettings(**out, **s)).loop.batches.seed
        for s in ({}, {"seed": -1}, {"seed": 6})
    ]
    assert seeds == [5, 5, 6]


def test_settings_that_do_not_go_together_are_refused_when_both_are_known(tmp_path):
    state = tmp_path / "c.gguf"
    prepare(TEXT, settings(tmp_path, **FIRST, adam_min_alpha=5e-3, checkpoint_out=state)).train()
    out = {"model_out": tmp_path / "m.gguf", "checkpoint_in": state}
    assert prepare(TEXT, RunSettings(**out, adam_min_alpha=6e-3)).settings.adam_alpha == 1e-2
    with pytest.raises(SettingError, match="adam_min_alpha"):
        prepare(TEXT, RunSettings(**out, adam_alpha=1e-3))


def test_an_adapter_goes_on_with_its_settings(tmp_path):
    vocabulary = Vocabulary.from_bytes()
    sizes = {"n_ctx": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_ff": 24}
    model = Llama(LlamaConfig(n_vocab=len(vocabulary), **sizes)).init(seed=3)
    save_llama(tmp_path / "base.gguf", model, vocabulary)
    (tmp_path / "text.txt").write_text(TEXT)
    files = {"model_base": tmp_path / "base.gguf", "train_data": tmp_path / "text.txt"}
    state = tmp_path / "c.gguf"
    how = FIRST | {"ctx": 16, "threads": 1, "lora_r": 3, "lora_dropout": 0.2, "use_rslora": True}
    how |= {"target_modules": ("q_proj",), "grad_acc": 2, "param_group": ("*.lora_b=0.5",)}
    whole = finetune(
        FinetuneSettings(**files, **how | {"adam_iter": 12}, lora_out=tmp_path / "a.gguf")
    )
    losses = whole.train().history.losses
    out = {"lora_out": tmp_path / "b.gguf", "checkpoint_out": state}
    finetune(FinetuneSettings(**files, **how, **out)).train()
    late = FinetuneSettings(
        **files, lora_out=tmp_path / "b.gguf", checkpoint_in=state, adam_iter=12
    )
    assert finetune(late).train().history.losses == losses
    with pytest.raises(SettingError, match="lora_r: got 4, want 3"):
        finetune(FinetuneSettings(**files, checkpoint_in=state, lora_r=4))


def test_inspect_shows_the_settings(tmp_path, capsys):
    state = tmp_path / "c.gguf"
    prepare(TEXT, settings(tmp_path, adam_iter=1, adam_alpha=0.07, checkpoint_out=state)).train()
    assert main(["inspect", str(state)]) == 0
    shown = dict(
        line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if "  " in line
    )
    assert shown[f"{PREFIX}adam_alpha"].strip() == "0.07"
    assert shown[f"{PREFIX}batch"].strip() == "2"


def test_checkpoints_without_settings_take_those_given(tmp_path):
    state = tmp_path / "c.gguf"
    prepare(TEXT, settings(tmp_path, adam_iter=1, adam_alpha=0.07, checkpoint_out=state)).train()
    with GgufFile(state) as file:
        old = {k: v for k, v in file.metadata.items() if not k.startswith(PREFIX)}
        tensors = {name: file.array(name).copy() for name in file.tensors}
    write_gguf(state, old, tensors)
    assert stored_course(Checkpoint(state, MODEL).file.metadata) == {}
    out = {"model_out": tmp_path / "m.gguf", "checkpoint_in": state}
    assert prepare(TEXT, RunSettings(**out)).settings.adam_alpha == RunSettings.adam_alpha


def test_settings_of_another_kind_are_refused(tmp_path, capsys, text):
    state = tmp_path / "c.gguf"
    prepare(TEXT, settings(tmp_path, adam_iter=1, checkpoint_out=state)).train()
    with GgufFile(state) as file:
        entries = dict(file.metadata.items()) | {f"{PREFIX}warmup": "soon"}
        tensors = {name: file.array(name).copy() for name in file.tensors}
    write_gguf(state, entries, tensors)
    assert pretrain(text, f"--checkpoint-in={state}") == 1
    error = capsys.readouterr().err
    assert "value of 'training.settings.warmup' at byte" in error
    assert "has the wrong type: got str 'soon'" in error


def test_given_belongs_to_no_class_of_its_own():
    assert not hasattr(Given, "__dataclass_fields__")
    assert RunSettings(seed=3) == RunSettings(seed=3, batch=8)
    assert RunSettings(seed=3).seeded().given == {"seed"}


def test_epochs_alone_say_how_long_a_run_is(text, capsys):
    how = {name: value for name, value in (SIZES | HOW).items() if name != "adam_iter"}
    assert pretrain(text, "--epochs=2", "--ctx=4", **how | {"ctx": 4}) == 0
    out = capsys.readouterr().out
    entries = log_of(text.with_name("m.jsonl"))
    assert max(entries) > 256  # ggml's default ended it there
    assert entries[max(entries)]["epoch"] == pytest.approx(2, abs=0.01)
    assert "ended after the last step: epochs 2\n" in out
    assert f"{max(entries)} steps in" in out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"adam_iter": 3}, "adam_iter 3"),
        ({"adam_iter": 3, "epochs": 1}, "adam_iter 3, which comes before epochs 1"),
        ({"adam_iter": 9999, "epochs": 1}, "epochs 1, which come before adam_iter 9999"),
        ({}, "256 steps by default"),
    ],
)
def test_the_rule_that_ends_a_run_is_known(tmp_path, given, said):
    usual = {name: value for name, value in (SIZES | HOW).items() if name != "adam_iter"}
    run = prepare(TEXT, RunSettings(model_out=tmp_path / "m.gguf", **usual, **given))
    assert run.limit == said
    assert run.record()["limit"] == said


def test_validation_takes_as_many_batches_as_it_is_told(tmp_path):
    def n_batches(**more):
        return len(prepare(TEXT, settings(tmp_path, **more)).loop.evaluation.batches)

    assert n_batches() == 8
    assert n_batches(validation_batches=3) == 3
    rows = prepare(TEXT, settings(tmp_path)).data.validation
    assert n_batches(validation_batches=0) == rows.n_per_epoch // 2 > 8
    with pytest.raises(SettingError, match="validation_batches"):
        prepare(TEXT, settings(tmp_path, validation_batches=-1))


def test_who_gives_epochs_does_not_want_the_steps_of_the_checkpoint(tmp_path):
    state = tmp_path / "c.gguf"
    prepare(TEXT, settings(tmp_path, **FIRST, checkpoint_out=state)).train()
    out = {"model_out": tmp_path / "m.gguf", "checkpoint_in": state}
    assert prepare(TEXT, RunSettings(**out)).limit == "adam_iter 10"
    assert prepare(TEXT, RunSettings(**out, epochs=2)).limit == "epochs 2"
    prepare(
        TEXT, settings(tmp_path, **FIRST | {"adam_iter": None, "epochs": 1}, checkpoint_out=state)
    ).train()
    assert prepare(TEXT, RunSettings(**out)).limit == "epochs 1"
    assert prepare(TEXT, RunSettings(**out, adam_iter=99)).limit == "adam_iter 99"
