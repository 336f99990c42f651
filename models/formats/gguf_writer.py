"""Writing GGUF version 3: streamed to a temporary file, synced, then renamed over the old one."""

import contextlib
import errno
import math
import os
import re
import secrets
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from yupana.graphlib.errors import DtypeError, ShapeError, YupanaError
from yupana.models.formats.gguf_cursor import shown
from yupana.models.formats.gguf_encode import encode_entry, encode_text
from yupana.models.formats.gguf_types import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_AXES,
    MAX_NAME_BYTES,
    TENSOR_TYPE_BY_DTYPE,
    TENSOR_TYPE_BY_NAME,
    TensorType,
    row_bytes,
)

Array: TypeAlias = np.ndarray[Any, Any]
Bytes: TypeAlias = bytes | bytearray | memoryview | Array
Maker: TypeAlias = Callable[[], Bytes | Iterator[Bytes]]
Tensor: TypeAlias = Array | tuple[str, Sequence[int], Bytes | Maker]

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHUNK_BYTES = 1 << 24  # copied at a time where an array is not contiguous


def write_gguf(
    path: str | PathLike[str], metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a little-endian GGUF file of version 3, whole or not at all.

    The bytes go to a new file in the same folder, which is synced and takes the place of `path`
    at the end; whatever stops this function before leaves the old file as it was.

    Args:
        path: file to write or replace; a link is followed.
        metadata: key to value. bool, int (UINT32 where it fits, else INT64, UINT64), float
            (FLOAT32), str, lists of one of them (an empty one holds strings) or of lists; scalars
            and 1-D arrays of NumPy say their type themselves, as np.float64(0.1) or
            np.int32([1, 2]).
            "general.alignment" sets the alignment of tensors, a power of two (default 32).
        tensors: name to array of float32, float16, float64 or int8 to int64, or to
            (type, shape, data), as ("BF16", (2, 3), uint16 array) or ("Q8_0", (2, 64), bytes).
            Shapes are in NumPy order, at most 4 axes. Data may be a function without
            arguments that makes them, whole or as an iterator of parts: it is called when they
            are written.

    Raises:
        DtypeError: a value or an array of a type that GGUF does not have.
        ShapeError: a shape that does not fit its type or data.
        OSError: the system cannot write.

    >>> import tempfile, pathlib
    >>> from yupana.models.formats import GgufFile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "m.gguf"
    >>> write_gguf(path, {"general.name": "tiny"}, {"w": np.eye(2, dtype=np.float32)})
    >>> GgufFile(path).metadata["general.name"], GgufFile(path).tensors["w"].shape
    ('tiny', (2, 2))
    """
    alignment = _alignment(metadata)
    plans = [_plan(name, tensor) for name, tensor in tensors.items()]
    header = bytearray(MAGIC + struct.pack("<IQQ", 3, len(plans), len(metadata)))
    for key, value in metadata.items():
        header += encode_entry(key, value)
    offset = 0
    for plan in plans:
        header += plan.record(offset)
        offset += _up(plan.nbytes, alignment)
    with atomic_write(path) as file:
        file.write(header)
        file.write(bytes(_up(len(header), alignment) - len(header)))
        for plan in plans:
            plan.write(file)
            file.write(bytes(_up(plan.nbytes, alignment) - plan.nbytes))


@contextlib.contextmanager
def atomic_write(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that becomes `path`, complete and synced, when the block ends well.

    Raises:
        OSError: the system cannot write; `path` is then as it was.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "state"
    >>> with atomic_write(path) as file:
    ...     _ = file.write(b"all of it")
    >>> path.read_bytes()
    b'all of it'
    """
    target = Path(os.path.realpath(path))
    temporary = temporary_path(target)
    with contextlib.ExitStack() as undo:
        undo.enter_context(_named(path, temporary))
        with temporary.open("xb") as file:
            undo.callback(temporary.unlink, missing_ok=True)
            if target.is_file():
                with contextlib.suppress(OSError):  # a file system without permissions
                    temporary.chmod(target.stat().st_mode & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        undo.pop_all()
    _sync_folder(target.parent)


@contextlib.contextmanager
def _named(path: str | PathLike[str], temporary: Path) -> Iterator[None]:
    """Errors name the file that was to be written, which the user knows."""
    try:
        yield
    except OSError as error:
        if error.filename == str(temporary) or (error.filename is None and error.errno in _NO_ROOM):
            error.filename, error.filename2 = str(path), None
        raise


def temporary_path(target: Path) -> Path:
    """A new name beside a file or folder, for what is not complete yet."""
    return target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")


def temporary_of(path: Path) -> str | None:
    """The name that a temporary file was made for, at most 100 letters; None for other files.

    >>> temporary_of(temporary_path(Path("folder/m.gguf"))), temporary_of(Path("m.gguf"))
    ('m.gguf', None)
    """
    found = _TEMPORARY.fullmatch(path.name)
    return found[1] if found else None


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power cut; systems that cannot open a folder skip it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A tensor that is checked and will be written."""

    name: str
    kind: TensorType
    shape: tuple[int, ...]
    nbytes: int
    source: Bytes | Maker

    def record(self, offset: int) -> bytes:
        """Its entry in the header; `offset` counts from the start of the tensor data."""
        axes = struct.pack(f"<I{len(self.shape)}Q", len(self.shape), *reversed(self.shape))
        return encode_text(self.name) + axes + struct.pack("<IQ", self.kind.number, offset)

    def write(self, file: BinaryIO) -> None:
        source = self.source() if callable(self.source) else self.source
        parts = source if isinstance(source, Iterator) else iter((source,))
        nbytes = 0
        for part in parts:
            _check_kind(self, part)
            nbytes += _size(part)
            for piece in _pieces(part):
                file.write(piece)
        _check_size(self, nbytes)


def _plan(name: str, tensor: Tensor) -> _Plan:
    what = f"tensor {shown(name)}"
    if not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise ShapeError(
            f"write_gguf: name of {what}: got {len(name.encode(errors='replace'))} bytes, "
            f"want 1 to {MAX_NAME_BYTES}."
        )
    if isinstance(tensor, tuple):
        type_name, axes, source = tensor
        kind = TENSOR_TYPE_BY_NAME.get(type_name)
        known = ", ".join(TENSOR_TYPE_BY_NAME)
    else:
        type_name, axes, source = str(tensor.dtype), tensor.shape, tensor
        kind = TENSOR_TYPE_BY_DTYPE.get(tensor.dtype.newbyteorder("="))
        known = ", ".join(str(d) for d in TENSOR_TYPE_BY_DTYPE)
        known += ', or ("BF16", shape, uint16 array)'
    if kind is None:
        raise DtypeError(f"write_gguf: type of {what}: got {type_name}, want one of {known}.")
    shape = tuple(int(n) for n in axes)
    width = row_bytes(kind, shape)
    if len(shape) > MAX_AXES or min(shape, default=0) < 0 or width is None:
        want = f"at most {MAX_AXES} axes, the last in whole blocks of {kind.block}"
        raise ShapeError(f"write_gguf: shape of {what} ({kind.name}): got {shape}, want {want}.")
    plan = _Plan(name, kind, shape, width * math.prod(shape[:-1]), source)
    if not callable(source):
        _check_kind(plan, source)
        _check_size(plan, _size(source))
    return plan


def _check_kind(plan: _Plan, source: Bytes) -> None:
    if isinstance(source, np.ndarray):
        fits = [np.dtype("u1"), np.dtype(plan.kind.dtype or "u1")]
        if source.dtype.newbyteorder("=") not in fits:
            raise DtypeError(
                f"write_gguf: data of tensor {shown(plan.name)} ({plan.kind.name}): got an array "
                f"of {source.dtype}, want {' or '.join(str(d) for d in fits)}."
            )


def _check_size(plan: _Plan, nbytes: int) -> None:
    if nbytes != plan.nbytes:
        raise ShapeError(
            f"write_gguf: data of tensor {shown(plan.name)} ({plan.kind.name} {plan.shape}): got "
            f"{nbytes} bytes, want {plan.nbytes}."
        )


def _size(source: Bytes) -> int:
    return source.nbytes if isinstance(source, np.ndarray | memoryview) else len(source)


def _pieces(source: Bytes) -> Iterator[Any]:
    """The source's bytes in C order, little-endian, without a copy where they are so already."""
    if not isinstance(source, np.ndarray):
        yield source
        return
    little = source.dtype.newbyteorder("<")
    if source.flags.c_contiguous and source.dtype == little:
        if source.size:
            yield source.reshape(-1).view(np.uint8).data
        return
    rows = source if source.ndim else source.reshape(1)
    step = max(1, _CHUNK_BYTES // max(1, rows[:1].nbytes))
    for first in range(0, len(rows), step):
        yield rows[first : first + step].astype(little, order="C").tobytes()


def _alignment(metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int | np.uint32) or not (
        0 < int(value) < 1 << 31 and int(value).bit_count() == 1
    ):
        raise YupanaError(
            f"write_gguf: 'general.alignment': got {shown(value)}, want a power of two below 2^31."
        )
    return int(value)


def _up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
