"""Rotary position embedding, and the rotation back."""

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
from yupana.graphlib.tensor import Tensor

_MODES = ("normal", "neox")


def _in_order(p: Mapping[str, Any]) -> tuple[Array, Sequence[int]]:
    pairs = p["n_dims"] // 2
    return np.arange(pairs), (0,) * pairs


def _reference(direction: float) -> object:
    def reference(x: Array, positions: Array, factors: Array | float = 1.0, **p: Any) -> Array:
        n_dims = p["n_dims"]
        speeds = float(p["base"]) ** (-np.arange(0, n_dims, 2) / max(n_dims, 1)) / factors
        theta = direction * positions[:, None] * speeds
        angle, magnitude = yarn_angles(theta, p)
        return turned(x, angle, magnitude, p["mode"] == "normal")

    return reference


def _sample(d: Draw) -> Call:
    batch = d.choice([(), (1,), (d.integer(0, 3),)])
    t, heads, half = d.integer(0, 5), d.integer(1, 4), d.integer(1, 6)
    width = 2 * half + d.choice([0, 0, 1])
    x = d.floats((*batch, t, heads, width))
    n_dims = d.choice([2 * half, 2 * d.integer(0, half)])
    base, factor = d.choice([10000.0, 500.0]), d.choice([1.0, 0.25])
    positions, mode = d.integers((t,), 0, 2000), d.choice(_MODES)
    settings: dict[str, Any] = {"freq_scale": factor, **yarn_sample(d)}
    if d.choice([False, True]):
        settings["freq_factors"] = d.floats((n_dims // 2,), 1.0, 8.0, ("f32",))
    return call(x, positions, n_dims, mode, base, **settings)


def _errors(name: str) -> list[ErrorSample]:
    def run(
        shape: tuple[int, ...], positions: ArrayLike, *rest: object, **settings: object
    ) -> Tensor:
        made = tensor(np.zeros(shape)), tensor(positions)
        return REGISTRY[name](*made, *rest, **settings)

    x, at = (2, 1, 4), [0, 1]
    one, whole = tensor([1.0]), tensor([1, 1])
    yarn = {"ext_factor": 1.0, "n_ctx_orig": 8}
    return [
        ErrorSample(lambda: run((2, 4), at), ShapeError, "at least 3 axes"),
        ErrorSample(lambda: run(x, [0, 1, 2]), ShapeError, "(2,)"),
        ErrorSample(lambda: run(x, [0.0, 1.0]), DtypeError, "i32"),
        ErrorSample(lambda: run((2, 1, 3), at), SettingError, "n_dims"),
        ErrorSample(lambda: run(x, at, 6), SettingError, "n_dims"),
        ErrorSample(lambda: run(x, at, 4, "glm"), SettingError, "mode"),
        ErrorSample(lambda: run(x, at, 4, "neox", 0.0), SettingError, "base"),
        ErrorSample(lambda: run(x, at, freq_factors=one), ShapeError, "freq_factors"),
        ErrorSample(lambda: run(x, at, freq_factors=whole), DtypeError, "freq_factors"),
        ErrorSample(lambda: run(x, at, ext_factor=1.0), SettingError, "n_ctx_orig"),
        ErrorSample(lambda: run(x, at, freq_scale=0.0, **yarn), SettingError, "freq_scale"),
        ErrorSample(lambda: run(x, at, beta_slow=0.0, **yarn), SettingError, "beta_slow"),
        ErrorSample(lambda: run(x, at, base=1.0, **yarn), SettingError, "base=1"),
    ]


def _result(
    name: str, x: Tensor, positions: Tensor, factors: Tensor | None, p: dict[str, Any]
) -> Result:
    need_axes(name, x, 3)
    if positions.shape != x.shape[-3:-2]:
        raise ShapeError(
            f"{name}: got positions {positions.shape} for {x.shape}, want {x.shape[-3:-2]}: one "
            "for each of axis -3"
        )
    n_dims = x.shape[-1] if p["n_dims"] is None else int(p["n_dims"])
    if n_dims % 2 or not 0 <= n_dims <= x.shape[-1]:
        raise SettingError(
            f"{name}: got n_dims={n_dims}, want an even number of at most {x.shape[-1]}"
        )
    if p["mode"] not in _MODES:
        raise SettingError(f"{name}: got mode {p['mode']!r}, want one of {', '.join(_MODES)}")
    return rotation_result(name, x, positions, factors, n_dims // 2, {**p, "n_dims": n_dims})


@op(
    lower=lower_rotation(1.0, _in_order),
    vjp=(lambda y, g: again("rope_back", y, g), None, None),
    reference=_reference(1.0),
    samples=_sample,
    error_samples=lambda: _errors("rope"),
    inplace=(0,),
    cost=3.0,
    family="rope",
)
def rope(
    x: Tensor,
    positions: Tensor,
    n_dims: int | None = None,
    mode: str = "normal",
    base: float = 10000.0,
    freq_scale: float = 1.0,
    freq_factors: Tensor | None = None,
    n_ctx_orig: int = 0,
    ext_factor: float = 0.0,
    attn_factor: float = 1.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> Result:
    """Turn pairs of numbers by angles that grow with the position (rotary embedding).

        (y_a, y_b) = attn_factor · rotation of (x_a, x_b) by
                     positions[t] · freq_scale · base^(-2j / n_dims) / freq_factors[j]

    With `ext_factor` (YaRN), pairs that make more than beta_fast turns within n_ctx_orig
    positions keep their speed, those with fewer than beta_slow are slowed down by `freq_scale`,
    those between get a mixture; and attn_factor grows by 1 + 0.1 log(1 / freq_scale).

    Args:
        x: (B, T, H, K) or (T, H, K) float.
        positions: (T,) i32, the same for every sequence of the batch and every head.
        n_dims: how many of the K elements are turned, even; default all. The rest is copied.
        mode: which elements form pair j: "normal" 2j and 2j + 1, as in LLaMA's own and GGUF
            files; "neox" j and j + n_dims / 2, as in GPT-NeoX and Hugging Face.
        base: of the frequencies. freq_scale: below 1 stretches the context.
        freq_factors: (n_dims / 2,) f32, divides the frequencies, as Llama 3.1 has it.
        n_ctx_orig: positions the model was trained on; only YaRN asks for it.
        ext_factor: how much of YaRN, 0 to 1. attn_factor: multiplies the result.
        beta_fast, beta_slow: turns between which YaRN mixes.
    Returns:
        The shape and dtype of `x`.
    Raises:
        ShapeError, DtypeError: the operands do not fit. SettingError: a setting out of range.
    Gradient: with respect to `x` (`rope_back`).
    Source: Su et al. 2021; Peng et al. 2023 (YaRN); ggml_rope_ext, modes 0 and 2.

    >>> rope(tensor([[[1.0, 0.0]], [[1.0, 0.0]]]), tensor([0, 1])).numpy().round(3)
    array([[[1.   , 0.   ]],
           [[0.54 , 0.841]]], dtype=float32)
    """
    p = shared_settings(base, freq_scale, n_ctx_orig, ext_factor, attn_factor, beta_fast, beta_slow)
    return _result("rope", x, positions, freq_factors, {"n_dims": n_dims, "mode": mode, **p})


@op(
    lower=lower_rotation(-1.0, _in_order),
    vjp=(lambda y, g: again("rope", y, g), None, None),
    reference=_reference(-1.0),
    samples=_sample,
    error_samples=lambda: _errors("rope_back"),
    inplace=(0,),
    cost=3.0,
    family="rope",
)
def rope_back(
    x: Tensor,
    positions: Tensor,
    n_dims: int | None = None,
    mode: str = "normal",
    base: float = 10000.0,
    freq_scale: float = 1.0,
    freq_factors: Tensor | None = None,
    n_ctx_orig: int = 0,
    ext_factor: float = 0.0,
    attn_factor: float = 1.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> Result:
    """Gradient of `rope` with the same arguments: turns by as much in the other direction.

    It undoes what `rope` did, unless that multiplied with a magnitude.

    Gradient: with respect to `x` (`rope`). Source: ggml_rope_ext_back.

    >>> turned = rope(tensor([[[1.0, 2.0]]]), tensor([3]))
    >>> rope_back(turned, tensor([3])).numpy().round(3)
    array([[[1., 2.]]], dtype=float32)
    """
    p = shared_settings(base, freq_scale, n_ctx_orig, ext_factor, attn_factor, beta_fast, beta_slow)
    return _result("rope_back", x, positions, freq_factors, {"n_dims": n_dims, "mode": mode, **p})
