"""Checkpoints that ggml's programs wrote: finetune, and train-text-from-scratch.

Their optimiser keeps the moments of all parameters in two long vectors, in the order in which its
graph is walked. That order depends on two choices of the run that the file does not mention:
whether attention was fused, and from which side arguments were visited (whichever took less
memory). But gradients obey laws: scaling a norm up and the columns it feeds down changes nothing,
nor does turning A against B. Under the right order the moments obey them too, nearly.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.errors import FileFormatError
from yupana.models.formats import GgufFile, expect
from yupana.train.stop import StopState

Floats: TypeAlias = NDArray[np.float32]
Values: TypeAlias = dict[str, Floats]
Tree: TypeAlias = "str | tuple[Tree, ...]"  # arguments, down to the names of parameters

FIRST, SECOND = "first_moments", "second_moments"
_MOMENTS = "optimizer.adam."
_DOUBT = 0.5  # laws broken by this share or more; by chance it is 1
_NORMS = {
    "attn_norm": ("attn_q", "attn_k", "attn_v"),
    "ffn_norm": ("ffn_gate", "ffn_up"),
    "output_norm": ("output",),
}
_ATTENTION = ("norm", "q", "k", "v", "output")
_FEED_FORWARD = ("norm", "gate", "up", "down")
_RANKS = {  # of a key "training.lora.rank.NAME", to finetune's flag
    "token_embd": "tok_embd",
    "output_norm": "out_norm",
    "output": "out",
    "attn_norm": "att_norm",
    "attn_q": "wq",
    "attn_k": "wk",
    "attn_v": "wv",
    "attn_output": "wo",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "w1",
    "ffn_down": "w2",
    "ffn_up": "w3",
}


def is_from_ggml(metadata: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written by one of ggml's programs, and not by ours."""
    return "optimizer.file_version" in metadata


def check_versions(file: GgufFile) -> None:
    """Check that the layout is one that ggml's programs had.

    Raises:
        FileFormatError: it is a later one.
    """
    for key, newest in (("training.file_version", 1), ("optimizer.file_version", 0)):
        got = expect(file.metadata, key, int)
        if got > newest:
            raise FileFormatError(f"{file.path}: {key}: got {got}, want at most {newest}.")


def order_seed(metadata: Mapping[str, Any]) -> int:
    """A seed for the order of the data from now on: the state of their generator, hashed."""
    return zlib.crc32(expect(metadata, "training.shuffle.rng_state", str, "").encode())


