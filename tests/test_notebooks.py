"""The notebooks run, and what is stored in them is what they show, without traces of a machine."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
RUN = ROOT / "notebooks" / "run.py"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def run(path: Path, *flags: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a notebook in a process of its own: it may declare ops."""
    return subprocess.run(
        [sys.executable, str(RUN), *flags, str(path)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text("utf-8"))["cells"]


def outputs(path: Path) -> list[dict]:
    return [output for cell in cells(path) for output in cell.get("outputs", ())]


@pytest.mark.skipif(shutil.which("dot") is None, reason="the program dot is not installed")
@every
def test_notebook_runs_and_shows_what_is_stored(path, tmp_path):
    done = run(path, "--check", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [*tmp_path.iterdir()] == [], "a notebook leaves no files behind"


@every
def test_notebook_is_as_jupyter_writes_it(path):
    notebook = json.loads(path.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    counts = [c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code"]
    assert counts == [*range(1, len(counts) + 1)], "run from top to bottom"
    kinds = {output["output_type"] for output in outputs(path)}
    assert kinds <= {"stream", "display_data", "execute_result"}, "an error is stored"


@every
def test_notebook_teaches_with_prose_first_pictures_and_checks(path):
    kinds = [cell["cell_type"] for cell in cells(path)]
    assert kinds[0] == "markdown" == kinds[-1]
    assert kinds.count("markdown") >= kinds.count("code") / 2
    code = "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "code")
    assert len(re.findall(r"^assert ", code, re.MULTILINE)) >= 5
    pictures = [o.get("data", {}).get("image/svg+xml") for o in outputs(path)]
    assert any(pictures)
    for lines in filter(None, pictures):
        assert ElementTree.fromstring("".join(lines)).tag == "{http://www.w3.org/2000/svg}svg"


@every
def test_notebook_holds_no_trace_of_a_machine(path):
    text = path.read_text("utf-8")
    assert not re.findall(r"(?:/home|/root|/tmp|/usr|/opt|/var|[A-Z]:\\\\)[/\\][\w.-]+", text)
    assert " at 0x" not in text, "an address"
    shown = [line for o in outputs(path) for line in o.get("text", ())]
    assert not re.findall(r"\b[\d.]+ (?:s|ms|us|seconds)\b", "".join(shown)), "a time"
    assert len(text) < 600_000


def write(path: Path, *sources: str) -> Path:
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "outputs": []}
    found = [cell | {"source": source.splitlines(keepends=True)} for source in sources]
    path.write_text(json.dumps({"cells": found}))
    return path


def test_runner_stores_what_is_printed_and_shown_in_order(tmp_path):
    picture = "<svg><!-- n --><title>a note</title><g/></svg>"
    path = write(
        tmp_path / "a.ipynb",
        "x = 1\nprint('one')\nprint('two')",
        f"class P:\n  def _repr_svg_(self): return {picture!r}\n  def __repr__(self): return 'P'\n"
        "display(P())\nprint('three')\nx + 1",
        "None",
    )
    assert run(path, folder=tmp_path).returncode == 0
    first, second, third = (cell["outputs"] for cell in cells(path))
    assert [o["text"] for o in first] == [["one\n", "two\n"]]
    assert second[0]["data"] == {"text/plain": ["P"], "image/svg+xml": ["<svg><g/></svg>"]}
    assert second[1]["text"] == ["three\n"]
    assert second[2]["data"] == {"text/plain": ["2"]}
    assert second[2]["execution_count"] == 2
    assert third == []


def test_runner_fails_where_a_cell_raises_or_shows_something_else(tmp_path):
    path = write(tmp_path / "a.ipynb", "print('one')", "assert False, 'because'")
    done = run(path, folder=tmp_path)
    assert done.returncode == 1
    assert "AssertionError: because" in done.stderr
    assert "a.ipynb[2]" in done.stderr
    path = write(tmp_path / "a.ipynb", "print('one')")
    done = run(path, "--check", folder=tmp_path)  # stored is nothing
    assert done.returncode == 1
    assert "cell 1 shows" in done.stderr
    assert run(path, folder=tmp_path).returncode == 0
    assert run(path, "--check", folder=tmp_path).returncode == 0
