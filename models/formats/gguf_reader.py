"""Reading GGUF: files are mapped, headers are checked, tensors are views into the map."""

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np

from yupana.graphlib.context import Context
from yupana.graphlib.dtypes import DTYPES
from yupana.graphlib.errors import DtypeError, Interrupted
from yupana.graphlib.tensor import Tensor
from yupana.models.formats.gguf_blocks import Array, as_array, check_finite, native
from yupana.models.formats.gguf_cursor import shown
from yupana.models.formats.gguf_header import Header, TensorInfo, Tensors, read_header
from yupana.models.formats.gguf_split import join_tensors, open_parts
from yupana.models.formats.mapping import FileMemory

Progress: TypeAlias = Callable[[float], bool | None]

_DTYPES = {dtype.ggml_id: dtype for dtype in DTYPES.values()}


class GgufFile:
    """A GGUF file of version 1 to 3, either byte order, opened for reading.

    A model in several files, as llama.cpp's gguf-split writes them, is opened by any of them.

    The header is checked in full when the file is opened: each count, length and offset against
    the bytes that are there. Metadata values are decoded when asked for. Arrays keep the map
    alive, so they outlive `close()`. A file must not be cut short while it is mapped: this class
    raises when it is used after that, but a program that touches a tensor whose bytes are gone is
    killed by the system (SIGBUS). Replace files as `write_gguf` does, or use `mmap=False`.

    Args:
        path: the file, or any part of a split one.
        mmap: False reads each tensor into memory of its own when it is taken, which may then be
            written to; the header is mapped even so.
        prefetch: ask the system to load all pages soon, for files that will be used whole.
        random_access: ask it to load only pages that are touched, as for files on several
            memory nodes.
        mlock: keep tensors in memory once they are taken. If the system refuses, there is one
            warning that says what to do.
        validate: `tensor` refuses tensors that hold numbers, or scales, that are not finite.
        progress: called by `tensor` with the part (0 to 1) of all tensors' bytes taken so far;
            returning False cancels.
        overrides: values of metadata in place of those of the file, or beside them.

    Raises:
        FileFormatError: the bytes are not a GGUF file; names the field and its offset.
        SettingError: options that contradict each other.
        OSError: the system cannot open or map it.

    Attributes:
        parts: the paths of all files, one for most models.
        version: 1 to 3; this and the next four are of the first part.
        byte_order: "little" or "big".
        alignment: multiple of bytes at which tensors start.
        data_offset: where tensor data start.
        metadata: key to value, lazily.
        tensors: name to TensorInfo, of all parts.

    >>> import pathlib, tempfile
    >>> from yupana.models.formats import write_gguf
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "m.gguf"
    >>> write_gguf(path, {"general.name": "tiny"}, {"w": np.eye(2, dtype=np.float32)})
    >>> with GgufFile(path, validate=True) as file:
    ...     name, w = file.metadata["general.name"], file.tensor(Context(), "w")
    >>> name, w, w.data.flags.writeable
    ('tiny', <Tensor 'w' leaf f32[2, 2]>, False)
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        mmap: bool = True,
        prefetch: bool = False,
        random_access: bool = False,
        mlock: bool = False,
        validate: bool = False,
        progress: Progress | None = None,
        overrides: Mapping[str, bool | int | float | str] | None = None,
    ) -> None:
        def read(part: Path) -> Header:
            advice = {"prefetch": prefetch, "random_access": random_access}
            return read_header(FileMemory(part, mmap=mmap, mlock=mlock, **advice))

        self.path = Path(path)
        self._headers = open_parts(self.path, read)
        first = self._headers[0]
        self.parts = [header.cursor.path for header in self._headers]
        self.byte_order = "little" if first.cursor.order == "<" else "big"
        self.version = first.version
        self.metadata = first.metadata.with_values(overrides or {})
        self.alignment = first.alignment
        self.data_offset = first.data_offset
        self.tensors = Tensors(self.path, join_tensors(self._headers))
        self._validate = validate
        self._progress = progress
        self._left = {name: info.nbytes for name, info in self.tensors.items()}  # not yet taken
        self._left_bytes = self._all_bytes = sum(self._left.values())

    def tensor(self, context: Context, name: str) -> Tensor:
        """A leaf of `context` that lies in the map; nothing is copied, and it cannot be written.

        It keeps the map alive. Only what cannot be used where it lies is copied: a big-endian
        file's numbers, and a tensor that the file's alignment puts between two elements.

        Raises:
            MissingEntry: no such tensor. DtypeError: a type that kernels do not know.
            ContextError: `context` has a tensor of this name.
            FileFormatError: numbers that are not finite, if this was to be checked.
            Interrupted: `progress` returned False.
        """
        info = self.tensors[name]
        dtype = _DTYPES.get(info._kind.number)
        if dtype is None:
            raise DtypeError(
                f"{info.path}: type of tensor {shown(name)}: got {info.type}, want one of "
                f"{', '.join(d.name for d in _DTYPES.values())}. Write it in one of them."
            )
        data = self.array(name)
        return context.wrap(np.require(data, requirements=["C", "A"]), dtype, name)

    def array(self, name: str) -> Array:
        """The data of a tensor as `TensorInfo.data` has them, in this machine's byte order.

        Raises:
            MissingEntry: no such tensor.
            FileFormatError: numbers that are not finite, if this was to be checked.
            Interrupted: `progress` returned False.
        """
        info = self.tensors[name]
        kind, order, raw = info._kind, info.byte_order, info.raw
        if self._validate:
            check_finite(info.path, name, raw, kind, order, info.offset)
        self._report(info)
        return native(as_array(raw, kind, info.shape, order), kind, order)

    def close(self) -> None:
        """Let go of the file; arrays that were handed out stay valid."""
        for header in self._headers:
            header.close()

    def _report(self, info: TensorInfo) -> None:
        """Tell how much has been taken."""
        if self._progress is None:
            return
        self._left_bytes -= self._left.pop(info.name, 0)
        part = 1 - self._left_bytes / self._all_bytes if self._all_bytes else 1.0
        if self._progress(part) is False:
            raise Interrupted(f"{self.path}: loading was cancelled at tensor {shown(info.name)}.")

    def __enter__(self) -> "GgufFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"GgufFile({str(self.path)!r}: version {self.version}, {self.byte_order}-endian, "
            f"{len(self.metadata)} metadata entries, {len(self.tensors)} tensors)"
        )
