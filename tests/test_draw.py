"""Pictures: what they show, how layers fold, what they say where `dot` is missing."""

import os
import re
import shutil
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

import yupana as yp
from tests.drawn import llama, mlp, texts
from tests.work import lines_run
from yupana import ops
from yupana.graphlib.draw import draw_graph, draw_plan
from yupana.graphlib.draw.boxes import (
    AGAIN_LANE,
    BACKWARD_LANE,
    FORWARD_LANE,
    KINDS,
    RECOMPUTED,
    UPDATE_LANE,
    Box,
    Outline,
)
from yupana.graphlib.draw.dot import STYLES, to_dot
from yupana.graphlib.draw.fold import find_layers
from yupana.graphlib.draw.outline import make_outline
from yupana.graphlib.errors import GraphError, SettingError
from yupana.graphlib.fusion import find_groups

needs_dot = pytest.mark.skipif(
    shutil.which("dot") is None, reason="the program dot (graphviz) is not installed"
)


def every_box(outline: Outline) -> Iterator[Box]:
    """The boxes, and those that became a line of another."""
    for box in outline.boxes:
        yield from [box, *box.before, *box.data]
        yield from (view for _, views in box.reads for view in views)


def drawn_tensors(outline: Outline) -> Counter:
    return Counter(tensor for box in every_box(outline) for tensor in box.tensors)


def drawn_relations(outline: Outline) -> set[tuple[yp.Tensor, yp.Tensor]]:
    """Which tensor reads which, as an unfolded picture says."""
    chains = [[a, *b.before, b] for a, b in outline.arrows]
    for box in outline.boxes:
        first = (box.before or [box])[0]
        chains += [[source, *views, first] for source, views in box.reads]
        chains += [[leaf, first] for leaf in box.data] + [[*box.before, box]]
    return {(a.tensor, b.tensor) for chain in chains for a, b in pairwise(chain)}


@pytest.mark.parametrize("n_layer", [2, 3, 8])
@pytest.mark.parametrize("checkpoints", [None, "sqrt"])
@pytest.mark.parametrize("updates", [None, "as finished", "as made"])
def test_layers_of_a_transformer_fold_to_one(n_layer, checkpoints, updates):
    graph = llama(n_layer, checkpoints, updates)
    outline = make_outline(graph)
    assert outline.copies == [n_layer] * (2 if updates is None else 3)
    drawn = drawn_tensors(outline)
    assert set(drawn) == {*graph.nodes, *graph.leaves}
    assert set(drawn.values()) == {1}
    for box in outline.boxes:
        # Clones are made as needed: not of every layer.
        assert len(box.tensors) == (1 if box.run is None else n_layer) or box.kind == RECOMPUTED
        assert len({(t.shape, t.dtype, t.op) for t in box.tensors}) == 1


def test_folded_pictures_do_not_grow_with_depth():
    sizes = {len(make_outline(llama(n)).boxes) for n in (2, 5, 32)}
    assert len(sizes) == 1
    assert sizes.pop() < 130
    unfolded = make_outline(llama(32), fold=False)
    assert len(unfolded.boxes) > 2000
    assert not unfolded.copies


def test_parameters_of_folded_layers_share_their_name():
    outline = make_outline(llama(4, n_head_kv=2))
    names = {box.name for box in outline.boxes if box.run is not None and box.tensor.is_param}
    assert "blk.*.attn_q.weight" in names
    assert len(names) == 9
    readers = {b.name: a for a, b in outline.arrows}
    assert readers["loss"].number < max(box.number for box in outline.boxes)


def test_a_layer_names_what_the_next_one_reads():
    outline = make_outline(llama(4))
    ops_of_next = {
        (box.tensor.op.name, tuple(sorted(reader.tensor.op.name for reader in box.feeds)))
        for box in outline.boxes
        if box.feeds and box.lane == FORWARD_LANE
    }
    assert ops_of_next == {("add", ("add", "rms_norm"))}


@pytest.mark.parametrize(
    ("options", "copies"),
    [
        ({}, [6]),
        ({"activation": lambda layer: ops.relu if layer == 3 else ops.silu}, [3, 2]),
        ({"source": lambda layer: 0 if layer == 4 else -1}, [4, 2]),
    ],
    ids=["alike", "another activation", "another source"],
)
def test_only_layers_alike_are_folded(options, copies):
    graph = yp.Graph(mlp(6, **options))
    assert find_layers(graph.nodes).copies == copies


