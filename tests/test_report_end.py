"""How a run ended: the last line of its log, and the head of the page about it."""

import contextlib
import html
import json
import signal

import pytest

from tests import small_runs
from tests.small_runs import TEXT
from yupana.graphlib.errors import NonFiniteError
from yupana.train.pretrain import prepare
from yupana.train.progress import Silent
from yupana.train.report import find_log, make_report, read_log
from yupana.train.report.facts import end_of


class Trouble(Silent):
    """A display that makes something happen when the second step is shown."""

    def __init__(self, happen) -> None:
        self.happen = happen

    def show(self, status):
        if status.step == 2:
            self.happen()


def presses(times):
    return lambda: [signal.raise_signal(signal.SIGINT) for _ in range(times)]


def fails():
    raise NonFiniteError("train: the loss turned non-finite:\nwhere nobody looked")


@pytest.mark.parametrize(
    ("changes", "happen", "told"),
    [
        ({"patience": 1, "eval_every": 1}, None, "no lower validation loss in 1 looks"),
        ({"opt_max_no_improvement": 1}, None, "no lower loss in 1 steps"),
        ({"time_limit": 1e-9}, None, "1e-09 seconds are over"),
        ({}, presses(1), "after step 2 of 6: Ctrl-C"),
        ({}, presses(2), "after step 2 of 6: Ctrl-C twice, at once"),
        ({}, fails, "after step 2 of 6: train: the loss turned non-finite:"),
    ],
)
def test_the_rule_that_ended_a_run_is_told(tmp_path, changes, happen, told):
    still = {"adam_alpha": 0.0, "generate_every": 0, **changes}
    display = Trouble(happen or (lambda: None))
    with contextlib.suppress(NonFiniteError, KeyboardInterrupt):
        prepare(TEXT, small_runs.settings(tmp_path, **still), display).train()
    log = read_log(find_log(tmp_path))
    assert log.step < 6
    assert end_of(log).endswith(told)
    text = make_report(tmp_path, is_measured=False).read_text("utf-8")
    assert html.escape(end_of(log)) in text
    assert "The log ends" not in text
    # One that has been gone on with has not ended yet.
    lines = log.path.read_text().splitlines(keepends=True)
    log.path.write_text("".join([*lines, lines[0]]))
    assert end_of(read_log(log.path)) == ""


def test_a_log_without_an_end_tells_the_rule_of_its_record(tmp_path):
    prepare(TEXT, small_runs.settings(tmp_path, generate_every=0)).train()
    path = find_log(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    assert json.loads(lines[-1]) == {"step": 6, "end": "adam_iter 6"}
    path.write_text("".join(lines[:-1]))
    assert end_of(read_log(path)) == "ended after step 6 of 6: adam_iter 6"


def test_a_run_that_cannot_begin_leaves_an_older_log_alone(tmp_path, monkeypatch):
    prepare(TEXT, small_runs.settings(tmp_path, adam_iter=1, generate_every=0)).train()
    before = find_log(tmp_path).read_bytes()
    again = prepare(TEXT, small_runs.settings(tmp_path, adam_iter=1, generate_every=0))
    monkeypatch.setattr(again.loop.keeper, "save_last", lambda history: fails())
    with pytest.raises(NonFiniteError):
        again.train()
    assert find_log(tmp_path).read_bytes() == before
