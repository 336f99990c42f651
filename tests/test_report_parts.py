"""What reports are made of: limits, nodes grouped, places in charts, machine, settings again."""

import json
from pathlib import Path

import pytest

import yupana as yp
from yupana.graphlib.draw.text import format_bytes
from yupana.graphlib.limits import Limits, Speed, measure_limits
from yupana.graphlib.profile import profile
from yupana.models.llama import Llama, LlamaConfig
from yupana.train.machine import this_machine
from yupana.train.record import plain_settings, read_settings
from yupana.train.report.charts import curves, roofline
from yupana.train.report.measured import HotNode, hottest
from yupana.train.settings import FinetuneSettings


def test_settings_survive_the_record():
    given = FinetuneSettings(
        model_base=Path("m.gguf"), train_data=Path("d.txt"), target_modules=("q_proj", "v_proj"),
        adam_alpha=2e-4, use_rslora=True, memory_budget="600M",
    )  # fmt: skip
    stored = json.loads(json.dumps(plain_settings(given)))
    assert read_settings(FinetuneSettings, stored) == given
    assert read_settings(FinetuneSettings, {**stored, "from_the_future": 1}) == given


def test_limits_are_of_this_machine():
    one = measure_limits(1, sizes=[1 << 14, 1 << 18])
    assert 0.1 < one.gflops < 1000
    assert all(0.1 < s.read < 10_000 and 0.1 < s.copy < 10_000 for s in one.speeds)
    two = measure_limits(2, sizes=[1 << 14])
    assert two.threads == 2
    assert two.gflops > 0


LIMITS = Limits(1, 100.0, (Speed(1 << 18, 50.0, 60.0), Speed(1 << 27, 10.0, 8.0)))


def test_the_nearer_limit_counts():
    assert LIMITS.gb_per_s(1000) == 60.0
    assert LIMITS.gb_per_s(1 << 20) == LIMITS.gb_per_s(1 << 40) == 10.0
    assert LIMITS.share(flops=1000, nbytes=60, ns=20) == pytest.approx(0.5)
    assert LIMITS.share(flops=10, nbytes=600, ns=20) == pytest.approx(0.5)
    assert LIMITS.share(1, 1, 0) == 0


def test_nodes_that_are_alike_are_one_line():
    model = Llama(LlamaConfig(n_vocab=9, n_ctx=8, n_embd=8, n_layer=3, n_head=2)).init(seed=1)
    tokens, targets = (model.context.input((2, 8), "i32", n) for n in ("tokens", "targets"))
    loss = model.loss(tokens, targets)
    graph = yp.Graph(loss)
    graph.backward(loss)
    found = profile(graph.compile(threads=1), runs=2)
    nodes = hottest(found, LIMITS, most=1000)
    assert sum(node.count for node in nodes) == len(found)
    assert sum(node.share for node in nodes) == pytest.approx(1)
    queries = [n for n in nodes if "blk.*.attn_q.weight" in n.what]
    assert all(node.count == 3 for node in queries)
    assert any(node.what.startswith("backward") for node in queries)
    assert [node.ns for node in nodes] == sorted((node.ns for node in nodes), reverse=True)
    assert all(0 < node.reached < 10 for node in nodes if node.ns)
    product = next(n for n in queries if not n.what.startswith("backward"))
    assert product.gflops * product.ns == pytest.approx(3 * 2 * 16 * 8 * 8)


def node(gflops: float, intensity: float) -> HotNode:
    return HotNode("mul_mat", "", 1, 1e3, 0.1, gflops, gflops / intensity, intensity, 0.5, True)


def test_places_in_a_roofline_are_those_of_the_numbers():
    chart = roofline([node(50, 10), node(0.5, 0.1), node(0, 1)], LIMITS)
    assert [dot.number for dot in chart.dots] == [1, 2]  # what computes nothing is left out
    by_text = {tick.text: tick.place for tick in chart.y_ticks}
    assert by_text["10"] < chart.dots[0].y < by_text["100"]
    ticks = {tick.text: tick.place for tick in chart.x_ticks}
    assert chart.dots[0].x == pytest.approx(ticks["10"])
    assert chart.dots[1].x == pytest.approx(ticks["0.1"])
    assert roofline([node(0, 1)], LIMITS) is None


def test_curves_are_thinned_and_told_in_columns():
    points = [(k, float(k)) for k in range(1, 5001)]
    chart = curves("loss", "nats", {"training": points}, lambda v: f"{v:.1f}")
    (line,) = chart.lines
    places = [tuple(map(float, p.split(","))) for p in line.points.split()]
    assert len(places) <= 400
    assert all(0 <= x <= 1000 and 0 <= y <= 1000 for x, y in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    assert len(chart.columns) <= 60
    assert chart.columns[0].note.startswith("step 1 to 84\ntraining 42.5")
    widths = sum(column.width for column in chart.columns)
    assert widths == pytest.approx(1000, abs=1)
    assert curves("loss", "nats", {"training": []}, str) is None
    assert curves("loss", "nats", {"training": [(3, 2.0)]}, str).lines


def test_the_machine_is_told(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nmodel name\t: Some  CPU 3000\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:       1024 kB\n")
    found = this_machine(tmp_path)
    assert (found.processor, found.memory) == ("Some CPU 3000", 1 << 20)
    bare = this_machine(tmp_path / "nothing")
    assert bare.memory is None
    assert bare.processor
    assert format_bytes(found.memory) == "1 MiB"
