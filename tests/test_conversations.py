"""Lines of chat in both programs that train, and what the models written know of their template."""

import json

import numpy as np
import pytest

from tests.small_runs import SIZES, flags_of
from yupana.cli import main
from yupana.graphlib.errors import SettingError
from yupana.models.chat_template import CHATML
from yupana.models.formats import GgufFile
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama
from yupana.models.vocabulary import Vocabulary
from yupana.train.finetune import finetune
from yupana.train.pretrain import prepare, write_model
from yupana.train.settings import FinetuneSettings, RunSettings

JINJA = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
JINJA += "{% if add_generation_prompt %}<assistant>{% endif %}"
LONG = "{# what chat models want is often longer than a line of the terminal #}" + JINJA
KEY = "tokenizer.chat_template"
SIZE = SIZES | {"ctx": 128, "adam_iter": 2, "warmup": 0}


@pytest.fixture
def talks(tmp_path):
    talk = [[("user", f"what is {k}?"), ("assistant", f"{k} is {k}")] for k in range(20)]
    lines = [{"messages": [{"role": r, "content": c} for r, c in turns]} for turns in talk]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "talks.jsonl"


@pytest.fixture
def base(tmp_path):
    vocabulary = Vocabulary.from_bytes()
    sizes = {"n_ctx": 128, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_ff": 24}
    model = Llama(LlamaConfig(n_vocab=len(vocabulary), **sizes)).init(seed=3)
    save_llama(tmp_path / "base.gguf", model, vocabulary)
    return tmp_path / "base.gguf"


def template_of(path):
    with GgufFile(path) as file:
        return file.metadata.get(KEY)


def text_learned(run):
    """The first sample, and what of it is learned."""
    ids = run.data.training.segments(0)[0]
    words = run.vocabulary if hasattr(run, "vocabulary") else run.tokenizer
    plain = np.where(ids < 0, ~ids, ids).tolist()
    return words.decode(plain), words.decode(ids[ids >= 0].tolist())


@pytest.mark.parametrize(("given", "source"), [("chatml", CHATML), (JINJA, JINJA)])
@pytest.mark.parametrize("vocab", ["bytes", "characters", "bpe"])
def test_pretraining_takes_a_template_and_the_model_has_it(talks, given, source, vocab):
    out = talks.with_name("m.gguf")
    how = {"chat_template": given, "model_out": out, "vocab": vocab, "n_vocab": 280}
    run = prepare(talks, RunSettings(**how, **SIZE))
    whole, learned = text_learned(run)
    assert whole.startswith(("<|im_start|>user\nwhat is 0", "<user>what is 0"))
    assert learned.rstrip("\n").removesuffix("<|im_end|>") == "0 is 0"
    ids = run.data.training.segments(0)[0]
    assert ids[-1] == run.vocabulary.end  # no token of its own ends the turn
    run.train()
    assert template_of(out) == source


def test_the_command_goes_on_with_the_template(talks, capsys):
    folder = talks.parent
    files = [f"--train-data={talks}", f"--model-out={folder}/m.gguf", *flags_of(SIZE)]
    first = ["--vocab=bytes", f"--checkpoint-out={folder}/c.gguf", "--chat-template=chatml"]
    assert main(["pretrain", *files, *first]) == 0
    more = [f"--checkpoint-in={folder}/c.gguf", "--adam-iter=4"]
    assert main(["pretrain", *files, *more]) == 0
    assert "4 steps in" in capsys.readouterr().out
    assert template_of(folder / "m.gguf") == CHATML


def test_a_template_in_a_file_is_kept_without_the_file(talks, base, capsys):
    folder, file = talks.parent, talks.with_name("t.jinja")
    file.write_text(LONG + "\n")
    read = [f"--train-data={talks}", f"--chat-template-file={file}"]
    wrote = [f"--model-out={folder}/m.gguf", f"--checkpoint-out={folder}/c.gguf"]
    for program, more in (
        ("pretrain", ["--vocab=bytes", *flags_of(SIZE)]),
        ("finetune", [f"--model-base={base}", f"--lora-out={folder}/a.gguf", "--ctx=128", "-t=1"]),
    ):
        file.write_text(LONG + "\n")
        assert main([program, *read, *wrote, *more, "--adam-iter=2"]) == 0
        assert template_of(folder / "m.gguf") == LONG
        file.unlink()
        (folder / "m.gguf").unlink()
        go_on = [read[0], *wrote, *more, f"--checkpoint-in={folder}/c.gguf", "--adam-iter=3"]
        assert main([program, *go_on]) == 0
        assert template_of(folder / "m.gguf") == LONG
        out = capsys.readouterr().out
        assert f"chat_template {LONG[:50] + '…'!r}" in out  # a word of it, not all
    prepared = prepare(talks, RunSettings(vocab="bytes", chat_template=LONG, **SIZE))
    file.write_text(LONG)
    other = prepare(talks, RunSettings(vocab="bytes", chat_template_file=str(file), **SIZE))
    assert text_learned(prepared) == text_learned(other)


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
def test_files_that_are_no_template_and_two_templates_are_refused(talks, base, program, capsys):
    file = talks.with_name("t.jinja")
    given = [program, f"--train-data={talks}", f"--chat-template-file={file}"]
    given += [f"--model-base={base}"] if program == "finetune" else []
    assert main(given) == 1
    assert f"{file}: No such file" in capsys.readouterr().err
    file.write_text("chatml")
    assert main(given) == 2
    assert f"chat_template: got the file {file} with none, want" in capsys.readouterr().err
    file.write_bytes(b"{{ \xff }}")
    assert main(given) == 2
    assert f"{file}: not UTF-8: got byte 0xFF" in capsys.readouterr().err
    file.write_text(JINJA)
    assert main([*given, "--chat-template=chatml"]) == 2
    assert "chat_template: got it and the chat_template_file" in capsys.readouterr().err
    assert main([*given, f"--model-out={file}"]) == 2
    assert "which is chat_template_file, too; want another name" in capsys.readouterr().err
    assert file.read_text() == JINJA


def test_a_checkpoint_is_written_with_another_template(talks):
    state, out = talks.with_name("c.gguf"), talks.with_name("m.gguf")
    prepare(talks, RunSettings(checkpoint_out=state, model_out=out, vocab="bytes",
                               chat_template="chatml", **SIZE)).train()  # fmt: skip
    for given, source in ((None, CHATML), (JINJA, JINJA)):
        how = {"checkpoint_in": state, "model_out": out, "chat_template": given}
        write_model(RunSettings(**how, only_write_model=True))
        assert template_of(out) == source


def test_the_template_of_the_vocabularys_model_counts_where_none_is_given(talks, base):
    metadata = {KEY: JINJA}
    model = Llama(LlamaConfig(n_vocab=257, n_ctx=128, n_embd=16, n_layer=1, n_head=2, n_ff=24))
    with GgufFile(base) as file:
        metadata |= {k: v for k, v in file.metadata.typed().items() if k.startswith(("tok", "yup"))}
    save_llama(base, model.init(seed=1), metadata)
    usual = {"model_out": talks.with_name("m.gguf"), "vocab_model": base}
    run = prepare(talks, RunSettings(**usual, **SIZE))
    assert text_learned(run)[0].startswith("<user>what is 0")
    run.train()
    assert template_of(talks.with_name("m.gguf")) == JINJA


def test_without_a_template_the_way_out_is_named_and_there(talks, capsys):
    assert main(["pretrain", f"--train-data={talks}", "--vocab=bytes", *flags_of(SIZE)]) == 1
    assert "pass --chat-template" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "source"), [("chatml", CHATML), (JINJA, JINJA)])
