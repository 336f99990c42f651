"""Parts of a graph, and what pictures tell of each tensor: sizes, work, times, places."""

import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

import yupana as yp
from tests.test_draw import drawn_relations, drawn_tensors, graphs, llama, mlp
from yupana import ops
from yupana.graphlib.draw import draw_graph
from yupana.graphlib.draw.details import Details
from yupana.graphlib.draw.outline import make_outline
from yupana.graphlib.draw.select import between, find_tensors, neighbourhood
from yupana.graphlib.errors import GraphError, SettingError
from yupana.graphlib.profile import profile

needs_dot = pytest.mark.skipif(
    shutil.which("dot") is None, reason="the program dot (graphviz) is not installed"
)


def chain():
    """Six steps from x, a side input at the third, and what reads both ends."""
    ctx = yp.Context(no_alloc=True)
    x, w = ctx.input((4,), name="x"), ctx.param((4,), name="w")
    steps = [x.silu().named("s0")]
    for k in range(1, 6):
        previous = steps[-1] * w if k == 3 else steps[-1].silu()
        steps.append(previous.named(f"s{k}"))
    return yp.Graph(steps[-1] + steps[0]), [x, w, *steps]


def named(tensors):
    return {t.name for t in tensors if t.name}


@pytest.mark.parametrize(
    ("around", "depth", "found"),
    [
        ("s2", 0, {"s2"}),
        ("s2", 1, {"s1", "s2", "s3"}),
        ("s2", 2, {"s0", "s1", "s2", "s3", "w", "s4"}),
        ("w", 2, {"w", "s3", "s2", "s4"}),
        ("x", 1, {"x", "s0"}),
    ],
)
def test_a_neighbourhood_is_what_arrows_reach(around, depth, found):
    graph, _ = chain()
    part = neighbourhood(graph, around, depth)
    assert named(part.tensors) == found
    assert named(part.marked) == {around}


def test_leaves_are_reached_and_not_passed_through():
    ctx = yp.Context(no_alloc=True)
    shared = ctx.input((4,), name="positions")
    a, b = (shared * ctx.input((4,), name=name) for name in "ab")
    graph = yp.Graph([a, b])
    assert named(neighbourhood(graph, "a", 9).tensors) == {"a", "positions"}
    assert named(neighbourhood(graph, shared, 2).tensors) == {"a", "b", "positions"}


@given(graphs(), st.data())
def test_what_lies_between_is_on_a_path_and_nothing_is_left_out(graph, data):
    tensors = [*graph.leaves, *graph.nodes]
    a, b = (data.draw(st.sampled_from(tensors)) for _ in range(2))

    def reaches(start, end):
        return start is end or any(reaches(start, src) for src in set(end.srcs))

    if not (reaches(a, b) or reaches(b, a)):
        with pytest.raises(GraphError, match="no path"):
            between(graph, (a, b))
        return
    first, last = (a, b) if reaches(a, b) else (b, a)
    found = between(graph, (a, b)).tensors
    assert found == {t for t in tensors if reaches(first, t) and reaches(t, last)}


@given(graphs(), st.data())
def test_a_picture_of_a_part_shows_the_part_and_names_what_it_leaves_out(graph, data):
    centre = data.draw(st.sampled_from(graph.nodes))
    part = neighbourhood(graph, centre, data.draw(st.integers(0, 3)))
    outline = make_outline(graph, fold=False, part=part)
    assert set(drawn_tensors(outline)) == part.tensors
    inner = {(s, n) for n in graph.nodes for s in n.srcs if {s, n} <= part.tensors}
    assert drawn_relations(outline) == inner
    for box in outline.boxes:
        first = (box.before or [box])[0].tensor
        missing = [src for src in first.srcs if src not in part.tensors]
        assert set(box.cut_sources) == {src.name or src.label for src in missing}
    assert any(centre in box.tensors and box.is_marked for box in outline.boxes)


def test_names_stand_for_what_they_begin():
    graph = llama(2)
    assert [t.name for t in find_tensors(graph, "blk.1.attn_q")] == ["blk.1.attn_q.weight"]
    assert len(find_tensors(graph, "blk.0")) == 9
    assert [t.name for t in find_tensors(graph, "blk.0.attn_q.weight.grad")] == [
        "blk.0.attn_q.weight.grad"
    ]
    with pytest.raises(GraphError, match=r"'blk.0.atn_q.weight', want one such as blk\.0\.attn_q"):
        find_tensors(graph, "blk.0.atn_q.weight")
    with pytest.raises(GraphError, match="not part of the graph"):
        find_tensors(graph, yp.tensor([1.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"around": "w0", "depth": -1}, "depth: got -1"),
        ({"around": "w0", "between": ("x", "w0")}, "both around and between"),
        ({"between": "x"}, "want the names of two tensors"),
        ({"between": ("w0", "w1")}, "no path: got 'w0' and 'w1'"),
        ({"around": ""}, "no tensor of that name"),
    ],
)
def test_a_part_that_cannot_be_drawn_is_told(options, message, tmp_path):
    with pytest.raises((GraphError, SettingError), match=re.escape(message)):
        yp.Graph(mlp(2)).draw(tmp_path / "g.dot", **options)
    assert not list(tmp_path.iterdir())


