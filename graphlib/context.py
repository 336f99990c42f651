"""Context: the owner of leaf tensors and of the arena their data live in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from yupana.graphlib.dtypes import Dtype, dtype_of, f32, to_storage
from yupana.graphlib.errors import ContextError, DtypeError, ShapeError
from yupana.graphlib.tensor import MAX_AXES, Tensor, as_array

ALIGNMENT = 64  # bytes: one cache line, and the widest vector register


class Context:
    """Holds tensors; leaves get their bytes here, recorded operations only a header.

    Args:
        mem_size: bytes of the arena for leaf data. None: memory is taken as leaves need it.
        buffer: a writable or read-only byte buffer (an array, a mapped file) to be the arena.
        no_alloc: record only; leaves get no data (to see a graph's cost before it has any).

    >>> ctx = Context(mem_size=1024)
    >>> w = ctx.param((4, 8), name="w")
    >>> ctx.used_mem, ctx["w"] is w
    (128, True)
    """

    def __init__(
        self,
        mem_size: int | None = None,
        buffer: Any = None,
        no_alloc: bool = False,
    ) -> None:
        if mem_size is not None and mem_size < 0:
            raise ContextError(f"Context: mem_size must not be negative: got {mem_size}")
        self.no_alloc = no_alloc
        self.used_mem = 0
        self._arena: NDArray[np.uint8] | None = None
        if buffer is not None:
            self._arena = np.frombuffer(buffer, np.uint8)
            if mem_size is not None:
                if mem_size > self._arena.size:
                    raise ContextError(
                        f"Context: buffer too small: got {self._arena.size} bytes, "
                        f"want mem_size = {mem_size}"
                    )
                self._arena = self._arena[:mem_size]
        elif mem_size is not None and not no_alloc:
            self._arena = aligned_bytes(mem_size)
        self._leaves: list[Tensor] = []
        self._names: dict[str, Tensor] = {}

    @property
    def mem_size(self) -> int | None:
        """Bytes of the arena, or None when memory is taken as needed."""
        return None if self._arena is None else self._arena.size

    def tensor(self, values: ArrayLike, dtype: str | Dtype | None = None, name: str = "") -> Tensor:
        """A leaf with the given values; floats become f32 and ints i32 unless `dtype` says else."""
        array = as_array("tensor", values)
        if dtype is None:
            dtype = _natural_dtype(array)
        leaf = self.leaf(array.shape, dtype, name)
        if not self.no_alloc:
            leaf.set(array)
        return leaf

    def constant(self, value: float, dtype: str | Dtype = f32) -> Tensor:
        """A leaf of one number that takes no bytes of the arena: 2 in `2 * x`, or a gradient's 1.

        >>> ctx = Context(mem_size=0)
        >>> ctx.constant(2.0).item(), ctx.used_mem
        (2.0, 0)
        """
        dtype = dtype_of(dtype)
        return self.wrap(to_storage(np.asarray(value), dtype), dtype)

    def leaf(self, shape: tuple[int, ...], dtype: str | Dtype = f32, name: str = "") -> Tensor:
        """A leaf of zeros."""
        checked, dtype = check_shape("leaf", shape), dtype_of(dtype)
        dtype.check_shape("leaf", checked)
        leaf = self._record(checked, dtype, name)
        if self._arena is not None:
            self.allocate(leaf)  # so that a full arena is told where the leaf is made
        return leaf

    def wrap(
        self, memory: NDArray[np.generic], dtype: str | Dtype | None = None, name: str = ""
    ) -> Tensor:
        """A leaf in memory that exists, such as part of a mapped file; nothing is copied.

        Args:
            memory: contiguous, in the form of `Tensor.data`: of a quantised type its rows as
                bytes, of bf16 uint16. It may be read-only if nothing writes to the leaf.
            dtype: what it holds; None for the type that NumPy sees.
        Raises:
            DtypeError: NumPy sees another type. ShapeError: gaps between elements, or rows that
            are not whole blocks.

        >>> data = np.zeros((4, 36), np.uint8)
        >>> Context().wrap(data, "Q4_0").shape
        (4, 64)
        """
        dtype = dtype_of(memory.dtype if dtype is None else dtype)
        leaf = self._record(_shape_in(memory, dtype), dtype, name)
        leaf.place(memory)
        return leaf

    def _record(self, shape: tuple[int, ...], dtype: Dtype, name: str) -> Tensor:
        leaf = Tensor(self, shape, dtype, site=creation_site())
        self._leaves.append(leaf)
        if name:
            self.rename(leaf, name)
        return leaf

    def param(self, shape: tuple[int, ...], dtype: str | Dtype = f32, name: str = "") -> Tensor:
        """A leaf that `Graph.backward` differentiates with respect to."""
        leaf = self.leaf(shape, dtype, name)
        if not leaf.dtype.is_float:
            raise DtypeError(f"param: {name or shape} must be a float type: got {leaf.dtype}")
        leaf.is_param = True
        return leaf

    def input(self, shape: tuple[int, ...], dtype: str | Dtype = f32, name: str = "") -> Tensor:
        """A leaf the caller fills before each run."""
        leaf = self.leaf(shape, dtype, name)
        leaf.is_input = True
        return leaf

    def allocate(self, leaf: Tensor) -> None:
        """Give a leaf its bytes; called when they are first needed.

        Raises:
            ContextError: the arena is full, or the context allocates nothing.
        """
        if self.no_alloc:
            raise ContextError(
                f"{leaf.label}: has no data: its context was made with no_alloc=True. "
                "Make the context without it to run anything."
            )
        size = aligned(leaf.nbytes)
        if self._arena is None:
            raw = aligned_bytes(size)
        else:
            left = self._arena.size - self.used_mem
            if size > left:
                raise ContextError(
                    f"Context: arena full at {leaf.label}: needs {size} bytes, {left} of "
                    f"{self._arena.size} are left. "
                    f"Pass mem_size of at least {self.used_mem + size}."
                )
            raw = self._arena[self.used_mem : self.used_mem + size]
            if raw.flags.writeable:
                raw[:] = 0
        self.used_mem += size
        shape = leaf.dtype.stored_shape(leaf.shape)
        leaf.place(raw[: leaf.nbytes].view(leaf.dtype.storage).reshape(shape))

    def rename(self, tensor: Tensor, name: str) -> None:
        """Name a tensor; names are unique within a context."""
        if self._names.get(name, tensor) is not tensor:
            raise ContextError(
                f"Context: name {name!r} is taken by {self._names[name].label}; choose another"
            )
        self._names.pop(tensor.name, None)
        tensor.name = name
        if name:
            self._names[name] = tensor

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise ContextError(f"Context: no tensor named {name!r}: got names {[*self._names]}")
        return self._names[name]

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[Tensor]:
        """Its leaves, in the order they were made."""
        return iter(self._leaves)

    @property
    def params(self) -> list[Tensor]:
        """Leaves made by `param`, in the order they were made."""
        return [leaf for leaf in self._leaves if leaf.is_param]


def tensor(values: ArrayLike, dtype: str | Dtype | None = None, name: str = "") -> Tensor:
    """A leaf with the given values in a context of its own.

    >>> tensor([1, 2, 3]).dtype
    i32
    """
    return Context().tensor(values, dtype, name)


def check_shape(what: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` as a tuple of at most four sizes, none negative."""
    sizes = shape if isinstance(shape, tuple | list) else (shape,)
    if not all(isinstance(n, int | np.integer) for n in sizes):
        raise ShapeError(f"{what}: got shape {shape!r}, want whole numbers.")
    checked = tuple(map(int, sizes))
    if len(checked) > MAX_AXES or any(n < 0 for n in checked):
        raise ShapeError(
            f"{what}: got shape {checked}, want at most {MAX_AXES} axes, none negative"
        )
    return checked


def _shape_in(memory: NDArray[np.generic], dtype: Dtype) -> tuple[int, ...]:
    """Shape of the tensor that lies in `memory`."""
    stored = dtype.storage
    if memory.dtype != stored:
        raise DtypeError(f"wrap: got memory of {memory.dtype}, want {stored} for {dtype}")
    if not memory.flags.c_contiguous or memory.ctypes.data % stored.itemsize:
        raise ShapeError(
            f"wrap: got strides {memory.strides} at address {memory.ctypes.data}, want elements of "
            f"{stored.itemsize} bytes without gaps. Pass a copy."
        )
    shape = check_shape("wrap", memory.shape)
    if not dtype.is_quantized:
        return shape
    if not shape or shape[-1] % dtype.itemsize:
        raise ShapeError(
            f"wrap: rows of {dtype} are whole blocks: got {shape} bytes, want the last axis a "
            f"multiple of {dtype.itemsize}"
        )
    return (*shape[:-1], shape[-1] // dtype.itemsize * dtype.block)


def aligned(nbytes: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def aligned_bytes(size: int) -> NDArray[np.uint8]:
    """Zeroed bytes whose address is a multiple of `ALIGNMENT`."""
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def creation_site() -> str:
    """`file:line` of the nearest caller outside the engine, for errors about a node."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("yupana.graphlib"):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""


def _natural_dtype(array: NDArray[np.generic]) -> Dtype:
    if array.dtype.kind in "iub":
        if array.size and (np.abs(array.astype(np.int64)) > np.iinfo(np.int32).max).any():
            raise DtypeError("tensor: integers beyond 32 bits; pass dtype='f32' or 'f64'")
        return dtype_of("i32")
    if array.dtype == np.float16:
        return dtype_of("f16")
    if array.dtype.kind == "f":
        return f32
    raise DtypeError(f"tensor: got values of type {array.dtype}, want numbers")
