"""Two folders change places in one step, where the system can do that."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

from yupana.models.formats import temporary_path

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


def put_folder(source: Path, target: Path) -> Path | None:
    """Move a folder to where another may be; returns where that is now.

    On Linux and most of its file systems, the name always leads to one of the two. Elsewhere it
    leads nowhere for a moment, since a folder takes no other's place.

    Raises:
        OSError: the system cannot; `source` is where it was.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in "ab":
    ...     (folder / name).mkdir()
    ...     (folder / name / f"from {name}").touch()
    >>> old = put_folder(folder / "a", folder / "b")
    >>> [path.name for path in (folder / "b").iterdir()], [path.name for path in old.iterdir()]
    (['from a'], ['from b'])
    """
    if not target.is_dir():
        source.replace(target)
        return None
    if _exchanged(source, target):
        return source
    old = temporary_path(target)
    target.rename(old)
    try:
        source.rename(target)
    except OSError:
        with contextlib.suppress(OSError):
            old.rename(target)
        raise
    return old


def _exchanged(a: Path, b: Path) -> bool:
    """Whether the names of two folders were exchanged; nothing happens if they were not."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # no Linux, or a C library that does not know it
        return False
    return bool(rename(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0)
