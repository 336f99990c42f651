"""Rotary position embedding of several positions at once, and with decay (xPos)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from yupana.graphlib.context import tensor
from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
from yupana.graphlib.op import REGISTRY, Array, Call, Draw, ErrorSample, Result, call, op
from yupana.graphlib.ops._rotation import (
    again,
    lower_rotation,
    rotation_result,
    shared_settings,
    turned,
    yarn_angles,
    yarn_sample,
)
from yupana.graphlib.ops._rules import need_axes
from yupana.graphlib.ops.arithmetic import mul
from yupana.graphlib.ops.copies import cast
from yupana.graphlib.ops.rope import rope
from yupana.graphlib.ops.unary import exp
from yupana.graphlib.ops.views import reshape
from yupana.graphlib.tensor import Tensor

_MODES = ("mrope", "imrope", "vision")
_STREAMS = 4


def _n_pairs(p: Mapping[str, Any]) -> int:
    return int(p["n_dims"] if p["mode"] == "vision" else p["n_dims"] // 2)


def _sectioned(p: Mapping[str, Any]) -> tuple[Array, Sequence[int]]:
    """Exponents of the pairs' speeds, and the row of positions that each follows."""
    sections, pairs = p["sections"], _n_pairs(p)
    starts = np.cumsum([0, *sections])
    exponents, streams = np.arange(pairs), []
    for j in range(pairs):
        sector = j % starts[-1]
        stream = int(np.searchsorted(starts[1:], sector, "right"))
        if p["mode"] == "imrope":  # every third pair, as long as the section lasts
            stream = sector % 3 if sector < 3 * sections[sector % 3] else 3
        elif p["mode"] == "vision":  # each section begins with the fastest pair
            exponents[j] = sector - starts[stream]
        streams.append(int(stream))
    return exponents, streams


def _speeds_and_streams(p: Mapping[str, Any]) -> tuple[Array, Array]:
    """The same for the reference, by repeating the sections."""
    pairs, sections = _n_pairs(p), np.array(p["sections"])
    total = int(sections.sum())
    streams = np.repeat(np.arange(_STREAMS), sections)
    exponents = np.arange(pairs)
    if p["mode"] == "imrope":
        streams = np.full(total, 3)
        for k in range(3):
            streams[k : 3 * sections[k] : 3] = k
    if p["mode"] == "vision":
        exponents = np.resize(np.concatenate([np.arange(n) for n in sections]), pairs)
    return p["base"] ** (-2.0 * exponents / p["n_dims"]), np.resize(streams, pairs)


def _reference(direction: float) -> object:
    def reference(x: Array, positions: Array, factors: Array | float = 1.0, **p: Any) -> Array:
        speeds, streams = _speeds_and_streams(p)
        theta = direction * positions[streams].T * speeds / factors
        angle, magnitude = yarn_angles(theta, p)
        return turned(x, angle, magnitude, adjacent=False)

    return reference


def _sample(d: Draw) -> Call:
    batch = d.choice([(), (d.integer(0, 3),)])
    t, heads, half = d.integer(0, 5), d.integer(1, 3), d.integer(1, 6)
    mode = d.choice(_MODES)
    width = 2 * half if mode == "vision" else 2 * half + d.choice([0, 0, 1])
    x = d.floats((*batch, t, heads, width))
    sections = [d.integer(0, 3) for _ in range(_STREAMS)]
    sections[d.integer(0, 2)] += 1
    n_dims = half if mode == "vision" else 2 * half
    settings = yarn_sample(d)
    if d.choice([False, True]):
        pairs = n_dims if mode == "vision" else half
        settings["freq_factors"] = d.floats((pairs,), 1.0, 8.0, ("f32",))
    positions = d.integers((_STREAMS, t), 0, 2000)
    return call(x, positions, tuple(sections), n_dims, mode, d.choice([10000.0, 500.0]), **settings)


