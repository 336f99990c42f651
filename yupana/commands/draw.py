"""`yupana draw`: pictures of a model's graph, of its memory, and of a run."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from yupana.graphlib.budget import Checkpoints
from yupana.graphlib.context import Context
from yupana.graphlib.draw import draw_graph, draw_plan, draw_profile, save_trace
from yupana.graphlib.errors import SettingError
from yupana.graphlib.graph import Graph
from yupana.graphlib.profile import Profile, profile
from yupana.models.decoder import Decoder
from yupana.models.llama import Llama
from yupana.models.sketch import sketch_model
from yupana.train.lora import TrainedAdapter
from yupana.train.lora_settings import LoraSettings
from yupana.train.model_settings import ModelSettings
from yupana.train.optimiser import AdamWSettings
from yupana.train.settings import auto
from yupana.train.step import TrainingStep

_RUNS = 10  # that times are medians of
_TITLES = {
    "forward": "scores of the next tokens",
    "gradients": "loss and gradients",
    "step": "training step",
    "memory": "memory of a training step",
    "timeline": "training step",
}


@dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings):
    """Draw the graph of a model, the memory of a training step, or a run of it.

    The model is that of a file (a model or checkpoint in GGUF, or anything `yupana convert`
    reads), or one of the sizes given; only its description is read. Pictures of graphs need
    graphviz's program dot.
    """

    # Model file or folder; left out: a LLaMA of the sizes below.
    model: Positional[Path | None] = None
    # File to write: .svg, .png, .pdf or .dot of a graph, .svg of memory, .svg or .json (a Chrome
    # trace) of a timeline.
    out: Annotated[Path, arg(aliases=["-o"])] = Path("graph.svg")
    # What to draw: a graph (the scores alone, the loss with its gradients, or a whole training
    # step), the memory of a step with and without gradient checkpointing, or a run of a step.
    what: Annotated[
        Literal["forward", "gradients", "step", "memory", "timeline"], arg(aliases=["-w"])
    ] = "gradients"
    # Draw layers that are alike once.
    fold: bool = True
    # Draw only what is near this tensor, as blk.0.attn_q.
    around: str | None = None
    # How many arrows are near.
    depth: int = 3
    # Draw only what lies between these two tensors, as tokens loss.
    between: tuple[str, str] | None = None
    # Show bytes.
    sizes: bool = False
    # Show floating-point operations.
    flops: bool = False
    # Run the graph, with weights of zero, and show the time of each node.
    times: bool = False
    # Show where results lie in the arena.
    offsets: bool = False
    # What of the forward pass is computed again instead of kept, as the trainers have it: none; all
    # between two layers; all between a few (sqrt); or auto, a twentieth of the work. With memory:
    # what is drawn beside the plan with all results kept; sqrt unless it is told.
    checkpointing: Literal["none", "auto", "sqrt", "all"] = "none"
    # Train an adapter of this rank beside frozen weights; 0: train all weights.
    lora_r: int = 0
    # Tokens in the vocabulary of a model without a file.
    n_vocab: int = 1024


def run(settings: Settings) -> int:
    """Draw; returns the exit code."""
    if settings.batch < 1 or settings.lora_r < 0:
        raise SettingError(
            f"draw: got batch {settings.batch} and lora_r {settings.lora_r}, want at least 1 and 0."
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = _draw(settings)
    for warning in caught:
        print(f"yupana: {warning.message}", file=sys.stderr)
    print(path)
    return 0


def _draw(settings: Settings) -> Path:
    s = settings
    title = f"{s.model.name}: {_TITLES[s.what]}" if s.model else _TITLES[s.what]
    if s.what == "memory":
        way = "sqrt" if s.checkpointing == "none" else s.checkpointing
        first, second = (record_graph(s, "step", c).plan() for c in ("none", way))
        checkpointed = {f"{title}, with gradient checkpointing ({way})": second}
        return draw_plan(first, s.out, title=f"{title}, all results kept", against=checkpointed)
    graph = record_graph(s, "step" if s.what == "timeline" else s.what, s.checkpointing)
    if s.what == "timeline":
        return _draw_run(s, graph, title)
    details: dict[str, Any] = {"sizes": s.sizes, "flops": s.flops}
    if s.offsets or s.times:
        details |= _measured(s, graph)
    return draw_graph(
        graph,
        s.out,
        title=title,
        fold=s.fold,
        around=s.around,
        depth=s.depth,
        between=s.between,
        **details,
    )


def _draw_run(settings: Settings, graph: Graph, title: str) -> Path:
    found = profile(graph.compile(settings.n_threads), _RUNS)
    if settings.out.suffix == ".json":
        return save_trace(found, settings.out)
    return draw_profile(found, settings.out, title=title)


def _measured(settings: Settings, graph: Graph) -> dict[str, Any]:
    """Plan and profile, as far as they are asked for."""
    if not settings.times:
        return {"plan": graph.plan()}
    program = graph.compile(settings.n_threads)
    found: Profile = profile(program, _RUNS)
    return {"profile": found, "plan": program.plan if settings.offsets else None}


def record_graph(
    settings: Settings, what: Literal["forward", "gradients", "step"], checkpointing: str
) -> Graph:
    """The graph of a model that holds nothing, unless it shall run."""
    context = Context(no_alloc=not (settings.times or settings.what == "timeline"))
    model = _model(settings, what, context)
    shape = (settings.batch, min(settings.ctx, model.sizes.n_ctx))
    tokens = context.input(shape, "i32", "tokens")
    if what == "forward":
        return Graph(model.logits(tokens).named("logits"))
    if settings.lora_r:
        lora = LoraSettings(lora_r=settings.lora_r)
        adapter = TrainedAdapter(model.weights, lora, no_alloc=context.no_alloc)
        model.attach_part("trained", adapter)
    targets = context.input(shape, "i32", "targets")
    loss = model.loss(tokens, targets).named("loss")
    ways: dict[str, Checkpoints] = {"none": None, "auto": auto(), "sqrt": "sqrt", "all": "all"}
    checkpoints = ways[checkpointing]
    if what == "step":
        return TrainingStep(loss, (tokens, targets), AdamWSettings(), checkpoints).graph
    graph = Graph(loss)
    graph.backward(loss, checkpoints)
    return graph


def _model(settings: Settings, what: str, context: Context) -> Decoder:
    if settings.model is None:
        return Llama(settings.config(settings.n_vocab), context)
    return sketch_model(settings.model, what != "forward" and not settings.lora_r, context)