def lora_ranks(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The ranks of an adapter, as `LoraSettings` has them.

    >>> lora_ranks({"training.lora.rank.attn_q": 8})
    {'rank_wq': 8}
    """
    keys = {f"training.lora.rank.{name}": f"rank_{flag}" for name, flag in _RANKS.items()}
    return {flag: expect(metadata, key, int) for key, flag in keys.items() if key in metadata}


def stop_state(file: GgufFile, step: int) -> StopState:
    """What ggml's tests of convergence remember after so many steps."""
    m = file.metadata
    if expect(m, "optimizer.type", str) != "adam":
        return StopState()
    past: list[float] = []
    name = f"{_MOMENTS}past_loss_values"
    if name in file.tensors:
        ring = floats(file, name).ravel().astype(np.float64)
        oldest = step % max(len(ring), 1)
        past = np.roll(ring, -oldest).tolist() if step >= len(ring) else ring[:step].tolist()
    return StopState(
        expect(m, f"{_MOMENTS}best_loss", float),
        expect(m, f"{_MOMENTS}previous_loss", float),
        expect(m, f"{_MOMENTS}no_improvement_count", int),
        past,
    )


def floats(file: GgufFile, name: str) -> Floats:
    """The values of a tensor, which has to be f32, in this machine's byte order.

    Raises:
        FileFormatError: it is missing, or of another type.
    """
    info = file.tensors[name]
    if info.type != "F32":
        raise FileFormatError(f"{file.path}: {name}: got {info.type}, want F32.")
    return np.asarray(info.data, np.float32)


def read_values(
    file: GgufFile,
    shapes: Mapping[str, tuple[int, ...]],
    factors: Mapping[str, float],
    has_moments: bool,
) -> tuple[Values, bool]:
    """Parameters, and their moments as "NAME.first_moments", as ours are.

    ggml holds A the other way round, and trains W + B A whatever alpha is. Ours is W + s B A, so B
    is divided by s: the model stays the one that was trained.

    Args:
        shapes: of the parameters as ours are, by name.
        factors: name of an adapted weight to s; 1 where it is not named.
        has_moments: they are wanted.
    Returns:
        The values, and whether their order could be told: without it the moments are zero.
    Raises:
        FileFormatError: a tensor is missing or of another shape, or there are more than are
            asked for.
    """
    found = {name: floats(file, name) for name in shapes}
    for name, value in found.items():
        want = shapes[name][::-1] if name.endswith(".lora_a") else shapes[name]
        if value.shape != want:
            raise FileFormatError(
                f"{file.path}: {name}: got {value.shape}, want {want}. It was made with a model of "
                "other sizes, or other ranks: go on with the same ones."
            )
    more = [n for n in file.tensors if n not in found and not n.startswith("optimizer.")]
    if more:
        raise FileFormatError(
            f"{file.path}: holds more than is trained: got {more[0]} and {len(more) - 1} others, "
            f"want only {len(found)} tensors. Train the same parameters as before."
        )
    is_sure = True
    if has_moments:
        moments, is_sure = _read_moments(file, found)
        found |= moments
    return {name: _as_ours(name, value, factors) for name, value in found.items()}, is_sure


def _as_ours(name: str, value: Floats, factors: Mapping[str, float]) -> Floats:
    weight, is_pair, rest = name.partition(".lora_")
    if not is_pair:
        return value
    half, _, moment = rest.partition(".")
    if half == "a":
        return value.T
    s = factors.get(weight, 1.0)
    power = {"": -1, FIRST: 1, SECOND: 2}[moment]  # a gradient grows by s as B shrinks by it
    return value * np.float32(s**power)


def _read_moments(file: GgufFile, params: Values) -> tuple[Values, bool]:
    """The moments under the order in which they obey the laws of gradients best."""
    size = sum(p.size for p in params.values())
    flat = {kind: floats(file, f"{_MOMENTS}{kind}").ravel() for kind in (FIRST, SECOND)}
    for kind, values in flat.items():
        if values.size != size:
            raise FileFormatError(
                f"{file.path}: {_MOMENTS}{kind}: got {values.size} values, want {size}, as many "
                "as there are parameters."
            )
    # A number that lies must not build a tree of that size.
    n_layer = min(expect(file.metadata, "llama.block_count", int), len(params))
    orders = [
        [*walk(loss_tree(params, n_layer, is_fused), is_reversed)]
        for is_fused in (True, False)
        for is_reversed in (False, True)
    ]
    if any(sorted(order) != sorted(params) for order in orders):
        raise FileFormatError(
            f"{file.path}: cannot tell where each parameter's moments are: got {len(params)} "
            f"parameters, want those of {n_layer} blocks of a LLaMA."
        )
    splits = [_split(flat[FIRST], params, order) for order in orders]
    faults = [_fault(params, gradients) for gradients in splits]
    best = int(np.argmin(faults))
    is_sure = faults[best] < _DOUBT or not flat[FIRST].any()
    if not is_sure:
        flat = {kind: np.zeros_like(values) for kind, values in flat.items()}
    parts = {kind: _split(values, params, orders[best]) for kind, values in flat.items()}
    return {f"{n}.{kind}": v for kind, split in parts.items() for n, v in split.items()}, is_sure


def _split(flat: Floats, params: Values, order: Iterable[str]) -> Values:
    found, at = {}, 0
    for name in order:
        param = params[name]
        found[name] = flat[at : at + param.size].reshape(param.shape)
        at += param.size
    return found


def loss_tree(params: Iterable[str], n_layer: int, is_fused: bool) -> Tree:
    """What the loss is made from in ggml's programs: only parameters, and who is whose argument.

    Args:
        params: names of weights, or of the pairs beside them.
        is_fused: attention is one operation.
    """
    pairs = {name.partition(".lora_")[0] for name in params if ".lora_" in name}

    def weight(name: str) -> Tree:
        full = f"{name}.weight"
        return (f"{full}.lora_a", f"{full}.lora_b") if full in pairs else full

    x: Tree = (weight("token_embd"),)
    for i in range(n_layer):
        norm, q, k, v, o = (weight(f"blk.{i}.attn_{part}") for part in _ATTENTION)
        ffn_norm, gate, up, down = (weight(f"blk.{i}.ffn_{part}") for part in _FEED_FORWARD)
        h = (norm, x)
        query, key, value = (q, h), (k, h), (h, v)
        mixed = (query, key, value) if is_fused else (value, (key, query))
        x = ((o, mixed), x)
        h = (ffn_norm, x)
        x = ((down, ((gate, h), (up, h))), x)
    return weight("output"), (weight("output_norm"), x)


def walk(tree: Tree, is_reversed: bool) -> Iterator[str]:
    """The names in a tree in the order of a walk through it, each once.

    >>> a, b = ("w",), ("x", "y")
    >>> [*walk((a, (b, a), b), False)], [*walk((a, (b, a), b), True)]
    (['w', 'x', 'y'], ['y', 'x', 'w'])
    """
    seen: set[int] = set()
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.extend(node if is_reversed else node[::-1])


def _fault(params: Values, gradients: Values) -> float:
    """By what share gradients break their laws: 0 not at all, about 1 by chance."""
    faults = []
    for left, right in _laws(params, gradients):
        size = float(np.square(left).sum() + np.square(right).sum())
        if size > 0:
            faults.append(float(np.square(left - right).sum()) / size)
    return math.fsum(faults) / len(faults) if faults else math.inf


def _laws(params: Values, gradients: Values) -> Iterator[tuple[Floats, Floats]]:
    """Pairs of arrays that are equal where gradients stand where they belong."""
    for name, a in params.items():
        if name.endswith(".lora_a"):
            pair = name.removesuffix("a") + "b"
            yield a.T @ gradients[name], gradients[pair].T @ params[pair]
        part, _, norm = name.removesuffix(".weight").rpartition(".")
        if norm in _NORMS:
            fed = [f"{part}.{m}.weight".lstrip(".") for m in _NORMS[norm]]
            columns = [(params[m] * gradients[m]).sum(axis=0) for m in fed]
            yield a * gradients[name], np.sum(columns, axis=0)
