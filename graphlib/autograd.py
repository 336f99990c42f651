"""The backward pass: gradients of a loss, recorded as ordinary nodes from the ops' rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from yupana.graphlib import ops
from yupana.graphlib.budget import Checkpoints, recompute
from yupana.graphlib.errors import GradientError
from yupana.graphlib.order import Order, evaluation_order, writers_by_root
from yupana.graphlib.tensor import Tensor, next_sequence


class Gradients(Mapping[Tensor, Tensor]):
    """Gradients by parameter, in the order the backward pass finishes them.

    >>> import yupana as yp
    >>> w = yp.Context().param((2,), name="w").set([1.0, 2.0])
    >>> grads = yp.gradients((w * w).sum())
    >>> grads[w].numpy(), len(grads)
    (array([2., 4.], dtype=float32), 1)
    """

    def __init__(self, found: Mapping[Tensor, Tensor]) -> None:
        self._found = dict(found)

    def __getitem__(self, param: Tensor) -> Tensor:
        if param not in self._found:
            raise GradientError(
                f"gradient: the loss does not depend on {param.label}, or it is no parameter. "
                "Make it with Context.param()."
            )
        return self._found[param]

    def __contains__(self, param: object) -> bool:
        return param in self._found

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def gradients(
    loss: Tensor,
    checkpoints: Checkpoints = None,
    order: Order | None = None,
) -> Gradients:
    """Record the gradient of `loss` with respect to every parameter it depends on.

    Only nodes that lead to a parameter get a gradient: frozen parts cost nothing. See
    `Graph.backward` for the arguments; unlike there, nothing becomes an output, so that
    gradients which only an optimiser step reads give their memory back.

    A `MemoryBudget` is about loss and gradients: nodes recorded afterwards, an optimiser's steps
    and the leaves of its state, are not there yet and not counted. To have them counted, record
    all of it without checkpoints, then call `graphlib.budget.recompute` with the outputs of the
    whole graph, as `train.step.TrainingStep` does.

    Raises:
        GradientError: see `Graph.backward`.

    >>> import yupana as yp
    >>> w = yp.Context().param((2,), name="w").set([1.0, 2.0])
    >>> updates = [
    ...     yp.ops.opt_step_sgd(param, grad, yp.tensor([0.25, 0.0]))
    ...     for param, grad in gradients((w * w).sum()).items()
    ... ]
    >>> yp.Graph(updates).compile().run()
    >>> w.numpy()
    array([0.5, 1. ], dtype=float32)
    """
    if loss.size != 1:
        raise GradientError(
            f"backward: the loss must be one element: got {loss.label}. Use loss.sum()."
        )
    if not loss.dtype.is_float:
        raise GradientError(f"backward: the loss must be a float: got {loss.dtype}")
    forward = evaluation_order([loss], order or "left")
    active = _leading_to_params(forward)
    if loss not in active:
        raise GradientError(
            f"backward: {loss.label} depends on no parameter. Make the tensors to be trained "
            "with Context.param()."
        )
    writers = writers_by_root(forward)
    start = next_sequence()
    found = {loss: loss.context.constant(1.0, loss.dtype)}
    if loss.ndim:
        found[loss] = ops.reshape(found[loss], loss.shape)
    for node in reversed(forward):
        if node in active and node in found:
            _differentiate(node, found, active, writers)
    grads = {t: g for t, g in found.items() if t.is_param and t.is_leaf}
    _mark(grads, start)
    if checkpoints is not None:
        remat = recompute(loss, [loss, *grads.values()], checkpoints, order)
        grads = {param: remat.source(grad) for param, grad in grads.items()}
    return Gradients(grads)


def _differentiate(
    node: Tensor,
    found: dict[Tensor, Tensor],
    active: set[Tensor],
    writers: Mapping[Tensor, list[Tensor]],
) -> None:
    """Add to the gradients of a node's sources."""
    assert node.op is not None
    grad, start = found[node], next_sequence()
    for k, src in enumerate(node.srcs):
        if src not in active:
            continue
        if node.op.vjp is None or k >= len(node.op.vjp):
            raise _no_gradient(node, src, active)
        rule = node.op.vjp[k]
        if rule is None:
            if k in node.op.mutates:
                continue  # overwritten: what was there before has no influence
            raise _no_gradient(node, src, active)
        part = rule(node, grad)
        if not isinstance(part, Tensor):
            raise GradientError(
                f"{node.op.name}: the rule for source {k} gave {type(part).__name__}, want a Tensor"
            )
        if part.shape != src.shape:
            raise GradientError(
                f"{node.op.name}: gradient of source {k} has shape {part.shape}, want {src.shape}"
            )
        if writers:
            _check_intact(node, part, start, writers)
        found[src] = ops.add(found[src], part) if src in found else part


def _check_intact(
    node: Tensor, part: Tensor, start: int, writers: Mapping[Tensor, list[Tensor]]
) -> None:
    """Raise if the gradient of `node` reads values that a later node has overwritten by then."""
    assert node.op is not None
    stack = [part]
    while stack:
        made = stack.pop()
        if made.sequence < start:
            continue
        stack.extend(made.srcs)
        for src in made.srcs:
            for writer in writers.get(src.root, ()):
                if writer.sequence > node.sequence and writer.op is not None:
                    raise GradientError(
                        f"{node.op.name}: its gradient needs {src.label}, which {writer.op.name} "
                        f"overwrites later. Give {node.op.name} a copy: cont(x)."
                    )


def _leading_to_params(forward: list[Tensor]) -> set[Tensor]:
    active: set[Tensor] = set()
    for node in forward:
        if node.op is not None and node.op.stops_gradient:
            continue
        for src in node.srcs:
            if src.is_param:
                active.add(src)
        if any(src in active for src in node.srcs) and node.dtype.is_real:
            active.add(node)
    return active


def _no_gradient(node: Tensor, src: Tensor, active: set[Tensor]) -> GradientError:
    path = [src]
    while not path[-1].is_leaf:
        path.append(next(s for s in path[-1].srcs if s in active))
    assert node.op is not None
    names = " <- ".join(t.label for t in (node, *path))
    where = f" recorded at {node.site}" if node.site else ""
    return GradientError(
        f"{node.op.name}: has no gradient with respect to its source {node.srcs.index(src)}, but "
        f"lies on the path of a parameter: {names};{where}. "
        "Freeze the parameter, or use an op with a gradient (`yupana ops` lists them)."
    )


def _mark(grads: Mapping[Tensor, Tensor], start: int) -> None:
    """Tell what was recorded here from the user's own nodes."""
    stack, seen = list(grads.values()), set(grads.values())
    while stack:
        node = stack.pop()
        if node.sequence > start:
            node.role = "backward"
            for src in node.srcs:
                if src not in seen:
                    seen.add(src)
                    stack.append(src)
    for param, grad in grads.items():
        if grad.role == "backward":
            grad.role = "gradient"
            grad.name = grad.name or f"{param.name}.grad"
