"""What the documents say: code runs, links and pictures exist, commands are those there are."""

import ast
import importlib.util
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

import yupana
from yupana.cli import PROGRAMS, main

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
IMAGES = sorted((ROOT / "docs" / "images").glob("*.svg"))
README = (ROOT / "README.md").read_text("utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def python_blocks() -> list:
    return [
        pytest.param(block, id=f"{path.name}-{number}")
        for path in DOCUMENTS
        for number, block in enumerate(blocks(path.read_text("utf-8"), "python"))
    ]


@pytest.mark.parametrize("block", python_blocks())
def test_python_in_the_documents_runs_and_prints_what_it_says(block, tmp_path, capsys, monkeypatch):
    if "graph.draw(" in block and shutil.which("dot") is None:
        pytest.skip("the program dot is not installed")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {"__name__": "block"})
    printed = capsys.readouterr().out
    said = re.findall(r"^\s*print\(.*\)  # (.*\d)$", block, flags=re.MULTILINE)
    for line in said:
        (number,) = re.findall(r"[\d.]+", line)
        (found,) = re.findall(rf"^{line.replace(number, '([0-9.]+)')}$", printed, re.MULTILINE)
        # Results are the same on every number of threads, but not on every processor.
        assert float(found) == pytest.approx(float(number), rel=0.5)


def test_readme_has_an_example_that_says_what_it_prints():
    (example,) = blocks(README, "python")
    assert len(ast.parse(example).body) <= 14
    assert re.search(r"print\(.*\)  # \w+ [\d.]+$", example, flags=re.MULTILINE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text("utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    missing = [
        target
        for target in targets
        if not target.startswith("https://") and not (path.parent / target.split("#")[0]).exists()
    ]
    assert not missing
    wide = [line for line in text.splitlines() if len(line) > 100 and line[0] not in "|!"]
    assert not wide


def test_every_picture_is_shown_and_stands_on_its_own():
    shown = {
        (path.parent / target).resolve()
        for path in DOCUMENTS
        for target in re.findall(r"\]\(([^)\s]+\.svg)\)", path.read_text("utf-8"))
    }
    assert shown == {path.resolve() for path in IMAGES}
    for path in IMAGES:
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert path.stat().st_size < 250_000
        references = re.findall(r'(?:href|src)="([^"]*)"', path.read_text("utf-8"))
        assert not references, "a picture that needs other files"


def test_commands_in_the_documents_exist():
    known = set(PROGRAMS)
    for path in DOCUMENTS:
        named = set(re.findall(r"`yupana ([a-z-]+)", path.read_text("utf-8")))
        named |= set(re.findall(r"&& yupana ([a-z-]+)", path.read_text("utf-8")))
        assert named <= known, path.name
    table = re.findall(r"^\| `yupana ([a-z-]+)", README, flags=re.MULTILINE)
    assert sorted(table) == sorted(known), "the table of README lists every command once"


def test_flags_in_the_documents_exist(capsys):
    for line in re.findall(r"^\| `(yupana [^`]+)` \|(.*)\|$", README, flags=re.MULTILINE):
        program = line[0].split()[1]
        flags = re.findall(r"--[a-z-]+", " ".join(line))
        assert main([program, "--help"]) == 0
        printed = capsys.readouterr().out
        assert [flag for flag in flags if flag not in printed] == []


def test_environment_variables_in_the_documents_exist():
    known = {f"YUPANA_{name.upper()}" for name in vars(yupana.config)}
    for path in DOCUMENTS:
        named = set(re.findall(r"\bYUPANA_[A-Z_]*[A-Z]\b", path.read_text("utf-8")))
        assert named <= known, path.name


def test_modules_named_by_the_architecture_exist():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    layers = blocks(text, "")[-1].splitlines()[3:]
    names = [name for line in layers for name in line.split()]
    missing = [
        name
        for name in names
        if not (ROOT / "graphlib" / f"{name}.py").exists()
        and not (ROOT / "graphlib" / name).is_dir()
    ]
    assert not missing
    described = {path.stem for path in (ROOT / "graphlib").glob("[a-z]*.py")}
    assert described <= set(names), "modules without a place on the map"
    files = re.findall(r"`((?:graphlib|models|kernels|tests|yupana)/[\w/]+\.?\w*)`?", text)
    assert [
        f for f in files if not (ROOT / f).exists() and not (ROOT / "graphlib" / f).exists()
    ] == []


@pytest.mark.skipif(shutil.which("dot") is None, reason="the program dot is not installed")
def test_pictures_of_the_documents_are_made_by_their_script(tmp_path):
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    pictures.make(tmp_path, runs=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in IMAGES]
    text = (tmp_path / "running.svg").read_text("utf-8")
    assert "thread 1" in text
    assert "the threads meet" in text
