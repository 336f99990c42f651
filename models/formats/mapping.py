"""Files in memory: mapped and shared, or read piece by piece; advice and locks on top."""

import ctypes
import mmap as pages
import os
import resource
import stat
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from yupana.graphlib.errors import FileFormatError, SettingError

Array = np.ndarray[Any, Any]


def map_file(path: Path, wanted: str) -> memoryview:
    """The bytes of a file, mapped read-only; they live as long as a view of them.

    Processes that map the same file share its pages, which the system drops and loads again as it
    needs memory.

    Raises:
        FileFormatError: a folder, a device, or an empty file.
        OSError: the system cannot open or map it.
    """
    status = path.stat()  # before opening: to open a pipe would wait for its writer
    if not stat.S_ISREG(status.st_mode):
        raise FileFormatError(f"{path}: not a model file: got a folder or device, want {wanted}.")
    if not status.st_size:
        raise FileFormatError(f"{path}: first field at byte 0: got an empty file, want {wanted}.")
    with path.open("rb") as file:
        return memoryview(pages.mmap(file.fileno(), 0, access=pages.ACCESS_READ))


def check_size(path: Path, data: memoryview) -> None:
    """Raise if a mapped file is shorter now: pages behind its end kill a process that reads them.

    Raises:
        FileFormatError: somebody cut the file short.
    """
    mapped = data.obj
    if isinstance(mapped, pages.mmap) and mapped.size() < len(data):
        raise FileFormatError(
            f"{path}: cut short while open: got {mapped.size()} bytes, want the {len(data)} there "
            "were. Replace a model by renaming a new file over it, never in place."
        )


class FileMemory:
    """The bytes of a file, and how tensors take theirs.

    Args:
        path: the file.
        mmap: tensors lie in the map; False reads each into memory of its own when it is taken.
        prefetch: ask the system to load the whole map soon, for files that will be used whole.
        random_access: ask it to load only pages that are touched, and none ahead.
        mlock: keep what is taken in memory. The first time the system refuses warns, and no more
            is locked.

    Raises:
        SettingError: advice without a map, or advice that contradicts itself.
        FileFormatError, OSError: as `map_file`.

    Attributes:
        data: (size,) uint8, the whole file as a map; for the header.
    """

    def __init__(
        self,
        path: Path,
        *,
        mmap: bool = True,
        prefetch: bool = False,
        random_access: bool = False,
        mlock: bool = False,
    ) -> None:
        _check_advice(mmap, prefetch, random_access)
        self.path = path
        self.data = map_file(path, "a GGUF file")
        self._lock = MemoryLock(path) if mlock else None
        self._file: int | None = None
        if not mmap:
            self._file = os.open(path, os.O_RDONLY)
            self._close_file = weakref.finalize(self, os.close, self._file)
        mapped = self.data.obj
        assert isinstance(mapped, pages.mmap)
        if prefetch:
            mapped.madvise(pages.MADV_WILLNEED)
        if random_access:
            mapped.madvise(pages.MADV_RANDOM)

    def take(self, offset: int, nbytes: int) -> Array:
        """(nbytes,) uint8 from byte `offset`: a read-only view of the map, or a copy read now.

        Raises:
            FileFormatError: the file has been cut short since it was opened.
            OSError: the system cannot read.
        """
        check_size(self.path, self.data)
        taken: Array
        if self._file is None:
            taken = np.ndarray((nbytes,), "u1", self.data, offset)
        else:
            taken = np.frombuffer(_read(self._file, self.path, offset, nbytes), "u1", nbytes)
        if self._lock is not None:
            self._lock.grow(taken)
        return taken

    def close(self) -> None:
        """Let go of the file; what was taken stays valid."""
        self.data = memoryview(b"")
        if self._file is not None:
            self._close_file()


class MemoryLock:
    """Keeps memory from being swapped or dropped, piece by piece, until it is unmapped.

    Attributes:
        locked: bytes asked for with success.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.locked = 0
        self._refused = False

    def grow(self, memory: Array) -> None:
        """Lock the pages of `memory`; after a refusal, of which it warns, it does nothing."""
        if self._refused or memory.nbytes == 0:
            return
        address = memory.ctypes.data
        start = address // pages.PAGESIZE * pages.PAGESIZE
        size = address + memory.nbytes - start
        if _libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(size)) == 0:
            self.locked += memory.nbytes
            return
        self._refused = True
        reason = os.strerror(ctypes.get_errno())
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        if limit == resource.RLIM_INFINITY:
            remedy = "There is not that much free memory; leave mlock out."
        else:
            remedy = (
                f"The limit (RLIMIT_MEMLOCK) is {limit} bytes; raise it with `ulimit -l unlimited` "
                "in the shell, as root or after a line in /etc/security/limits.conf."
            )
        warnings.warn(
            f"{self.path}: mlock: cannot keep more in memory: got {reason!r} at {memory.nbytes} "
            f"bytes after {self.locked}, want all that is used. Going on without. {remedy}",
            stacklevel=2,
        )


_libc = ctypes.CDLL(None, use_errno=True)


def _check_advice(mmap: bool, prefetch: bool, random_access: bool) -> None:
    if prefetch and random_access:
        raise SettingError(
            "file: prefetch and random_access contradict each other: got both, want at most one."
        )
    if (prefetch or random_access) and not mmap:
        name = "prefetch" if prefetch else "random_access"
        raise SettingError(
            f"file: {name} is advice about a map: got mmap=False, want mmap=True with it. "
            "Leave one of them out."
        )


def _read(file: int, path: Path, offset: int, nbytes: int) -> pages.mmap:
    """Bytes of an open file in pages of their own, so that a lock on them ends with them."""
    flags = pages.MAP_PRIVATE | pages.MAP_ANONYMOUS
    memory = pages.mmap(-1, max(nbytes, 1), flags=flags)
    view = memoryview(memory)
    done = 0
    while done < nbytes:
        got = os.preadv(file, [view[done:nbytes]], offset + done)
        if got == 0:
            raise FileFormatError(
                f"{path}: cut short while open: got the end at byte {offset + done}, want "
                f"{nbytes - done} bytes more. Fetch or write it again."
            )
        done += got
    return memory
