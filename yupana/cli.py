"""The command `yupana`: finds the program that is meant, and turns errors into messages."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from yupana.ctrl_c import INTERRUPTED, end, let_ctrl_c_end

# Only the program that is asked for is imported: each later run starts at once.
PROGRAMS = {
    "demo": "train a small LLaMA on Python's documentation, adapt it to programs, let it write",
    "pretrain": "train a small LLaMA from scratch on your own text",
    "finetune": "train a LoRA adapter for a model file of any type, or its weights, on your data",
    "generate": "let a model continue a text",
    "chat": "talk with a model, or write a text with it in turns",
    "perplexity": "how well a model foresees a text",
    "convert": "write a model of another format as GGUF, or an adapter in another form",
    "quantize": "make a model file smaller, and say what each tensor lost",
    "export-lora": "work LoRA adapters into a model's weights",
    "inspect": "what is in a model file: entries, tensors, types",
    "baby-llama": "ggml's sine-wave task, trained by L-BFGS",
    "cost": "the whole bill of a training run before it: memory, FLOPs, seconds per step",
    "report": "one page about a run: curves, texts, bill, graph, memory, hottest nodes",
    "draw": "pictures of a model's graph, the memory of a training step, and a run of it",
    "ops": "every operation, its family, and whether it has a gradient",
    "check": "prove operations, the library's or your own, against their formulas",
}
# ggml's switches, by what says the same in the programs that train.
_SWITCHES = {
    "--use-checkpointing": ("--checkpointing", "sqrt"),
    "--no-checkpointing": ("--checkpointing", "none"),
    "--no-flash": ("--no-use-flash",),
    "--disable-restart": ("--no-enable-restart",),
}
_REMEDIES = {
    errno.ENOSPC: "Make room there, or name another place.",
    errno.EDQUOT: "Make room there, or name another place.",
    errno.EROFS: "Name another place.",
    errno.EACCES: "Change its permissions, or name another place.",
    errno.EPERM: "Change its permissions, or name another place.",
    errno.ENOENT: "Check the name; paths are counted from the current folder.",
    errno.ENOTDIR: "Check the path: a part of it is a file.",
    errno.EISDIR: "Name a file.",
    errno.EMFILE: "Raise the limit: `ulimit -n 4096`.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a program of the command line; returns the exit code."""
    _open_streams()
    if arguments is None:  # the process is ours
        let_ctrl_c_end()
    given = list(sys.argv[1:] if arguments is None else arguments)
    usual, warnings.formatwarning = warnings.formatwarning, _warning
    try:
        code = _run(given)
        sys.stdout.flush()  # here, where errors become messages
        return code
    except BrokenPipeError:  # the reader has seen enough, as `yupana ops | head`
        return 1
    except OSError as error:
        return _fail(_told(error), 1)
    except MemoryError:
        return _fail("out of memory. `yupana cost` says beforehand what a run needs.", 1)
    except KeyboardInterrupt:
        print("\nyupana: stopped at once", file=sys.stderr)
        return INTERRUPTED
    finally:
        warnings.formatwarning = usual
        _finish_stdout()


def _run(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if given[0] in ("-V", "--version"):
        import yupana

        print(f"yupana {yupana.__version__}")
        return 0
    name, *arguments = given
    if name not in PROGRAMS:
        return _fail(f"no such program: got {name!r}, want one of {', '.join(PROGRAMS)}.", 2)
    from yupana.graphlib.errors import SettingError, YupanaError

    try:
        module = importlib.import_module(f"yupana.commands.{name.replace('-', '_')}")
        settings = _parse(module.Settings, name, arguments)
        with _ctrl_c_raises():
            code: int = module.run(settings)
        return code
    except SystemExit as done:  # help was printed, or the arguments are wrong
        return int(done.code or 0)
    except SettingError as error:
        return _fail(str(error), 2)
    except YupanaError as error:
        return _fail(str(error), 1)


def _open_streams() -> None:
    """Where the caller closed a stream Python has None: `print` to it would print elsewhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (until the end)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a letter gets "?"
        sys.stdout.reconfigure(errors="replace")


@contextlib.contextmanager
def _ctrl_c_raises() -> Iterator[None]:
    """Let Ctrl-C be an exception in here, as programs expect it, if it ended the process."""
    ends = signal.getsignal(signal.SIGINT) is end
    if ends:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield  # not finally: what an exception brings down is told by `main`
    if ends:
        sys.stdout.flush()
        signal.signal(signal.SIGINT, end)


def _told(error: OSError) -> str:
    """What the system said, of what, and what to do about it."""
    place = f"{error.filename}: " if error.filename else ""
    said = f"{place}{error.strerror or error}".removesuffix(".")
    return f"{said}. {_REMEDIES.get(error.errno or 0, '')}".rstrip()


def _parse(kind: type, name: str, arguments: list[str]) -> object:
    import tyro

    if hasattr(kind, "checkpointing"):
        arguments = [part for given in arguments for part in _ours(given)]
    settings: Any = tyro.cli(kind, prog=f"yupana {name}", args=arguments)
    if hasattr(settings, "with_given"):
        from yupana.train.given import given_flags

        return settings.with_given(given_flags(kind, arguments))
    return settings


def _ours(given: str) -> tuple[str, ...]:
    """An argument, or what it is called here; as other flags it may be joined by `_`."""
    return _SWITCHES.get(given.replace("_", "-"), (given,))


def _help() -> str:
    width = max(map(len, PROGRAMS))
    lines = [f"  {name:{width}}  {what}" for name, what in PROGRAMS.items()]
    return "\n".join(
        [
            "usage: yupana PROGRAM [--help] [...]",
            "",
            "Lazy graphs, planned memory, small language models on a CPU.",
            "",
            *lines,
            "",
            "`yupana PROGRAM --help` lists a program's settings with their defaults.",
        ]
    )


def _warning(message: Warning | str, *where: object, **more: object) -> str:
    """A warning as users of the command line want it: what it says, not where it was raised."""
    return f"yupana: {message}\n"


def _fail(message: str, code: int) -> int:
    print(f"yupana: {message}", file=sys.stderr)
    return code


def _finish_stdout() -> None:
    """Write what is left; where that fails, drop it: Python would try again, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
