"""What torch calls each op: functions of the op's sources, then of its parameters by name.

They are written with torch's own functions, independently of the kernels and of the references.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
F = torch.nn.functional


def pulled(function: Callable[..., Any], x: Any, g: Any) -> Any:
    """The gradient that torch finds for `function` at `x`, times `g`; differentiable again."""
    x = x if x.requires_grad else x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(x), x, g, create_graph=True)
    return grad


def back_of(name: str) -> Callable[..., Any]:
    return lambda x, g, **settings: pulled(lambda x: TORCH[name](x, **settings), x, g)


def tiled(x: Any, shape: tuple[int, ...]) -> Any:
    x = x.reshape((1,) * (len(shape) - x.ndim) + tuple(x.shape))
    return x.repeat([n // m if m else 1 for n, m in zip(shape, x.shape, strict=True)])


def summed_tiles(x: Any, shape: tuple[int, ...]) -> Any:
    return pulled(lambda y: tiled(y, x.shape), torch.zeros(shape, dtype=x.dtype), x)


def batched(few: Any, many: Any) -> Any:
    """`few` with each batch repeated as often as `many` has it in a row."""
    few = few.reshape((1,) * (many.ndim - few.ndim) + tuple(few.shape))
    for axis in range(many.ndim - 2):
        times = many.shape[axis] // few.shape[axis] if few.shape[axis] else 1
        few = few.repeat_interleave(times, axis)
    return few


def mean_of(x: Any) -> Any:
    """Mean of each row; 0 where rows are empty."""
    return x.sum(-1, keepdim=True) / max(x.shape[-1], 1)


def norm(x: Any, eps: float) -> Any:
    """F.layer_norm takes its own deviation for a constant in its third derivatives."""
    centred = x - mean_of(x)
    return centred * torch.rsqrt(mean_of(centred.square()) + eps)


def triangle(x: Any, kind: str) -> Any:
    cut, away = (torch.tril, -1) if kind.startswith("lower") else (torch.triu, 1)
    return cut(x, 0 if kind.endswith("_diag") else away)


def beyond(x: Any, n_past: int) -> Any:
    rows, columns = (torch.arange(n) for n in x.shape[-2:])
    return columns > n_past + rows[:, None]


def soft_max(x: Any, mask: Any = None, *, scale: float, max_bias: float) -> Any:
    z = x * scale
    if mask is not None and max_bias > 0:
        n = x.shape[-3] if x.ndim > 2 else 1
        powers = 2 ** math.floor(math.log2(max(n, 1)))
        first, second = 2 ** (-max_bias / powers), 2 ** (-max_bias / 2 / powers)
        slopes = [
            first ** (h + 1) if h < powers else second ** (2 * (h - powers) + 1) for h in range(n)
        ]
        slopes = torch.tensor(slopes, dtype=x.dtype)
        mask = mask * (slopes[:, None, None] if x.ndim > 2 else slopes)
    z = z if mask is None else z + mask
    hidden = (z == -math.inf).all(-1, keepdim=True)
    return torch.softmax(z.masked_fill(hidden, 0.0), -1).masked_fill(hidden, 0.0)


def turned(sign: float) -> Callable[..., Any]:
    """The rotation as Hugging Face's models write it, with YaRN's mixture of frequencies."""

    def rotate(x: Any, positions: Any, factors: Any = 1.0, *, mode: str, **p: Any) -> Any:
        n, base, scale = p["n_dims"], p["base"], p["freq_scale"]
        bare = 1.0 / base ** (torch.arange(0, n, 2, dtype=torch.float64) / max(n, 1))
        speeds, magnitude = bare * scale, p["attn_factor"]
        if p["ext_factor"]:
            at = [
                n * math.log(p["n_ctx_orig"] / (turns * 2 * math.pi)) / (2 * math.log(base))
                for turns in (p["beta_fast"], p["beta_slow"])
            ]
            low, high = max(math.floor(at[0]), 0), min(math.ceil(at[1]), n - 1)
            ramp = (torch.arange(n // 2, dtype=torch.float64) - low) / max(high - low, 0.001)
            kept = (1 - ramp.clamp(0, 1)) * p["ext_factor"]
            speeds = bare * scale * (1 - kept) + bare * kept
            magnitude *= 0.1 * math.log(1 / scale) + 1.0
        angle = (positions[:, None] * (speeds / factors))[:, None, :]
        cos, sin = angle.cos() * magnitude, sign * angle.sin() * magnitude
        head, rest = x[..., :n], x[..., n:]
        if mode == "neox":
            a, b = head[..., : n // 2], head[..., n // 2 :]
            return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)
        a, b = head[..., 0::2], head[..., 1::2]
        pairs = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
        return torch.cat([pairs, rest], -1)

    return rotate


def cross_entropy(
    logits: Any, targets: Any, weights: Any = None, *, ignore_index: int, count: bool = True
) -> Any:
    v = logits.shape[-1]
    rows = logits.reshape(-1, v)
    if targets.is_floating_point():
        each = F.cross_entropy(rows, targets.reshape(-1, v), reduction="none")
        counts = torch.ones_like(each)
    else:
        labels = targets.reshape(-1).long()
        counts = ((labels >= 0) & (labels != ignore_index)).to(rows.dtype)
        each = F.cross_entropy(rows, labels.clamp(min=0), reduction="none")
    counts = counts if weights is None else counts * weights.reshape(-1)
    total = counts.sum()
    return (each * counts).sum() / total if total else 0.0 * each.sum()


def linear_cross_entropy(x: Any, w: Any, targets: Any, *pair: Any, chunk: int) -> Any:
    logits = x @ w.mT + (pair[0] @ pair[1].mT if pair else 0.0)
    return cross_entropy(logits, targets, ignore_index=-1)


def linear_cross_entropy_back(g: Any, *srcs: Any, of: str, chunk: int) -> Any:
    at = {"x": 0, "w": 1, "x2": 3, "w2": 4}[of]

    def loss(x: Any) -> Any:
        return linear_cross_entropy(*srcs[:at], x, *srcs[at + 1 :], chunk=chunk)

    return pulled(loss, srcs[at], g.reshape(()))


def picked(table: Any, index: Any) -> Any:
    """Rows of a table; of NaN where there is none."""
    n = table.shape[-2]
    inside = (index >= 0) & (index < n)
    if not n:
        return torch.full((*index.shape, table.shape[-1]), math.nan, dtype=table.dtype)
    safe = torch.where(inside, index, 0).long()
    if table.ndim == 2:
        rows = F.embedding(safe, table)
    else:
        rows = torch.take_along_dim(table, safe[..., None], -2)
    return torch.where(inside[..., None], rows, math.nan)


def scattered(g: Any, index: Any, shape: tuple[int, ...]) -> Any:
    inside = (index >= 0) & (index < shape[-2])
    g = torch.where(inside[..., None], g, 0.0)
    if not shape[-2]:
        return g.new_zeros(shape)
    if len(shape) == 2:
        inside, index = inside.reshape(index.numel()), index.reshape(index.numel())
        g = g.reshape(index.numel(), shape[-1])
    places = torch.where(inside, index, 0).long()[..., None].expand(g.shape)
    return g.new_zeros(shape).scatter_add(-2, places, g)


def of_experts(w: Any, x: Any, ids: Any) -> Any:
    chosen = (ids[..., None] == torch.arange(w.shape[0])).to(x.dtype)
    y = torch.einsum("tue,enk,tuk->tun", chosen, w, x.expand(*ids.shape, x.shape[-1]))
    return torch.where(chosen.sum(-1, keepdim=True) > 0, y, math.nan)


def into_experts(x: Any, g: Any, ids: Any, n_experts: int) -> Any:
    chosen = (ids[..., None] == torch.arange(n_experts)).to(x.dtype)
    return torch.einsum("tue,tun,tuk->enk", chosen, g, x.expand(*ids.shape, x.shape[-1]))


def region(a: Any, b: Any, strides: Any, offset: int, itemsize: int, add: bool) -> Any:
    copy = a.contiguous().clone()
    part = torch.as_strided(copy, b.shape, [s // itemsize for s in strides], offset // itemsize)
    _ = part.add_(b) if add else part.copy_(b)
    return copy


TORCH: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "scale": lambda x, s: x * s,
    "sqr": torch.square,
    "sqrt": torch.sqrt,
    "log": torch.log,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "abs": torch.abs,
    "sgn": torch.sgn,
    "step": lambda x: torch.heaviside(x.detach(), x.new_zeros(())),
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "round": torch.round,  # halves, which samples do not hold, go to even there
    "relu": F.relu,
    "leaky_relu": lambda x, slope: F.leaky_relu(x, slope),
    "elu": F.elu,
    "softplus": lambda x: F.softplus(x, threshold=1000.0),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": lambda x: (x + 3).clamp(0, 6) / 6,  # F.hardsigmoid's 1/6 is of float32
    "hardswish": F.hardswish,
    "silu": F.silu,
    "silu_back": back_of("silu"),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_back": back_of("gelu"),
    "gelu_erf": F.gelu,
    "gelu_erf_back": back_of("gelu_erf"),
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),
    "clamp": lambda x, low, high: torch.clamp(x, low, high),
    "clamp_back": back_of("clamp"),
    "repeat": tiled,
    "repeat_back": summed_tiles,
    "sum": torch.sum,
    "sum_rows": lambda x: x.sum(-1, keepdim=True),
    "mean": mean_of,
    "cumsum": lambda x, reverse: x.flip(-1).cumsum(-1).flip(-1) if reverse else x.cumsum(-1),
    "count_equal": lambda a, b: (a == b).sum(),
    "inverse_rms": lambda x, eps: torch.rsqrt(mean_of(x.square()) + eps),
    "rms_norm": lambda x, eps: F.rms_norm(x, x.shape[-1:], eps=eps),
    "rms_norm_back": back_of("rms_norm"),
    "norm": lambda x, eps: F.layer_norm(x, x.shape[-1:], eps=eps),
    "norm_back": lambda x, g, eps: pulled(lambda x: norm(x, eps), x, g),
    "l2_norm": lambda x, eps: F.normalize(x, dim=-1, eps=eps),
    "l2_norm_back": back_of("l2_norm"),
    "soft_max": soft_max,
    "soft_max_back": lambda g, y, scale: scale * y * (g - (y * g).sum(-1, keepdim=True)),
    "diag_mask_inf": lambda x, n_past: x.masked_fill(beyond(x, n_past), -math.inf),
    "diag_mask_zero": lambda x, n_past: x.masked_fill(beyond(x, n_past), 0.0),
    "rope": turned(1.0),
    "rope_back": turned(-1.0),
    "mul_mat": lambda w, x: x @ batched(w, x).mT,
    "out_prod": lambda a, b: b.mT @ batched(a, b),
    "mul_mat_id": of_experts,
    "out_prod_id": into_experts,
    "cross_entropy_loss": cross_entropy,
    "cross_entropy_loss_back": lambda g, x, *rest, **p: pulled(
        lambda x: cross_entropy(x, *rest, **p), x, g.reshape(())
    ),
    "linear_cross_entropy": linear_cross_entropy,
    "linear_cross_entropy_back": linear_cross_entropy_back,
    "cont": torch.clone,
    "concat": lambda *parts, axis: torch.cat(parts, axis),
    "tri": triangle,
    "acc": lambda a, b, **p: region(a, b, **p, add=True),
    "set": lambda a, b, **p: region(a, b, **p, add=False),
    "cpy": lambda a, b: a.reshape(b.shape),
    "get_rows": picked,
    "get_rows_back": scattered,
    "argsort": lambda x, descending: torch.argsort(x, stable=True, descending=descending),
    "top_k": lambda x, k: torch.argsort(x, stable=True, descending=True)[..., :k],
}
