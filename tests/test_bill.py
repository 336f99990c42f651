"""The bill of a run, budgets on the command line, and runs that are refused because of memory."""

import re
import subprocess
import sys

import numpy as np
import pytest

import yupana as yp
from yupana.cli import main
from yupana.graphlib.budget import MemoryBudget
from yupana.graphlib.errors import SettingError
from yupana.models.llama import Llama, LlamaConfig
from yupana.train import run as runs
from yupana.train.bill import fitting_step, make_bill
from yupana.train.lbfgs import LbfgsSettings
from yupana.train.memory import available_bytes, parse_size
from yupana.train.optimiser import AdamWSettings
from yupana.train.pretrain import prepare
from yupana.train.run import record_step
from yupana.train.settings import RunSettings

TEXT = "the quick brown fox jumps over the lazy dog. " * 60
SIZES = {"embd": 32, "ff": 64, "head": 2, "layer": 4, "ctx": 16, "batch": 8}


def run_of(folder, **options):
    files = {"model_out": folder / "m.gguf", "vocab": "characters", "threads": 1, "adam_iter": 5}
    return prepare(TEXT, RunSettings(**files | SIZES | options))


def model_step(settings, checkpoints=None, **options):
    config = LlamaConfig(n_vocab=31, n_ctx=16, n_embd=32, n_layer=4, n_head=2, n_ff=64)
    model = Llama(config, yp.Context(no_alloc=True))
    return record_step(model, 8, settings, checkpoints, **options), model


def test_budgets_and_words_give_the_same_losses_bit_for_bit(tmp_path):
    def losses(**options):
        run = run_of(tmp_path, **options)
        return run.train().history.losses, run.bill.recomputed, run.bill.total

    kept = losses(checkpointing="none")
    others = [losses(checkpointing=word) for word in ("auto", "all", "sqrt")]
    others.append(losses(memory_budget=str(int(0.7 * kept[2]))))
    assert kept[1] == 0
    for found, recomputed, total in others:
        assert found == kept[0]
        assert recomputed > 0
        assert total < kept[2]
    assert others[-1][2] <= 0.7 * kept[2]