def test_only_layers_that_are_wholly_between_are_folded():
    graph = llama(6)
    part = between(graph, ("blk.1.attn_q.weight", "loss"))
    outline = make_outline(graph, part=part)
    folded = [box for box in outline.boxes if box.run is not None]
    assert {len(box.tensors) for box in folded} == {4}  # of layers 2 to 5
    assert max(outline.copies) == 4
    assert sum(box.name == "blk.1.attn_q.weight" for box in outline.boxes) == 1
    assert set(drawn_tensors(outline)) == part.tensors


def test_around_one_layer_nothing_is_folded(tmp_path):
    source = llama(4).draw(tmp_path / "g.dot", around="blk.2.attn_q").read_text("utf-8")
    assert "blk.2.attn_q.weight" in source
    assert "layer ×" not in source
    assert "also reads" in source
    assert ">asked for<" in source


def test_details_are_those_of_the_tensors(tmp_path):
    ctx = yp.Context()
    x, w = ctx.tensor([[1.0] * 8] * 4, name="x"), ctx.tensor([[2.0] * 8] * 6, name="w")
    y = ops.mul_mat(w, x).silu().named("y")
    graph = yp.Graph(y)
    program = graph.compile(threads=1, fuse=False)
    found = profile(program, runs=2)
    product = graph.nodes[0]
    all_of_it = Details.of(graph.nodes, True, True, found, program.plan)
    ns = found.timings[0].ns
    offset = program.plan.storage[product].offset
    line = all_of_it.line([product])
    assert line.startswith("96 B, 384 FLOP, ")  # 4 * 6 results of 8 products and sums
    assert line.endswith(f"at {offset} B")
    assert float(line.split(", ")[2].split()[0]) == pytest.approx(ns, rel=0.01) or ns >= 1000
    assert all_of_it.line([x]) == "128 B"
    assert Details.of(graph.nodes).line([product]) == ""
    source = draw_graph(graph, tmp_path / "g.dot", sizes=True, flops=True, plan=program.plan)
    assert "96 B, 384 FLOP, at " in source.read_text("utf-8")


def test_folded_layers_show_the_mean_of_times_and_the_range_of_places():
    ctx = yp.Context(no_alloc=True)
    a, b = (ctx.input((8,)).silu() for _ in range(2))
    plan = yp.Graph([a, b]).plan(fuse=False)
    tasks = [type("T", (), {"nodes": (n,)}) for n in (a, b)]
    details = Details(times={a: (100.0, tasks[0]), b: (300.0, tasks[1])}, plan=plan)
    assert details.line([a, b]) == "200 ns, at 0 B … 64 B"


def test_details_of_another_graph_are_refused(tmp_path):
    x = yp.tensor([1.0, 2.0])
    program = yp.Graph(x.silu()).compile(threads=1)
    graph = yp.Graph(x.tanh())
    for other in ({"plan": program.plan}, {"profile": profile(program, 1)}):
        with pytest.raises(SettingError, match="of another graph"):
            graph.draw(tmp_path / "g.dot", **other)


def test_steps_that_prepare_an_update_are_one_box():
    ctx = yp.Context(no_alloc=True)
    w = ctx.param((4, 4), name="w")
    loss = (w * w).sum().named("loss")
    grad = yp.gradients(loss)[w]
    norm = grad.sqr().sum()
    settings = ctx.input((2,), name="settings")
    graph = yp.Graph([ops.opt_step_sgd(w, grad / norm, settings), norm.output()])
    (box,) = (box for box in make_outline(graph).boxes if box.ops == ["sqr", "sum"])
    assert box.is_output
    assert set(drawn_tensors(make_outline(graph))) == {*graph.nodes, *graph.leaves}


@needs_dot
def test_a_pdf_fits_a_page(tmp_path):
    text = llama(32).draw(tmp_path / "deep.pdf").read_bytes()
    width, height = map(float, re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+)", text)[0])
    assert max(width, height) <= 842  # points: A4
    assert min(width, height) <= 595
