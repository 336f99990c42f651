"""Conversions written as GGUF, matrices in a type of choice."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from yupana.models.conversion import Conversion
from yupana.models.file_types import BLOCKS_VERSION, file_type_of
from yupana.models.formats import write_gguf
from yupana.models.formats.gguf_types import TENSOR_TYPE_BY_NAME
from yupana.models.formats.stored import Array, StoredTensor
from yupana.models.tensor_values import dtype_named, encode_rows, parts_of

Dtype = Literal["auto", "f32", "f16", "bf16", "q8_0"]
_ALWAYS_F32 = ("_norm.weight", "position_embd.weight", "rope_freqs.weight")


def write_conversion(
    conversion: Conversion, source: Path, target: Path, dtype: Dtype
) -> Conversion:
    """Write a conversion of `source`, whole or not at all; returns what was written.

    Raises:
        FileFormatError: a tensor whose values cannot be read.
        OSError: the system cannot write.
    """
    types = {name: _target_type(t, dtype) for name, t in conversion.tensors.items()}
    path = source.resolve()
    name = path.name if path.is_dir() else path.stem
    metadata = {"general.name": name, **_file_type(conversion, types)}
    metadata |= conversion.metadata
    tensors = {
        name: (types[name], t.shape, partial(_encoded, t, types[name]))
        for name, t in conversion.tensors.items()
    }
    write_gguf(target, metadata, tensors)
    return replace(conversion, metadata=metadata)


def _target_type(tensor: StoredTensor, dtype: Dtype) -> str:
    if len(tensor.shape) < 2 or tensor.name.endswith(_ALWAYS_F32):
        return "F32"
    wanted = dtype.upper()
    if dtype == "auto":
        wanted = tensor.type if dtype_named(tensor.type) and tensor.type != "F64" else "F32"
    return "F16" if tensor.shape[-1] % TENSOR_TYPE_BY_NAME[wanted].block else wanted


def _file_type(conversion: Conversion, types: dict[str, str]) -> dict[str, int]:
    """The entries on types; the file's is that of most of its matrices' elements."""
    counts: Counter[str] = Counter()
    for name, tensor in conversion.tensors.items():
        counts[types[name]] += tensor.size if len(tensor.shape) > 1 else 0
    main = counts.most_common(1)[0][0]
    entries = {"general.file_type": file_type_of(main)}
    if any(TENSOR_TYPE_BY_NAME[t].block > 1 for t in types.values()):
        entries["general.quantization_version"] = BLOCKS_VERSION
    return entries


def _encoded(tensor: StoredTensor, type_name: str) -> Iterator[Array]:
    """The bytes of a tensor to be written, some rows at a time."""
    for stored, values in parts_of(tensor):
        yield stored if tensor.type == type_name else encode_rows(values, type_name)
