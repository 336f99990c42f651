"""Sizes of memory: as the command line has them, and what there is."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from yupana.graphlib.errors import SettingError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_UNLIMITED = 1 << 60  # what a control group says that has no limit is above this


def parse_size(text: str) -> int:
    """Bytes of a size as the command line has it: units of 1024, or plain bytes.

    Raises:
        SettingError: text of another form.

    >>> parse_size("600M"), parse_size("1.5G"), parse_size("4096")
    (629145600, 1610612736, 4096)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise SettingError(f"memory_budget: got {text!r}, want a size such as 600M or 1.5G.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process can still take; None where the system does not say.

    It is what the system has left, or less if a control group (of a container) allows less.

    Args:
        root: where /proc and /sys stand.
    """
    amounts = []
    with contextlib.suppress(OSError, ValueError):
        found = re.search(r"MemAvailable:\s*(\d+) kB", (root / "proc/meminfo").read_text())
        amounts += [int(found[1]) << 10] if found else []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, group = line.split(":", 2)
            if not kinds:
                amounts += _left_in(root / "sys/fs/cgroup", group, "memory.max", "memory.current")
            elif "memory" in kinds.split(","):
                names = "memory.limit_in_bytes", "memory.usage_in_bytes"
                amounts += _left_in(root / "sys/fs/cgroup/memory", group, *names)
    return min(amounts, default=None)


def _left_in(mount: Path, group: str, limit: str, usage: str) -> Iterator[int]:
    """What a control group and those it is part of have left."""
    inner = Path(group.lstrip("/"))
    for folder in {mount, *(mount / part for part in (inner, *inner.parents))}:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            most = int((folder / limit).read_text())
            if most < _UNLIMITED:
                yield max(0, most - int((folder / usage).read_text()))
