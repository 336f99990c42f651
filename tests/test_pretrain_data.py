"""Whole runs on the kinds of data: samples, JSON lines, packed rows; and how they go on."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests import small_runs
from yupana.graphlib.errors import DataError
from yupana.train.pretrain import make_vocabulary, prepare


def settings(folder, **changes):
    usual = {"ctx": 16, "vocab": "bytes", "adam_iter": 30, "adam_alpha": 0.01, "eval_every": 10}
    return small_runs.settings(folder, **{**usual, **changes})


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "d.jsonl"
    entries = [{"prompt": f"{k}+1=", "completion": f"{k + 1}"} for k in range(40)]
    path.write_text("\n".join(map(json.dumps, [*entries, {"text": "the end of it"}])))
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_answers_are_learned(tmp_path, lines, packed):
    run = prepare(lines, settings(tmp_path, fill_with_next_samples=packed))
    losses = [loss for _, loss in run.train().history.losses]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert run.data.training.is_packed == packed
    batch = run.loop.batches.at(0)
    assert (batch.segments is not None) == packed
    learned = batch.targets[batch.targets >= 0]
    assert 0 < len(learned) < batch.targets.size / 2


@pytest.mark.parametrize(
    "rules",
    [
        {"fill_with_next_samples": True},
        {"sample_random_offsets": True},
        {"train_on_prompt": True, "grad_acc": 2},
    ],
)
def test_runs_on_samples_go_on_with_the_same_bits(tmp_path, lines, rules):
    path = tmp_path / "b" / "c.gguf"
    whole = prepare(lines, settings(tmp_path / "a", **rules)).train().history
    for stop in (1, 19):
        first = settings(tmp_path / "b", adam_iter=stop, checkpoint_out=path, **rules)
        prepare(lines, first).train()
        rest = prepare(lines, settings(tmp_path / "b", checkpoint_in=path, **rules)).train().history
        assert rest.losses == whole.losses
    assert (tmp_path / "a/m.gguf").read_bytes() == (tmp_path / "b/m.gguf").read_bytes()


def test_force_reshuffle_takes_another_order(tmp_path, lines):
    path = tmp_path / "c.gguf"
    whole = prepare(lines, settings(tmp_path)).train().history
    prepare(lines, settings(tmp_path, adam_iter=9, checkpoint_out=path)).train()
    change = {"checkpoint_in": path, "checkpoint_out": path, "force_reshuffle": True}
    run = prepare(lines, settings(tmp_path, **change, adam_iter=20))
    losses = run.train().history.losses
    assert losses[:9] == whole.losses[:9]
    assert losses[9:] != whole.losses[9:20]
    again = prepare(lines, settings(tmp_path, checkpoint_in=path))
    assert again.loop.batches.seed == run.loop.batches.seed  # the new order is kept


def test_other_rules_or_data_are_refused_when_going_on(tmp_path, lines):
    path = tmp_path / "c.gguf"
    prepare(lines, settings(tmp_path, adam_iter=1, checkpoint_out=path)).train()
    for change in ({"train_on_prompt": True}, {"fill_with_next_samples": True}):
        with pytest.raises(DataError, match="other training data"):
            prepare(lines, settings(tmp_path, checkpoint_in=path, **change))
    lines.write_text(lines.read_text().replace("the end", "The end"))
    with pytest.raises(DataError, match="other training data"):
        prepare(lines, settings(tmp_path, checkpoint_in=path))


@pytest.mark.parametrize("vocab", ["characters", "bpe"])
def test_a_vocabulary_is_made_of_the_texts_alone(tmp_path, lines, vocab):
    vocabulary = make_vocabulary(lines, settings(tmp_path, vocab=vocab, n_vocab=280))
    if vocab == "characters":
        assert len(vocabulary) == len(set("0123456789+=the end of it")) + 1
    else:
        assert not any('"' in token and len(token) > 1 for token in vocabulary.tokens[:-1])


def test_samples_are_counted_for_the_user(tmp_path):
    text = "#a\n#" + "long " * 20 + "#" + "#middle" * 20
    run = prepare(text, settings(tmp_path, sample_start="#", epochs=2))
    assert any("1 sample longer than the context of 16" in note for note in run.data.notes)
    assert any("1 sample empty" in note for note in run.data.notes)
    assert run.loop.settings.steps == 20  # twice 20 samples, two of 22 being for validation


def test_a_malformed_line_is_told_without_a_traceback(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "fine"}\n{"text": broken}\n')
    command = [sys.executable, "-m", "yupana.cli", "pretrain", "--train-data", str(path)]
    done = subprocess.run(
        [*command, "--model-out", str(tmp_path / "m.gguf")],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 1
    assert f"{path}: line 2: not JSON at column 10" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "m.gguf").exists()
