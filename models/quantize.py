"""Quantise a model file, tensor by tensor, and say what each tensor lost."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.dtypes import from_storage
from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.graphlib.quants import FORMATS
from yupana.models.file_types import BLOCKS_VERSION, FILE_TYPES
from yupana.models.formats import GgufFile, TensorInfo, write_gguf
from yupana.models.formats.gguf_blocks import native
from yupana.models.formats.gguf_types import TENSOR_TYPE_BY_NAME
from yupana.models.formats.stored import Array, StoredTensor, tensor_bytes
from yupana.models.quantize_types import Mixture, file_type_named
from yupana.models.targets import refuse_source
from yupana.models.tensor_values import dtype_named, encode_rows, parts_of

Floats = NDArray[np.float32] | NDArray[np.float64]


@dataclass
class TensorReport:
    """What became of one tensor; the errors are known once it is written.

    Errors are those of the values in the file against those meant: the model's, or of a merge the
    exact sum W + s · B A.

    Attributes:
        before, after: types.
        nbytes_before, nbytes_after: sizes.
        rmse: root of the mean squared error.
        max_error: largest magnitude of an error.
        relative: rmse by the root mean square of the values; 0 where all are zero.
        is_rewritten: whether its values were rounded to `after`; else its bytes were copied.
    """

    name: str
    shape: tuple[int, ...]
    before: str
    after: str
    nbytes_before: int
    nbytes_after: int
    rmse: float = 0.0
    max_error: float = 0.0
    relative: float = 0.0
    is_rewritten: bool = False
    _sums: list[float] = field(default_factory=lambda: [0.0, 0.0], repr=False)

    def add(self, values: Floats, written: NDArray[np.float32]) -> None:
        """Count some more rows."""
        self.is_rewritten = True
        wide = values.astype(np.float64)
        errors = wide - written
        self._sums[0] += float(np.square(errors).sum())
        self._sums[1] += float(np.square(wide).sum())
        self.max_error = max(self.max_error, float(np.abs(errors).max(initial=0)))
        self.rmse = math.sqrt(self._sums[0] / math.prod(self.shape))
        self.relative = math.sqrt(self._sums[0] / self._sums[1]) if self._sums[1] else 0.0


# Rows of a tensor and the number of the first of them, to what is written instead: in float64 if
# errors are to be counted from more than float32 holds.
Change = Callable[[NDArray[np.float32], int], Floats]


def quantize_model(
    source: str | PathLike[str],
    target: str | PathLike[str],
    type_name: str | None,
    *,
    allow_requantize: bool = False,
    is_pure: bool = False,
    changes: Mapping[str, Change] | None = None,
    entries: Mapping[str, Any] | None = None,
    progress: Callable[[TensorReport], None] | None = None,
) -> list[TensorReport]:
    """Write a model with its matrices in another type, or changed; whole or not at all.

    Which type each tensor gets is llama.cpp's choice; see `Mixture`. Memory stays at a few
    megabytes, whatever the size of the model.

    Args:
        source: GGUF file to read.
        target: GGUF file to write or replace; not `source`.
        type_name: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K_S, Q3_K_M, Q3_K_L, Q4_K_S, Q4_K_M,
            Q5_K_S, Q5_K_M, Q6_K, IQ4_NL, IQ4_XS, F16, BF16 or F32; Q3_K, Q4_K and Q5_K mean the _M
            of it. None: each tensor keeps its type.
        allow_requantize: take matrices that are quantised already, which adds errors to errors.
        is_pure: give all matrices the one type instead of llama.cpp's mixture.
        changes: name of a tensor to what happens to its rows before they are written.
        entries: of metadata that take the place of the source's; None: it has no such entry.
        progress: called when a tensor is written.

    Returns:
        A report per tensor, in the file's order.

    Raises:
        SettingError: no such type, a source that is quantised already, or that is the target.
        FileFormatError: `source` is no model, or a tensor has values that are not finite.
        OSError: the system cannot read or write.

    >>> import pathlib, tempfile
    >>> from yupana.models.llama import Llama, LlamaConfig
    >>> from yupana.models.llama_gguf import save_llama
    >>> sizes = LlamaConfig(n_vocab=9, n_ctx=8, n_embd=32, n_layer=1, n_head=2, n_ff=32)
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> save_llama(folder / "m.gguf", Llama(sizes).init(seed=1))
    >>> reports = quantize_model(folder / "m.gguf", folder / "small.gguf", "Q8_0")
    >>> reports[0].name, reports[0].after, reports[0].relative < 0.01
    ('token_embd.weight', 'Q8_0', True)
    """
    changes = changes or {}
    mixture = None
    file_type = None if type_name is None else file_type_named(type_name)
    with GgufFile(source) as file:
        refuse_source("quantize", file.parts, target)
        metadata = file.metadata.typed()
        if file_type is not None:
            has_output = "output.weight" in file.tensors
            mixture = Mixture.of_model(file_type, file.metadata, has_output, is_pure)
            metadata |= {
                "general.quantization_version": np.uint32(BLOCKS_VERSION),
                "general.file_type": np.uint32(FILE_TYPES[file_type]),
            }
        for key in ("split.no", "split.count", "split.tensors.count"):
            metadata.pop(key, None)
        metadata = {k: v for k, v in {**metadata, **(entries or {})}.items() if v is not None}
        reports, tensors = [], {}
        for info in file.tensors.values():
            after = (mixture and mixture.type_of(info.name, info.shape)) or info.type
            if after != info.type and info.type in FORMATS and not allow_requantize:
                raise SettingError(
                    f"{source}: {info.name} is quantised already: got {info.type}, want F32, F16 "
                    "or BF16. Start from the unquantised model, or pass --allow-requantize."
                )
            report = _report(info, after)
            reports.append(report)
            change = changes.get(info.name)
            make = partial(_make, Path(source), info, report, change, progress)
            tensors[info.name] = (after, info.shape, make)
        write_gguf(target, metadata, tensors)
    return reports


def _report(info: TensorInfo, after: str) -> TensorReport:
    nbytes = tensor_bytes(TENSOR_TYPE_BY_NAME[after], info.shape)
    assert nbytes is not None  # the mixture only gives types that fit
    return TensorReport(info.name, info.shape, info.type, after, info.nbytes, nbytes)


def _make(
    path: Path,
    info: TensorInfo,
    report: TensorReport,
    change: Change | None,
    progress: Callable[[TensorReport], None] | None,
) -> Iterator[Array]:
    """The bytes of a tensor to be written, some rows at a time."""
    data = native(info.data, TENSOR_TYPE_BY_NAME[info.type], info.byte_order)
    if report.after == report.before and change is None:
        yield data
    else:
        stored = StoredTensor(info.name, info.shape, info.type, info.nbytes, lambda: data)
        yield from _encoded(path, stored, report, change)
    if progress is not None:
        progress(report)


def _encoded(
    path: Path, stored: StoredTensor, report: TensorReport, change: Change | None
) -> Iterator[Any]:
    dtype = dtype_named(report.after)
    assert dtype is not None
    first = 0
    for _, rows in parts_of(stored):
        values: Floats = rows
        if change is not None:
            values = change(rows, first)
            first += len(values)
        written = encode_rows(values.astype(np.float32, copy=False), report.after)
        read = from_storage(written, dtype).astype(np.float32, copy=False)
        if not np.isfinite(read).all():
            at = int(np.flatnonzero(~np.isfinite(read.ravel()))[0])
            raise FileFormatError(
                f"{path}: tensor {stored.name}: got {values.ravel()[at]} where the blocks of "
                f"{report.after} want finite numbers within range. The model is damaged, or was "
                "trained to infinity."
            )
        report.add(values, read)
        yield written