def test_finetuning_takes_names_and_writes_the_template(talks, base, given, source):
    folder = talks.parent
    usual = {"model_base": base, "train_data": talks, "lora_out": folder / "a.gguf", "batch": 2}
    how = {"ctx": 128, "adam_iter": 1, "threads": 1, "model_out": folder / "m.gguf"}
    run = finetune(FinetuneSettings(**usual, **how, chat_template=given))
    assert text_learned(run)[1].rstrip("\n").removesuffix("<|im_end|>") == "0 is 0"
    run.train()
    assert template_of(folder / "m.gguf") == source
    assert template_of(base) is None


def test_a_word_that_is_no_name_is_no_template_either(talks, base):
    usual = {"model_base": base, "train_data": talks, "lora_out": talks.with_name("a.gguf")}
    with pytest.raises(SettingError, match="chat_template: got 'chatlm', want chatml"):
        finetune(FinetuneSettings(**usual, chat_template="chatlm"))
    with pytest.raises(SettingError, match="chat_template: got 'chatlm', want chatml"):
        prepare(talks, RunSettings(chat_template="chatlm"))


def test_paths_may_be_text(talks, base):
    folder = str(talks.parent)
    lora = FinetuneSettings(
        model_base=str(base), train_data=str(talks), lora_out=f"{folder}/a.gguf", ctx=128, batch=2,
        checkpoint_out=f"{folder}/c.gguf", chat_template="chatml", adam_iter=1, threads=1,
    )  # fmt: skip
    finetune(lora).train()
    run = RunSettings(model_out=f"{folder}/sub/m.gguf", log_out=f"{folder}/log.jsonl", **SIZE)
    prepare("a llama eats grass " * 99, run).train()
    there = {path.name for path in talks.parent.rglob("*") if path.is_file()}
    assert {"a.gguf", "c.gguf", "m.gguf", "log.jsonl"} <= there


def test_a_text_that_is_the_name_of_a_file_is_refused(talks, monkeypatch):
    monkeypatch.chdir(talks.parent)
    with pytest.raises(SettingError, match=r"the name of a file; want the text itself, or Path\("):
        prepare("talks.jsonl", RunSettings(**SIZE))


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
def test_a_folder_is_no_training_data(program, base, monkeypatch, capsys):
    monkeypatch.chdir(base.parent)
    more = ["--model-base=base.gguf"] if program == "finetune" else []
    for name in (".", "..", str(base.parent)):
        assert main([program, "--train-data", name, *more]) == 2
        err = capsys.readouterr().err
        assert f"train_data: got {name}, which is a folder; want a file in it" in err
    assert [path.name for path in base.parent.iterdir()] == ["base.gguf"]
