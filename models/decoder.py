"""What all decoder models share: weights in any form, adapters beside them, places for a cache.

A model records graphs; it runs nothing. `linear` and `embed` are the only places where a weight
matrix is applied, so quantised weights and adapters are looked after here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol
from weakref import WeakValueDictionary

from yupana.graphlib.context import Context
from yupana.graphlib.dtypes import Dtype
from yupana.graphlib.errors import SettingError, ShapeError
from yupana.graphlib.ops import cast, get_rows, mul_mat, reshape
from yupana.graphlib.tensor import Tensor
from yupana.models.attend import Attend, attend_before, attend_within
from yupana.models.lora import Adapter, AttachedAdapter, Beside
from yupana.models.loss import vocabulary_loss

_FEW = 16  # rows up to which products want float32, whatever they were rounded to


class Sizes(Protocol):
    """What caches and adapters need to know of a model; all configurations have it."""

    @property
    def architecture(self) -> str: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_layer(self) -> int: ...
    @property
    def n_head(self) -> int: ...
    @property
    def n_head_kv(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def value_width(self) -> int: ...


class Decoder(ABC):
    """A model that reads tokens and scores what follows each.

    Args:
        sizes: of the model, whatever else its configuration says.
        context: owner of new weights, and of what graphs share.
        rounds: round what meets a matrix first, as llama.cpp does: before a quantised one to eight
            bits (to Q8_K before types of 256 elements, else to Q8_1), so that products are of
            integers, which for a few tokens takes half the time; else to the matrix' own type,
            and what meets a cache likewise. Without, products are exact.
    """

    architecture: str  # as in `general.architecture`

    def __init__(self, sizes: Sizes, context: Context | None, rounds: bool) -> None:
        self.sizes = sizes
        self.context = Context() if context is None else context
        self.rounds = rounds
        self._weights: dict[str, Tensor] = {}
        self._attached: dict[str, Beside] = {}
        self._revision = 0
        # The node that rounds a tensor, by its id and to what: it keeps the tensor alive itself.
        self._rounded: WeakValueDictionary[tuple[int, str], Tensor] = WeakValueDictionary()

    def _take(
        self,
        weights: Mapping[str, Tensor],
        needed: Mapping[str, tuple[int, ...]],
        optional: Mapping[str, tuple[int, ...]],
    ) -> None:
        """Use `weights` as they are, after comparing their shapes."""
        for name, shape in {**needed, **optional}.items():
            if name in weights and weights[name].shape == shape and weights[name].dtype.is_real:
                self._weights[name] = weights[name]
            elif name in weights or name in needed:
                got = weights.get(name, "nothing")
                raise ShapeError(f"model: weight {name}: got {got}, want real numbers {shape}.")

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Name to weight, as in a file."""
        return self._weights

    @property
    def n_parameters(self) -> int:
        """Number of elements of all weights."""
        return sum(weight.size for weight in self._weights.values())

    @abstractmethod
    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        attend: Attend | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Record everything before the output matrix.

        Args:
            tokens: (B, T) i32; ids outside the vocabulary give NaN.
            positions: (T,) or (B, T) i32; None: 0, 1, …
            attend: how tokens see others; None: each sees itself and those before it.
            wanted: (n,) i32, rows of the B·T that are asked for; None: all.
        Returns:
            (B, T, D), or (n, D) of those wanted.
        """

    @abstractmethod
    def output(self, hidden: Tensor) -> Tensor:
        """Record the output matrix: (…, D) to (…, V)."""

    @abstractmethod
    def moved(self, keys: Tensor, by: Tensor) -> Tensor:
        """Record keys as they would be at other positions.

        Args:
            keys: (T, G, K) float, as `hidden` gave them to `attend`.
            by: (T,) i32, how far each is moved.
        Raises:
            SettingError: the model learned its positions; its keys cannot be moved.
        """

    @property
    def reach(self) -> int | None:
        """Positions that a token can have; None: any."""
        return None

    def logits(self, tokens: Tensor) -> Tensor:
        """Record the scores of each next token.

        Args:
            tokens: (B, T) i32, T at most n_ctx; ids outside the vocabulary give NaN.
        Returns:
            (B, T, V) f32.
        Raises:
            ShapeError: `tokens` is not (B, T) or T is beyond n_ctx.
        """
        return self.output(self.hidden(tokens))

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        flash: bool = False,
    ) -> Tensor:
        """Record the mean cross entropy of the next tokens, in nats.

        Args:
            tokens, targets: (B, T) i32; a negative target does not count.
            mask: (B, T) float, the weight of each target; None: all 1.
            positions: (B, T) or (T,) i32, where each token stands; None: 0, 1, …
            segments: (B, T) i32, several samples in a row: see `attend_within`.
            flash: attention in one op, without the matrix of all scores.
        Returns:
            () f32.
        """
        attend = attend_before(flash) if segments is None else attend_within(segments, flash)
        hidden = self.hidden(tokens, positions, attend)
        logits = self.output(hidden.reshape(targets.size, -1))
        rows = None if mask is None else mask.reshape(-1)
        return vocabulary_loss(logits, targets.reshape(-1), rows)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Record x · Wᵀ, with bias and adapters where there are some: (…, inputs) to (…, outputs).

        Args:
            name: of the weight without its last part, as "blk.0.attn_q".
        """
        w = self._weights[f"{name}.weight"]
        y = mul_mat(w, self._round(x, w.dtype) if self.rounds else x)
        for adapter in self._attached.values():
            y = adapter.add_product(f"{name}.weight", x, y)
        bias = self._weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def embed(self, tokens: Tensor) -> Tensor:
        """Record the rows of the embedding that `tokens` name: (…) i32 to (…, D)."""
        name = "token_embd.weight"
        x = get_rows(self._weights[name], tokens)
        for adapter in self._attached.values():
            x = adapter.add_rows(name, tokens, x)
        return x

    def gain(self, name: str) -> Tensor:
        """Record the factors of a norm, (D,)."""
        w = self._weights[f"{name}.weight"]
        for adapter in self._attached.values():
            w = adapter.add_delta(f"{name}.weight", w)
        return w

    @property
    def adapters(self) -> Mapping[str, float]:
        """Name to scale of the adapters in use."""
        parts = self._attached.items()
        return {name: part.scale for name, part in parts if isinstance(part, AttachedAdapter)}

    @property
    def revision(self) -> int:
        """A number that changes when graphs recorded before are no longer those of the model."""
        return self._revision

    def attach(self, adapter: Adapter, scale: float = 1.0) -> None:
        """Use an adapter in graphs recorded from now on, beside those attached already.

        Args:
            scale: multiplies what the adapter adds; `set_scale` changes it in graphs that exist.
        Raises:
            SettingError: an adapter of that name is attached, or it is for another model.
        """
        if adapter.name in self._attached:
            raise SettingError(
                f"attach: adapter {adapter.name!r} is attached already: got it twice, want each "
                "once. `set_scale` changes its scale."
            )
        if adapter.architecture != self.architecture:
            raise SettingError(
                f"attach: adapter {adapter.name!r}: got one for {adapter.architecture!r}, want one "
                f"for {self.architecture!r}."
            )
        adapter.check_shapes({name: w.shape for name, w in self._weights.items()})
        self.attach_part(adapter.name, AttachedAdapter(adapter, scale, self._weights))

    def attach_part(self, name: str, part: Beside) -> None:
        """Record `part` beside the weights in graphs from now on: an adapter that is trained."""
        self._attached[name] = part
        self._revision += 1

    def detach(self, name: str) -> None:
        """Leave an adapter out of graphs recorded from now on.

        Raises:
            SettingError: there is no such adapter.
        """
        if name not in self._attached:
            raise self._unknown(name)
        del self._attached[name]
        self._revision += 1

    def set_scale(self, name: str, scale: float) -> None:
        """Change an adapter's scale, in graphs recorded before too.

        Raises:
            SettingError: there is no such adapter.
        """
        part = self._attached.get(name)
        if not isinstance(part, AttachedAdapter):
            raise self._unknown(name)
        part.scale = scale

    def _unknown(self, name: str) -> SettingError:
        names = [*self._attached]
        return SettingError(f"adapters: no such adapter: got {name!r}, want one of {names}.")

    def _round(self, x: Tensor, meets: Dtype) -> Tensor:
        """Record `x` as it meets a matrix of this type."""
        kind = meets.name
        if meets.is_quantized:
            kind = "Q8_K" if meets.block == 256 else "Q8_1"
        elif kind not in ("f16", "bf16"):
            return x
        rounded = self._rounded.get((id(x), kind))
        if rounded is None:
            is_kept = meets.is_quantized or (kind == "bf16" and x.size > _FEW * x.shape[-1])
            rounded = cast(x, kind) if is_kept else rounded_to(x, kind)
            self._rounded[id(x), kind] = rounded
        return rounded

    def _check_tokens(self, tokens: Tensor, what: str) -> None:
        n_ctx = self.sizes.n_ctx
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= n_ctx:
            raise ShapeError(
                f"{what}: tokens: got {tokens.shape}, want (batch, time) with time from 1 to n_ctx "
                f"= {n_ctx}. Shorten the input, or train with a larger n_ctx."
            )


def rounded_to(x: Tensor, kind: str) -> Tensor:
    """`x` with the numbers that a smaller type has, in its own type.

    >>> rounded_to(Context().tensor([1.001]), "bf16").numpy()
    array([1.], dtype=float32)
    """
    return cast(cast(x, kind), x.dtype)


def picked(x: Tensor, wanted: Tensor | None) -> Tensor:
    """The rows `wanted` of (B, T, D) counted over both axes, (n, D); all of `x` for None.

    >>> x = Context().tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    >>> picked(x, x.context.tensor([3], "i32")).numpy()
    array([[4.]], dtype=float32)
    """
    return x if wanted is None else get_rows(reshape(x, (-1, x.shape[-1])), wanted)
