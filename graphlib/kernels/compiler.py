"""Kernels: numba functions specialised from templates, compiled on first use, cached on disk.

A kernel is called as ``kernel(record, begin, end, scratch)``, four int64: the address of its
record (operand addresses, shapes, parameters, as the kernel's family lays them out), the range
of chunks to do, and the address of scratch memory of the calling thread. A kernel never learns
which thread it runs on, so results cannot depend on the number of threads.

A template is an ordinary function of a kernel module that refers to names its module leaves
open (``row``, ``compute``...). `Kernel` binds them as globals, not as closure cells: numba's
disk cache never hits for a function that closes over another compiled function.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numba
from numba import cfunc
from numba.core.errors import NumbaError

from yupana.graphlib.config import config
from yupana.graphlib.errors import KernelError
from yupana.graphlib.kernels.companion import companion
from yupana.graphlib.kernels.deferral import interrupts_deferred
from yupana.graphlib.kernels.fingerprint import (
    fingerprint,
    globals_read,
    is_users,
    names_bound,
)
from yupana.graphlib.kernels.for_kernels import for_kernels

SIGNATURE = numba.void(numba.int64, numba.int64, numba.int64, numba.int64)
# Reassociation lets reductions vectorise; functions that would lose digits by it
# (kernels/math.py) are compiled with flags of their own, which survive inlining.
FASTMATH = {"contract", "nsz", "reassoc", "arcp"}
_FOLDERS_KEPT = 3  # caches of older sources are removed beyond this many

# Counts of this process, so that a test can show that a second process compiles nothing.
counts = {"compiled": 0, "loaded": 0}
# Called as (done, total, name) around compilations; the command line shows a bar.
Progress = Callable[[int, int, str], None]


_collected: list[Kernel] | None = None


class Kernel:
    """One compiled function with the kernel signature; compiles when `address` is first read.

    Args:
        template: function (record, begin, end, scratch) whose open names are bound by `bindings`.
        name: unique together with the template; names the cache entry.
        bindings: values for the open names. Plain Python functions, and those they call, are
            compiled as numba functions and see the other values too; they are part of the cache
            key.
        fastmath: LLVM flags of the template and of the functions bound.
        inline: copy bound functions to where they are called, which a loop needs to be vectorised;
            whole algorithms would only take longer to compile.
    """

    def __init__(
        self,
        template: Callable[..., None],
        name: str = "",
        *,
        fastmath: Iterable[str] = FASTMATH,
        signature: Any = SIGNATURE,
        inline: bool = True,
        **bindings: Any,
    ) -> None:
        self.template = template
        self.name = f"{template.__name__}_{name}" if name else template.__name__
        self.signature = signature
        self._fastmath = set(fastmath)
        self._inline = inline
        self._bindings = bindings
        self._address = 0

    def __repr__(self) -> str:
        return f"<Kernel {self.name}>"

    @property
    def address(self) -> int:
        """Address of the machine code; compiles or loads it at the first call."""
        if not self._address:
            if _collected is not None:
                _collected.append(self)
                return 0
            with interrupts_deferred():
                self._compile()
        return self._address

    @property
    def is_ready(self) -> bool:
        """Whether `address` needs no compilation: loaded already, or on disk."""
        if self._address:
            return True
        pattern = f"{self.template.__module__.rpartition('.')[2]}.{self._qualname}-*.nbi"
        folder = cache_folder()
        return folder is not None and any(folder.glob(f"*/{pattern}"))

    @cached_property
    def _qualname(self) -> str:
        digest = hashlib.sha256()
        names = frozenset(self._bindings)
        for key, value in sorted(self._bindings.items()):
            digest.update(f"{key}={fingerprint(value, names)};".encode())
        digest.update(str(sorted(self._fastmath)).encode())
        return f"{self.name}_{digest.hexdigest()[:10]}"

    def _compiled(self, function: types.FunctionType, outer: tuple[Any, ...] = ()) -> Any:
        """A bound function for numba, with the names that it shares with the template bound.

        Plain functions of its own file that it calls are compiled with it.
        """
        values = {
            name: self._bindings[name]
            for name in names_bound(function, self._bindings)
            if not isinstance(self._bindings[name], types.FunctionType)
        }
        namespace = {**function.__globals__, **values}
        outer = (*outer, function)
        for name, _ in globals_read(function.__code__):
            helper = namespace.get(name)
            if isinstance(helper, types.FunctionType) and helper not in outer and is_users(helper):
                namespace[name] = self._compiled(helper, outer)
        options: dict[str, Any] = {"error_model": "numpy"}
        options["forceinline"] = self._inline
        bound = types.FunctionType(
            function.__code__,
            namespace,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        # What the disk cache holds names the module to import; one typed at a prompt has none.
        bound.__module__ = self.template.__module__
        return for_kernels(bound, fastmath=self._fastmath, **options)

    def _compile(self) -> None:
        functions = {
            key: self._compiled(value)
            for key, value in self._bindings.items()
            if isinstance(value, types.FunctionType)
        }
        namespace = {**self.template.__globals__, **self._bindings, **functions}
        template = self.template
        function = types.FunctionType(template.__code__, namespace, template.__name__)
        function.__qualname__ = self._qualname
        function.__module__ = template.__module__
        folder = cache_folder()
        try:
            with _numba_cache(folder):
                compiled = cfunc(
                    self.signature,
                    cache=folder is not None,
                    fastmath=self._fastmath,
                    error_model="numpy",
                )(function)
        except NumbaError as error:
            raise KernelError(
                f"{self.name}: does not compile: {_reason(error)}. A kernel is made of what numba "
                "compiles: numbers, arrays, loops, NumPy's functions of numbers."
            ) from error
        counts["loaded" if compiled.cache_hits else "compiled"] += 1
        self._keep = compiled  # owns the machine code
        self._address = compiled.address


@contextmanager
def collecting() -> Iterator[list[Kernel]]:
    """Within it, kernels that are asked for their address are listed instead of compiled.

    Programs are lowered once like this, so that all they need is compiled in one go, announced.
    """
    global _collected
    before, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = before


def ready(kernels: Iterable[Kernel], progress: Progress | None = None) -> None:
    """Compile or load `kernels`; tells `progress` about those that have to be compiled.

    Without `progress`, a compilation of many kernels is announced on stderr.
    """
    pending = list({id(k): k for k in kernels if not k._address}.values())
    missing = [k for k in pending if not k.is_ready]
    report = progress or _announce
    with companion(len(missing), lambda job: missing[job].address) as shares:
        for job, kernel in enumerate(missing):
            report(shares.begun if job else 0, len(missing), kernel.name)  # 0 announces the rest
            if not shares.take_first(job):
                break
            _ = kernel.address
    if missing:
        report(len(missing), len(missing), "")
    for kernel in pending:
        _ = kernel.address


def function_type(n_args: int, releases_gil: bool = True) -> Any:
    """ctypes type of a void function of `n_args` int64; calling it lets other threads run."""
    make = ctypes.CFUNCTYPE if releases_gil else ctypes.PYFUNCTYPE
    return make(None, *[ctypes.c_int64] * n_args)


@cache
def cache_folder() -> Path | None:
    """Folder of this version's compiled kernels, or None where none can be written."""
    root = Path(config.cache_dir)
    folder = root / f"kernels-{_sources_digest()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        print(
            f"yupana: cannot write {folder}; kernels are compiled anew in every run. "
            "Set YUPANA_CACHE_DIR to a writable folder.",
            file=sys.stderr,
        )
        return None
    folders = sorted(root.glob("kernels-*"), key=lambda path: path.stat().st_mtime)
    for old in folders[:-_FOLDERS_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _sources_digest() -> str:
    """Hash of what compiled code is made from: numba does not notice edits in other files."""
    # Functions bound from other folders are in the names of the entries (Kernel._qualname).
    digest = hashlib.sha256(f"{numba.__version__} {sys.version}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _reason(error: NumbaError) -> str:
    """The lines of numba's message that say what and where."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines()]
    skipped = ("Failed in", "During:", "- Resolution", "<source", "Overload", "There are")
    told = [line for line in lines if line and not line.startswith(skipped)]
    where = [line for line in lines if line.startswith("File ") and "graphlib" not in line]
    return ", ".join(dict.fromkeys([*told[:1], *where[-1:]])).rstrip(".:")


@contextmanager
def _numba_cache(folder: Path | None) -> Any:
    """Point numba's disk cache at `folder` while a kernel is made; the user's own stays."""
    before = numba.config.CACHE_DIR
    if folder is not None:
        numba.config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def _announce(done: int, total: int, name: str) -> None:
    """One line on stderr; on a terminal a bar that moves, and is gone when all is done."""
    if total < 3:
        return
    text = f"yupana: compiling {total} kernels (first run only)"
    if not sys.stderr.isatty():
        if done == 0:
            print(text, file=sys.stderr, flush=True)
        return
    width = shutil.get_terminal_size().columns - 1
    bar = f" [{'#' * (20 * done // total):20}] {name}"
    line = f"{text}{bar}" if len(text) + 24 < width else text
    end = "\r\033[K" if done == total else ""
    print(f"\r\033[K{line[:width]}{end}", end="", file=sys.stderr, flush=True)
