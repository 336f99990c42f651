"""Adapters of llama.cpp's former finetune as GGUF that llama.cpp loads today."""

from dataclasses import replace
from functools import partial

import numpy as np

from yupana.graphlib.errors import FileFormatError
from yupana.models.conversion import Conversion, changed
from yupana.models.formats.ggla import GglaFile
from yupana.models.formats.stored import Array, StoredTensor
from yupana.models.lora import EMBEDDING


def convert_ggla(file: GglaFile) -> Conversion:
    """The adapter in GGUF's names and orientation.

    ggla holds A (inputs, r) and B (outputs, r); GGUF wants A (r, inputs). Of the embedding, whose
    rows are looked up, GGUF's A is ggla's B and the other way round. ggla scales every pair by
    alpha over the rank of the file, llama.cpp today by alpha over the pair's own: B takes up the
    quotient where they differ, as for norms. Where alpha is 0, which would not scale there, B is
    zero: such a file changes nothing.

    Raises:
        FileFormatError: a pair is not whole, or its ranks differ.
    """
    bases = [name.removesuffix(".loraA") for name in file.tensors if name.endswith(".loraA")]
    if 2 * len(bases) != len(file.tensors) or not bases:
        raise FileFormatError(
            f"{file.path}: pairs: got {len(bases)} tensors .loraA of {len(file.tensors)}, want "
            "half of them. The file is damaged or cut short."
        )
    tensors: dict[str, StoredTensor] = {}
    for base in bases:
        if f"{base}.loraB" not in file.tensors:
            raise FileFormatError(
                f"{file.path}: pairs: got {base}.loraA alone, want {base}.loraB as well. The file "
                "is damaged or cut short."
            )
        a, b = file.tensors[f"{base}.loraA"], file.tensors[f"{base}.loraB"]
        rank = a.shape[1]
        if b.shape[1] != rank:
            raise FileFormatError(
                f"{file.path}: ranks of {base}: got A {a.shape} and B {b.shape}, want the same "
                "last axis. The file is damaged."
            )
        factor = rank / file.rank if file.alpha else 0.0
        if factor != 1:
            b = changed(b, partial(_times, factor=factor))
        first, second = (
            (b, a) if base == EMBEDDING else (changed(a, np.transpose, a.shape[::-1]), b)
        )
        tensors[f"{base}.lora_a"] = replace(first, name=f"{base}.lora_a")
        tensors[f"{base}.lora_b"] = replace(second, name=f"{base}.lora_b")
    metadata = {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(file.alpha),
    }
    notes = []
    if any(base.endswith("_norm.weight") for base in bases):
        notes.append("llama.cpp loads the pairs of norms, but does not apply them.")
    if file.alpha == 0:
        notes.append("alpha is 0: the adapter has no effect.")
    return Conversion(metadata, tensors, notes)


def _times(values: Array, factor: float) -> Array:
    scaled: Array = values * values.dtype.type(factor)
    return scaled
