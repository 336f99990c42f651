"""Runs that are stopped, killed or out of disk, and go on; what is there always opens."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

from tests.mounts import mounted
from tests.small_runs import HOW, SIZES, TEXT, flags_of, settings
from yupana.cli import main
from yupana.models.formats import GgufFile, temporary_of, temporary_path
from yupana.models.llama_gguf import load_llama
from yupana.train.checkpoint import MODEL, Checkpoint
from yupana.train.pretrain import prepare

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs to kill are forked")
def test_killed_runs_leave_whole_files_and_go_on_bit_for_bit(tmp_path):
    # With --hypothesis-profile=thorough a hundred.
    kills = 100 if hypothesis_settings.default.max_examples > 1000 else 10
    command = [sys.executable, "tests/killed_runs.py", str(tmp_path), str(kills), "1"]
    environment = {**os.environ, "PYTHONPATH": "."}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == kills
    assert found["steps"] == sorted(found["steps"])
    assert found["same"] == [True, True]
    assert found["left over"] == []


def test_what_killed_runs_left_half_written_is_removed_and_nothing_else(tmp_path):
    changes = {"checkpoint_out": tmp_path / "c-ITERATION.gguf"}
    mine = [tmp_path / name for name in ("m.gguf", "m-best.gguf", "c-40.gguf", "c-LATEST.gguf")]
    others = [tmp_path / name for name in ("other.gguf", "c-best.gguf", "mm.gguf")]
    left, kept = ([temporary_path(path) for path in paths] for paths in (mine, others))
    (tmp_path / "m.gguf").mkdir()  # a folder of PEFT's has its own
    left.append(temporary_path(tmp_path / "m.gguf" / "adapter_config.json"))
    kept.append(tmp_path / "m.gguf" / "adapter_config.json")
    for path in (*left, *kept):
        path.write_text("half")
    left.append(temporary_path(tmp_path / "m.gguf"))
    left[-1].mkdir()
    prepare(TEXT, settings(tmp_path, **changes)).files.places.make_folders()
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


RUNS = {
    "accumulated": {"grad_acc": 2},
    "with a falling rate": {"warmup": 3, "cos_decay_steps": 4, "enable_restart": True},
    "sgd, products in bf16": {"optimizer": "sgd", "adam_alpha": 0.1, "matmul": "bf16"},
    "lbfgs": {"optimizer": "lbfgs", "lbfgs_iter": 3, "grad_acc": 2},
    "samples with random offsets": {
        "sample_start": "the ",
        "sample_random_offsets": True,
        "fill_with_next_samples": True,
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_anywhere_gives_the_same_bits(tmp_path, name):
    steps, changes = 7, RUNS[name] | {"opt_past": 2, "patience": 9, "eval_every": 2}
    whole_files = {"checkpoint_out": tmp_path / "whole" / "c.gguf"}
    whole = prepare(TEXT, settings(tmp_path / "whole", **changes, **whole_files, adam_iter=steps))
    losses = whole.train().history.losses
    for stop in range(1, steps, 1 if name == "accumulated" else 2):
        folder = tmp_path / str(stop)
        files = {"checkpoint_out": folder / "c.gguf"}
        first = prepare(TEXT, settings(folder, **changes, **files, adam_iter=steps))
        first.files.places.make_folders()
        first.loop.run(stop=lambda loop=first.loop, stop=stop: loop.history.step == stop)
        files["checkpoint_in"] = folder / "c.gguf"
        second = prepare(TEXT, settings(folder, **changes, **files, adam_iter=steps))
        assert second.loop.history.step == stop
        assert second.train().history.losses == losses
        for file in ("m.gguf", "c.gguf"):
            assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_run_goes_on_in_the_data_where_it_was_with_batches_of_another_size(tmp_path):
    path = tmp_path / "c.gguf"
    first = prepare(TEXT, settings(tmp_path, batch=4, adam_iter=5, checkpoint_out=path))
    rows = [tokens for step in range(8) for tokens in first.loop.batches.at(step).tokens.tolist()]
    first.train()
    assert Checkpoint(path, MODEL).progress.rows == 20
    second = prepare(TEXT, settings(tmp_path, batch=3, adam_iter=8, checkpoint_in=path))
    assert second.loop.batches.at(5).tokens.tolist() == rows[20:23]
    assert second.loop.batches.at(7).tokens.tolist() == rows[26:29]
    assert second.loop.batches.epochs(5) == pytest.approx(first.loop.batches.epochs(5))
    assert second.train().history.rows == 29


def test_a_run_with_nothing_left_to_train_says_so(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    state = f"{tmp_path}/c-LATEST.gguf"
    for more in (f"--checkpoint-out={state}", f"--checkpoint-in={state}"):
        assert train_on(tmp_path, tmp_path / "text.txt", "--adam-iter=2", more) == 0
    assert "2 steps are made, and 2 are wanted: nothing is left" in capsys.readouterr().out


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    with mounted(tmp_path / "disk", "size=1m") as folder:
        yield folder


def train_on(folder: Path, data: Path, *more: str) -> int:
    sizes = flags_of(SIZES | HOW | {"adam_iter": 60})
    files = [f"--train-data={data}", f"--model-out={folder}/m.gguf", "--save-every=1"]
    return main(["pretrain", *sizes, *files, *more])


def opens(folder: Path) -> int:
    """Opens all that is there; the number of steps in the newest checkpoint."""
    for path in folder.glob("*.gguf"):
        GgufFile(path).close()
    assert not any(map(temporary_of, folder.iterdir()))
    load_llama(folder / "m.gguf")
    return Checkpoint(folder / "c-LATEST.gguf", MODEL).progress.step


def test_a_full_disk_is_named_and_leaves_what_was_there(small_disk, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    many = (f"--checkpoint-out={small_disk}/c-ITERATION.gguf", "--keep-checkpoints=0")
    assert train_on(small_disk, tmp_path / "text.txt", *many) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"yupana: {small_disk}/")
    assert ".tmp" not in message
    assert "No space left on device. The model as it was after step" in message
    assert "Traceback" not in message
    step = opens(small_disk)
    assert 0 < step < 60
    for path in small_disk.glob("c-[0-9]*.gguf"):
        path.unlink()  # now there is room
    start = f"--checkpoint-in={small_disk}/c-LATEST.gguf"
    assert train_on(small_disk, tmp_path / "text.txt", start) == 0


def test_a_write_that_stops_half_way_leaves_the_old_files(tmp_path, capsys):
    resource = pytest.importorskip("resource")
    (tmp_path / "text.txt").write_text(TEXT)
    checkpoint = f"--checkpoint-out={tmp_path}/c-LATEST.gguf"
    assert train_on(tmp_path, tmp_path / "text.txt", checkpoint, "--adam-iter=2") == 0
    before = (tmp_path / "c-LATEST.gguf").read_bytes()
    capsys.readouterr()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for the model, not for the checkpoint, which is three times as large.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, old[1]))
    try:
        start = f"--checkpoint-in={tmp_path}/c-LATEST.gguf"
        assert train_on(tmp_path, tmp_path / "text.txt", checkpoint, start) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    said = f"yupana: {tmp_path}/c-LATEST.gguf: {os.strerror(errno.EFBIG)}"
    assert capsys.readouterr().err.startswith(said)
    assert (tmp_path / "c-LATEST.gguf").read_bytes() == before
    assert opens(tmp_path) == 2


def test_a_log_that_cannot_be_written_is_named(tmp_path, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "text.txt").write_text(TEXT)
    checkpoint = f"--checkpoint-out={tmp_path}/c-LATEST.gguf"
    assert train_on(tmp_path, tmp_path / "text.txt", checkpoint, "--log-out=/dev/full") == 1
    message = capsys.readouterr().err
    assert message.startswith("yupana: /dev/full: No space left on device. The model as it was")
    assert opens(tmp_path) == 0


def test_a_folder_that_takes_no_files_is_named_before_training(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "file").write_text("no folder")
    assert train_on(tmp_path / "file" / "sub", tmp_path / "text.txt") == 1
    assert f"yupana: {tmp_path / 'file'}" in capsys.readouterr().err
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):
        return  # root may write everywhere
    assert train_on(closed, tmp_path / "text.txt") == 1
    assert "Permission denied" in capsys.readouterr().err
