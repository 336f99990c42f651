"""`yupana finetune`: an adapter learns, is written, resumed, merged; what bad input gets."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import call
from yupana.cli import main
from yupana.graphlib.errors import DataError, SettingError, YupanaError
from yupana.models.adapter_files import load_adapter
from yupana.models.formats import GgufFile, write_gguf
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama
from yupana.models.loading import load_model
from yupana.models.quantize import quantize_model
from yupana.models.vocabulary import Vocabulary
from yupana.train.finetune import finetune
from yupana.train.settings import FinetuneSettings

TEXT = "the llama eats grass and the condor flies over the mountains; " * 40


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model that knows nothing, in Q8_0."""
    folder = tmp_path_factory.mktemp("base")
    sizes = {"n_ctx": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_head_kv": 2, "n_mult": 32}
    vocabulary = Vocabulary.train(TEXT, 288)
    model = Llama(LlamaConfig(n_vocab=len(vocabulary), **sizes)).init(seed=3)
    save_llama(folder / "f32.gguf", model, vocabulary)
    quantize_model(folder / "f32.gguf", folder / "q8.gguf", "Q8_0")
    (folder / "text.txt").write_text(TEXT)
    return folder


def settings(base: Path, folder: Path, **changes):
    usual = {
        "model_base": base / "q8.gguf",
        "train_data": base / "text.txt",
        "lora_out": folder / "a.gguf",
        "ctx": 16,
        "batch": 4,
        "adam_iter": 6,
        "adam_alpha": 0.01,
        "warmup": 0,
        "eval_every": 3,
        "threads": 1,
    }
    return FinetuneSettings(**{**usual, **changes})


def test_an_adapter_learns_and_does_in_use_what_it_did_in_training(base, tmp_path):
    before = (base / "q8.gguf").read_bytes()
    run = finetune(settings(base, tmp_path, adam_iter=40, lora_r=8))
    outcome = run.train()
    losses = [loss for _, loss in outcome.history.losses]
    assert losses[-1] < losses[0] - 1.0
    assert outcome.history.validation[-1][1] < losses[0] - 1.0
    assert (base / "q8.gguf").read_bytes() == before
    model = load_model(base / "q8.gguf", rounds=False)
    tokens = model.context.tensor(np.arange(12)[None])
    want = run.model.logits(tokens).numpy()
    assert np.abs(model.logits(tokens).numpy() - want).max() > 0.1
    model.attach(load_adapter(tmp_path / "a.gguf"))
    np.testing.assert_allclose(model.logits(tokens).numpy(), want, rtol=1e-4, atol=1e-4)
    assert {p.name for p in tmp_path.iterdir()} == {
        "a.gguf", "a-best.gguf", "a.svg", "a.jsonl"
    }  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"lora_dropout": 0.2, "grad_acc": 2}, {"use_dora": True}])
def test_a_resumed_run_gives_the_same_bits(base, tmp_path, changes):
    suffix = "" if changes.get("use_dora") else ".gguf"
    whole = settings(base, tmp_path, lora_out=tmp_path / f"whole{suffix}", **changes)
    losses = finetune(whole).train().history.losses
    parts = tmp_path / f"parts{suffix}"
    state = tmp_path / "state.gguf"
    finetune(
        settings(base, tmp_path, lora_out=parts, adam_iter=4, checkpoint_out=state, **changes)
    ).train()
    rest = settings(base, tmp_path, lora_out=parts, checkpoint_in=state, **changes)
    assert finetune(rest).train().history.losses == losses
    one, other = (load_adapter(tmp_path / n, run_sizes(base)) for n in (f"whole{suffix}", parts))
    for name, (a, b) in one.pairs.items():
        np.testing.assert_array_equal(other.pairs[name][0], a)
        np.testing.assert_array_equal(other.pairs[name][1], b)


