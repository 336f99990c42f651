"""Make the pictures of the documentation: `python docs/pictures.py [FOLDER]`.

Needs the program `dot`. The pictures show what the library does: with a network of one layer, and
with a real model. There it is the graph of a loss and its gradients, what is near one of its
weights, what an adapter adds, the memory plan of a training step with and without gradient
checkpointing, and one run of it on two threads, measured call by call.
"""

import re
import sys
from pathlib import Path

import numpy as np
from diagrams import DIAGRAMS

import yupana as yp
from yupana.graphlib.profile import profile
from yupana.models.llama import Llama, LlamaConfig, weight_shapes
from yupana.train.lora import TrainedAdapter
from yupana.train.lora_settings import LoraSettings
from yupana.train.optimiser import AdamWSettings
from yupana.train.step import TrainingStep

HERE = Path(__file__).parent / "images"
BATCH, CONTEXT = 8, 64


def model(n_layer: int, no_alloc: bool = True) -> tuple[Llama, yp.Tensor, list[yp.Tensor]]:
    """A LLaMA with 0.2 M parameters a layer, its loss and its two inputs."""
    ctx = yp.Context(no_alloc=no_alloc)
    config = LlamaConfig(n_vocab=65, n_ctx=CONTEXT, n_embd=128, n_head=4, n_layer=n_layer, n_mult=8)
    llama = Llama(config, ctx)
    inputs = [ctx.input((BATCH, CONTEXT), "i32", name) for name in ("tokens", "targets")]
    return llama, llama.loss(*inputs).named("loss"), inputs


def draw_small(folder: Path) -> None:
    """One layer as it is recorded, with its gradients, and their memory."""
    ctx = yp.Context()
    x, t = ctx.input((64, 48), name="x"), ctx.input((64, 32), name="t")
    w, b = ctx.param((32, 48), name="w"), ctx.param((32,), name="b")
    y = (yp.ops.mul_mat(w, x) + b).tanh().named("y")
    loss = (y - t).sqr().sum().named("loss")
    graph = yp.Graph(loss)
    without_notes(graph.draw(folder / "recorded.svg"))
    graph.backward(loss)
    without_notes(graph.draw(folder / "gradient.svg"))
    plan = graph.plan()
    without_notes(plan.draw(folder / "small_plan.svg", title="One layer and its gradients"))


def draw_recomputed(folder: Path) -> None:
    """Four layers, of which the backward pass computes two again."""
    ctx = yp.Context(no_alloc=True)
    x, kept = ctx.input((8, 16), name="x"), []
    for k in range(4):
        x = yp.ops.mul_mat(ctx.param((16, 16), name=f"w{k}"), x).tanh().named(f"h{k}")
        kept.append(x)
    loss = x.sqr().sum().named("loss")
    graph = yp.Graph(loss)
    graph.backward(loss, checkpoints=[kept[1], kept[3]])
    without_notes(graph.draw(folder / "recomputed.svg", fold=False))


def draw_adapter(folder: Path) -> None:
    """What a pair of an adapter adds beside a frozen weight, and what becomes of its gradients."""
    ctx = yp.Context(no_alloc=True)
    config = LlamaConfig(n_vocab=65, n_ctx=CONTEXT, n_embd=128, n_head=4, n_layer=1, n_ff=352)
    frozen = {
        name: ctx.leaf(shape, "Q8_0" if len(shape) == 2 else "f32", name)
        for name, shape in weight_shapes(config).items()
    }
    llama = Llama(config, ctx, frozen)
    settings = LoraSettings(target_modules=("attn_q", "attn_v"))
    llama.attach_part("trained", TrainedAdapter(frozen, settings, no_alloc=True))
    loss = llama.loss(*(ctx.input((BATCH, CONTEXT), "i32", name) for name in ("tokens", "targets")))
    graph = yp.Graph(loss.named("loss"))
    graph.backward(loss)
    without_notes(graph.draw(folder / "adapter.svg", around="blk.0.attn_q", depth=2))


def draw_graph(folder: Path) -> None:
    """Loss and gradients of a model of four layers, which fold to one; and a part of it."""
    _, loss, _ = model(4)
    graph = yp.Graph(loss)
    graph.backward(loss)
    without_notes(graph.draw(folder / "graph.svg"))
    near = graph.draw(folder / "near.svg", around="blk.0.attn_q", depth=2, sizes=True, flops=True)
    without_notes(near)


def draw_plan(folder: Path) -> None:
    """Memory of a training step with and without gradient checkpointing, clipping left out."""
    plans = {}
    for name, checkpoints in (("all results kept", None), ("gradient checkpointing", "sqrt")):
        _, loss, _ = model(8)
        grads = yp.gradients(loss, checkpoints=checkpoints)
        settings = loss.context.input((2,), name="settings")
        updates = [yp.ops.opt_step_sgd(param, grad, settings) for param, grad in grads.items()]
        plans[name] = yp.Graph([loss, *updates]).plan()
    title = "One training step of 8 layers with gradient checkpointing"
    one = plans["gradient checkpointing"]
    without_notes(one.draw(folder / "plan.svg", title=title))
    both = {"With gradient checkpointing": one}
    first = plans["all results kept"]
    path = first.draw(folder / "plans.svg", title="One training step of 8 layers", against=both)
    without_notes(path)


def draw_running(folder: Path, runs: int) -> None:
    """One training step on two threads: all of it, and its beginning."""
    llama, loss, inputs = model(4, no_alloc=False)
    llama.init(seed=1)
    random = np.random.default_rng(0)
    for leaf in inputs:
        leaf.set(random.integers(0, 65, leaf.shape))
    step = TrainingStep(loss, inputs, AdamWSettings())
    step.optimiser.set(0)
    found = profile(step.compile(threads=2), runs)
    title = f"A training step of a model with {llama.n_parameters:,} parameters, on two threads"
    without_notes(found.draw(folder / "running.svg", title=title))


def without_notes(path: Path) -> None:
    """Leave out what shows under the pointer: the files are a third as long."""
    text = path.read_text("utf-8")
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="a_[^"]*"><a [^>]*>\n|</a>\n</g>\n', "", text)
    text = re.sub(r"<title>.*?</title>\n?", "", text, flags=re.DOTALL)
    path.write_text(text, "utf-8")


def make(folder: Path, runs: int = 200) -> None:
    """Make all pictures; of so many runs the fastest is shown."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_small(folder)
    draw_recomputed(folder)
    draw_adapter(folder)
    for name, diagram in DIAGRAMS.items():
        (folder / name).write_text(diagram(), "utf-8")
    draw_graph(folder)
    draw_plan(folder)
    draw_running(folder, runs)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
