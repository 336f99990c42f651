"""Graphs to draw, and what can be read in a picture."""

from xml.etree import ElementTree

import yupana as yp
from yupana import ops
from yupana.models.llama import Llama, LlamaConfig


def llama(n_layer, checkpoints=None, updates="as finished", n_head_kv=4):
    """The training graph of a small LLaMA; nothing is allocated."""
    config = LlamaConfig(
        n_vocab=65, n_ctx=16, n_embd=32, n_head=4, n_head_kv=n_head_kv, n_layer=n_layer, n_mult=8
    )
    ctx = yp.Context(no_alloc=True)
    model = Llama(config, ctx)
    tokens, targets = (ctx.input((2, 16), "i32", name) for name in ("tokens", "targets"))
    loss = model.loss(tokens, targets).named("loss")
    grads = yp.gradients(loss, checkpoints)
    if updates is None:
        return yp.Graph([loss, *grads.values()])
    settings = ctx.input((2,), name="settings")
    params = grads if updates == "as finished" else model.weights.values()
    return yp.Graph([loss, *(ops.opt_step_sgd(p, grads[p], settings) for p in params)])


def mlp(n_layer, ctx=None, activation=lambda layer: ops.silu, source=lambda layer: -1):
    """Layers x + act(W x) · b; `source` says which of the earlier results a layer adds to."""
    ctx = ctx or yp.Context(no_alloc=True)
    xs = [ctx.input((4, 8), name="x")]
    for layer in range(n_layer):
        w, b = ctx.param((8, 8), name=f"w{layer}"), ctx.param((8,), name=f"b{layer}")
        hidden = activation(layer)(ops.mul_mat(w, xs[-1])) * b
        xs.append(xs[source(layer)] + ops.scale(hidden.tanh(), 0.5))
    return xs[-1]


def texts(path) -> list[str]:
    root = ElementTree.parse(path).getroot()
    assert root.tag.endswith("svg")
    return ["".join(e.itertext()).strip() for e in root.iter() if e.tag.endswith("}text")]