def test_a_checkpoint_is_written_as_an_adapter_without_training(base, tmp_path, capsys):
    state, out = tmp_path / "state-ITERATION.gguf", tmp_path / "only-ITERATION.gguf"
    finetune(settings(base, tmp_path, checkpoint_out=state, adam_iter=3)).train()
    arguments = f"""finetune --model-base {base}/q8.gguf --checkpoint-in
        {tmp_path}/state-3.gguf --lora-out {out} --only-write-lora --ctx 16"""
    assert main(arguments.split()) == 0
    assert "only-3.gguf" in capsys.readouterr().out
    want, got = (load_adapter(tmp_path / name) for name in ("a.gguf", "only-3.gguf"))
    for name, (a, b) in want.pairs.items():
        np.testing.assert_array_equal(got.pairs[name][0], a)
        np.testing.assert_array_equal(got.pairs[name][1], b)
    assert main(["finetune", "--model-base", f"{base}/q8.gguf", "--only-write-lora"]) == 2
    assert "no checkpoint_in" in capsys.readouterr().err
    assert main(["finetune", "--model-base", f"{base}/q8.gguf"]) == 2
    assert "Pass --train-data FILE" in capsys.readouterr().err


def test_a_seed_below_0_is_another_each_time(base, tmp_path):
    state = tmp_path / "state.gguf"
    runs = [finetune(settings(base, tmp_path, seed=-1, checkpoint_out=state)) for _ in range(2)]
    firsts = [next(iter(run.adapter.parameters.values())).numpy() for run in runs]
    assert not np.array_equal(*firsts)
    seed = runs[1].settings.seed
    again = finetune(settings(base, tmp_path, seed=seed)).train().history.losses
    assert runs[1].train().history.losses == again
    more = finetune(settings(base, tmp_path, seed=-1, checkpoint_in=state, adam_iter=8))
    assert more.loop.batches.seed == seed  # a run that goes on keeps the order of its data


def test_what_the_base_says_of_itself_can_be_overridden(base, tmp_path):
    usual = finetune(settings(base, tmp_path))
    other = finetune(settings(base, tmp_path, rope_freq_scale=0.5, norm_rms_eps=1e-3))
    assert (other.model.config.rope_scale, other.model.config.rms_eps) == (0.5, 1e-3)
    assert other.model.config.rope_base == usual.model.config.rope_base
    state = tmp_path / "state.gguf"
    finetune(settings(base, tmp_path, checkpoint_out=state, adam_iter=1)).train()
    with pytest.raises(SettingError, match=r"rope_freq_base: got 5\.0, want what the model says"):
        finetune(settings(base, tmp_path, checkpoint_in=state, rope_freq_base=5.0))


def test_what_was_overridden_stays_so_when_a_run_goes_on(base, tmp_path):
    given = {"rope_freq_scale": 0.5, "rope_freq_base": 500.0, "norm_rms_eps": 1e-3}
    losses = finetune(settings(base, tmp_path, **given)).train().history.losses
    state, out = tmp_path / "state.gguf", tmp_path / "m.gguf"
    finetune(settings(base, tmp_path, checkpoint_out=state, adam_iter=4, **given)).train()
    rest = finetune(settings(base, tmp_path, checkpoint_in=state, model_out=out))
    assert rest.settings.rope_freq_scale == 0.5
    assert rest.train().history.losses == losses
    for name, value in given.items():  # the same again is fine, another is not
        finetune(settings(base, tmp_path, checkpoint_in=state, **{name: value}))
        with pytest.raises(SettingError, match=f"{name}: got .*, want {value!r} as in the che"):
            finetune(settings(base, tmp_path, checkpoint_in=state, **{name: 2 * value}))
    merged = load_model(out, rounds=False)
    assert merged.config.rope_scale == 0.5
    assert merged.config.rope_base == 500.0
    assert merged.config.rms_eps == pytest.approx(1e-3)
    tokens = merged.context.tensor(np.arange(12)[None])
    np.testing.assert_allclose(
        merged.logits(tokens).numpy(), rest.model.logits(tokens).numpy(), atol=0.05
    )
    usual = load_model(base / "q8.gguf").config
    assert merged.config.n_ctx == usual.n_ctx


def run_sizes(base):
    return load_model(base / "q8.gguf").sizes


def test_packed_samples_and_answers_only(base, tmp_path):
    lines = [{"prompt": "the llama ", "completion": "eats grass"}] * 8
    lines += [{"prompt": "the condor ", "completion": "flies"}] * 8
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    run = finetune(
        settings(base, tmp_path, train_data=path, fill_with_next_samples=True, ctx=32, batch=1)
    )
    assert len(run.step.inputs) == 4
    history = run.train().history
    assert history.losses[-1][1] < history.losses[0][1]


