"""What tensors, graphs, plans, programs and profiles show of themselves."""

import io
import re
import shutil
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

import yupana as yp
from tests.test_draw import llama
from yupana.graphlib.draw import picture, terminal
from yupana.graphlib.draw.text import format_bytes
from yupana.graphlib.profile import profile


@pytest.fixture(scope="module")
def objects():
    """One of each, of a step that computes something."""
    ctx = yp.Context()
    w = ctx.param((6, 4), name="w").set(np.arange(24).reshape(6, 4))
    x = ctx.input((3, 4), name="x").set(1.0)
    loss = (yp.ops.mul_mat(w, x).silu().sum()).named("loss")
    graph = yp.Graph(loss)
    graph.backward(loss)
    program = graph.compile(threads=1)
    program.run()
    return {
        "tensor": loss,
        "parameter": w,
        "graph": graph,
        "plan": program.plan,
        "program": program,
        "profile": profile(program, 2),
    }


@pytest.mark.parametrize("name", ["graph", "plan", "program", "profile"])
@pytest.mark.parametrize("columns", [24, 40, 80, 200])
def test_printed_objects_fit_the_terminal(objects, name, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = str(objects[name]).splitlines()
    assert max(map(len, lines)) <= max(columns, 24)
    assert len(lines) > 2
    assert all(line == line.rstrip() for line in lines)


def test_a_printed_training_graph_fits_a_narrow_terminal_too(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    graph = llama(4)
    for thing in (graph, graph.plan()):
        assert max(map(len, str(thing).splitlines())) <= 40


def test_wide_tables_tell_more(objects, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    wide = str(objects["profile"])
    assert "GFLOP/s" in wide
    monkeypatch.setenv("COLUMNS", "30")
    narrow = str(objects["profile"])
    assert "GFLOP/s" not in narrow
    assert "mul_mat" in narrow


def test_a_printed_plan_tells_what_it_costs(objects):
    plan, said = objects["plan"], str(objects["plan"])
    assert re.search(rf"arena +{re.escape(format_bytes(plan.peak))}", said)
    assert re.search(rf"total +{re.escape(format_bytes(plan.total))}", said)
    assert re.search(rf"weights +{re.escape(format_bytes(plan.by_class['weights']))}", said)
    assert "above the lower bound" in said


def test_a_terminal_without_block_letters_gets_none(objects, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    assert "█" in str(objects["plan"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    print(objects["plan"])


@pytest.mark.parametrize("width", [1, 7, 40])
def test_a_curve_keeps_the_peak(width):
    values = np.array([0, 1, 2, 50, 2, 1] * 30)
    lines = terminal.curve(values, width)
    assert len(lines) == 4
    assert max(map(len, lines)) <= width
    assert "█" in lines[0]


def test_a_printed_graph_names_what_it_reads_and_gives(objects):
    said = str(objects["graph"])
    assert "1 parameters of 24 elements" not in said
    assert "1 parameter of 24 elements" in said
    assert "inputs x (3, 4)" in said
    assert "gives loss ()" in said
    assert re.search(r"mul_mat +\d+ +144 FLOP|mul_mat", said)


class Checker(HTMLParser):
    """Whether tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.texts = [], []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)


def seen(html):
    checker = Checker()
    checker.feed(html)
    assert not checker.open
    return " ".join(checker.texts)


def test_tensors_in_notebooks_show_where_they_come_from_and_their_values(objects):
    said = seen(objects["tensor"]._repr_html_())
    assert "loss" in said
    assert "sum of silu (3, 6)" in said
    assert "test_draw_objects.py:" in said
    assert f"{objects['tensor'].item():.4f}"[:5] in said
    said = seen(objects["parameter"]._repr_html_())
    assert "parameter" in said
    assert "(6, 4) f32, 96 B" in said
    assert "23." in said
    nothing = yp.Context(no_alloc=True).leaf((2, 2), name="<b>&")
    assert "&lt;b&gt;&amp;" in nothing._repr_html_()
    assert "<pre>" not in nothing._repr_html_()
    large = yp.tensor(np.zeros((500, 500)))
    assert len(large._repr_html_()) < 2000


def test_programs_in_notebooks_show_their_ops(objects):
    said = seen(objects["program"]._repr_html_())
    assert "on 1 thread," in said
    assert all(task.name in said for task in objects["program"].tasks)


@pytest.mark.parametrize("name", ["plan", "profile", "graph"])
def test_pictures_in_notebooks_are_svg(objects, name):
    if name == "graph" and shutil.which("dot") is None:
        pytest.skip("the program dot (graphviz) is not installed")
    text = objects[name]._repr_svg_()
    assert text.startswith("<svg")
    assert ElementTree.fromstring(text).tag.endswith("svg")


def test_a_graph_without_dot_or_too_large_shows_as_text(objects, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(picture, "_MOST_BOXES", 3)
        assert objects["graph"]._repr_svg_() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert objects["graph"]._repr_svg_() is None


def test_every_object_says_in_a_line_what_it_is(objects):
    for name, thing in objects.items():
        kind = "Tensor" if name == "parameter" else name.capitalize()
        assert re.fullmatch(rf"<{kind} .{{3,70}}>", repr(thing))
