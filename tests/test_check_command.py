"""`yupana check`: the registry's ops, a user's own, what it says when one of them is wrong."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import yupana as yp
from tests import command_line
from yupana.commands import check
from yupana.graphlib import program, schedule
from yupana.graphlib.kernels.run import SOLO
from yupana.graphlib.op import REGISTRY

ROOT = Path(__file__).parents[1]
OPS = '''
"""Ops of somebody's own."""
import yupana as yp
from yupana.graphlib.op import Result, call


def half_square(x):
    return Result((x,), x.shape, x.dtype)


def record(name, **changes):
    fields = {
        "lower": yp.ops.sqr.lower,
        "vjp": yp.ops.sqr.vjp,
        "reference": lambda x: x * x,
        "samples": lambda d: call(d.floats(d.shape())),
        "family": "mine",
    }
    def rule(x):
        """y = x²."""
        return Result((x,), x.shape, x.dtype)
    return yp.op(name=name, **fields | changes)(rule)


right = record("my_square")
'''
WRONG = 'wrong = record("my_wrong", reference=lambda x: x * x * 1.001)\n'
SLOPE = 'tilt = record("my_tilt", vjp=(lambda y, g: g * y.srcs[0] * 2.001,), family="other")\n'
RAISES = 'raises = record("my_raises", samples=lambda d: call(d.float(d.shape())))\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder; ops and modules declared in the test are forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before, modules = dict(REGISTRY), set(sys.modules)
    yield tmp_path
    REGISTRY.clear()
    REGISTRY.update(before)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    return command_line.call(capsys, "check", *arguments)


def test_named_ops_are_proved_one_a_line(capsys):
    code, out, err = run(capsys, "sqr", "add", "--examples", "3")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("2 operations, 3 drawn calls each")
    assert [line.split()[:2] for line in lines[2:4]] == [["ok", "add"], ["ok", "sqr"]]
    for line in lines[2:4]:
        assert re.search(
            r" \d+\.\d s +3 calls  forward 0\.\d\d, .*gradient 0\.\d\d, .*threads", line
        )
    assert re.fullmatch(r"2 operations proved: forward, .*errors \(\d+ s\)", lines[-1])


def test_without_names_all_are_chosen_and_families_choose_among_them():
    assert check.choose(check.Settings(), None) == list(REGISTRY.values())
    chosen = check.choose(check.Settings(family="rope"), None)
    assert [op.name for op in chosen] == [n for n, op in REGISTRY.items() if op.family == "rope"]
    assert chosen


def test_seeds_draw_other_calls_and_the_same_ones_again(monkeypatch):
    drawn = []
    monkeypatch.setattr(check, "check_op", lambda *arguments: drawn.append(arguments))
    list(check.prove([REGISTRY["add"]], check.Settings(examples=7, seed=5)))
    assert drawn == [(REGISTRY["add"], 7, 5)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rms_nrm"], "no such operation: got 'rms_nrm'. Did you mean rms_norm"),
        (["zzz"], "no such operation: got 'zzz'. `yupana ops` lists them"),
        (["--family", "unray"], "no operation of this family: got 'unray', want one of "),
        (["add", "--family", "unary"], "got 'unary', want one of arithmetic"),
        (["--examples", "0"], "examples: got 0, want at least 1"),
        (["--seed", "-1"], "seed: got -1, want at least 0"),
        (["--examples", "many"], "many"),
        (["--file", "none.py"], "no such file: got none.py"),
    ],
)
def test_wrong_arguments_are_explained(capsys, folder, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_a_file_of_sound_ops_passes(capsys, folder):
    (folder / "my_ops.py").write_text(OPS)
    code, out, err = run(capsys, "--file", "my_ops.py", "--examples", "4")
    assert (code, err) == (0, "")
    assert re.search(r"^ok +my_square .* 4 calls", out, flags=re.M)
    assert "1 operation proved" in out


def test_a_wrong_op_fails_with_lines_to_paste(capsys, folder):
    (folder / "my_ops.py").write_text(OPS + WRONG + SLOPE)
    code, out, err = run(capsys, "--file", "my_ops.py", "--examples", "4")
    assert (code, err) == (1, "")
    assert re.findall(r"^(ok|FAILED) +(\w+) ", out, flags=re.M) == [
        ("ok", "my_square"), ("FAILED", "my_wrong"), ("FAILED", "my_tilt")
    ]  # fmt: skip
    assert "differs from the reference: got" in out
    assert "wrong gradient with respect to" in out
    assert "2 of 3 operations failed: my_wrong, my_tilt" in out
    pasted = re.findall(r"^    (import numpy.*)\n    (import my_ops)\n    (.*)$", out, flags=re.M)
    assert len(pasted) == 2
    for imports, own, call in pasted:
        names: dict = {}
        exec(f"{imports}\n{own}\nnode = {call}", names)
        assert names["node"].op.name in ("my_wrong", "my_tilt")
        assert names["node"].size <= 2


def test_names_choose_among_the_file_and_the_library(capsys, folder):
    (folder / "my_ops.py").write_text(OPS + WRONG)
    code, out, _ = run(capsys, "my_square", "sqr", "--file", "my_ops.py", "--examples", "2")
    assert code == 0
    assert "2 operations proved" in out


def test_a_record_that_raises_is_a_failure_and_not_the_end(capsys, folder):
    (folder / "my_ops.py").write_text(OPS.replace("right =", RAISES + "right ="))
    code, out, err = run(capsys, "--file", "my_ops.py", "--examples", "2")
    assert (code, err) == (1, "")
    assert re.search(r"AttributeError: .*'float'", out)
    assert re.search(rf"my_ops\.py:{OPS.splitlines().index(OPS.splitlines()[-1]) + 1}", out)
    assert re.search(r"^ok +my_square", out, flags=re.M)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("my_ops.py", "x = 1\n\nx.y\n", "my_ops.py:3: AttributeError: 'int' object has no"),
        ("my_ops.py", "def f(:\n", "my_ops.py:1: SyntaxError: "),
        ("my_ops.py", "import yupana as yp\n", "got no operations, want some declared"),
        ("my_ops.py", "from yupana.ops import sqr\n", "my_ops.py:1: ModuleNotFoundError"),
        ("my_ops.py", OPS + 'record("add")', "an op of this name exists; choose another"),
        ("my-ops.py", OPS, "no name of a module. Rename it"),
        ("math.py", OPS, "a module of this name is loaded. Rename it"),
        ("my_ops.txt", OPS, "no name of a module"),
    ],
)
def test_files_that_cannot_be_used_are_explained(capsys, folder, name, text, words):
    (folder / name).write_text(text)
    code, out, err = run(capsys, "--file", name)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_lines_fit_narrow_terminals():
    report = yp.check_op("sqr", examples=1)
    verdict = check.Verdict(REGISTRY["sqr"], report, "", 0.5)
    lines = [verdict.line(width) for width in (1, 20, 40, 200)]
    assert [len(line) for line in lines[:3]] == [1, 20, 40]
    assert lines[1].startswith("ok      sqr")
    assert "…" not in lines[3]


def test_check_op_is_public():
    report = yp.check_op(yp.ops.mul, examples=2)
    assert report.examples == 2
    assert report.worst["forward"] <= 1
    with pytest.raises(yp.YupanaError, match="no op of this name"):
        yp.check_op("mull")
    assert np.isfinite(list(report.worst.values())).all()


def test_threads_share_the_steps_of_small_calls(monkeypatch):
    grains, make, usual = [], program.make_schedule, schedule._SOLO_NS

    def watched(*arguments):
        made = make(*arguments)
        if arguments[-1] > 1:
            pairs = zip(made.steps, made.grains, strict=True)
            grains.extend(grain for step, grain in pairs if step.chunks > 1)
        return made

    monkeypatch.setattr(program, "make_schedule", watched)
    yp.check_op("sum_rows", examples=8)
    assert grains
    assert SOLO not in grains
    assert usual == schedule._SOLO_NS


def test_an_interrupt_says_what_was_proved(tmp_path):
    command = [
        sys.executable,
        "-m",
        "yupana.cli",
        "check",
        "sqr",
        "add",
        "mul",
        "--examples=100000",
    ]
    first = [sys.executable, "-c", "import yupana.cli as c; c.main(['check', 'sqr', '-n1'])"]
    subprocess.run(first, cwd=ROOT, check=True, capture_output=True, timeout=120)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert "3 operations" in process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped after 0 of 3 operations" in out
    assert "Traceback" not in err
