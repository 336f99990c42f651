"""Tensor: a leaf that holds data, or a recorded operation that does not run until compiled."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from yupana.graphlib.dtypes import Dtype, from_storage, to_storage
from yupana.graphlib.errors import ContextError, ShapeError
from yupana.graphlib.kernels.blocks import contiguous_strides
from yupana.graphlib.kernels.quant_rows import quantize_rows
from yupana.graphlib.methods import Methods

if TYPE_CHECKING:
    from yupana.graphlib.context import Context
    from yupana.graphlib.op import Op

MAX_AXES = 4
_sequence = itertools.count()


class Tensor(Methods):
    """Shape, dtype and byte strides of an array, and how it comes to be.

    A leaf (`op` is None) owns data in its context. Every other tensor is a record of one
    operation on `srcs`; a view (`view_src` is set) lies `view_offset` bytes into its root's
    memory. Shapes are in NumPy order, last axis fastest; `ne` and `nb` give ggml's order.

    >>> import yupana as yp
    >>> x = yp.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> (x @ x.T).sum_rows().numpy()
    array([[16.],
           [36.]], dtype=float32)
    """

    __slots__ = (
        "__weakref__",
        "_storage",
        "context",
        "dtype",
        "is_input",
        "is_output",
        "is_param",
        "name",
        "op",
        "params",
        "role",
        "sequence",
        "shape",
        "site",
        "srcs",
        "strides",
        "view_offset",
        "view_src",
    )

    def __init__(
        self,
        context: Context,
        shape: tuple[int, ...],
        dtype: Dtype,
        *,
        strides: tuple[int, ...] | None = None,
        op: Op[Any] | None = None,
        params: dict[str, Any] | None = None,
        srcs: tuple[Tensor, ...] = (),
        view_src: Tensor | None = None,
        view_offset: int = 0,
        name: str = "",
        site: str = "",
    ) -> None:
        self.context = context
        self.shape = shape
        self.dtype = dtype
        self.strides = _strides(shape, dtype) if strides is None else strides
        self.op = op
        self.params = params or {}
        self.srcs = srcs
        self.view_src = view_src
        self.view_offset = view_offset
        self.name = name
        self.site = site
        self.is_param = self.is_input = self.is_output = False
        # What the passes recorded: "backward", "gradient" (of a parameter) or "recomputed".
        self.role = ""
        self.sequence = next_sequence()
        self._storage: NDArray[np.generic] | None = None

    @property
    def ndim(self) -> int:
        """Number of axes, 0 to 4."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements stored without gaps."""
        return self.dtype.row_bytes(self.size)

    @property
    def ne(self) -> tuple[int, int, int, int]:
        """ggml's `ne`: sizes, fastest axis first, padded with 1."""
        padded = (1,) * (MAX_AXES - self.ndim) + self.shape
        return padded[3], padded[2], padded[1], padded[0]

    @property
    def nb(self) -> tuple[int, int, int, int]:
        """ggml's `nb`: byte strides, fastest axis first."""
        sizes, size = self.ne, self.dtype.itemsize
        nb = [*reversed(self.strides)]
        while len(nb) < MAX_AXES:
            n = sizes[len(nb) - 1] if nb else 1
            nb.append(nb[-1] * (n // self.dtype.block if len(nb) == 1 else n) if nb else size)
        return nb[0], nb[1], nb[2], nb[3]

    @property
    def root(self) -> Tensor:
        """The tensor whose memory this one uses: itself, unless it is a view."""
        return self if self.view_src is None else self.view_src

    @property
    def is_leaf(self) -> bool:
        """Whether it holds data rather than a recorded operation."""
        return self.op is None

    @property
    def is_contiguous(self) -> bool:
        """Whether elements follow each other without gaps in NumPy order."""
        expected = _strides(self.shape, self.dtype)
        near = zip(self.shape, self.strides, expected, strict=True)
        return self.size == 0 or all(n == 1 or stride == want for n, stride, want in near)

    @property
    def label(self) -> str:
        """Its name, or what it is and its shape, for messages."""
        kind = self.op.name if self.op else "leaf"
        return f"{self.name or kind} {self.shape}"

    def named(self, name: str) -> Tensor:
        """Give it a name (for lookup, errors and pictures); returns itself."""
        self.context.rename(self, name)
        return self

    def output(self) -> Tensor:
        """Mark it as a result that stays readable after a run; returns itself."""
        self.is_output = True
        return self

    @property
    def data(self) -> NDArray[np.generic]:
        """The memory of a leaf as a NumPy array, to write to unless it lies in a mapped file.

        bf16 shows as uint16 bits, quantised types as the bytes of their rows.

        Raises:
            ContextError: it is not a leaf, or its context allocates nothing.
        """
        root = self.root
        if root._storage is None:
            if not root.is_leaf:
                raise ContextError(
                    f"{self.label}: has no memory of its own: got a recorded operation, want a "
                    "leaf or a computed output. Use numpy(), or compile a graph that has it as "
                    "output."
                )
            root.context.allocate(root)
        assert root._storage is not None
        if self.view_src is None:
            return root._storage
        return self.seen_in(root._storage)

    def seen_in(self, memory: NDArray[np.generic]) -> NDArray[np.generic]:
        """What this tensor sees in the memory of its root, as `data` shows it."""
        return np.ndarray(
            self.dtype.stored_shape(self.shape),
            self.dtype.storage,
            memory,
            self.view_offset,
            self.dtype.stored_strides(self.strides),
        )

    @property
    def has_value(self) -> bool:
        """Whether `data` can be read now: a leaf with memory, or an output of a program."""
        return self.root._storage is not None

    def place(self, storage: NDArray[np.generic] | None) -> None:
        """Bind memory to it (the context does for leaves, a program for its outputs)."""
        self._storage = storage

    @property
    def address(self) -> int:
        """Address of its first element; allocates a leaf that has no memory yet."""
        _ = self.root.data
        root = self.root._storage
        assert root is not None
        return int(root.ctypes.data) + self.view_offset

    def set(self, values: ArrayLike) -> Tensor:
        """Write `values` (broadcast to its shape, rounded to its dtype); returns itself.

        For the bytes of a quantised tensor as they are in a file write to `data`.

        Raises:
            ShapeError: values of another shape. ContextError: memory that is read-only.
        """
        self.check_writable("set")
        array = as_array("set", values)
        try:
            whole = np.broadcast_to(array, self.shape)
        except ValueError:
            raise ShapeError(
                f"set: values do not fit {self.label}: got {array.shape}, want {self.shape}"
            ) from None
        if self.dtype.is_quantized:
            self.data[...] = quantize_rows(np.ascontiguousarray(whole, np.float32), self.dtype.name)
        else:
            self.data[...] = to_storage(array, self.dtype)
        return self

    def check_writable(self, what: str) -> None:
        """Raise if its memory is read-only, as that of a mapped file; kernels would crash there.

        Raises:
            ContextError: `what` would write to it.
        """
        if not self.data.flags.writeable:
            raise ContextError(
                f"{what}: cannot write into {self.label}: got memory that is read-only, such as a "
                "mapped file, want memory of its own. Write into a copy: leaf(…).set(t.numpy())."
            )

    def numpy(self) -> NDArray[np.generic]:
        """A copy of its value; a tensor without one is computed now, on its own.

        bf16 and quantised types come back as float32. What lies in a leaf's memory (its views,
        `cpy` and optimiser steps into it) shows that memory as it is: to have the step done,
        compile and run a `Graph`, as for anything that runs more than once.
        """
        if not self.has_value and not self.root.is_leaf:
            from yupana.graphlib.program import evaluate

            return evaluate(self)
        return from_storage(self.data, self.dtype).copy()

    def item(self) -> float:
        """The value of a tensor of one element."""
        if self.size != 1:
            raise ShapeError(f"item: want one element, got {self.label}")
        return float(self.numpy().reshape(()))

    def __repr__(self) -> str:
        kind = self.op.name if self.op else ("param" if self.is_param else "leaf")
        name = f" {self.name!r}" if self.name else ""
        return f"<Tensor{name} {kind} {self.dtype.name}{list(self.shape)}>"

    def _repr_html_(self) -> str:
        from yupana.graphlib.draw import tensor_html

        return tensor_html(self)

    def __bool__(self) -> bool:
        raise ShapeError(
            f"{self.label}: a tensor has no truth value, as it is recorded and not computed. "
            "Use item() for its value, or `is None` to ask whether there is one."
        )

    def __float__(self) -> float:
        return self.item()

    def __int__(self) -> int:
        return int(self.item())

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> NDArray[np.generic]:
        """What `numpy()` gives, for NumPy's functions that take arrays."""
        if copy is False:
            raise ShapeError("array: a tensor's value is always a copy: got copy=False, want True.")
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def __iter__(self) -> Iterator[Tensor]:
        """Views of its parts along the first axis."""
        return (self[k] for k in range(len(self)))

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("len: a tensor without axes has no length")
        return self.shape[0]

    __array_ufunc__ = None  # so that `ndarray + tensor` asks the tensor


def as_array(what: str, values: ArrayLike) -> NDArray[np.generic]:
    """Values as an array.

    Raises:
        ShapeError: rows of several lengths, or nothing that makes an array.
    """
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise ShapeError(f"{what}: the values make no array: {error}") from None


def next_sequence() -> int:
    """A number above those of all tensors recorded so far: the order of recording."""
    return next(_sequence)


def _strides(shape: tuple[int, ...], dtype: Dtype) -> tuple[int, ...]:
    """Byte strides without gaps; along the last axis of a quantised type from block to block."""
    if not dtype.is_quantized:
        return contiguous_strides(shape, dtype.itemsize)
    row = dtype.row_bytes(shape[-1])
    return (*contiguous_strides(shape[:-1], row), dtype.itemsize)
