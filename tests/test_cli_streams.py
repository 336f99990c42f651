"""The command line from outside: where it is stopped, and where its streams lead."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import yupana as yp
from yupana import api
from yupana.models.formats import write_gguf

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*command, **how) -> subprocess.CompletedProcess[str]:
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, text=True, check=False, timeout=120, **how
    )


def shell(redirections: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program, run by a shell that puts its streams elsewhere."""
    return run("sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "yupana",
               *arguments)  # fmt: skip


@pytest.fixture
def model(tmp_path):
    write_gguf(tmp_path / "m.gguf", {"general.name": "tiny"}, {"w": np.ones(4, np.float32)})
    return str(tmp_path / "m.gguf")


def test_nothing_is_loaded_before_it_is_needed():
    code = (
        "import sys, yupana.cli; sys.argv = ['yupana', '--help']; yupana.cli.main();"
        "print({'numpy', 'numba', 'tyro'} & {*sys.modules})"
    )
    assert run(sys.executable, "-c", code).stdout.endswith("\nset()\n")


def test_the_package_has_the_names_of_its_api():
    for name in api.__all__:
        assert getattr(yp, name) is getattr(api, name)
    assert {*api.__all__, "__version__"} == {*dir(yp)}
    with pytest.raises(AttributeError, match="module 'yupana' has no attribute 'nothing'"):
        yp.nothing


# While the program is imported, in it, and after it.
STOPPED = """
import importlib, os, signal, sys, time, types
from yupana import cli
def stop(*_):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100): time.sleep(0.1)
module = importlib.import_module("yupana.commands.ops")
if sys.argv[1] == "before":
    importlib.import_module = stop
elif sys.argv[1] == "within":
    module.run = stop
else:
    module.run = lambda settings: print("all of it") or 0
place, sys.argv = sys.argv[1], ["yupana", "ops"]
code = cli.main()
if place == "behind":
    stop()
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("place", "out", "err"),
    [
        ("before", "", ""),
        ("within", "", "\nyupana: stopped at once\n"),
        ("behind", "all of it\n", ""),
    ],
)
def test_ctrl_c_ends_without_a_traceback(place, out, err):
    done = run(sys.executable, "-c", STOPPED, place)
    assert (done.returncode, done.stdout, done.stderr) == (130, out, err)


def test_ctrl_c_ends_from_the_first_import_on():
    code = (
        "import sys; before = {*sys.modules}\n"
        "from yupana.__main__ import main\n"
        "print(*sorted({*sys.modules} - before), flush=True)\n"
        "import os, signal\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Stop()); main()"
    )
    done = run(sys.executable, "-c", code)
    # Until these are there, Ctrl-C is Python's.
    assert done.stdout == "yupana yupana.__main__ yupana.ctrl_c\n"
    assert (done.returncode, done.stderr) == (130, "")


def test_ctrl_c_stays_ignored_where_the_caller_ignores_it():
    code = "import signal, yupana.ctrl_c as ctrl_c; ctrl_c.let_ctrl_c_end();"
    code += "print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    assert run(sys.executable, "-c", code, **ignore).stdout == "True\n"


@pytest.mark.parametrize("arguments", [["--help"], ["inspect"], ["inspect", "--json"]])
def test_a_reader_that_leaves_is_no_error_to_tell(model, arguments):
    arguments = [*arguments[:1], model, *arguments[1:]] if "inspect" in arguments else arguments
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = run(sys.executable, "-m", "yupana", *arguments, stdout=pipe)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
@pytest.mark.parametrize("arguments", [["--help"], ["inspect"], ["inspect", "--json"]])
def test_output_that_finds_no_room_is_told_once(model, arguments):
    arguments = [*arguments[:1], model, *arguments[1:]] if "inspect" in arguments else arguments
    done = shell(">/dev/full", *arguments)
    assert done.returncode == 1
    said = "yupana: No space left on device. Make room there, or name another place.\n"
    assert done.stderr == said


def test_closed_streams_take_nothing_and_give_nothing(model):
    done = shell(">&-", "inspect", model)
    assert (done.returncode, done.stderr) == (0, "")
    done = shell("2>&-", "inspect", f"{model}-not-there")
    assert (done.returncode, done.stdout) == (1, "")  # what went wrong is not printed elsewhere
    done = run(sys.executable, "-c", "import yupana.cli as c, sys; c._open_streams(); input()",
               preexec_fn=lambda: os.close(0))  # fmt: skip
    assert done.stderr.endswith("EOFError: EOF when reading a line\n")  # an end, as of other inputs