def test_a_long_sum_is_one_box():
    ctx = yp.Context(no_alloc=True)
    parts = [ctx.input((2,), name=f"x{k}").silu() for k in range(7)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    outline = make_outline(yp.Graph(total.tanh()))
    (box,) = (box for box in outline.boxes if box.is_sum)
    assert box.ops == ["add × 6"]
    assert len(box.reads) == 7  # arrows would be many
    assert len(make_outline(yp.Graph(total.tanh()), fold=False).boxes) == 7 + 7 + 6 + 1


def test_two_branches_of_one_layer_are_not_folded():
    graph = llama(1)
    assert make_outline(graph).copies == []


@st.composite
def graphs(draw) -> yp.Graph:
    """Small graphs of shared results and views, some differentiated."""
    ctx = yp.Context(no_alloc=True)
    known = [ctx.param((4, 4), name="w"), ctx.input((4, 4), name="x"), ctx.leaf((4, 4))]
    makers = [
        lambda a, b: a + b,
        lambda a, b: a * b,
        lambda a, b: ops.mul_mat(a, b),
        lambda a, b: a.T,
        lambda a, b: a.cont().reshape(2, 8).reshape(4, 4),
        lambda a, b: a.silu(),
    ]
    for _ in range(draw(st.integers(1, 25))):
        a, b = (known[draw(st.integers(0, len(known) - 1))] for _ in range(2))
        known.append(draw(st.sampled_from(makers))(a, b))
    loss = (known[-1] * known[0]).sum()
    if draw(st.booleans()):
        return yp.Graph([loss, *yp.gradients(loss).values()])
    return yp.Graph([loss, known[-1]])


@given(graphs())
def test_an_unfolded_picture_shows_every_tensor_once_and_every_source(graph):
    outline = make_outline(graph, fold=False)
    assert drawn_tensors(outline) == Counter([*graph.nodes, *graph.leaves])
    assert drawn_relations(outline) == {(src, node) for node in graph.nodes for src in node.srcs}
    assert sorted(b.number for b in outline.boxes) == list(range(1, len(outline.boxes) + 1))


@given(graphs())
def test_folding_loses_no_tensor(graph):
    assert drawn_tensors(make_outline(graph)) == Counter([*graph.nodes, *graph.leaves])


def test_nodes_that_run_as_one_kernel_are_framed():
    graph = llama(3)
    outline = make_outline(graph)
    of_box = {tensor: box for box in outline.boxes for tensor in box.tensors}
    framed = {frozenset(members) for members in outline.kernels}
    framed |= {frozenset([box, *box.partners]) for box in outline.boxes if box.partners}
    groups = find_groups(graph.nodes, graph.outputs)
    assert framed == {frozenset(of_box[node] for node in group.nodes) for group in groups}
    assert len(framed) > 4
    unfused = make_outline(graph, fuse=False)
    assert not unfused.kernels
    assert not any(box.partners for box in unfused.boxes)


def test_kinds_and_lanes_of_a_training_graph():
    outline = make_outline(llama(3, checkpoints="sqrt"))
    lanes = {kind: {b.lane for b in outline.boxes if b.kind == kind} for kind in KINDS}
    assert lanes.pop("constant or frozen weight") <= {FORWARD_LANE}
    assert lanes == {
        "input": {FORWARD_LANE, UPDATE_LANE},
        "parameter": {FORWARD_LANE},
        "forward": {FORWARD_LANE},
        "view": set(),
        "backward": {BACKWARD_LANE},
        "gradient of a parameter": {BACKWARD_LANE},
        "recomputed": {AGAIN_LANE},
        "writes in place": {UPDATE_LANE},
    }
    assert [b.name for b in outline.boxes if b.is_output] == ["loss"]


def test_kinds_differ_in_more_than_colour():
    looks = {(s["shape"], s.get("style"), s.get("fillcolor") == "#FFFFFF") for s in STYLES.values()}
    assert len(looks) == len(KINDS) == len(STYLES)


def test_source_names_the_kinds_it_shows_and_nothing_else():
    source = to_dot(make_outline(yp.Graph(mlp(1))))
    assert ">parameter<" in source
    assert "gradient of" not in source


NASTY = ["<b>&amp;", 'say "x"', "a\\nb\\", "]]>", "\x00\x1b\u202e", "größe 数", "{a|b}", "%s%d"]


@pytest.mark.parametrize("name", NASTY)
def test_names_are_escaped(name, tmp_path):
    x = yp.tensor([1.0, 2.0], name=name)
    graph = yp.Graph(x.silu().named(f"{name}2"))
    source = draw_graph(graph, tmp_path / "g.dot", title=name).read_text("utf-8")
    assert source.startswith("digraph")
    assert "\x00" not in source
    draw_plan(graph.plan(), tmp_path / "p.svg", title=name)
    assert texts(tmp_path / "p.svg")
    if shutil.which("dot") and name.isprintable():
        drawn = texts(draw_graph(graph, tmp_path / "g.svg", title=name))
        assert name in " ".join(drawn).replace("\u00a0", " ")


@needs_dot
@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_dot_draws_every_format(suffix, tmp_path):
    path = llama(2).draw(tmp_path / f"g{suffix}")
    start = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix]
    assert path == tmp_path / f"g{suffix}"
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


