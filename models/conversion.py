"""What a conversion makes of a file, before it is written as GGUF; and what GGUF tells alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from yupana.models.formats.stored import Array, StoredTensor


class HasShape(Protocol):
    """A tensor of a file, as far as its description goes."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> str: ...


class Described(Protocol):
    """A model file, or what would be one: entries and tensors under GGUF's names."""

    @property
    def path(self) -> Any: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, HasShape]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Conversion:
    """A model or adapter in GGUF's names.

    Attributes:
        metadata: GGUF key to value, without the file type.
        tensors: GGUF name to tensor; their data are made when they are written.
        notes: what the user should know, a sentence each.
    """

    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]
    notes: list[str] = field(default_factory=list)


def renamed(
    tensors: Mapping[str, StoredTensor], names: Mapping[str, str]
) -> dict[str, StoredTensor]:
    """The tensors under new names, in the order of `names` (old to new)."""
    return {new: replace(tensors[old], name=new) for old, new in names.items()}


def changed(
    tensor: StoredTensor, change: Callable[[Array], Array], shape: tuple[int, ...] | None = None
) -> StoredTensor:
    """The tensor with `change` applied to its data when they are read; `shape` where it differs."""
    load = tensor.load
    return replace(tensor, shape=shape or tensor.shape, load=lambda: change(load()))
