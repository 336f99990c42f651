"""What the documents say: code runs, links and pictures exist, commands are those there are."""

import ast
import contextlib
import importlib.util
import re
import shutil
import types
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


def test_benchmarks_are_those_of_the_page():
    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    named = set(re.findall(r"`(\w+\.py)`", page))
    shared = {"measure.py", "torch_llama.py"}
    assert named == {path.name for path in (ROOT / "benchmarks").glob("*.py")} - shared


def resolves(name: str) -> bool:
    """Whether a dotted name leads to something; `yp` is the package."""
    module, *parts = ["yupana", *name.split(".")[1:]]
    found = importlib.import_module(module)
    for part in parts:
        if not hasattr(found, part) and isinstance(found, types.ModuleType):
            with contextlib.suppress(ImportError):
                importlib.import_module(f"{found.__name__}.{part}")
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def test_names_for_what_others_call_otherwise_exist():
    page = (ROOT / "docs" / "coming_from.md").read_text("utf-8")
    commands = (ROOT / "docs" / "commands.md").read_text("utf-8")
    flags = {
        name: set(re.findall(r"`(--?[\w-]+)`", text))
        for name, text in re.findall(r"^## ([\w-]+)\n(.*?)(?=^## |\Z)", commands, re.M | re.S)
    }
    switched_off = {flag.replace("--", "--no-", 1) for found in flags.values() for flag in found}
    checked = 0
    for line in re.findall(r"^\|.*\| (.*) \|$", page, flags=re.M):
        for name in re.findall(r"`((?:yp|yupana)\.[\w.]+)", line):
            assert resolves(name), name
            checked += 1
        for program, rest in re.findall(r"`yupana ([\w-]+)([^`]*)`", line):
            for flag in re.findall(r"(?<!\S)--?[a-z][\w-]*", rest):
                assert flag in flags[program] | switched_off, f"yupana {program} {flag}"
            checked += 1
    assert checked > 100


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
def test_pictures_of_the_documents_are_made_by_their_script(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    pictures.make(tmp_path, runs=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in IMAGES]
    text = (tmp_path / "running.svg").read_text("utf-8")
    assert "thread 1" in text
    assert "the threads meet" in text
