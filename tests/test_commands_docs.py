"""docs/commands.md: it is what the settings say, and the command line says the same."""

import difflib
import importlib.util
import re
from pathlib import Path

import pytest

from yupana.cli import PROGRAMS, main

_PATH = Path(__file__).parents[1] / "docs" / "commands.py"
_spec = importlib.util.spec_from_file_location("commands_page", _PATH)
commands = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(commands)


def part(name: str) -> str:
    (text,) = re.findall(
        rf"^## {name}\n(.*?)(?=^## |\Z)", commands.PAGE.read_text("utf-8"), flags=re.M | re.S
    )
    return text


def rows(name: str) -> dict[str, list[str]]:
    """Rows of a program's tables, by the first name of the flag."""
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in part(name).splitlines()
        if line.startswith("| `")
    ]
    return {re.findall(r"`([^`]+)`", first)[0]: [first, *rest] for first, *rest in cells}


def test_the_page_is_what_the_settings_say():
    made, there = commands.page(), commands.PAGE.read_text("utf-8")
    lines = list(difflib.unified_diff(there.splitlines(), made.splitlines(), "page", "settings"))
    assert made == there, (
        "docs/commands.md is not what the settings say: run `python docs/commands.py` and commit "
        "the page it writes.\n" + "\n".join(lines[:30])
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_command_line_has_these_flags_and_no_others(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([name, "--help"]) == 0
    helped = set(re.findall(r"(?<![\w`-])--?[a-z][\w-]*", _names(capsys.readouterr().out)))
    named = {
        flag
        for first, default, _ in rows(name).values()
        for flag in re.findall(r"`(-[\w-]+)`", first)
    }
    switches = {
        f"--no-{flag.removeprefix('--')}"
        for flag, (_, default, _) in rows(name).items()
        if default in ("on", "off")
    }
    assert helped - {"-h", "--help"} == named | switches


def _names(text: str) -> str:
    """The first column of a program's help, where its flags stand; in a frame, if output can be."""
    lines = re.findall(r"^(?:│ |  )(-.*)", text, flags=re.M)
    return "\n".join(re.split(r"\s{2,}", line)[0] for line in lines)


def test_rows_tell_values_defaults_and_what_is_required():
    pretrain = rows("pretrain")
    assert pretrain["--train-data"][:2] == ["`--train-data` PATH", "–"]
    assert rows("finetune")["--model-base"][:2] == ["`--model-base` PATH", "*required*"]
    assert pretrain["--ctx"][:2] == ["`--ctx`, `-c` INT", "`128`"]
    assert pretrain["--checkpointing"][0].endswith(r"auto\|none\|sqrt\|all")
    assert pretrain["--tied"][:2] == ["`--tied`", "off"]
    assert pretrain["--memory-budget"][1] == "–"
    assert rows("generate")["--lora-scaled"][0] == "`--lora-scaled` PATH FLOAT"
    assert rows("generate")["--lora-scaled"][2].endswith("Repeatable.")
    assert rows("convert")["--vocab"][0] == "`--vocab` PATH"


def test_a_default_that_a_program_changes_is_its_own():
    assert rows("generate")["--n-predict"][1] == "`128`"
    assert rows("chat")["--n-predict"][1] == "`-1`"


def test_calls_show_what_a_program_cannot_do_without():
    calls = {name: re.findall(r"^```text\n(.*)\n```$", part(name), flags=re.M) for name in PROGRAMS}
    assert calls["quantize"] == ["yupana quantize SOURCE TARGET TYPE [FLAGS]"]
    assert calls["export-lora"] == ["yupana export-lora --model-base PATH --model-out PATH [FLAGS]"]
    assert calls["check"] == ["yupana check [OP ...] [FLAGS]"]
    assert calls["draw"] == ["yupana draw [MODEL] [FLAGS]"]


def test_no_line_depends_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    assert commands.page() == commands.PAGE.read_text("utf-8")
