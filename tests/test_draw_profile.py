"""Runs watched call by call, their timelines and traces; plans drawn on the same scales."""

import json
import re
import threading
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

import yupana as yp
from tests.test_draw import llama, texts
from yupana.graphlib.draw.families import FILLS, family_of
from yupana.graphlib.draw.timeline import axis
from yupana.graphlib.errors import SettingError
from yupana.graphlib.profile import profile
from yupana.graphlib.schedule import SOLO
from yupana.graphlib.watch import watch


def products(threads, n=4, side=96):
    """A chain of matrix products that are worth sharing, each read by a small step."""
    random = np.random.default_rng(0)
    ctx = yp.Context()
    x = ctx.tensor(random.normal(size=(side, side)) / side)
    y = x
    for _ in range(n):
        y = (x @ y).silu()
    return yp.Graph(y.sum().named("total")).compile(threads)


@pytest.fixture(scope="module")
def shared():
    """A profile on two threads of a program that shares its steps."""
    return profile(products(2), runs=3)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_watched_run_computes_what_a_run_does_and_calls_every_chunk_once(threads):
    program = products(threads)
    program.run()
    (total,) = program.outputs
    want = program.value(total).tobytes()
    run = watch(program, runs=3)
    assert program.value(total).tobytes() == want
    steps = [step for steps in program.steps for step in steps]
    assert len(run.tasks) == len(steps)
    assert len(run.threads) == threads
    calls = [call for calls in run.threads for call in calls]
    assert {call.step for call in calls} == set(range(len(steps)))
    grains = program._tables[3]
    for k, step in enumerate(steps):
        n = sum(call.step == k for call in calls)
        assert n == 1 if grains[k] == SOLO else 1 < n <= step.chunks
    program.run()  # the counters are as they were
    assert program.value(total).tobytes() == want


def test_calls_of_a_thread_follow_one_another_and_steps_wait_at_meetings(shared):
    run = shared.watched
    assert min(calls[0].begin for calls in run.threads if calls) == 0
    for calls in run.threads:
        assert all(call.begin <= call.end for call in calls)
        assert all(a.end <= b.begin and a.step <= b.step for a, b in pairwise(calls))
    every = [call for calls in run.threads for call in calls]
    assert run.meetings
    for step in run.meetings:
        before = max((call.end for call in every if call.step < step), default=0)
        assert before <= min(call.begin for call in every if call.step >= step)
    assert run.ns == max(call.end for call in every)


def test_a_watched_run_takes_the_steps_in_it():
    ctx = yp.Context()
    w = ctx.param((2,), name="w").set([1.0, 2.0])
    settings = ctx.tensor([0.5, 0.0])
    step = yp.ops.opt_step_sgd(w, w * 1.0, settings)
    watch(yp.Graph(step).compile(threads=1), runs=2)
    assert w.numpy().tolist() == [0.25, 0.5]


def test_a_run_that_is_stopped_leaves_the_program_whole():
    program = products(2, n=40, side=256)
    program.run()
    want = program.value(program.outputs[0]).tobytes()
    timer = threading.Timer(0.005, program.abort)
    timer.start()
    run = watch(program)
    timer.join()
    assert run.ns >= 0
    program.run()  # stops at once if the timer came too late
    program.run()
    assert program.value(program.outputs[0]).tobytes() == want


def test_profiles_say_what_tasks_achieve(shared):
    by_op = shared.by_op()
    assert [t for timings in by_op.values() for t in timings] == sorted(
        shared, key=lambda t: [*by_op].index(t.task.name)
    )
    totals = [sum(t.ns for t in timings) for timings in by_op.values()]
    assert totals == sorted(totals, reverse=True)
    assert sum(totals) == pytest.approx(shared.ns)
    (product,) = {t.task.cost.flops for t in by_op["mul_mat"]}
    assert product == 2 * 96**3
    timing = by_op["mul_mat"][0]
    assert timing.gflops == pytest.approx(product / timing.ns)
    assert timing.gb_per_s == pytest.approx(3 * 4 * 96**2 / timing.ns)
    with pytest.raises(SettingError, match="runs: got 0"):
        profile(products(1), runs=0)


def rectangles(path):
    """(x, width, fill) of the calls by row, from the groups that have notes."""
    name = "{http://www.w3.org/2000/svg}"
    rows = {}
    for group in ElementTree.parse(path).getroot().iter(f"{name}g"):
        assert group.find(f"{name}title").text
        for r in group.iter(f"{name}rect"):
            rows.setdefault(float(r.get("y")), []).append(
                (float(r.get("x")), float(r.get("width")), r.get("fill"))
            )
    return rows