def test_peak_memory_of_a_process_stays_within_its_budget(tmp_path):
    """What a run adds to a process with its libraries and kernels: small runs have loaded them."""
    code = f"""
from pathlib import Path
from yupana.train.pretrain import prepare
from yupana.train.settings import RunSettings
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))
def run(**options):
    prepare({TEXT!r}, RunSettings(model_out=Path("m.gguf"), vocab="characters", head=4, batch=8,
            adam_iter=3, eval_every=1, threads=1, **options)).train()
run(embd=16, ff=24, ctx=64, layer=6)
run(embd=128, ff=344, ctx=16, layer=1)
before = status("VmRSS")
run(embd=128, ff=344, ctx=64, layer=6, memory_budget="36M")
print((status("VmHWM") - before) / 2**20)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    used = float(done.stdout.splitlines()[-1])
    assert 25 < used < 36


def test_the_bill_is_what_the_plan_says():
    step, model = model_step(AdamWSettings(), "all")
    bill, plan = make_bill(step, 10, threads=2), step.graph.plan()
    weights = sum(-(-w.nbytes // 64) * 64 for w in model.weights.values())
    assert weights <= bill.by_class["weights"] <= weights + 64
    assert bill.by_class["optimiser"] == 2 * weights
    assert (bill.peak, bill.total) == (plan.peak, plan.own_bytes)
    assert bill.total == bill.peak + 3 * weights + bill.by_class["inputs"]
    kept = make_bill(model_step(AdamWSettings())[0], threads=1)
    assert kept.recomputed == 0
    assert kept.flops == pytest.approx(bill.flops - bill.recomputed, rel=1e-3)
    lines = bill.table().splitlines()
    assert any(re.search(r"work per step .*% of it again", line) for line in lines)
    assert any(line.strip().startswith("time in all") for line in lines)


def test_parts_and_searches_count_as_often_as_they_run():
    once, twice = (make_bill(model_step(AdamWSettings(), n_parts=n)[0]) for n in (1, 2))
    assert 1.9 < twice.flops / once.flops < 2.1
    assert twice.by_class["optimiser"] > once.by_class["optimiser"]  # gradients added up
    settings = LbfgsSettings(m=6, n_iter=4)
    step, model = model_step(settings)
    search = make_bill(step)
    assert search.flops == 5 * make_bill(step).flops / step.n_runs
    assert search.by_class["optimiser"] >= 4 * model.n_parameters * (2 * settings.m + 6)


def test_a_run_that_cannot_fit_is_refused_with_settings_that_would(tmp_path, monkeypatch):
    kept = run_of(tmp_path, checkpointing="none").bill.total

    def refused(limit, **options):
        monkeypatch.setattr(runs, "available_bytes", lambda: limit)
        with pytest.raises(SettingError, match="does not fit") as caught:
            run_of(tmp_path, **options)
        return str(caught.value)

    limit = int(0.8 * kept)
    message = refused(limit, checkpointing="none")
    assert "With checkpointing auto it needs" in message
    assert run_of(tmp_path, checkpointing="auto").bill.total <= limit  # that is true

    totals = [run_of(tmp_path, checkpointing="all", batch=n).bill.total for n in (1, 8)]
    limit = (3 * totals[0] + totals[1]) // 4
    message = refused(limit)
    found = re.search(r"With checkpointing auto, batch (\d+) it needs", message)
    assert found
    batch = int(found[1])
    assert run_of(tmp_path, batch=batch).bill.total <= limit
    refused(limit, batch=2 * batch)  # the half of which was tried, and no more

    found = re.search(r"auto, ctx (\d+) it needs", refused(limit, batch=1, ctx=1024))
    assert found
    assert run_of(tmp_path, batch=1, ctx=int(found[1])).bill.total <= limit

    assert "smaller model" in refused(1000)


def test_few_searches_are_made_for_what_cannot_fit():
    """A search plans a deep model many times, which takes seconds."""
    asked = []

    def record(checkpoints, n_batch, n_ctx):
        asked.append(checkpoints)
        config = LlamaConfig(n_vocab=31, n_ctx=n_ctx, n_embd=32, n_layer=4, n_head=2, n_ff=64)
        model = Llama(config, yp.Context(no_alloc=True))
        return record_step(model, n_batch, AdamWSettings(), checkpoints)

    def refused(limit):
        asked.clear()
        with pytest.raises(SettingError) as caught:
            fitting_step(record, MemoryBudget(limit), 64, 512, limit)
        return str(caught.value), [type(c) for c in asked].count(MemoryBudget)

    message, searches = refused(1000)
    assert "smaller model" in message
    assert searches == 1
    least = make_bill(record("all", 1, 512)).total
    message, searches = refused(least)
    assert re.search(r"auto, batch 1 it needs", message)
    assert searches == 2


def test_a_budget_takes_the_cheapest_and_leaves_the_rest():
    totals = [make_bill(model_step(AdamWSettings(), w)[0]) for w in (None, "all")]
    most, least = totals[0].total, totals[1].total
    middle = make_bill(model_step(AdamWSettings(), MemoryBudget((most + least) // 2))[0])
    assert least < middle.total <= (most + least) // 2
    assert 0 < middle.recomputed < totals[1].recomputed


@pytest.mark.parametrize("text", ["", "0", "600 X", "-5M", "M", "1e3", "nan"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(SettingError, match="want a size such as 600M"):
        parse_size(text)


def test_a_budget_needs_auto(tmp_path):
    with pytest.raises(SettingError, match="checkpointing sqrt, want auto"):
        run_of(tmp_path, checkpointing="sqrt", memory_budget="1G")


def test_available_memory_is_the_least_of_what_system_and_groups_leave(tmp_path):
    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert available_bytes(tmp_path) is None
    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:   5000 kB\n")
    assert available_bytes(tmp_path) == 5000 << 10
    write("proc/self/cgroup", "0::/a/b\n")
    write("sys/fs/cgroup/a/b/memory.max", "max\n")
    write("sys/fs/cgroup/a/b/memory.current", "100\n")
    assert available_bytes(tmp_path) == 5000 << 10
    write("sys/fs/cgroup/a/memory.max", "4000000\n")
    write("sys/fs/cgroup/a/memory.current", "1000000\n")
    assert available_bytes(tmp_path) == 3_000_000
    write("proc/self/cgroup", "5:cpu,memory:/box\n0::/\n")
    write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "2000\n")
    write("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "2500\n")
    assert available_bytes(tmp_path) == 0
    assert available_bytes() is None or available_bytes() > 0


def test_ggmls_switches_and_the_bill_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    sizes = [f"--{name}={value}" for name, value in SIZES.items()]
    command = ["pretrain", "--train-data", "text.txt", *sizes, "--adam-iter=2", "--vocab=bytes"]
    command += ["--threads=1"]
    said = {}
    for switch in ("--no-checkpointing", "--use-checkpointing", "--memory-budget=1.2M"):
        assert main([*command, switch]) == 0
        said[switch] = capsys.readouterr().out
        assert re.search(r"memory in all +[\d.]+ [KM]iB", said[switch])
        assert re.search(r"time in all +about", said[switch])
    assert "of it again" not in said["--no-checkpointing"]
    assert "of it again" in said["--use-checkpointing"]
    assert main([*command, "--memory-budget=1K"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("yupana: train: memory: the run does not fit: got settings that need ")
    assert len(error.splitlines()) == 1


def test_a_program_that_lends_its_memory_is_not_disturbed():
    random = np.random.default_rng(0)
    config = LlamaConfig(n_vocab=31, n_ctx=16, n_embd=32, n_layer=2, n_head=2, n_ff=64)
    batches = [random.integers(0, 31, (2, 8, 16)).astype(np.int32) for _ in range(3)]

    def losses(looks):
        step = record_step(Llama(config).init(seed=1), 8, AdamWSettings())
        step.compile(1)
        found = []
        for k, batch in enumerate(batches):
            found.append(step.run([*batch], k))
            if looks:
                assert step.loss_of([*batch]) < found[-1].loss
        return found

    assert losses(True) == losses(False)
