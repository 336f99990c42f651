"""Every block of code in the documents runs, as somebody would who follows a page literally.

The blocks of a page run from top to bottom, in one folder and in one session of Python: what a
command writes, the next one reads. Lines that begin with `yupana` run in this process, since each
would take a second to start; other shell blocks run in bash.
"""

import io
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import yupana
from yupana.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
    if path.name != "ops.md"  # its examples are the docstrings', which run as doctests
]
# They prepare the machine, or are the checks that this test is one of: .ci/run does what they say.
SET_UP = re.compile(r"\b(pip install|apt install|pre-commit|pytest|mkdocs|\.ci/run)\b")
# What takes minutes runs shorter; the rest is as it stands there.
SHORTER = {
    "yupana demo": "yupana demo --steps 2 --lora-steps 2 --n-predict 4",
    "yupana report yupana-demo/log.jsonl": "yupana report yupana-demo/log.jsonl --no-measure",
}
FEWER = ("--adam-iter 200", "--adam-iter 20")  # of a long run the first steps
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
LANGUAGES = ("python", "sh", "pycon", "text", "json", "jsonl", "")


@dataclass(frozen=True)
class Block:
    """A block of code: where it stands, its language, and what is in it."""

    line: int
    language: str
    text: str


def blocks(path: Path) -> list[Block]:
    text = path.read_text("utf-8")
    fences = re.finditer(r"^```([\w-]*)\n(.*?)^```$", text, flags=re.M | re.S)
    return [Block(text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in fences]


def statements(script: str) -> Iterator[str]:
    """The lines of a script, those joined that a backslash continues; no comments."""
    for line in re.sub(r"\\\n\s*", " ", script).splitlines():
        if line.strip() and not line.startswith("#"):
            yield SHORTER.get(line, line.replace(*FEWER))


def run_python(block: Block, session: dict, capsys) -> None:
    """Run a block, and find what its comments say it prints, numbers within a factor of 1.5."""
    exec(compile("\n" * block.line + block.text, "block", "exec"), session)
    printed = capsys.readouterr().out
    for line in re.findall(r"^\s*print\(.*\)  # (.*\d.*)$", block.text, flags=re.MULTILINE):
        words, numbers = _NUMBER.split(line), _NUMBER.findall(line)
        found = re.search("([0-9.]+)".join(map(re.escape, words)), printed)
        assert found is not None, f"{line!r} is not in {printed!r}"
        for number, seen in zip(numbers, found.groups(), strict=True):
            # Results are the same on every number of threads, but not on every processor.
            assert float(seen) == pytest.approx(float(number), rel=0.5)


def run_shell(block: Block, folder: Path, capsys, monkeypatch) -> None:
    lines = list(statements(block.text))
    if SET_UP.search(block.text):
        return
    if not all(re.fullmatch(r"yupana [^|<>;&$`]*", line) for line in lines):
        run_bash("\n".join(lines), folder)
        return
    for line in lines:
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        code = main(shlex.split(line, comments=True)[1:])
        out, err = capsys.readouterr()
        assert code == 0, f"{line}\n{out}{err}"


def run_bash(script: str, folder: Path) -> None:
    path = f"{programs(folder)}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


def programs(folder: Path) -> Path:
    """A folder with this Python as `python` and `yupana`, which need not be installed."""
    place = folder.parent / f"{folder.name}-programs"
    if not place.exists():
        place.mkdir()
        for name, call in (("python", ""), ("yupana", "-m yupana")):
            (place / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n')
            (place / name).chmod(stat.S_IRWXU)
    return place


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_code_in_the_documents_runs_and_prints_what_it_says(path, tmp_path, capsys, monkeypatch):
    found = blocks(path)
    if any("draw" in b.text for b in found if b.language in ("python", "sh")) and not shutil.which(
        "dot"
    ):
        pytest.skip("the program dot is not installed")
    monkeypatch.chdir(tmp_path)
    # The tests use every core already, and two threads that wait for one another lose time then.
    monkeypatch.setattr(yupana.config, "threads", 1)
    monkeypatch.setenv("YUPANA_THREADS", "1")
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    session = {"__name__": "block"}
    for block in found:
        try:
            if block.language == "python":
                run_python(block, session, capsys)
            elif block.language == "sh":
                run_shell(block, tmp_path, capsys, monkeypatch)
        except Exception as error:
            error.add_note(f"in the block at {path.name}:{block.line}")
            raise


def test_blocks_say_in_which_language_they_are():
    for path in DOCUMENTS:
        others = [b for b in blocks(path) if b.language not in LANGUAGES]
        assert not others, path.name
        fences = len(re.findall(r"^\s*```", path.read_text("utf-8"), flags=re.M))
        assert fences == 2 * len(blocks(path)), "a block that is not seen, as an indented one"


def test_a_block_that_fails_is_seen(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="no such program"):
        run_shell(Block(1, "sh", "yupana trane\n"), tmp_path, capsys, monkeypatch)
    with pytest.raises(AssertionError, match=r"nothing\.gguf"):
        run_shell(
            Block(1, "sh", "yupana inspect \\\n    nothing.gguf\n"), tmp_path, capsys, monkeypatch
        )
    with pytest.raises(AssertionError, match="No such file"):
        run_shell(Block(1, "sh", "cat nothing | wc -l\n"), tmp_path, capsys, monkeypatch)
    for text, said in (("print(1)", "loss 1"), ("print('loss 1')", "loss 5")):
        with pytest.raises(AssertionError, match=r"loss|Expected"):
            run_python(Block(1, "python", f"{text}  # {said}\n"), {}, capsys)
    run_python(Block(1, "python", "print('loss 1.0 of 3')  # loss 1.1 of 3\n"), {}, capsys)


def test_what_is_not_run_here_is_run_by_the_check_of_a_change():
    check = (ROOT / ".ci" / "run").read_text("utf-8")
    for what in ("pip install", "pytest", "mkdocs build --strict", "yupana demo", "graphviz"):
        assert what in check.replace('bin/pip" install', "pip install")