def test_a_timeline_shows_every_thread_in_its_row(shared, tmp_path):
    path = shared.draw(tmp_path / "t.svg", title="Products")
    assert path == tmp_path / "t.svg"
    rows = rectangles(path)
    threads = [calls for calls in shared.watched.threads if calls]
    assert len(rows) == len(threads)
    for (_, drawn), calls in zip(sorted(rows.items()), threads, strict=True):
        assert {fill for _, _, fill in drawn} == {
            FILLS[family_of(shared.timings[shared.watched.tasks[c.step]].task)] for c in calls
        }
        scale = 890 / shared.watched.ns
        assert min(x for x, _, _ in drawn) == pytest.approx(78 + calls[0].begin * scale, abs=0.1)
        most = max(x + width for x, width, _ in drawn)
        assert most == pytest.approx(78 + calls[-1].end * scale, abs=0.3)
    said = texts(path)
    assert {"Products", "thread 0", "mul_mat", "GFLOP/s", "the threads meet"} <= set(said)


def test_a_part_of_a_timeline_is_enlarged(shared, tmp_path):
    ms = shared.watched.ns / 1e6
    path = shared.draw(tmp_path / "t.svg", zoom=(0, ms / 2))
    assert any(text.startswith("enlarged: from the start to") for text in texts(path))
    assert len(rectangles(path)) > len(rectangles(shared.draw(tmp_path / "u.svg")))
    for zoom in [(0, 2 * ms), (-1, ms), (ms / 2, ms / 2)]:
        with pytest.raises(SettingError, match="zoom"):
            shared.draw(tmp_path / "v.svg", zoom=zoom)
    with pytest.raises(SettingError, match=r"\.svg"):
        shared.draw(tmp_path / "v.png")


@pytest.mark.parametrize(
    "span", [(0, 1), (0, 37.5), (0, 2e3), (123.0, 4567.0), (0, 7e9), (5e8, 6e8)]
)
def test_axes_have_a_readable_number_of_marks(span):
    begin, end = span
    marks = axis(begin, end)
    assert 3 <= len(marks) <= 12
    assert all(begin - 1e-6 <= ns <= end * (1 + 1e-9) for ns, _ in marks)
    assert len({text for _, text in marks}) == len(marks)
    assert all(len(text) < 11 for _, text in marks)


def test_a_trace_is_what_chrome_and_perfetto_read(shared, tmp_path):
    trace = json.loads(shared.save_trace(tmp_path / "t.json").read_text("utf-8"))
    events = trace["traceEvents"]
    names = [e for e in events if e["ph"] == "M"]
    assert [e["args"]["name"] for e in names if e["name"] == "thread_name"] == [
        "thread 0",
        "thread 1",
    ]
    calls = [e for e in events if e["ph"] == "X"]
    assert len(calls) == sum(len(calls) for calls in shared.watched.threads)
    assert len(calls) + len(names) == len(events)
    for event in calls:
        assert {"name", "cat", "pid", "tid", "ts", "dur", "args"} <= event.keys()
        assert event["ts"] >= 0
        assert event["dur"] >= 0
    assert max(e["ts"] + e["dur"] for e in calls) == pytest.approx(shared.watched.ns / 1e3)
    product = next(e for e in calls if e["name"] == "mul_mat")
    assert product["args"]["flops"] == 2 * 96**3
    assert product["cat"] == "products"
    assert product["args"]["recorded at"].startswith("test_draw_profile.py:")
    with pytest.raises(SettingError, match=r"\.json"):
        shared.save_trace(tmp_path / "t.txt")


def test_plans_against_each_other_have_the_same_scales(tmp_path):
    kept, again = llama(4).plan(), llama(4, checkpoints="sqrt").plan()
    assert again.peak < kept.peak
    assert again.n_tasks > kept.n_tasks
    path = kept.draw(tmp_path / "p.svg", title="kept", against={"again": again})
    notes = re.findall(
        r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"[^>]*><title>[^<]*'
        r" ([\d,]+) bytes at ([\d,]+), tasks (\d+) to (\d+)</title>",
        path.read_text("utf-8"),
    )
    panel = 92 + 330 + 56  # points that one takes
    seen = set()
    for x, y, width, height, size, offset, first, last in notes:
        nbytes, at = (int(text.replace(",", "")) for text in (size, offset))
        number = int(float(y) // panel)
        seen.add(number)
        assert float(height) == pytest.approx(330 * nbytes / (1.03 * kept.peak), abs=0.02)
        bottom = panel * number + 92 + 330
        low = bottom - 330 * at / (1.03 * kept.peak)
        assert float(y) + float(height) == pytest.approx(low, abs=0.02)
        per_task = (1000 - 76 - 116) / (again.n_tasks + 1)  # of the plan with more tasks
        assert float(x) >= 76 + per_task * int(first) - 0.02
        assert float(x) + float(width) <= 76 + per_task * (int(last) + 1) + 0.02
    assert seen == {0, 1}
    said = texts(path)
    assert {"kept", "again"} <= set(said)
    assert said.count("peak") == said.count("lower bound") == 2