@pytest.mark.parametrize("name", ["a.gguf", "a.bin", "a"])
def test_every_format_is_written_and_read(base, tmp_path, name):
    run = finetune(settings(base, tmp_path, lora_out=tmp_path / name, adam_iter=2))
    run.train()
    read, learned = load_adapter(tmp_path / name, run.model.sizes), run.adapter.adapter("learned")
    for weight, (a, b) in learned.pairs.items():
        want = learned.scale_of(weight) * (b @ a)
        a, b = read.pairs[weight]
        np.testing.assert_allclose(read.scale_of(weight) * (b @ a), want, rtol=1e-5, atol=1e-7)


def test_whole_weights_and_the_merged_model(base, tmp_path):
    out = tmp_path / "m.gguf"
    run = finetune(settings(base, tmp_path, train_whole=("*_norm.weight",), model_out=out))
    run.train()
    merged = load_model(out, rounds=False)
    old, new = load_model(base / "q8.gguf").weights, merged.weights
    assert {n for n in new if new[n].dtype != old[n].dtype} == set()
    assert (new["output_norm.weight"].numpy() != old["output_norm.weight"].numpy()).any()
    tokens = merged.context.tensor(np.arange(12)[None])
    want = run.model.logits(tokens).numpy()
    np.testing.assert_allclose(merged.logits(tokens).numpy(), want, atol=0.05)  # Q8_0 again


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "want a folder of PEFT"),
        ({"rank_att_norm": 1, "lora_out": "peft"}, "PEFT has no pairs of norms"),
        ({"train_whole": ("*norm*",)}, "got no model_out"),
        ({"train_whole": ("nothing",), "model_out": "m.gguf"}, "a pattern that matches"),
        ({"target_modules": ("c_attn",)}, "nothing to adapt"),
        ({"ctx": 100_000}, "context is longer than the data"),
        ({"batch": 0}, "batch is out of range"),
        ({"lora_r": -1}, "lora_r is out of range: got -1"),
        ({"seed": -5}, "seed is out of range: got -5, want at least 0, or -1 for any"),
        ({"adam_alpha": -1.0}, "alpha is out of range: got -1"),
        ({"patience": 2, "validation": 0.0}, "patience: got 2 looks at the validation loss with"),
        ({"param_group": ("blk.7.*=0.1",)}, "got 'blk.7.*', want a pattern that matches one of"),
        ({"param_group": ("*=0.1",), "optimizer": "lbfgs"}, "got it with optimizer lbfgs"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(base, tmp_path, changes, words):
    for name in ("lora_out", "model_out"):
        if name in changes:
            changes = {**changes, name: tmp_path / changes[name]}
    with pytest.raises(YupanaError, match=words):
        finetune(settings(base, tmp_path, **changes))
    assert not [*tmp_path.iterdir()]


def test_an_embedding_that_is_the_output_too_is_left_alone(base, tmp_path):
    sizes = {"n_ctx": 32, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_mult": 32}
    vocabulary = Vocabulary.train(TEXT, 288)
    tied = Llama(LlamaConfig(n_vocab=len(vocabulary), tied=True, **sizes)).init(seed=3)
    save_llama(tmp_path / "tied.gguf", tied, vocabulary)
    usual = {"model_base": tmp_path / "tied.gguf"}
    run = finetune(settings(base, tmp_path, **usual))
    assert "token_embd.weight" not in run.adapter.pairs
    assert "token_embd.weight" in finetune(settings(base, tmp_path)).adapter.pairs
    for asked in ({"rank_tok_embd": 2}, {"target_modules": ("embed_tokens", "q_proj")}):
        with pytest.raises(SettingError, match="the output of this model uses the same matrix"):
            finetune(settings(base, tmp_path, **usual, **asked))
    ggla = settings(base, tmp_path, **usual, lora_out=tmp_path / "a.bin")
    assert "token_embd.weight" in finetune(ggla).adapter.pairs


def test_a_checkpoint_wants_its_base_and_its_settings(base, tmp_path):
    state = tmp_path / "state.gguf"
    finetune(settings(base, tmp_path, adam_iter=1, checkpoint_out=state)).train()
    with pytest.raises(SettingError, match=r"lora_r: got 8, want 4"):
        finetune(settings(base, tmp_path, checkpoint_in=state, lora_r=8))
    with pytest.raises(DataError, match="made with another base"):
        finetune(settings(base, tmp_path, checkpoint_in=state, model_base=base / "f32.gguf"))
    other = tmp_path / "other.txt"
    other.write_text(TEXT[:-9])
    with pytest.raises(DataError, match="made with other training data"):
        finetune(settings(base, tmp_path, checkpoint_in=state, train_data=other))


def test_a_base_in_several_files(base, tmp_path):
    with GgufFile(base / "q8.gguf") as file:
        tensors = {n: (i.type, i.shape, np.array(i.raw)) for n, i in file.tensors.items()}
        names, metadata = [*tensors], {**file.metadata.typed()}
    for number, some in enumerate((names[:5], names[5:])):
        entries = (metadata if number == 0 else {}) | {
            "split.no": np.uint16(number),
            "split.count": np.uint16(2),
            "split.tensors.count": np.int32(len(names)),
        }
        path = tmp_path / f"base-{number + 1:05}-of-00002.gguf"
        write_gguf(path, entries, {name: tensors[name] for name in some})
    split = {"model_base": tmp_path / "base-00001-of-00002.gguf", "adam_iter": 2}
    state, out = tmp_path / "state.gguf", tmp_path / "m.gguf"
    one = finetune(settings(base, tmp_path, adam_iter=2)).train().history.losses
    run = finetune(settings(base, tmp_path, **split, checkpoint_out=state, model_out=out))
    assert run.train().history.losses == one
    with GgufFile(out) as merged:
        assert [*merged.tensors] == names
    with path.open("r+b") as second:  # one bit of the last weight
        second.seek(-40, 2)
        byte = second.read(1)
        second.seek(-40, 2)
        second.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DataError, match="made with another base"):
        finetune(settings(base, tmp_path, **split, checkpoint_in=state))


def test_adapters_and_checkpoints_are_no_bases(base, tmp_path):
    state = tmp_path / "state.gguf"
    finetune(settings(base, tmp_path, adam_iter=1, checkpoint_out=state)).train()
    for file, kind in (("a.gguf", "adapter"), ("state.gguf", "checkpoint of an adapter")):
        other = settings(base, tmp_path, model_base=tmp_path / file, lora_out=tmp_path / "b.gguf")
        with pytest.raises(SettingError, match=f"got a file of type '{kind}', want the model"):
            finetune(other)


@pytest.mark.parametrize("program", ["finetune", "cost"])
@pytest.mark.parametrize("architecture", ["starcoder", "gemma"])
def test_other_architectures_are_told_apart(tmp_path, capsys, program, architecture):
    write_gguf(tmp_path / "m.gguf", {"general.architecture": architecture}, {})
    (tmp_path / "d.txt").write_text("a llama")
    flags = {
        "finetune": ["--model-base", tmp_path / "m.gguf", "--train-data", tmp_path / "d.txt"],
        "cost": ["--model", tmp_path / "m.gguf", "--lora-r", 4],
    }
    code, _, err = call(capsys, program, *flags[program])
    assert code == 2
    told = (
        f"m.gguf: this architecture cannot be adapted: got {architecture!r}, want one of 'llama',"
    )
    assert told in err


def test_a_line_that_is_no_json_is_named(base, tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "the llama"}\n{"text": \n')
    with pytest.raises(DataError, match=r"line 2: not JSON"):
        finetune(settings(base, tmp_path, train_data=path))


def test_the_command(base, tmp_path, capsys):
    arguments = ["finetune", "--model-base", str(base / "q8.gguf"), "--adam-iter", "2"]
    arguments += ["--train-data", str(base / "text.txt"), "--ctx", "16", "--batch", "2"]
    assert main([*arguments, "--lora-out", str(tmp_path / "a.gguf"), "--rank-wq", "2"]) == 0
    assert "adapter" in capsys.readouterr().out
    assert load_adapter(tmp_path / "a.gguf").rank_of("blk.0.attn_q.weight") == 2
    more = ["--rank-att-norm", "1", "--rope-freq-scale", "0.5"]
    assert main([*arguments, "--lora-out", str(tmp_path / "a.gguf"), *more]) == 0
    said = capsys.readouterr().out
    assert "pairs beside norms: llama.cpp reads them" in said
    assert "trained with rope_freq_scale 0.5 in place of what the base says" in said
    arguments[2] = str(tmp_path / "missing.gguf")
    assert main(arguments) == 1
    assert "missing.gguf: No such file" in capsys.readouterr().err