def _errors(name: str) -> list[ErrorSample]:
    def run(shape: tuple[int, ...], positions: ArrayLike, *rest: object) -> Tensor:
        return REGISTRY[name](tensor(np.zeros(shape)), tensor(positions), *rest)

    x, at, sections = (2, 1, 4), np.zeros((4, 2), int), (1, 1, 0, 0)
    return [
        ErrorSample(lambda: run((2, 4), at, sections), ShapeError, "at least 3 axes"),
        ErrorSample(lambda: run(x, [0, 1], sections), ShapeError, "(4, 2)"),
        ErrorSample(lambda: run(x, np.zeros((4, 2)), sections), DtypeError, "i32"),
        ErrorSample(lambda: run(x, at, (1, 1)), SettingError, "sections"),
        ErrorSample(lambda: run(x, at, (0, 0, 0, 2)), SettingError, "sections"),
        ErrorSample(lambda: run(x, at, (-1, 3, 0, 0)), SettingError, "sections"),
        ErrorSample(lambda: run(x, at, sections, 3), SettingError, "n_dims"),
        ErrorSample(lambda: run(x, at, sections, 4, "vision"), SettingError, "n_dims"),
        ErrorSample(lambda: run(x, at, sections, 4, "neox"), SettingError, "mode"),
    ]


def _result(
    name: str, x: Tensor, positions: Tensor, factors: Tensor | None, p: dict[str, Any]
) -> Result:
    need_axes(name, x, 3)
    width, wanted = x.shape[-1], (_STREAMS, x.shape[-3])
    if p["mode"] not in _MODES:
        raise SettingError(f"{name}: got mode {p['mode']!r}, want one of {', '.join(_MODES)}")
    if positions.shape != wanted:
        raise ShapeError(f"{name}: got positions {positions.shape} for {x.shape}, want {wanted}")
    sections, is_vision = p["sections"], p["mode"] == "vision"
    if len(sections) != _STREAMS or min(sections) < 0 or not any(sections[:3]):
        raise SettingError(
            f"{name}: got sections {sections}, want four sizes, one of the first three above 0"
        )
    n_dims = p["n_dims"]
    if n_dims is None:
        n_dims = width // 2 if is_vision else width
    if is_vision and 2 * n_dims != width:
        raise SettingError(f"{name}: got n_dims={n_dims}, want {width / 2:g}: half of axis -1")
    if not is_vision and (n_dims % 2 or not 0 < n_dims <= width):
        raise SettingError(f"{name}: got n_dims={n_dims}, want an even number of at most {width}")
    settings = {**p, "n_dims": int(n_dims)}
    return rotation_result(name, x, positions, factors, _n_pairs(settings), settings)


