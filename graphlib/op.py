"""The op record: everything the library knows of one operation, in one place.

An op is declared by decorating its rule, the public function that checks arguments and says
what comes out. Tests, documentation, pictures, in-place rules and gradients read the registry;
nothing else names an op. A record without a reference or samples is refused, so that an
unproved op cannot exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, ParamSpec, Protocol

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.arguments import misfits
from yupana.graphlib.context import creation_site
from yupana.graphlib.dtypes import Dtype
from yupana.graphlib.errors import DtypeError, YupanaError
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.tensor import Tensor

P = ParamSpec("P")

Array = NDArray[Any]
Vjp = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Result:
    """What a rule decides: the shape and dtype that come out, from which sources.

    A view says where it lies: `strides` in bytes and `offset` bytes into the memory of its
    first source. An op that writes into a source (`Op.mutates`) is a view of that source too.
    """

    srcs: tuple[Tensor, ...]
    shape: tuple[int, ...]
    dtype: Dtype
    params: Mapping[str, Any] = field(default_factory=dict)
    strides: tuple[int, ...] | None = None
    offset: int = 0
    view_of: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Operand:
    """A source or result as kernels see it: address, shape, byte strides, dtype."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


Matmul = Literal["f32", "bf16"]


class Site(Protocol):
    """Where a node runs: its operands with addresses, and workspace for the asking.

    `dsts` has further results where several nodes run as one (fusion.py); `dst` is the first.
    `matmul` is what matrix products may round their operands to.
    """

    dsts: tuple[Operand, ...]
    srcs: tuple[Operand, ...]
    params: Mapping[str, Any]
    matmul: Matmul

    @property
    def dst(self) -> Operand: ...

    def workspace(self, nbytes: int) -> int:
        """Address of `nbytes` bytes shared by the node's steps, gone after the node."""
        ...


Lower = Callable[[Site], list[Step]]


@dataclass(frozen=True, slots=True)
class Cost:
    """Work of one node: floating-point operations, and bytes moved at least."""

    flops: float
    nbytes: float

    @classmethod
    def of(cls, node: Tensor, flops: float) -> Cost:
        """Work of a node that touches all of its sources and its result."""
        return cls(flops, float(node.nbytes + sum(src.nbytes for src in node.srcs)))


