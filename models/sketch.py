"""A model as a file describes it, without its weights: to be recorded, planned and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from yupana.graphlib.context import Context
from yupana.graphlib.dtypes import Dtype, f32
from yupana.graphlib.errors import FileFormatError, ShapeError
from yupana.models.conversion import Described, HasShape
from yupana.models.convert import read_conversion
from yupana.models.formats import GgufFile
from yupana.models.formats.identify import identify
from yupana.models.llama import Llama
from yupana.models.llama_gguf import read_config
from yupana.models.loading import read_architecture
from yupana.models.starcoder import StarCoder
from yupana.models.starcoder_gguf import read_starcoder_config
from yupana.models.tensor_values import dtype_named


@dataclass(frozen=True)
class _Source:
    """What a file of another format would be as GGUF."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]


def sketch_model(
    path: str | PathLike[str], trainable: bool = False, context: Context | None = None
) -> Llama | StarCoder:
    """The model of a file, with weights that hold nothing.

    Args:
        path: a model or checkpoint in GGUF, or what `yupana convert` reads.
        trainable: all weights are f32 parameters; else they are of the types in the file.
        context: owner of the weights; None: one that allocates nothing.
    Raises:
        FileFormatError: no model of a known architecture, or damaged.
        OSError: the system cannot read.
    """
    path = Path(path)
    if identify(path) == "gguf":
        with GgufFile(path) as file:
            return _sketch(file, trainable, context)
    conversion = read_conversion(path)
    return _sketch(_Source(path, conversion.metadata, conversion.tensors), trainable, context)


def _sketch(source: Described, trainable: bool, context: Context | None) -> Llama | StarCoder:
    architecture = read_architecture(source)
    if "token_embd.weight" not in source.tensors:
        raise FileFormatError(
            f"{source.path}: not a whole model: got no token_embd.weight, want the weights of a "
            "model. Give the base model of an adapter."
        )
    context = context or Context(no_alloc=True)
    weights = {}
    for name, tensor in source.tensors.items():
        if trainable:
            weights[name] = context.param(tensor.shape, f32, name)
        else:
            weights[name] = context.leaf(tensor.shape, _dtype(tensor), name)
    try:
        if architecture == "starcoder":
            return StarCoder(read_starcoder_config(source), weights, context, not trainable)
        return Llama(read_config(source), context, weights, not trainable)
    except ShapeError as e:
        raise FileFormatError(f"{source.path}: {e}") from None


def _dtype(tensor: HasShape) -> Dtype:
    """As `load_model` has it in memory: norms and biases as f32."""
    dtype = dtype_named(tensor.type)
    return f32 if dtype is None or (len(tensor.shape) == 1 and dtype.is_float) else dtype