@op(
    lower=lower_rotation(1.0, _sectioned),
    vjp=(lambda y, g: again("rope_multi_back", y, g), None, None),
    reference=_reference(1.0),
    samples=_sample,
    error_samples=lambda: _errors("rope_multi"),
    inplace=(0,),
    cost=3.0,
    family="rope",
)
def rope_multi(
    x: Tensor,
    positions: Tensor,
    sections: Sequence[int],
    n_dims: int | None = None,
    mode: str = "mrope",
    base: float = 10000.0,
    freq_scale: float = 1.0,
    freq_factors: Tensor | None = None,
    n_ctx_orig: int = 0,
    ext_factor: float = 0.0,
    attn_factor: float = 1.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> Result:
    """Turn pairs of numbers by angles that grow with several positions, as time, height, width.

    Pair j is made of the elements j and j + pairs, and follows one of four rows of positions.

    Args:
        x: (B, T, H, K) or (T, H, K) float.
        positions: (4, T) i32.
        sections: how many neighbouring pairs follow each row of positions; repeated until there
            is no pair left.
        n_dims: how many of the K elements are turned, even; default all. In mode "vision" K / 2,
            and all are turned.
        mode: "mrope"; "vision", where each section begins with the fastest pair again; or
            "imrope", where the rows take turns pair by pair, the first three for as many pairs as
            their sections have, and the fourth has the rest.
        base, freq_scale, freq_factors, n_ctx_orig, ext_factor, attn_factor, beta_fast, beta_slow:
            see `rope`; there is one of `freq_factors` for each pair.
    Raises:
        ShapeError, DtypeError: the operands do not fit. SettingError: a setting out of range.
    Gradient: with respect to `x` (`rope_multi_back`).
    Source: Wang et al. 2024 (Qwen2-VL), section 2.1; ggml_rope_multi.

    >>> x, positions = tensor([[[1.0, 1.0, 0.0, 0.0]]]), tensor([[0], [1], [0], [0]])
    >>> rope_multi(x, positions, (1, 1, 0, 0), base=1.0).numpy().round(3)
    array([[[1.   , 0.54 , 0.   , 0.841]]], dtype=float32)
    """
    p = shared_settings(base, freq_scale, n_ctx_orig, ext_factor, attn_factor, beta_fast, beta_slow)
    p = {"sections": tuple(sections), "n_dims": n_dims, "mode": mode, **p}
    return _result("rope_multi", x, positions, freq_factors, p)


@op(
    lower=lower_rotation(-1.0, _sectioned),
    vjp=(lambda y, g: again("rope_multi", y, g), None, None),
    reference=_reference(-1.0),
    samples=_sample,
    error_samples=lambda: _errors("rope_multi_back"),
    inplace=(0,),
    cost=3.0,
    family="rope",
)
def rope_multi_back(
    x: Tensor,
    positions: Tensor,
    sections: Sequence[int],
    n_dims: int | None = None,
    mode: str = "mrope",
    base: float = 10000.0,
    freq_scale: float = 1.0,
    freq_factors: Tensor | None = None,
    n_ctx_orig: int = 0,
    ext_factor: float = 0.0,
    attn_factor: float = 1.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> Result:
    """Gradient of `rope_multi` with the same arguments: turns by as much in the other direction.

    Gradient: with respect to `x` (`rope_multi`). Source: ggml_rope_multi_back.

    >>> x, positions = tensor([[[1.0, 0.54, 0.0, 0.8415]]]), tensor([[0], [1], [0], [0]])
    >>> rope_multi_back(x, positions, (1, 1, 0, 0), base=1.0).numpy().round(3)
    array([[[1., 1., 0., 0.]]], dtype=float32)
    """
    p = shared_settings(base, freq_scale, n_ctx_orig, ext_factor, attn_factor, beta_fast, beta_slow)
    p = {"sections": tuple(sections), "n_dims": n_dims, "mode": mode, **p}
    return _result("rope_multi_back", x, positions, freq_factors, p)


def rope_xpos(
    x: Tensor,
    positions: Tensor,
    n_dims: int | None = None,
    base: float = 512.0,
    down: bool = False,
) -> Tensor:
    """`rope`, and pair j times zeta_j^(position / base): queries grow as keys (`down`) shrink.

        zeta_j = (2j + 0.4 K) / (1.4 K)

    Args:
        x, positions, n_dims: see `rope`; elements beyond n_dims are copied.
        base: positions over which a pair decays by zeta_j.
        down: divides by the power instead.
    Raises:
        SettingError: `base` is not positive; and as `rope`.
    Gradient: with respect to `x`. Source: Sun et al. 2022; ggml_rope_xpos_inplace.

    >>> rope_xpos(tensor([[[1.0, 0.0]]]), tensor([512])).numpy().round(3)
    array([[[-0.285,  0.023]]], dtype=float32)
    """
    if not base > 0:
        raise SettingError(f"rope_xpos: got base={base}, want a positive number")
    y = rope(x, positions, n_dims)
    width, turned_dims = x.shape[-1], int(y.params["n_dims"])
    even = np.arange(width) // 2 * 2
    logs = np.where(
        np.arange(width) < turned_dims, np.log((even + 0.4 * width) / (1.4 * width)), 0.0
    )
    dtype = "f64" if x.dtype.name == "f64" else "f32"
    places = reshape(cast(positions, dtype), (*positions.shape, 1, 1))
    decay = exp(mul(places, tensor(logs * (-1.0 if down else 1.0) / base, dtype)))
    return mul(y, cast(decay, x.dtype))
