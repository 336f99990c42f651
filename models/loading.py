"""Model files as models whose weights lie in the mapped file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from os import PathLike
from typing import TypeAlias

from yupana.graphlib.context import Context
from yupana.graphlib.dtypes import f32
from yupana.graphlib.errors import FileFormatError, ShapeError
from yupana.graphlib.tensor import Tensor
from yupana.models import llama, starcoder
from yupana.models.conversion import Described
from yupana.models.formats import GgufFile, expect, place_of
from yupana.models.formats.gguf_cursor import shown
from yupana.models.llama_gguf import check_shape, read_config
from yupana.models.starcoder_gguf import read_starcoder_config

Model: TypeAlias = llama.Llama | starcoder.StarCoder
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
_TOKENS = "tokenizer.ggml.tokens"


def load_model(
    source: str | PathLike[str] | GgufFile, rounds: bool = True
) -> llama.Llama | starcoder.StarCoder:
    """The model in a GGUF file, its weights of the types they have there and where they lie.

    Args:
        source: path, or a file opened with other options than the usual ones.
        rounds: round what meets quantised matrices, as llama.cpp does; see `Decoder`.
    Raises:
        FileFormatError: no GGUF file, an architecture that is not known here, or tensors that do
            not fit the sizes it names.
        OSError: the system cannot read.
    """
    if not isinstance(source, GgufFile):
        with GgufFile(source) as file:
            return load_model(file, rounds)
    architecture, context = read_architecture(source), Context()
    try:
        if architecture == "starcoder":
            sizes = read_starcoder_config(source)
            _check(source, starcoder.weight_shapes(sizes), {})
            return starcoder.StarCoder(sizes, _weights(source, context), context, rounds)
        config = read_config(source)
        _check(source, llama.weight_shapes(config), llama.optional_shapes(config))
        return llama.Llama(config, context, _weights(source, context), rounds)
    except ShapeError as e:
        raise FileFormatError(f"{source.path}: {e}") from None


def read_architecture(file: Described) -> str:
    """Which of the models that there are here is in a file.

    Raises:
        FileFormatError: another one.
    """
    architecture: str = expect(file.metadata, "general.architecture", str)
    known = (*llama.FAMILIES, "starcoder")
    if architecture not in known:
        raise FileFormatError(
            f"{file.path}: architecture: got {architecture!r}, want one of "
            f"{', '.join(map(repr, known))}."
        )
    return architecture


def _weights(file: GgufFile, context: Context) -> dict[str, Tensor]:
    """Every tensor of a file; norms and biases, and what is of f64, as f32 copies if need be."""
    weights = {}
    for name, info in file.tensors.items():
        is_small = len(info.shape) == 1 and info.type in ("F16", "F64")
        if is_small or info.type == "F64":
            weights[name] = context.tensor(file.array(name), f32, name)
        else:
            weights[name] = file.tensor(context, name)
    return weights


def _check(file: GgufFile, needed: Shapes, optional: Shapes) -> None:
    """Hold the tensors of a file against the sizes that its metadata give.

    Raises:
        FileFormatError: one is missing, or of another shape, or there are not as many tokens as
            rows of the embedding.
    """
    for name, shape in needed.items():
        check_shape(file.tensors[name], shape)
    n_vocab = needed["token_embd.weight"][0]
    if _TOKENS in file.metadata and file.metadata.length(_TOKENS) != n_vocab:
        raise FileFormatError(
            f"{place_of(file.metadata, _TOKENS)}: got {file.metadata.length(_TOKENS)} tokens, want "
            f"{n_vocab}, one for each row of token_embd.weight."
        )
    unused = []
    for name, info in file.tensors.items():
        if name in optional:
            check_shape(info, optional[name])
        elif name not in needed:
            unused.append(shown(name))
    if unused and "training.type" not in file.metadata:  # of checkpoints the optimiser has some
        more = f" and {len(unused) - 4} more" if len(unused) > 4 else ""
        warnings.warn(
            f"{file.path}: tensors are left out that the model has no place for: got "
            f"{', '.join(unused[:4])}{more}. Other programs may compute something else with them.",
            stacklevel=4,
        )
