"""What a run ran on, in words."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from yupana.graphlib.config import config
from yupana.graphlib.kernels.vector import HAS_AVX2, HAS_AVX512, LANES


@dataclass(frozen=True)
class Machine:
    """A machine, as far as speed depends on it."""

    processor: str
    cores: int  # that this process may use
    vectors: str
    memory: int | None  # bytes; None where the system does not say
    system: str
    python: str


def this_machine(root: Path = Path("/")) -> Machine:
    """The machine that this process runs on.

    Args:
        root: where /proc stands.

    >>> this_machine().cores >= 1
    True
    """
    vectors = "AVX-512" if HAS_AVX512 else "AVX2" if HAS_AVX2 else f"{32 * LANES} bits"
    return Machine(
        processor=_processor(root),
        cores=_cores(),
        vectors=vectors,
        memory=_memory(root),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or config.threads


def _processor(root: Path) -> str:
    with contextlib.suppress(OSError):
        text = (root / "proc/cpuinfo").read_text(errors="replace")
        if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            return " ".join(found[1].split())
    return platform.processor() or platform.machine()


def _memory(root: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        text = (root / "proc/meminfo").read_text()
        if found := re.search(r"^MemTotal:\s*(\d+) kB", text, re.MULTILINE):
            return int(found[1]) << 10
    return None