@needs_dot
def test_svg_holds_a_group_for_each_box_and_arrow(tmp_path):
    graph = llama(4)
    outline = make_outline(graph)
    root = ElementTree.parse(graph.draw(tmp_path / "g.svg", title="A title")).getroot()
    ids = [group.get("id") for group in root.iter() if group.get("class") == "node"]
    titles = [
        "".join(t.itertext()) for t in root.iter() if t.tag.endswith("title")
    ]  # graphviz writes the names of nodes and arrows there
    assert {f"n{box.number}" for box in outline.boxes} <= set(titles)
    arrows = {f"n{a.number}->n{b.number}" for a, b in outline.arrows}
    assert arrows == {t for t in titles if "->" in t}
    assert len(ids) > len(outline.boxes)  # and the legend
    assert "A title" in texts(tmp_path / "g.svg")
    assert sum("layer × 4" in t for t in texts(tmp_path / "g.svg")) == 3


def test_the_work_of_a_picture_grows_as_its_graph():
    graphs = llama(16), llama(32)
    sizes = [len(graph.nodes) for graph in graphs]
    work = [lines_run(lambda graph=graph: to_dot(make_outline(graph))) for graph in graphs]
    assert work[1] / work[0] < 1.1 * sizes[1] / sizes[0]


@needs_dot
def test_the_picture_of_a_deep_training_graph_is_small(tmp_path):
    assert llama(32).draw(tmp_path / "deep.svg").stat().st_size < 400_000


def test_without_dot_the_source_is_written_and_the_warning_says_what_to_install(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(
        UserWarning, match=r"dot is missing.*apt install graphviz.*dot -Tsvg"
    ) as seen:
        path = yp.Graph(mlp(2)).draw(tmp_path / "g.svg")
    assert seen[0].filename == __file__
    assert path == tmp_path / "g.dot"
    assert path.read_text("utf-8").startswith("digraph")
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_dot_is_an_error_and_writes_nothing(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "dot"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'no such layout' >&2\nexit 3\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(GraphError, match="no such layout"):
        yp.Graph(mlp(1)).draw(tmp_path / "g.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize("path", ["g.jpg", "g", "missing/g.svg"])
def test_a_wrong_path_is_refused(path, tmp_path):
    graph = yp.Graph(mlp(1))
    for draw in (graph.draw, graph.plan().draw):
        with pytest.raises(SettingError, match=re.escape(path)):
            draw(tmp_path / path)
    with pytest.raises(SettingError, match=r"\.svg"):
        graph.plan().draw(tmp_path / "plan.png")
    assert not list(tmp_path.iterdir())


def test_the_same_graph_gives_the_same_source(tmp_path):
    graph = llama(3, checkpoints="sqrt")
    first = draw_graph(graph, tmp_path / "1.dot", sizes=True).read_text("utf-8")
    assert first == draw_graph(graph, tmp_path / "2.dot", sizes=True).read_text("utf-8")
    assert "4 KiB" in first


def test_pictures_need_no_data_and_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llama(2).draw(tmp_path / "g.dot")
        llama(2).plan().draw(tmp_path / "p.svg")
