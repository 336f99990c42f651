"""Training: the optimiser in the graph, the step, the loop, and what a run leaves."""

import json
import math
import os
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import yupana as yp
from tests.small_runs import TEXT, settings
from yupana.graphlib.errors import (
    DataError,
    FileFormatError,
    NonFiniteError,
    YupanaError,
)
from yupana.models.baby_llama import BabyLlama, baby_config
from yupana.models.llama_gguf import load_llama
from yupana.train.checkpoint import MODEL, Checkpoint
from yupana.train.curve import draw_curve, nice_ticks
from yupana.train.log import Log
from yupana.train.loop import History, Keeper, Loop, LoopSettings, read_history
from yupana.train.optimiser import AdamWSettings
from yupana.train.pretrain import prepare, write_model
from yupana.train.progress import Silent
from yupana.train.schedule import Schedule
from yupana.train.settings import RunSettings
from yupana.train.step import Evaluation, TrainingStep
from yupana.train.waves import WaveTrainer


def test_training_lowers_the_loss_and_leaves_its_files(tmp_path):
    run = prepare(TEXT, settings(tmp_path, adam_iter=40, adam_alpha=0.01))
    outcome = run.train()
    losses = [loss for _, loss in outcome.history.losses]
    assert len(losses) == 40
    assert losses[-1] < losses[0] - 0.5
    assert outcome.history.validation[-1][0] == 40
    assert run.files.written.keys() == {"model", "best model", "loss curve", "log"}
    model, vocabulary = load_llama(tmp_path / "m.gguf")
    assert vocabulary is not None
    assert (
        model.weights["output.weight"].numpy() == run.model.weights["output.weight"].numpy()
    ).all()
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 41))
    assert steps[7]["loss"] == losses[7]
    assert steps[0]["rate"] == pytest.approx(0.01 / 3)  # of a warm-up of 2
    assert {"norm", "seconds", "tokens_per_s"} <= steps[0].keys()
    assert steps[0]["planned_bytes"] == run.step.program.plan.total
    assert steps[0]["peak_bytes"] >= steps[0]["planned_bytes"]
    assert (tmp_path / "m.svg").read_text().count("<polyline") == 2


def test_the_best_model_is_kept(tmp_path):
    kept = {}

    class Best(Keeper):
        def save_best(self, history: History) -> None:
            kept[history.step] = history.best

    ctx = yp.Context()
    w, x = ctx.param((1,), name="w").set(0.0), ctx.input((2, 1), name="x")
    step = TrainingStep((w - x).sqr().sum(), [x], AdamWSettings(alpha=1.0, decay=0.0))
    evaluation = Evaluation(step, [np.full((5, 1), 2.5)])
    loop = make_loop(step, 6, evaluation=evaluation, keeper=Best())
    outcome = loop.run()
    by_step = dict(outcome.history.validation)
    assert kept == {
        s: v for s, v in by_step.items() if v == min(by_step[k] for k in range(1, s + 1))
    }
    assert 1 < len(kept) < 6
    assert outcome.history.best == min(by_step.values())


class Endless:
    """Batches that are always the same."""

    def at(self, step: int):
        return [np.full((2, 1), 100.0)]

    def epochs(self, step: int) -> float:
        return float(step)


def make_loop(step, steps, **more) -> Loop:
    loop_settings = LoopSettings(steps=steps, eval_every=1, save_every=2)
    return Loop(step, Endless(), Schedule("constant", warmup=0), loop_settings, **more)


def test_the_first_step_says_nothing_of_the_time_that_is_left(tmp_path, monkeypatch):
    now, left = [0.0], []

    class Watch(Silent):
        def show(self, status):
            left.append(status.left_s)

    monkeypatch.setattr("yupana.train.loop.time.monotonic", lambda: now[0])
    monkeypatch.setattr("yupana.train.loop.time.perf_counter", lambda: now[0])
    run = prepare(TEXT, settings(tmp_path, adam_iter=4, generate_every=0), Watch())
    step = run.loop.step.run

    def run_step(*args):  # the first one waits for kernels
        now[0] += 1.0 if now[0] else 100.0
        return step(*args)

    monkeypatch.setattr(run.loop.step, "run", run_step)
    run.train()
    assert [*dict.fromkeys(left)][1:] == [2.0, 1.0, 0.0]


