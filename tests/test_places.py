"""Where a run writes: never over what it reads, never twice to one name, never where it cannot."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.mounts import mounted
from tests.small_runs import SIZES, flags_of
from yupana.cli import main
from yupana.graphlib.errors import SettingError
from yupana.models.formats import temporary_of
from yupana.train.files import RunFiles
from yupana.train.loop import History
from yupana.train.places import Places
from yupana.train.settings import RunSettings

TEXT = "the llama eats grass, the condor flies; " * 60


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A text, a model, and checkpoints of it and of an adapter."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text.txt").write_text(TEXT)
    (folder / "lines.jsonl").write_text('{"text": "the llama eats grass"}\n' * 9)
    assert pretrain(folder, "--model-out", "base.gguf", "--checkpoint-out", "state.gguf") == 0
    assert finetune(folder, "--lora-out", "l.gguf", "--checkpoint-out", "adapter-state.gguf") == 0
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def pretrain(folder, *arguments):
    sizes = flags_of(SIZES | {"vocab": "bytes", "adam_iter": 2, "warmup": 0})
    return run(folder, "pretrain", "--train-data=text.txt", *sizes, *arguments)


def finetune(folder, *arguments):
    usual = [
        "--model-base=base.gguf",
        "--train-data=text.txt",
        "--ctx=8",
        "--batch=2",
        "--adam-iter=2",
    ]
    return run(folder, "finetune", *usual, "--threads=1", *arguments)


def run(folder, *arguments):
    before = Path.cwd()
    os.chdir(folder)
    try:
        return main(arguments)
    finally:
        os.chdir(before)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        # The log of lines.gguf is lines.jsonl.
        ("--train-data lines.jsonl --lora-out lines.gguf", "log_out: got lines.jsonl, which is tr"),
        ("--lora-out base.gguf", "lora_out: got base.gguf, which is model_base"),
        ("--lora-out ./x/../base.gguf", "which is model_base"),
        ("--lora-out a.gguf --model-out base.gguf", "model_out: got base.gguf, which is model_b"),
        ("--lora-out a.gguf --model-out a.gguf", "model_out: got a.gguf, which is lora_out"),
        ("--lora-out a.gguf --checkpoint-out a.gguf", "checkpoint_out: got a.gguf, which is lora"),
        ("--lora-out a.gguf --checkpoint-out a-best.gguf", "which is the best of lora_out"),
        ("--lora-out a.gguf --log-out text.txt", "log_out: got text.txt, which is train_data"),
        ("--lora-out a-ITERATION.gguf --checkpoint-out a-5.gguf", "which is lora_out"),
        ("--lora-out a-5.gguf --checkpoint-out a-ITERATION.gguf", "which is lora_out"),
        ("--lora-out adapter-state.gguf --checkpoint-in adapter-state.gguf", "is checkpoint_in"),
        ("--lora-out base.gguf --checkpoint-in adapter-state.gguf --only-write-lora", "model_base"),
    ],
)
def test_an_adapter_takes_no_others_place(folder, capsys, arguments, words):
    (folder / "x").mkdir()
    before = contents(folder)
    assert finetune(folder, *arguments.split()) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "another name" in message
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--model-out text.txt", "model_out: got text.txt, which is train_data"),
        ("--model-out m.gguf --curve-out m.gguf", "curve_out: got m.gguf, which is model_out"),
        ("--model-out base.gguf --vocab-model base.gguf", "which is vocab_model"),
        ("--model-out state.gguf --checkpoint-in state.gguf --only-write-model", "checkpoint_in"),
    ],
)
def test_a_model_takes_no_others_place(folder, capsys, arguments, words):
    before = contents(folder)
    assert pretrain(folder, *arguments.split()) == 2
    assert words in capsys.readouterr().err
    assert contents(folder) == before


def test_a_link_to_an_input_is_that_input(folder, capsys):
    (folder / "other.txt").symlink_to(folder / "text.txt")
    before = contents(folder)
    assert finetune(folder, "--lora-out=a.gguf", "--log-out=other.txt") == 2
    assert "which is train_data" in capsys.readouterr().err
    assert contents(folder) == before


def test_names_that_only_look_alike_are_apart(tmp_path):
    settings = RunSettings(model_out=tmp_path / "c-ITERATION.gguf")
    state = tmp_path / "c-x5.gguf"
    places = Places(settings, settings.model_out, "model")
    places.check(train_data=state, vocab_model=tmp_path / "sub" / "c-5.gguf")
    with pytest.raises(SettingError, match="which is train_data"):
        places.check(train_data=tmp_path / "c-5.gguf")


def test_a_run_goes_on_in_its_own_checkpoint(folder):
    more = "--model-out m.gguf --checkpoint-in state.gguf --checkpoint-out state.gguf"
    assert pretrain(folder, *more.split(), "--adam-iter=3") == 0


def save(path, history):
    path.write_text(str(history.step))


def numbered_run(folder, out="a-ITERATION.gguf", **settings):
    """What a run of six saves leaves that writes a numbered model and a numbered checkpoint."""
    made = RunSettings(checkpoint_out=folder / "c-ITERATION.gguf", **settings)
    files = RunFiles(Places(made, folder / out, "model"), save, save)
    for step in range(0, 60, 10):
        files.save_last(History(step))
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("keep", [1, 3])
def test_of_numbered_files_the_newest_few_are_kept(tmp_path, keep):
    kept = [f"{step}" for step in range(60 - 10 * keep, 60, 10)]
    names = {f"{kind}-{step}.gguf": step for kind in "ac" for step in kept}
    newest = {f"{kind}-LATEST.gguf": "50" for kind in "ac"}
    assert numbered_run(tmp_path, keep_checkpoints=keep) == names | newest


def test_all_numbered_files_are_kept_if_told_so(tmp_path):
    assert len(numbered_run(tmp_path, keep_checkpoints=0)) == 2 * 7


def test_numbered_folders_are_counted_and_other_names_are_left_alone(tmp_path):
    others = [
        "a-5-best.gguf",
        "a-.gguf",
        "a-x5.gguf",
        "ba-5.gguf",
        "a-5.jsonl",
        "a-70.gguf",
        "a-LATEST.gguf",
    ]
    for name in others:
        (tmp_path / name).write_text("another's")
    (tmp_path / "a-7.gguf").mkdir()
    left = numbered_run(tmp_path, keep_checkpoints=2)
    assert {name for name in left if not name.startswith("c")} == {
        *others,
        "a-40.gguf",
        "a-50.gguf",
    }


def test_a_number_for_the_newest_is_no_step(tmp_path):
    assert numbered_run(tmp_path, keep_checkpoints=1, fn_latest="0")["a-0.gguf"] == "50"


@pytest.fixture
def closed(tmp_path):
    """A folder that takes no files, from root neither."""
    with mounted(tmp_path / "closed", "ro") as folder:
        yield folder


@pytest.mark.parametrize(
    "name", ["lora_out", "checkpoint_out", "log_out", "curve_out", "model_out"]
)
def test_a_folder_that_takes_no_files_is_told_before_training(folder, closed, capsys, name):
    file = closed / "x.gguf"
    out = [] if name == "lora_out" else ["--lora-out=a.gguf"]
    assert finetune(folder, *out, f"--{name.replace('_', '-')}={file}") == 1
    out, err = capsys.readouterr()
    place = file.with_name("x-best.gguf") if name == "lora_out" else file
    assert f"yupana: {file}: Read-only file system" in err or f"yupana: {place}:" in err
    assert "step 1" not in out
    assert not (folder / "a.gguf").exists()
    assert not any(map(temporary_of, folder.iterdir()))


@pytest.mark.parametrize("place", ["closed", "closed/new", "text.txt"])
def test_a_bad_folder_for_events_is_told_before_training(folder, closed, capsys, place):
    assert finetune(folder, "--lora-out=a.gguf", f"--tensorboard={place}") == 1
    out, err = capsys.readouterr()
    reason = "File exists" if place == "text.txt" else "Read-only file system"
    assert f"yupana: {place}: {reason}" in err
    assert "step 1" not in out
    assert not (folder / "a.gguf").exists()


def test_no_room_for_token_ids_names_the_folder_and_the_remedy(folder, capsys, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    full = Path("/dev/full")
    monkeypatch.setattr("tempfile.TemporaryFile", partial(full.open, "w+b"))
    assert finetune(folder, "--lora-out=a.gguf") == 1
    assert "No space left on device. Token ids go there: set TMPDIR" in capsys.readouterr().err
