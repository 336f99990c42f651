"""`yupana demo`: what it leaves, and what it shows of the model and of its adapter."""

import re

import pytest

from tests.command_line import call
from yupana.models import session
from yupana.models.passes import Pass


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


DEMO = ["demo", "--steps=2", "--lora-steps=30", "--n-predict=5", "--out=here", "--threads=1"]


def test_demo_without_an_adapter_and_without_dot(capsys, folder, monkeypatch):
    """It says what is compiled before it writes text, and what to install for pictures."""
    monkeypatch.setenv("PATH", str(folder))
    said = warned = ""

    class Compiled(Pass):  # a message about kernels must not land in the middle of the text
        def __init__(self, *args):
            nonlocal said, warned
            read = capsys.readouterr()
            said, warned = said + read.out, warned + read.err
            assert "The following" not in said
            super().__init__(*args)

    monkeypatch.setattr(session, "Pass", Compiled)
    code, out, err = call(capsys, *DEMO[:2], "--lora-steps=0", *DEMO[3:])
    assert (code, bool(said)) == (0, True)
    assert "The following" in out
    assert "adapter" not in said + out
    assert not (folder / "here" / "adapter.gguf").exists()
    assert "here/graph.dot" in out
    assert "apt install graphviz" in warned + err
    assert (folder / "here" / "graph.dot").read_text().startswith("digraph")


def test_demo_takes_no_steps_below_0(capsys, folder):
    assert call(capsys, *DEMO[:2], "--lora-steps=-1", *DEMO[3:])[0] == 2
    assert not any(folder.iterdir())


def test_demo_leaves_files_and_shows_what_the_adapter_changed(capsys, folder):
    code, out, _ = call(capsys, *DEMO)
    assert code == 0
    listed = {line.split()[-1] for line in out.splitlines() if line.startswith("  ")}
    wanted = {"model.gguf", "model-best.gguf", "loss.svg", "log.jsonl", "memory.svg"}
    wanted |= {"adapter.gguf", "adapter-best.gguf", "adapter.svg", "adapter.jsonl", "source.txt"}
    wanted |= {"report.html", "adapter.html"}
    listed = {name for name in listed if name.startswith("here/")}
    assert listed - {"here/graph.svg", "here/graph.dot"} == {f"here/{name}" for name in wanted}
    assert all((folder / name).stat().st_size > 100 for name in listed)
    before, after = re.findall(r"program text: (\S+) before, (\S+) with the adapter", out)[0]
    assert float(after) < float(before) - 0.1
    without, _, with_ = out.partition("without the adapter:")[2].partition("with the adapter:")
    assert "    def " in without
    assert "    def " in with_
    assert with_.split("validation loss")[0].strip() != without.strip()
