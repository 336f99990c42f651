"""Cross-entropy of logits against labels or against probabilities."""

from collections.abc import Callable

import numpy as np

from yupana.graphlib.context import tensor
from yupana.graphlib.dtypes import i32
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.kernels.blocks import View
from yupana.graphlib.kernels.loss import cross_entropy
from yupana.graphlib.kernels.step import Step
from yupana.graphlib.op import Array, Call, Cost, Draw, ErrorSample, Result, Site, call, op
from yupana.graphlib.ops._rules import need_float, view, wide_dtype
from yupana.graphlib.tensor import Tensor


def loss_and_gradient_steps(
    loss: View,
    gradient: View,
    seed: View,
    sources: tuple[View, ...],
    ignore_index: int,
    workspace: Callable[[int], int],
) -> list[Step]:
    """Compute `cross_entropy_loss` and `cross_entropy_loss_back` in one sweep over the logits.

    It takes an exponential of each logit once, not twice, and reads the logits once. Two such
    nodes may be fused when

    - both have the same `logits`, `targets`, `weights` (the sources, in this order, `weights`
      left out if there are none) and `ignore_index`;
    - `seed`, the first source of the gradient, does not depend on the loss: it has to be there
      before, as the 1 is that a backward pass starts from;
    - nothing between the two writes to one of the sources.

    The gradient may lie over the logits if they have one dtype, are contiguous, and nobody else
    reads them later. The two results are the same bits as those of the nodes on their own.
    """
    logits, targets, *rest = sources
    weights = rest[0] if rest else None
    return cross_entropy(
        logits, targets, weights, ignore_index, workspace, loss=loss, gradient=gradient, seed=seed
    )


def _lower_loss(site: Site) -> list[Step]:
    logits, targets, *rest = (view(src) for src in site.srcs)
    weights = rest[0] if rest else None
    ignore_index = site.params["ignore_index"]
    return cross_entropy(
        logits, targets, weights, ignore_index, site.workspace, loss=view(site.dst)
    )


def _lower_back(site: Site) -> list[Step]:
    seed, logits, targets, *rest = (view(src) for src in site.srcs)
    return cross_entropy(
        logits,
        targets,
        rest[0] if rest else None,
        site.params["ignore_index"],
        site.workspace,
        gradient=view(site.dst),
        seed=seed,
    )


def _shares(targets: Array, rows: tuple[int, ...], weights: Array | None, ignore: int) -> Array:
    """What part of the mean each row is; 0 for one that does not count."""
    share = np.ones(rows) if weights is None else weights
    if targets.dtype.kind == "i":
        share = np.where((targets < 0) | (targets == ignore), 0.0, share)
    return np.where(share == 0, 0.0, share / share.sum())


def _target_rows(targets: Array, classes: int) -> Array:
    """Labels as rows with a single 1; a row of NaN for a label that is no class."""
    if targets.dtype.kind != "i":
        return targets
    one_hot = (targets[..., None] == np.arange(classes)).astype(np.float64)
    return np.asarray(np.where(targets[..., None] < classes, one_hot, np.nan))


