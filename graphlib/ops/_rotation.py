"""What the rotary position embeddings share: frequencies, checks, lowering, the rotation."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from yupana.graphlib.errors import DtypeError, SettingError, ShapeError
from yupana.graphlib.kernels.rope import Table, rope_steps
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import REGISTRY, Array, Draw, Lower, Result, Site
from yupana.graphlib.ops._rules import need_float, view
from yupana.graphlib.tensor import Tensor


def shared_settings(
    base: float,
    freq_scale: float,
    n_ctx_orig: int,
    ext_factor: float,
    attn_factor: float,
    beta_fast: float,
    beta_slow: float,
) -> dict[str, Any]:
    """What every rotation can be told, as parameters of a node."""
    return {
        "base": float(base),
        "freq_scale": float(freq_scale),
        "n_ctx_orig": int(n_ctx_orig),
        "ext_factor": float(ext_factor),
        "attn_factor": float(attn_factor),
        "beta_fast": float(beta_fast),
        "beta_slow": float(beta_slow),
    }


def frequencies(p: Mapping[str, Any], exponents: Array) -> tuple[Array, float]:
    """Radians per position of each pair, and what the turned pairs are multiplied with.

    Pair j turns with base^(-2 e_j / n_dims), slowed down by freq_scale; YaRN does not slow down
    the pairs that turn often within the context trained on, and mixes in between.
    """
    bare = p["base"] ** (-2.0 * exponents / max(p["n_dims"], 1))
    if p["ext_factor"] == 0:
        return p["freq_scale"] * bare, p["attn_factor"]
    first = max(math.floor(_turning_pair(p, p["beta_fast"])), 0)
    last = min(math.ceil(_turning_pair(p, p["beta_slow"])), p["n_dims"] - 1)
    way = (np.arange(exponents.size) - first) / max(last - first, 0.001)
    kept = p["ext_factor"] * (1.0 - np.clip(way, 0.0, 1.0))
    slowed = bare * (p["freq_scale"] * (1.0 - kept) + kept)
    return slowed, p["attn_factor"] * (1.0 - 0.1 * math.log(p["freq_scale"]))


def _turning_pair(p: Mapping[str, Any], turns: float) -> float:
    """The pair, as a real number, that makes so many turns within the context trained on."""
    per_turn = p["n_ctx_orig"] / (2 * math.pi * turns)
    return float(p["n_dims"] / 2 * math.log(per_turn) / math.log(p["base"]))


def lower_rotation(direction: float, pairs_of: Any) -> Lower:
    """Lower to kernels/rope.py; `pairs_of(params)` gives exponents and position rows of pairs."""

    def lower(site: Site) -> list[Step]:
        p = site.params
        x, positions, *factors = (view(operand) for operand in site.srcs)
        exponents, streams = pairs_of(p)
        speeds, magnitude = frequencies(p, exponents)
        table = Table(
            positions,
            tuple((direction * speeds).tolist()),
            streams,
            factors[0] if factors else None,
            magnitude,
        )
        return rope_steps(view(site.dst), x, table, p["mode"] == "normal", site.workspace)

    return lower


def turned(x: Array, angle: Array, magnitude: float, adjacent: bool) -> Array:
    """Pairs of (…, T, H, K) turned by the angles (T, pairs), in NumPy."""
    pairs = angle.shape[-1]
    cos, sin = (magnitude * f(angle)[:, None, :] for f in (np.cos, np.sin))
    first = np.s_[..., 0 : 2 * pairs : 2] if adjacent else np.s_[..., :pairs]
    second = np.s_[..., 1 : 2 * pairs : 2] if adjacent else np.s_[..., pairs : 2 * pairs]
    a, b = x[first], x[second]
    y = x.copy()
    y[first], y[second] = a * cos - b * sin, a * sin + b * cos
    return y


def yarn_angles(theta: Array, p: Mapping[str, Any]) -> tuple[Array, float]:
    """What YaRN makes of angles (T, pairs), and the magnitude, in NumPy."""
    if p["ext_factor"] == 0:
        return p["freq_scale"] * theta, p["attn_factor"]
    # The ramp lies between the pairs of which n_ctx_orig · speed is 2 pi beta.
    speeds = np.array([p["beta_fast"], p["beta_slow"]]) * 2 * np.pi / p["n_ctx_orig"]
    fast, slow = -np.log(speeds) / np.log(p["base"]) * p["n_dims"] / 2
    low, high = max(np.floor(fast), 0.0), min(np.ceil(slow), p["n_dims"] - 1.0)
    ramp = np.interp(np.arange(theta.shape[-1]), [low, max(high, low + 0.001)], [1.0, 0.0])
    mix = ramp * p["ext_factor"]
    angle = p["freq_scale"] * theta * (1 - mix) + theta * mix
    return angle, p["attn_factor"] * (1 + 0.1 * np.log(1 / p["freq_scale"]))


def yarn_sample(d: Draw) -> dict[str, Any]:
    """Settings of YaRN, half of the time switched off."""
    if d.choice([True, False]):
        return {}
    settings = {"freq_scale": d.choice([0.25, 1.0]), "n_ctx_orig": d.choice([256, 2048])}
    mixed = {"ext_factor": d.choice([1.0, 0.5]), "attn_factor": d.choice([1.0, 0.8])}
    return {**settings, **mixed, "beta_fast": d.choice([32.0, 4.0]), "beta_slow": 1.0}


def rotation_result(
    name: str, x: Tensor, positions: Tensor, factors: Tensor | None, pairs: int, p: dict[str, Any]
) -> Result:
    """The result of any rotation of `pairs` pairs, after checking what all of them share."""
    need_float(name, x)
    if positions.dtype.is_real:
        raise DtypeError(f"{name}: got positions of type {positions.dtype}, want i32")
    if not p["base"] > 0:
        raise SettingError(f"{name}: got base={p['base']}, want a positive number")
    if p["ext_factor"] != 0:
        needed = ("n_ctx_orig", "freq_scale", "beta_fast", "beta_slow")
        for setting in needed:
            if not p[setting] > 0:
                raise SettingError(
                    f"{name}: got {setting}={p[setting]}, want a positive number with ext_factor"
                )
        if p["base"] == 1:
            raise SettingError(f"{name}: got base=1 with ext_factor, want another")
    srcs: tuple[Tensor, ...] = (x, positions)
    if factors is not None:
        if factors.dtype.name not in ("f32", "f64"):
            raise DtypeError(f"{name}: got freq_factors of type {factors.dtype}, want f32")
        if factors.shape != (pairs,):
            raise ShapeError(
                f"{name}: got freq_factors {factors.shape}, want {(pairs,)}: one for each pair"
            )
        srcs = (x, positions, factors)
    return Result(srcs, x.shape, x.dtype, p)


def again(name: str, y: Tensor, g: Tensor) -> Tensor:
    """The op of that name on `g`, with the positions and settings of `y`."""
    factors = y.srcs[2] if len(y.srcs) > 2 else None
    return REGISTRY[name](g, y.srcs[1], **y.params, freq_factors=factors)