class Draw(Protocol):
    """Draws arguments for an op's samples; see `yupana.graphlib.check`."""

    def integer(self, low: int, high: int) -> int: ...

    def choice(self, options: Any) -> Any: ...

    def shape(self, min_axes: int = 1, max_axes: int = 4, max_side: int = 7) -> tuple[int, ...]: ...

    def broadcastable(self, shape: tuple[int, ...]) -> tuple[int, ...]: ...

    def floats(
        self,
        shape: tuple[int, ...],
        low: float = -3.0,
        high: float = 3.0,
        dtypes: tuple[str, ...] = ("f32", "f32", "f16", "bf16"),
        layouts: tuple[str, ...] = ("contiguous", "transposed", "sliced", "offset"),
    ) -> Tensor: ...

    def integers(self, shape: tuple[int, ...], low: int, high: int) -> Tensor: ...

    def quantized(self, shape: tuple[int, ...], name: str | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments of one call of an op."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def call(*args: Any, **kwargs: Any) -> Call:
    """The arguments as samples return them."""
    return Call(args, kwargs)


@dataclass(frozen=True, slots=True)
class ErrorSample:
    """A call that must fail, with the exception and words its message must hold."""

    run: Callable[[], object]
    raises: type[YupanaError]
    words: str


@dataclass(frozen=True)
class Op(Generic[P]):
    """One operation. Calling it records a tensor; see the fields for what is known of it."""

    name: str
    rule: Callable[P, Result]
    # NumPy in float64, from the formula: (*sources, **params) -> array, or one array per
    # mutated source. Views are handled by the executor and need none.
    reference: Callable[..., Any]
    # Draws the arguments of one call.
    samples: Callable[[Draw], Call]
    # Builds the program steps; None for a pure view, which costs nothing.
    lower: Lower | None = None
    # One rule per source (None: not differentiable, as an index is). `None` as a whole: the op
    # has no gradient, and backward says so.
    vjp: tuple[Vjp | None, ...] | None = None
    # Whether gradients end here: what the result was made from counts as constant.
    stops_gradient: bool = False
    error_samples: Callable[[], list[ErrorSample]] = list
    # Sources whose memory the result may take over.
    inplace: tuple[int, ...] = ()
    # Sources this op writes to; the first is what it returns a view of.
    mutates: tuple[int, ...] = ()
    # Source -> FLOPs per element of the result, or a function of the node.
    cost: float | Callable[[Tensor], Cost] = 1.0
    family: str = "other"
    # How much more than usual rounding may change, or a function of the node that says so.
    tolerance: float | Callable[[Tensor], float] = 1.0
    # Whether differences can check the gradient: not where it is meant to be no derivative.
    grad_check: bool = True

    @property
    def is_view(self) -> bool:
        """Whether it only looks at its source's memory."""
        return self.lower is None

    @property
    def doc(self) -> str:
        """Its documentation: the rule's docstring."""
        return self.rule.__doc__ or ""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        try:
            return self._recorded(self.rule(*args, **kwargs))
        except (AttributeError, TypeError, ValueError) as error:
            known = str(error).startswith(f"{self.name}: ")  # what the rule itself has to say
            for what in () if known else misfits(self.rule, args, kwargs):
                raise DtypeError(f"{self.name}: {what}") from error
            raise

    def _recorded(self, result: Result) -> Tensor:
        if not isinstance(result, Result):
            raise YupanaError(f"{self.name}: its rule gave {type(result).__name__}, want a Result")
        first = result.srcs[0]
        view_src, offset = None, 0
        viewed = result.view_of
        if viewed is None and self.is_view:
            viewed = first
        if viewed is not None:
            view_src = viewed.root
            offset = viewed.view_offset + result.offset
        return Tensor(
            first.context,
            result.shape,
            result.dtype,
            strides=result.strides,
            op=self,
            params=dict(result.params),
            srcs=result.srcs,
            view_src=view_src,
            view_offset=offset,
            site=creation_site(),
        )

    def tolerance_of(self, node: Tensor) -> float:
        """How much more than usual rounding may change in a node of this op."""
        return self.tolerance(node) if callable(self.tolerance) else self.tolerance

    def cost_of(self, node: Tensor) -> Cost:
        """FLOPs and bytes of a node of this op."""
        if callable(self.cost):
            return self.cost(node)
        if self.is_view:
            return Cost(0.0, 0.0)
        return Cost.of(node, self.cost * node.size)


REGISTRY: dict[str, Op[Any]] = {}


def op(**fields: Any) -> Callable[[Callable[P, Result]], Op[P]]:
    """Declare an op: decorate its rule with the rest of its record (see `Op`).

    Raises:
        YupanaError: the record has no reference or samples, its gradient is no tuple of rules,
            or the name is taken by an op of another file.
    """

    def register(rule: Callable[P, Result]) -> Op[P]:
        name = fields.pop("name", rule.__name__)
        rules = fields.get("vjp")
        if not (rules is None or isinstance(rules, tuple)):
            raise YupanaError(
                f"{name}: got {type(rules).__name__} as vjp, want a tuple with a rule for each "
                "source, None for those without gradient"
            )
        for required in ("reference", "samples"):
            if fields.get(required) is None:
                raise YupanaError(f"{name}: op without {required}; an op must be provable")
        if not rule.__doc__:
            raise YupanaError(f"{name}: op without a docstring")
        if name in REGISTRY and not _is_declared_again(REGISTRY[name], rule):
            raise YupanaError(f"{name}: an op of this name exists; choose another name")
        record: Op[P] = Op(name=name, rule=rule, **fields)
        object.__setattr__(record, "__doc__", rule.__doc__)
        object.__setattr__(record, "__name__", name)
        object.__setattr__(record, "__module__", rule.__module__)
        object.__setattr__(record, "__wrapped__", rule)
        REGISTRY[name] = record
        return record

    return register


def _is_declared_again(known: Op[Any], rule: Callable[..., Result]) -> bool:
    """Whether a user's op comes from where one of its name came from: a notebook's cell."""
    module = rule.__module__
    return known.rule.__module__ == module and module.partition(".")[0] != "yupana"


def as_float64(values: Array) -> Array:
    """Float arrays as float64, integers as they are: what references compute with."""
    return values if values.dtype.kind in "iub" else values.astype(np.float64)