def test_a_resumed_run_gives_the_same_bits(tmp_path):
    whole = prepare(TEXT, settings(tmp_path / "a", adam_iter=9)).train()
    first = settings(tmp_path / "b", adam_iter=4, checkpoint_out=tmp_path / "b" / "c.gguf")
    prepare(TEXT, first).train()
    rest = settings(tmp_path / "b", adam_iter=9, checkpoint_in=tmp_path / "b" / "c.gguf")
    resumed = prepare(TEXT, rest).train()
    assert resumed.history.losses == whole.history.losses  # the first part comes from the log
    assert {*whole.history.validation} <= {*resumed.history.validation}
    assert (tmp_path / "a/m.gguf").read_bytes() == (tmp_path / "b/m.gguf").read_bytes()
    lines = (tmp_path / "b/m.jsonl").read_text().splitlines()
    steps = [entry["step"] for entry in map(json.loads, lines) if "loss" in entry]
    assert steps == list(range(1, 10))


def test_history_of_a_damaged_log_is_what_can_be_read(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_history(path, 3, 1.0) == History(3, 1.0)
    path.write_text('{"step": 1, "loss": 2.5}\n{"step": 9, "loss": 1.0}\n{"step": 2, "lo')
    assert read_history(path, 3, 1.0).losses == [(1.0, 2.5)]


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    path = tmp_path / "c.gguf"
    prepare(TEXT, settings(tmp_path, adam_iter=1, checkpoint_out=path)).train()
    with pytest.raises(DataError, match="other training data"):
        prepare(TEXT[:-1], settings(tmp_path, checkpoint_in=path))
    with pytest.raises(FileFormatError, match="no optimiser state"):
        Checkpoint(tmp_path / "m.gguf", MODEL)


def test_a_checkpoint_is_written_as_a_model_without_training(tmp_path):
    path = tmp_path / "c.gguf"
    prepare(TEXT, settings(tmp_path, adam_iter=2, checkpoint_out=path)).train()
    out = tmp_path / "only-ITERATION.gguf"
    assert write_model(RunSettings(model_out=out, checkpoint_in=path)) == tmp_path / "only-2.gguf"
    assert (tmp_path / "only-2.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()
    with pytest.raises(YupanaError, match="no checkpoint_in"):
        write_model(RunSettings(model_out=out))


def test_ctrl_c_finishes_the_step_and_writes(tmp_path):
    run = prepare(TEXT, settings(tmp_path, adam_iter=100))
    whole = TrainingStep.run
    calls = []

    def interrupted(self, batch, step, factor=1.0):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        calls.append(step)
        return whole(self, batch, step, factor)

    before = signal.getsignal(signal.SIGINT)
    run.step.run = interrupted.__get__(run.step)
    outcome = run.train()
    assert signal.getsignal(signal.SIGINT) is before
    assert outcome.interrupted
    assert calls == [0, 1, 2, 3, 4]
    assert outcome.history.step == 5
    model, _ = load_llama(tmp_path / "m.gguf")
    weight = model.weights["output.weight"].numpy()
    assert (weight == run.model.weights["output.weight"].numpy()).all()


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    run = prepare(TEXT, settings(tmp_path, adam_iter=100))

    def interrupted(self, batch, step, factor=1.0):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second is not ignored")

    run.step.run = interrupted.__get__(run.step)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    load_llama(tmp_path / "m.gguf")  # that of the start, whole


def test_weights_that_turn_infinite_stop_the_run_and_keep_the_last_good_state(tmp_path):
    run = prepare(TEXT, settings(tmp_path, adam_iter=100, save_every=2))
    whole = TrainingStep.run

    def planted(self, batch, step, factor=1.0):
        result = whole(self, batch, step, factor)
        if step == 4:
            run.model.weights["blk.0.ffn_up.weight"].data[3, 1] = np.inf
        return result

    run.step.run = planted.__get__(run.step)
    with pytest.raises(NonFiniteError) as caught:
        run.train()
    message = str(caught.value)
    assert "step 6" in message
    assert "parameter blk.0.ffn_up.weight (24, 16): 1 infinite of 384 values" in message
    assert f"after step 4 is in {tmp_path / 'm.gguf'}" in message
    model, _ = load_llama(tmp_path / "m.gguf")
    assert all(np.isfinite(weight.numpy()).all() for weight in model.weights.values())


def test_a_learning_rate_far_too_high_is_stopped(tmp_path):
    run = prepare(TEXT, settings(tmp_path, adam_iter=100, adam_alpha=1e30, warmup=0))
    with pytest.raises(NonFiniteError, match="Lower the learning rate"):
        run.train()
    model, _ = load_llama(tmp_path / "m.gguf")
    assert all(np.isfinite(weight.numpy()).all() for weight in model.weights.values())


@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        ("short", {}, "context is longer than the data"),
        (TEXT, {"ctx": 100_000}, "context is longer than the data"),
        ("", {}, "empty"),
        (TEXT, {"adam_iter": 0}, "steps is out of range"),
        (TEXT, {"threads": -1}, "threads"),
        (TEXT, {"head": 3}, "n_embd"),
        (TEXT, {"vocab": "bpe", "n_vocab": 10}, "n_vocab"),
        (TEXT, {"adam_min_alpha": 1.0}, "adam_min_alpha"),
        (TEXT, {"validation": 1.0}, "validation"),
        (TEXT, {"batch": 0}, "train: batch is out of range"),
        (TEXT, {"keep_checkpoints": -1}, "keep_checkpoints is out of range: got -1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, text, changes, words):
    with pytest.raises(YupanaError, match=words):
        prepare(text, settings(tmp_path / "new", **changes))
    assert not (tmp_path / "new").exists()


def test_log_of_a_new_run_replaces_the_old_one_when_it_begins(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("old\n")
    log = Log(path)
    assert path.read_text() == "old\n"
    log.write(step=1)
    log.write(step=2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_few_windows_are_repeated_and_incomplete_batches_left_out():
    ctx = yp.Context()
    w, x = ctx.param((1,), name="w").set(1.0), ctx.input((2, 1), name="x")
    step = TrainingStep((w * x).mean().sum() / 2.0, [x], AdamWSettings())
    assert Evaluation(step, [np.full((1, 1), 3.0)]).run() == 3.0
    values = np.array([[1.0], [2.0], [3.0], [4.0], [99.0]])
    assert Evaluation(step, [values]).run() == 2.5


def test_curve_leaves_out_what_cannot_be_drawn(tmp_path):
    points = [(0.0, 2.0), (1.0, math.nan), (2.0, 1.0)]
    draw_curve(tmp_path / "c.svg", {"a < b": points, "none": [(0.0, math.inf)]}, "x & y")
    text = (tmp_path / "c.svg").read_text()
    assert "nan" not in text
    assert "inf" not in text
    assert "a &lt; b: 1.000" in text
    draw_curve(tmp_path / "many.svg", {"a": [(k, 1 / (k + 1)) for k in range(5000)]})
    assert (tmp_path / "many.svg").stat().st_size < 40_000


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_ticks_enclose_the_values(a, b):
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1e-12)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 12


@pytest.mark.parametrize("n_lora", [None, 4])
def test_baby_llama_learns_each_example(n_lora):
    trainer = WaveTrainer(BabyLlama(baby_config(), n_lora).init(), threads=1)
    searches = [*trainer.train(6)]
    assert all(search.after < search.before for search in searches)
    # The model holds what the last search found.
    assert trainer.step.loss_of(trainer.example(5)) == pytest.approx(searches[-1].after, rel=1e-6)


def test_baby_llama_learns_from_example_to_example():
    trainer = WaveTrainer(BabyLlama(baby_config()).init(), threads=1)
    befores = [search.before for search in trainer.train(24)]
    assert np.mean(befores[-6:]) < 0.6 * np.mean(befores[:6])
