"""Pictures of memory plans: every block where it lies, on a scale that keeps blocks apart."""

from xml.etree import ElementTree

import pytest

import yupana as yp
from tests.drawn import llama, texts


def rectangles(path) -> list[dict[str, str]]:
    """Attributes of the blocks of a plan's picture, with their note."""
    found = []
    for rect in ElementTree.parse(path).getroot().iter("{http://www.w3.org/2000/svg}rect"):
        note = rect.find("{http://www.w3.org/2000/svg}title")
        if note is not None:
            found.append({**rect.attrib, "note": note.text})
    return found


@pytest.mark.parametrize("checkpoints", [None, "sqrt"])
def test_plan_shows_every_block_where_it_lies(checkpoints, tmp_path):
    plan = llama(4, checkpoints).plan()
    found = rectangles(plan.draw(tmp_path / "plan.svg", title="Memory"))
    assert len(found) >= len(plan.blocks)
    places = {(r["note"].split(" at ")[1]) for r in found}
    assert places == {f"{b.offset:,}, tasks {b.first} to {b.last}" for b in plan.blocks}
    assert {r["fill"] for r in found} == {"#BFDDF2", "#F0A878", "#9A6A96"}
    # A point of the page belongs to one block: the scale keeps what the planner keeps apart.
    spans = [tuple(float(r[k]) for k in ("x", "y", "width", "height")) for r in found]
    top, bottom = min(y for _, y, _, _ in spans), max(y + h for _, y, _, h in spans)
    scale = (bottom - top) / plan.peak
    for block, y, height in (
        (b, float(r["y"]), float(r["height"]))
        for r in found
        for b in plan.blocks
        if r["note"].endswith(f"at {b.offset:,}, tasks {b.first} to {b.last}")
    ):
        assert bottom - (y + height) == pytest.approx(block.offset * scale, abs=0.1)
        assert height == pytest.approx(block.size * scale, abs=0.1)
    said = " ".join(texts(tmp_path / "plan.svg"))
    assert all(word in said for word in ("Memory", "peak", "lower bound", "activations", "mul_mat"))


def test_plan_of_nothing_is_a_picture_too(tmp_path):
    x = yp.tensor([1.0, 2.0])
    path = yp.Graph(x.reshape(2, 1)).plan().draw(tmp_path / "plan.svg")
    assert not rectangles(path)
    assert "peak" in texts(path)
