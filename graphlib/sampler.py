"""Draws arguments for the ops' samples out of whole numbers, and writes calls out as source.

A sampler asks for nothing but whole numbers: from a random generator in `check_op`, from
hypothesis in the tests. It notes them, so that the same call can be drawn again from the note
with other dtypes, or smaller.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from yupana.graphlib.context import Context
from yupana.graphlib.dtypes import QUANTIZED, from_storage, to_storage
from yupana.graphlib.errors import SettingError
from yupana.graphlib.op import Array, Call, Op
from yupana.graphlib.ops import slices, views
from yupana.graphlib.tensor import Tensor

MAX_AXES = 4
# Now and then one axis is longer than the blocks in which kernels work (256, 512, 8192).
_LONG_SIDES = (64, 257, 513, 1030, 8200)
_LAYOUTS = ("contiguous", "transposed", "sliced", "offset")
_UNSEEN = -(10**9)  # an index around a view of indices: nobody may follow it


class Sampler:
    """Draws what an op's samples ask for (the `Draw` protocol).

    Args:
        integers: returns a whole number within the two bounds given, both included.
        dtype: the dtype of all float tensors, whatever is asked for; None leaves it to the draw.
        through: makes each float tensor from a leaf of the same elements (`cont`, so that ops
            find memory they may take over); None uses the leaf.
        smooth: ordinary values only, none at the ends of the range or at zero, where a
            derivative may not exist.
        specials: infinities and NaN in tensors whose range nobody restricted.
    """

    def __init__(
        self,
        integers: Callable[[int, int], int],
        *,
        dtype: str | None = None,
        through: Callable[[Tensor], Tensor] | None = None,
        smooth: bool = False,
        specials: bool = False,
    ) -> None:
        self._integers = integers
        self._dtype = dtype
        self._through = through
        self._smooth = smooth
        self._specials = specials
        self._context = Context()
        self.trace: list[int] = []  # every number drawn
        self.leaves: list[Tensor] = []  # every leaf made

    def integer(self, low: int, high: int) -> int:
        """A whole number, `low` <= n <= `high`."""
        drawn = self._integers(low, high)
        self.trace.append(drawn)
        return drawn

    def choice(self, options: Any) -> Any:
        """One of the options; the first is the simplest."""
        options = list(options)
        return options[self.integer(0, len(options) - 1)]

    def shape(self, min_axes: int = 1, max_axes: int = 4, max_side: int = 7) -> tuple[int, ...]:
        """Sizes up to `max_side`: often 1, sometimes 0, and rarely one that is far longer."""
        axes = self.integer(min_axes, max_axes)
        sides = [1, *range(1, max_side + 1), *range(2, max_side + 1), 0]
        shape = [self.choice(sides) for _ in range(axes)]
        if axes and max_side >= 7 and self.integer(0, 15) == 15:
            at, shape = self.integer(0, axes - 1), [min(n, 2) for n in shape]
            shape[at] = self.choice(_LONG_SIDES)
        return tuple(shape)

    def broadcastable(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts to `shape`: leading axes left out, others of size 1."""
        first = self.integer(0, len(shape))
        return tuple(1 if self.integer(0, 2) == 2 else n for n in shape[first:])

    def floats(
        self,
        shape: tuple[int, ...],
        low: float = -3.0,
        high: float = 3.0,
        dtypes: tuple[str, ...] = ("f32", "f32", "f16", "bf16"),
        layouts: tuple[str, ...] = _LAYOUTS,
    ) -> Tensor:
        """A tensor of values in [low, high], rounded to its dtype, lying in memory as drawn."""
        dtype = self.choice(dtypes)
        free = self._specials and (low, high) == (-3.0, 3.0)
        return self._laid_out(
            shape,
            self._dtype or dtype,
            self.choice(layouts),
            lambda size, rng, extreme: self._values(size, rng, extreme, low, high, free),
            np.nan,
        )

    def integers(self, shape: tuple[int, ...], low: int, high: int) -> Tensor:
        """An i32 tensor of values in [low, high]."""
        return self._laid_out(
            shape,
            "i32",
            self.choice(("contiguous", "sliced")),
            lambda size, rng, extreme: rng.integers(low, high, size, endpoint=True),
            _UNSEEN,
        )

    def quantized(self, shape: tuple[int, ...], name: str | None = None) -> Tensor:
        """A tensor of a quantised type (any that divides its rows), or a part of one."""
        names = [n for n, t in QUANTIZED.items() if shape[-1] % t.block == 0]
        name = name or self.choice(names)
        rng = np.random.default_rng(self.integer(0, 2**16))
        before = self.integer(0, 2) if len(shape) > 1 else 0
        array = np.full((shape[0] + 2 * before, *shape[1:]), 1e30)  # around what is seen
        array[before : before + shape[0]] = rng.uniform(-3.0, 3.0, shape)
        leaf = self._context.tensor(array, name)
        self.leaves.append(leaf)
        if not before:
            return leaf
        whole = tuple((0, n, 1) for n in shape[1:])
        part: Tensor = _sliced(leaf, ((before, before + shape[0], 1), *whole))
        return part

    def _values(
        self, size: int, rng: Any, extreme: bool, low: float, high: float, free: bool
    ) -> Array:
        values: Array = rng.uniform(low, high, size)
        if self._smooth:
            return values
        if extreme:
            pool = [low, high, *(x for x in (0.0, -0.0, 1e-30, -1e-4, 1.0) if low <= x <= high)]
            values = np.where(rng.random(size) < 0.4, rng.choice(pool, size), values)
        if free:
            odd = rng.choice([np.inf, -np.inf, np.nan], size)
            values = np.where(rng.random(size) < 0.2, odd, values)
        return values

    def _laid_out(
        self,
        shape: tuple[int, ...],
        dtype: str,
        layout: str,
        values: Callable[[int, Any, bool], Array],
        unseen: float,
    ) -> Tensor:
        """A leaf, or a view of a leaf whose other elements are `unseen`."""
        rng = np.random.default_rng(self.integer(0, 2**16))
        extreme = self.integer(0, 3) == 3
        full, look = self._layout(shape, layout)
        array = np.full(full, unseen, np.float64)
        seen = look(np.arange(math.prod(full)).reshape(full))
        array.reshape(-1)[seen.reshape(-1)] = values(seen.size, rng, extreme)
        leaf = self._context.tensor(array, dtype)
        self.leaves.append(leaf)
        base = self._through(leaf) if self._through and leaf.dtype.is_float else leaf
        return base if look is _whole else look(base)

    def _layout(self, shape: tuple[int, ...], layout: str) -> tuple[tuple[int, ...], Any]:
        """The shape of a leaf, and what to do to it (or to an array) to get one of `shape`."""
        if layout == "transposed" and len(shape) >= 2:
            return self._transposed(shape)
        if layout in ("sliced", "offset") and not shape:
            before = self.integer(1, 3)
            return (before + 2,), lambda x: _element(x, before)
        if layout == "sliced":
            parts, full = [], []
            for n in shape:
                start, step = self.integer(0, 2), self.choice((1, 2, 3))
                stop = start + (n - 1) * step + 1 if n else start
                parts.append((start, stop, step))
                full.append(stop + self.integer(0, 2))
            return tuple(full), lambda x: _sliced(x, tuple(parts))
        if layout == "offset":
            before = self.integer(1, 3)
            whole = tuple((0, n, 1) for n in shape[1:])
            parts = [(before, before + shape[0], 1), *whole]
            return (before + shape[0], *shape[1:]), lambda x: _sliced(x, tuple(parts))
        return shape, _whole

    def _transposed(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Any]:
        axes = list(range(len(shape)))
        first = self.integer(0, len(shape) - 2)
        second = self.integer(first + 1, len(shape) - 1)
        axes[first], axes[second] = axes[second], axes[first]
        return tuple(shape[a] for a in axes), lambda x: _permuted(x, tuple(axes))


