"""A model with adapters worked into its weights: what `yupana export-lora` writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.errors import SettingError
from yupana.models.formats import GgufFile, expect
from yupana.models.lora import Adapter
from yupana.models.quantize import TensorReport, quantize_model
from yupana.models.targets import refuse_source

Rows = NDArray[np.float32]
Sums = NDArray[np.float32] | NDArray[np.float64]


def merge_adapters(
    source: str | PathLike[str],
    adapters: Sequence[tuple[Adapter, float]],
    target: str | PathLike[str],
    type_name: str | None = None,
    whole: Mapping[str, Rows] | None = None,
    entries: Mapping[str, Any] | None = None,
    progress: Callable[[TensorReport], None] | None = None,
) -> list[TensorReport]:
    """Write W + scale · alpha / R · B A for each weight of a model, whole or not at all.

    The sum is formed in float64, some rows at a time, and rounded to the type written.

    Args:
        source: GGUF file of the model, of any type.
        adapters: with the scale of each; they are added in this order.
        target: GGUF file to write or replace; not `source`.
        type_name: as `quantize_model` has them; None: each tensor keeps its type.
        whole: weights by name that take the place of the model's, before adapters are added.
        entries: see `quantize_model`.
        progress: called when a tensor is written.

    Returns:
        A report per tensor: the written values against the exact sum.

    Raises:
        SettingError: an adapter that does not fit the model, or target and source are one file.
        FileFormatError, OSError: as `quantize_model`.
    """
    with GgufFile(source) as file:
        refuse_source("merge", file.parts, target)
        architecture = expect(file.metadata, "general.architecture", str)
        shapes = {name: info.shape for name, info in file.tensors.items()}
    whole = whole or {}
    changes = {name: partial(_merged, name, adapters, whole) for name in whole}
    for adapter, _ in adapters:
        if adapter.architecture != architecture:
            raise SettingError(
                f"merge: adapter {adapter.name!r}: got one for {adapter.architecture!r}, want one "
                f"for {architecture!r}."
            )
        adapter.check_shapes(shapes)
        for weight in adapter.pairs:
            changes[weight] = partial(_merged, weight, adapters, whole)
    return quantize_model(
        source,
        target,
        type_name,
        allow_requantize=True,
        changes=changes,
        entries=entries,
        progress=progress,
    )


def _merged(
    weight: str,
    adapters: Sequence[tuple[Adapter, float]],
    whole: Mapping[str, Rows],
    rows: Rows,
    first: int,
) -> Sums:
    sums: Sums = rows
    if weight in whole:
        sums = whole[weight].reshape(-1, rows.shape[1])[first : first + len(rows)]
    for adapter, scale in adapters:
        if weight in adapter.pairs:
            sums = adapter.merged(weight, sums, scale, first)
    return sums
