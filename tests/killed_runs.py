"""Runs of a training that are killed at random moments, each going on where the one before stopped.

A program for tests/test_resume.py: one process that has imported everything forks a child for each
run, since starting Python takes longer than the training. Prints what it found as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from yupana.models.formats import GgufFile, temporary_of
from yupana.train.checkpoint import MODEL, Checkpoint
from yupana.train.pretrain import prepare
from yupana.train.settings import RunSettings

TEXT = "the llama eats grass, the ñandú runs; " * 60
SIZES = {"ctx": 8, "batch": 2, "embd": 64, "ff": 96, "head": 2, "layer": 4}
HOW = {
    "vocab": "characters", "warmup": 2, "save_every": 1, "eval_every": 7, "threads": 1,
    "generate_every": 0,  # the first text takes longer than most of these runs live
}  # fmt: skip


def settings(folder: Path, steps: int) -> RunSettings:
    newest = folder / "c-LATEST.gguf"
    return RunSettings(
        **SIZES,
        **HOW,
        model_out=folder / "m.gguf",
        checkpoint_out=folder / "c-ITERATION.gguf",
        checkpoint_in=newest if newest.exists() else None,
        adam_iter=steps,
    )


def start(folder: Path, steps: int) -> int:
    """A child that trains, from the moment when it begins to; returns its number."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        run = prepare(TEXT, settings(folder, steps))
        os.write(write, b".")
        run.train()
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as ready:
        ready.read(1)
    return child


def look(folder: Path) -> int:
    """Open every file there is; returns the number of steps in the newest checkpoint."""
    for path in folder.glob("*.gguf"):
        with GgufFile(path) as file:
            assert all(info.data.size for info in file.tensors.values())
        if path.name.startswith("c-"):
            Checkpoint(path, MODEL).file.close()
    numbers = [int(path.stem[2:]) for path in folder.glob("c-[0-9]*.gguf")]
    newest = folder / "c-LATEST.gguf"
    if not newest.exists():
        return 0
    step = Checkpoint(newest, MODEL).progress.step
    # The newest of the numbered ones may have come just before its copy.
    assert max(numbers) - step in (0, 1)
    return step


def finish(folder: Path, steps: int) -> None:
    """Train to the end."""
    _, status = os.waitpid(start(folder, steps), 0)
    assert not status, "the last run failed"


def main(folder: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    found = {"kills": 0, "within a write": 0, "steps": []}
    killed, whole = folder / "killed", folder / "whole"
    prepare(TEXT, settings(whole, 1)).step.program.run()  # compiled and loaded for all children
    while found["kills"] < kills:
        child = start(killed, 1 << 30)
        time.sleep(chance.random() * 0.15)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "it ended by itself"
        found["kills"] += 1
        found["within a write"] += any(map(temporary_of, killed.glob(".*")))
        found["steps"].append(look(killed))
    last = found["steps"][-1] + 3
    finish(killed, last)
    finish(whole, last)
    found["steps"].append(look(killed))
    found["left over"] = [path.name for path in killed.iterdir() if temporary_of(path)]
    names = ("m.gguf", "c-LATEST.gguf")
    found["same"] = [(killed / n).read_bytes() == (whole / n).read_bytes() for n in names]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