def _whole(x: Any) -> Any:
    return x


def _element(x: Any, at: int) -> Any:
    return views.view(x, (), (), at * x.dtype.itemsize) if isinstance(x, Tensor) else x[at]


def _permuted(x: Any, axes: tuple[int, ...]) -> Any:
    return views.permute(x, axes) if isinstance(x, Tensor) else x.transpose(axes)


def _sliced(x: Any, parts: tuple[tuple[int, int, int], ...]) -> Any:
    if isinstance(x, Tensor):
        return slices.slice(x, parts)
    return x[tuple(slice(*part) for part in parts)]


def random_numbers(rng: np.random.Generator) -> Callable[[int, int], int]:
    """Whole numbers for a sampler from a random generator."""
    return lambda low, high: int(rng.integers(low, high, endpoint=True))


def noted_numbers(trace: Sequence[int]) -> Callable[[int, int], int]:
    """Whole numbers as noted, moved into the bounds; the lowest when there are no more."""
    rest = iter(trace)
    return lambda low, high: min(max(next(rest, low), low), high)


def redraw(op: Op[Any], trace: Sequence[int], **options: Any) -> tuple[Call, Sampler]:
    """The call of `op` that a trace stands for, with the options of `Sampler`."""
    sampler = Sampler(noted_numbers(trace), **options)
    return draw_call(op, sampler), sampler


