"""The command line: every program on tiny settings, and what mistakes get."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from tests.command_line import call
from tests.small_runs import SIZES, TEXT, flags_of
from yupana.cli import PROGRAMS, main
from yupana.commands import cost, ops
from yupana.graphlib.op import REGISTRY
from yupana.models.llama_gguf import load_llama
from yupana.train.optimiser import AdamWSettings
from yupana.train.progress import Bar, Lines, Status
from yupana.train.step import TrainingStep

ROOT = Path(__file__).parents[1]
TINY = flags_of(SIZES)
TINY_RUN = [*TINY, "--vocab=characters", "--eval-every=3", "--warmup=2"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a text in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_program(capsys, arguments):
    code, out, _ = call(capsys, *arguments)
    assert code == 0
    assert all(f"  {name} " in out for name in PROGRAMS)


def test_version_is_printed(capsys):
    assert re.fullmatch(r"yupana \d+\.\d+\.\d+\n", call(capsys, "--version")[1])


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "yupana", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("yupana ")


def test_an_unknown_program_is_refused(capsys):
    code, _, err = call(capsys, "pretrian")
    assert code == 2
    assert err == f"yupana: no such program: got 'pretrian', want one of {', '.join(PROGRAMS)}.\n"


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_shows_its_settings(capsys, name):
    code, out, _ = call(capsys, name, "--help")
    assert code == 0
    assert f"usage: yupana {name}" in out
    flags = re.findall(r"^[│ ]+(?:-\w.*, )?(--[a-z][\w-]+)", out, re.M)
    assert len(flags) >= 2
    said = sum(out.count(word) for word in ("(default:", "(required)", "(repeatable)"))
    assert said >= len(flags) - 1


def test_pretrain_has_the_flags_of_ggml(capsys):
    out = call(capsys, "pretrain", "--help")[1]
    names = """
        train-data checkpoint-in checkpoint-out save-every seed ctx threads batch model-out embd ff
        head layer norm-rms-eps rope-freq-base rope-freq-scale checkpointing warmup
        cos-decay-steps cos-decay-restart cos-decay-min enable-restart epochs adam-iter adam-alpha
        adam-min-alpha adam-decay adam-decay-min-ndim adam-beta1 adam-beta2 adam-gclip vocab-model
    """
    assert [name for name in names.split() if f"--{name}" not in out] == []


@pytest.mark.parametrize(
    "arguments", [["pretrain"], ["pretrain", "--contxt", "8"], ["cost", "--ctx", "eight"]]
)
def test_wrong_arguments_are_explained(capsys, arguments):
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    assert re.search("train-data|contxt|eight", err)


def test_pretrain_then_generate(capsys, folder):
    files = ["--model-out", "run/m.gguf", "--checkpoint-out", "run/c.gguf"]
    arguments = ["--train-data", "text.txt", *TINY_RUN, *files, "--adam-iter", "7"]
    code, out, err = call(capsys, "pretrain", *arguments)
    assert (code, err) == (0, "")
    listed = {line.split()[-1] for line in out.splitlines() if line.startswith("  ")}
    assert listed == {f"run/{n}" for n in ("m.gguf", "m-best.gguf", "c.gguf", "m.svg", "m.jsonl")}
    assert all((folder / name).stat().st_size > 0 for name in listed)
    assert "7 steps in" in out
    ask = ["generate", "run/m.gguf", "--prompt", "the ñ", "-n", "9", "-t", "1", "--no-perf"]
    first, second = call(capsys, *ask), call(capsys, *ask)
    assert first == second
    assert first[0] == 0
    assert first[1].startswith("the ñ")
    assert 5 <= len(first[1]) <= 15
    assert call(capsys, *ask, "--seed", "2") != first


def test_pretrain_takes_the_vocabulary_of_a_model(capsys, folder):
    arguments = ["--train-data", "text.txt", *TINY_RUN, "--adam-iter", "1"]
    assert call(capsys, "pretrain", *arguments)[0] == 0
    more = ["--vocab-model", "model.gguf", "--model-out", "two.gguf"]
    assert call(capsys, "pretrain", *arguments, *more, "--vocab", "bytes")[0] == 0
    assert load_llama("two.gguf")[1].tokens == load_llama("model.gguf")[1].tokens


@pytest.mark.parametrize(
    ("content", "more", "words", "want"),
    [
        (None, [], "no such file", 1),
        (b"", [], "empty", 1),
        ("año".encode("latin1"), [], "not UTF-8", 1),
        (b"a few words", [], "context is longer than the data", 1),
        (TEXT.encode(), ["--ctx", "9999"], "context is longer than the data", 1),
        (TEXT.encode(), ["--checkpoint-in", "none.gguf"], "none.gguf", 1),
        (TEXT.encode(), ["--head", "3"], "multiple of n_head", 2),
        (TEXT.encode(), ["--vocab", "bpe", "--n-vocab", "9"], "n_vocab", 2),
        (TEXT.encode(), ["--layer", "0"], "n_layer: got 0", 2),
        (TEXT.encode(), ["--memory-budget", "1k"], "want at most 1 KiB", 2),
        (TEXT.encode(), ["--memory-budget", "x"], "want a size", 2),
    ],
)
def test_bad_input_gets_one_clear_message(capsys, folder, content, more, words, want):
    if content is not None:
        (folder / "data.txt").write_bytes(content)
    before = sorted(folder.iterdir())
    code, out, err = call(capsys, "pretrain", "--train-data", "data.txt", *TINY_RUN, *more)
    assert code == want
    assert out == ""
    assert err.startswith("yupana: ")
    assert words in err
    assert err.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_a_model_that_cannot_be_written_is_an_error_at_the_start(capsys, folder):
    (folder / "file").write_text("in the way")
    arguments = ["--train-data", "text.txt", *TINY_RUN, "--model-out", "file/m.gguf"]
    code, _, err = call(capsys, "pretrain", *arguments)
    assert code == 1
    assert err.startswith("yupana: file")


def test_a_full_disk_is_told_with_what_to_do(capsys, folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "m.gguf")

    monkeypatch.setattr("yupana.commands.pretrain.run", full)
    code, _, err = call(capsys, "pretrain", "--train-data=text.txt")
    assert code == 1
    assert err.endswith(
        "yupana: m.gguf: No space left on device. Make room there, or name another place.\n"
    )


@pytest.mark.parametrize("content", [None, b"", b"GGUF and then nothing"])
def test_generate_refuses_what_is_no_model(capsys, folder, content):
    if content is not None:
        (folder / "m.gguf").write_bytes(content)
    code, _, err = call(capsys, "generate", "m.gguf")
    assert code == 1
    assert re.match("yupana: .*m.gguf", err)


def test_values_that_turn_non_finite_end_the_program(capsys, folder):
    more = ["--adam-alpha", "1e30", "--warmup", "0", "--adam-iter", "50"]
    code, _, err = call(capsys, "pretrain", "--train-data", "text.txt", *TINY_RUN, *more)
    assert code == 1
    assert re.search(r"non-finite in step \d+: .* First in \w+", err)
    assert "model.gguf" in err
    load_llama("model.gguf")


def test_ctrl_c_is_told_and_has_its_exit_code(capsys, folder, monkeypatch):
    whole = TrainingStep.run

    def interrupted(self, batch, step, factor=1.0):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(self, batch, step, factor)

    monkeypatch.setattr(TrainingStep, "run", interrupted)
    code, out, err = call(capsys, "pretrain", "--train-data", "text.txt", *TINY_RUN)
    assert code == 130
    assert "finishing this step" in err
    assert "3 steps in" in out
    assert "model.gguf" in out


def test_ctrl_c_from_outside(folder):
    arguments = ["pretrain", "--train-data", "text.txt", *TINY_RUN, "--adam-iter", "1000000"]
    running = subprocess.Popen(
        [sys.executable, "-m", "yupana.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = folder / "model.jsonl"
    for _ in range(600):  # a minute
        if log.exists() and log.read_text().count("\n") > 5:
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "interrupted; everything was written" in err
    assert "  model " in out
    load_llama("model.gguf")


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_process_compiles_nothing(folder):
    arguments = ["pretrain", "--train-data", "text.txt", *TINY_RUN, "--adam-iter", "2"]
    code = (
        "from yupana.cli import main; from yupana.graphlib.kernels.compiler import counts\n"
        f"assert main({arguments!r}) == 0; print(counts['compiled'], counts['loaded'] > 10)"
    )
    run_python(code)
    assert run_python(code).splitlines()[-1] == "0 True"


def test_a_terminal_without_the_letters_is_no_error():
    code = "from yupana.cli import main; main(['ops'])"
    assert "silu" in run_python(code, PYTHONIOENCODING="ascii")


def test_ops_lists_the_registry(capsys):
    code, out, _ = call(capsys, "ops")
    assert code == 0
    assert [*sorted(REGISTRY)] == sorted(line.split()[0] for line in out.splitlines()[1:])
    rows = {row["name"]: row for row in json.loads(call(capsys, "ops", "--json")[1])}
    assert rows.keys() == REGISTRY.keys()
    assert rows["silu"]["gradient"] is True
    assert rows["opt_step_sgd"]["gradient"] is False
    assert rows["reshape"]["view"] is True
    view = call(capsys, "ops", "--family", rows["reshape"]["family"])[1]
    assert "reshape" in view
    assert "silu" not in view
    assert call(capsys, "ops", "--family", "none")[0] == 2


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_ops_fit_the_terminal(width):
    lines = ops.table([ops.describe(op) for op in REGISTRY.values()], width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) == len(REGISTRY) + 1


def test_cost_is_what_a_run_takes(capsys, folder):
    code, out, _ = call(capsys, "cost", *TINY, "--n-vocab", "30", "--json")
    assert code == 0
    bill = json.loads(out)["all kept"]
    settings = cost.Settings(ctx=8, batch=2, embd=16, ff=24, head=2, layer=1, n_vocab=30)
    model = cost.Llama(settings.config(30)).init()
    step = cost.record_step(model, 2, AdamWSettings())
    plan = step.compile(threads=1).plan
    assert bill["peak"] == plan.peak
    weights = sum(-(-w.nbytes // 64) * 64 for w in model.weights.values())
    assert weights <= bill["by_class"]["weights"] <= weights + 64  # and the positions
    assert bill["by_class"]["optimiser"] == 2 * weights
    assert 0 < bill["seconds"] < 1
    # Forward and backward take about 6 FLOPs for each parameter and token.
    assert 4 < bill["flops"] / (model.n_parameters * 16) < 12


def test_cost_shows_what_checkpointing_saves(capsys):
    sizes = ["--layer=16", "--embd=32", "--ff=64", "--head=2", "--ctx=32", "--n-vocab=64"]
    code, out, _ = call(capsys, "cost", *sizes)
    assert code == 0
    assert "tokens per second" in out
    bills = json.loads(call(capsys, "cost", *sizes, "--json")[1])
    kept, saved = bills["all kept"]["by_class"], bills["checkpointing"]["by_class"]
    assert saved["activations"] <= kept["activations"] / 2
    assert bills["checkpointing"]["flops"] > bills["all kept"]["flops"]
    for bill in (bills["all kept"], bills["checkpointing"]):
        assert bill["lower_bound"] <= bill["peak"] <= 1.05 * bill["lower_bound"]


@pytest.mark.parametrize("more", [[], ["--lora", "--n-lora", "4"]])
def test_baby_llama_prints_errors_and_a_wave(capsys, more):
    arguments = ["--n-examples", "9", "--n-iter", "4", "--n-gen", "5", *more]
    code, out, err = call(capsys, "baby-llama", *arguments)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    number = r" +\d+\.\d+"
    assert re.fullmatch(f"example   0: error before{number}, after{number}", lines[0])
    assert lines[1].startswith("example   8:")
    assert all(re.fullmatch(" *X *", line) and len(line) == 8 for line in lines[2:7])
    last = re.fullmatch(r"mean error over 9 examples: before (\d+\.\d), after (\d+\.\d)", lines[7])
    assert last
    assert float(last[2]) < float(last[1])
    assert len(lines) == 8


def test_baby_llama_refuses_settings_out_of_range(capsys):
    assert call(capsys, "baby-llama", "--n-examples", "0")[0] == 2
    assert call(capsys, "baby-llama", "--lora", "--n-lora", "0")[0] == 2


@pytest.mark.parametrize("width", [1, 5, 12, 20, 34, 50, 72, 200])
def test_status_fits_any_width(width):
    status = Status(12345, 100000, 2.5, 12.3456, 11.5, 123456.7, 360000.0)
    assert len(status.line(width)) <= width
    assert Status(0, 1).line(width)


@pytest.mark.parametrize("width", [10, 20, 40, 100])
def test_bar_fits_the_terminal(width, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with Bar(stream, width) as bar:
        bar.show(Status(5, 10, 1.0, 3.25, 3.5, 1234.0, 7.0))
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", stream.getvalue())
    shown = [line for line in re.split(r"[\r\n]", plain) if line.strip()]
    assert shown
    assert max(map(len, shown)) <= width
    assert "5/10" in shown[-1]


def test_plain_lines_are_few():
    stream = io.StringIO()
    lines = Lines(stream, every_s=1000.0)
    for step in range(1, 101):
        lines.show(Status(step, 100, loss=1.0))
    lines.show(Status(100, 100, loss=1.0, validation=2.0))
    lines.tell("done")
    assert stream.getvalue() == "step 1/100  loss 1.000\nstep 100/100  loss 1.000\ndone\n"


def test_warnings_say_what_is_wrong_and_not_where_it_was_raised(capsys, monkeypatch):
    def warn(settings):
        print(warnings.formatwarning("mlock: low limit", UserWarning, "mapping.py", 109), end="")
        return 0

    monkeypatch.setattr("yupana.commands.inspect.run", warn)
    assert main(["inspect", "m.gguf"]) == 0
    assert capsys.readouterr().out == "yupana: mlock: low limit\n"
    assert "mapping.py:109" in warnings.formatwarning("x", UserWarning, "mapping.py", 109)