def _log_soft_max(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    difference: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return difference


def _loss_reference(
    logits: Array, targets: Array, weights: Array | None = None, *, ignore_index: int
) -> Array:
    share = _shares(targets, logits.shape[:-1], weights, ignore_index)
    rows = _target_rows(targets, logits.shape[-1])
    logs = _log_soft_max(logits)
    impossible = (rows == 0) & (logs == -np.inf)
    nll = np.where(impossible, 0.0, -rows * logs).sum(axis=-1)
    return np.asarray(np.where(share == 0, 0.0, share * nll).sum())


def _back_reference(
    g: Array, logits: Array, targets: Array, weights: Array | None = None, *, ignore_index: int
) -> Array:
    share = _shares(targets, logits.shape[:-1], weights, ignore_index)[..., None]
    rows = _target_rows(targets, logits.shape[-1])
    change = rows.sum(axis=-1, keepdims=True) * np.exp(_log_soft_max(logits)) - rows
    return np.where(share == 0, 0.0, g * share * change)


def _loss_sample(d: Draw) -> Call:
    rows, classes = d.shape(min_axes=0, max_axes=3, max_side=5), d.choice([1, 2, 5, 17, 65, 1100])
    logits = d.floats((*rows, classes), dtypes=("f32", "f32", "f16", "bf16", "f64"))
    if d.choice([True, False]):
        targets = d.integers(rows, -1, classes - 1)
    else:
        targets = d.floats((*rows, classes), 0.0, 1.0)
    weights = [d.floats(rows, 0.1, 2.0)] if d.choice([False, True]) else []
    return call(logits, targets, *weights, ignore_index=d.choice([-100, 0]))


def _back_sample(d: Draw) -> Call:
    drawn = _loss_sample(d)
    return call(d.floats((), -2.0, 2.0, dtypes=("f32", "f64")), *drawn.args, **drawn.kwargs)


def _check(name: str, logits: Tensor, targets: Tensor, weights: Tensor | None) -> None:
    floats = [t for t in (logits, weights) if t is not None]
    need_float(name, *floats, *([] if targets.dtype is i32 else [targets]))
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ShapeError(f"{name}: got logits {logits.shape}, want (…, V) with at least one class")
    rows = logits.shape[:-1]
    want = rows if targets.dtype is i32 else logits.shape
    if targets.shape != want:
        kind = "labels (i32)" if targets.dtype is i32 else f"probabilities ({targets.dtype})"
        raise ShapeError(
            f"{name}: got logits {logits.shape} and {kind} {targets.shape}, want {want}"
        )
    if weights is not None and weights.shape != rows:
        raise ShapeError(f"{name}: got weights {weights.shape}, want {rows}: one for each row")


def _cost(flops: float) -> Callable[[Tensor], Cost]:
    def cost(y: Tensor) -> Cost:
        logits = max(src.size for src in y.srcs)
        return Cost.of(y, flops * logits)

    return cost


def _loss_errors() -> list[ErrorSample]:
    logits, labels = tensor([[1.0, 2.0, 3.0]]), tensor([0])
    return [
        ErrorSample(lambda: cross_entropy_loss(labels, labels), DtypeError, "float"),
        ErrorSample(lambda: cross_entropy_loss(logits, tensor([0, 1])), ShapeError, "(2,)"),
        ErrorSample(lambda: cross_entropy_loss(logits, tensor([0.5])), ShapeError, "probabilities"),
        ErrorSample(lambda: cross_entropy_loss(tensor(1.0), labels), ShapeError, "class"),
        ErrorSample(
            lambda: cross_entropy_loss(logits, labels, tensor([1.0, 1.0])), ShapeError, "weights"
        ),
    ]


def _back_errors() -> list[ErrorSample]:
    logits, labels, g = tensor([[1.0, 2.0, 3.0]]), tensor([0]), tensor(1.0)
    return [
        ErrorSample(
            lambda: cross_entropy_loss_back(logits, logits, labels), ShapeError, "one element"
        ),
        ErrorSample(
            lambda: cross_entropy_loss_back(g, logits, tensor([0, 1])), ShapeError, "labels"
        ),
        ErrorSample(lambda: cross_entropy_loss_back(labels, logits, labels), DtypeError, "float"),
    ]


def _logits_grad(y: Tensor, g: Tensor) -> Tensor:
    logits, targets, *rest = y.srcs
    weights = rest[0] if rest else None
    return cross_entropy_loss_back(g, logits, targets, weights, y.params["ignore_index"])


@op(
    lower=_lower_loss,
    vjp=(_logits_grad, None, None),
    reference=_loss_reference,
    samples=_loss_sample,
    error_samples=_loss_errors,
    cost=_cost(5.0),
    family="loss",
)
def cross_entropy_loss(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, ignore_index: int = -100
) -> Result:
    """Mean over rows of -sum(target · log(soft_max(logits))).

    With labels: loss = sum_i w_i · (log(sum_j exp(x_ij)) - x_i,label) / sum_i w_i, over the rows
    that count. With probabilities the same, where row i costs -sum_j t_ij · log_soft_max(x_i)_j.

    Args:
        logits: (…, V) float.
        targets: (…) i32, the class of each row; or (…, V) float, the probability of each class
            (which need not add up to 1; a class of probability 0 costs nothing).
        weights: (…) float, how much each row counts, as a mask does with 0 and 1; None: all 1.
        ignore_index: rows with this label do not count, nor do those with any negative one. A
            label of V or more makes the loss NaN.

    Returns:
        () in f64 for logits of f64, else f32; 0 if no row counts.

    Raises:
        ShapeError: shapes that do not belong together. DtypeError: logits or weights of i32.
    Gradient: with respect to `logits` (`cross_entropy_loss_back`).
    Source: ggml_cross_entropy_loss for probabilities (it has neither labels nor weights).

    >>> logits = tensor([[0.0, 0.0], [0.0, 100.0]])
    >>> cross_entropy_loss(logits, tensor([0, 1])).numpy().round(4)  # log(2) / 2
    np.float32(0.3466)
    >>> cross_entropy_loss(logits, tensor([0, -100])).numpy().round(4)
    np.float32(0.6931)
    """
    _check("cross_entropy_loss", logits, targets, weights)
    srcs = (logits, targets) if weights is None else (logits, targets, weights)
    return Result(srcs, (), wide_dtype(logits), {"ignore_index": int(ignore_index)})


@op(
    lower=_lower_back,
    reference=_back_reference,
    samples=_back_sample,
    error_samples=_back_errors,
    inplace=(1,),
    cost=_cost(7.0),
    family="loss",
)
def cross_entropy_loss_back(
    g: Tensor,
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    ignore_index: int = -100,
) -> Result:
    """The gradient of `cross_entropy_loss` with respect to its logits, times g.

        y_ij = g · w_i / sum(w) · (sum_k(t_ik) · soft_max(x_i)_j - t_ij)

    Args:
        g: one element, float. The others as in `cross_entropy_loss`.

    Returns:
        (…, V), 0 in rows that do not count.

    Raises:
        ShapeError, DtypeError: as `cross_entropy_loss`.
    Gradient: none; second derivatives of the loss are refused when backward is built.
    Source: ggml_cross_entropy_loss_back, which takes the targets of a row to add up to 1.

    >>> cross_entropy_loss_back(tensor(1.0), tensor([[0.0, 0.0]]), tensor([1])).numpy()
    array([[ 0.5, -0.5]], dtype=float32)
    """
    name = "cross_entropy_loss_back"
    need_float(name, g)
    _check(name, logits, targets, weights)
    if g.size != 1:
        raise ShapeError(f"{name}: got g {g.shape}, want one element, the gradient of the loss")
    srcs = (g, logits, targets) if weights is None else (g, logits, targets, weights)
    params = {"ignore_index": int(ignore_index)}
    return Result(srcs, logits.shape, wide_dtype(logits), params)