def draw_call(op: Op[Any], sampler: Sampler) -> Call:
    """A call from the op's samples.

    Raises:
        SettingError: they return something else.
    """
    drawn: object = op.samples(sampler)
    if not isinstance(drawn, Call):
        raise SettingError(
            f"{op.name}: its samples gave {type(drawn).__name__}, want a Call: call(x, …)"
        )
    return drawn


def source_of(op: Op[Any], call: Call) -> str:
    """The call as Python source, to be pasted behind `import numpy as np, yupana as yp`.

    An op of a user's needs the import of its module, too.
    """
    parts = [text_of(value) for value in call.args]
    parts += [f"{name}={text_of(value)}" for name, value in call.kwargs.items()]
    return f"{place_of(op)}({', '.join(parts)})"


def place_of(op: Op[Any]) -> str:
    """Where an op is found, as source: `yp.ops.add`, `my_ops.my_add`."""
    module = op.rule.__module__
    if module.startswith(f"{views.__package__}."):
        return f"yp.ops.{op.name}"
    known = vars(sys.modules[module]) if module in sys.modules else {}
    name = next((name for name, value in known.items() if value is op), op.name)
    return name if module == "__main__" else f"{module}.{name}"


def text_of(value: Any) -> str:
    """An argument of a call as source."""
    if not isinstance(value, Tensor):
        return f"[{', '.join(map(text_of, value))}]" if isinstance(value, list) else repr(value)
    if value.op is None:
        return f"yp.tensor({_array_text(value)}, {value.dtype.name!r})"
    taken = {"slice": ("parts",), "permute": ("axes",), "view": ("shape", "strides", "offset")}
    params = [repr(value.params[name]) for name in taken.get(value.op.name, ())]
    return f"yp.ops.{value.op.name}({', '.join([*map(text_of, value.srcs), *params])})"


def _array_text(leaf: Tensor) -> str:
    values = from_storage(leaf.data, leaf.dtype)
    if values.size == 0:
        return f"np.zeros({leaf.shape})"
    if leaf.dtype.is_quantized:
        return f"np.array({values.tolist()})"
    text = np.array2string(
        values,
        separator=", ",
        threshold=values.size + 1,
        max_line_width=10**9,
        formatter={"float_kind": lambda x: repr(float(_short(x, leaf)))},
    )
    text = text.replace("\n", "").replace("nan", "np.nan").replace("inf", "np.inf")
    return " ".join(text.split())


def _short(value: Any, leaf: Tensor) -> float:
    """The number with the fewest digits that rounds to `value` in the leaf's dtype."""
    exact = float(value)
    for digits in range(1, 18):
        short = float(f"{exact:.{digits}g}")
        stored = to_storage(np.asarray(short), leaf.dtype)
        if float(from_storage(stored, leaf.dtype)) == exact:
            return short
    return exact
