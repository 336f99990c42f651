"""Pictures of how things are laid out, for docs/pictures.py: an op's record, and a GGUF file."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from yupana.graphlib.draw.svg import Svg
from yupana.graphlib.op import REGISTRY
from yupana.models.formats import GgufFile, TensorInfo
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama

_GREY, _LINE = "#555555", "#999999"
_BLUE, _GREEN, _ORANGE, _WHITE = "#C0DDF2", "#D9F0E6", "#FBE5D8", "#FFFFFF"  # as in graphs
MONO = "DejaVu Sans Mono, Menlo, Consolas, monospace"
# Fields of a record: what the one of silu says, and who reads it.
FIELDS = {
    "rule": ("silu(x: Tensor) -> Result", "you: checks arguments, says what comes out", _GREEN),
    "doc": ("y = x · sigmoid(x) …", "help(), the reference of ops", _GREEN),
    "lower": ("one element: x / (1 + exp(-x))", "program: kernels, steps, chunks", _BLUE),
    "inplace": ("(0,)", "memory plan: whose bytes may be taken over", _BLUE),
    "cost": ("20 FLOPs an element", "bill, checkpoints, threads, profile", _BLUE),
    "vjp": ("silu_back(x, g)", "backward pass: records more nodes", _ORANGE),
    "reference": ("NumPy, float64, from the formula", "prover, reference executor", _WHITE),
    "samples": ("x in -3 … 3, or -20 … 20", "prover, tests, the tables of ops", _WHITE),
    "error_samples": ("silu of integers: DtypeError", "tests of what must fail", _WHITE),
}


def record_svg() -> str:
    """The record of silu, and which parts of the library read which of its fields."""
    missing = [name for name in FIELDS if not hasattr(REGISTRY["silu"], name)]
    assert not missing, f"an op has no {missing[0]}"
    row, top, left, middle = 30, 62, 20, 470
    svg = Svg(860, top + row * len(FIELDS) + 22)
    svg.text(left, 24, "The record of silu", 15, font_weight="bold")
    svg.text(left, 44, "one block in one file", 11, fill=_GREY)
    svg.text(middle + 60, 44, "who reads it", 11, fill=_GREY)
    for k, (name, (value, reader, fill)) in enumerate(FIELDS.items()):
        y = top + row * k
        svg.rect(left, y, middle - left, row, fill=fill, stroke=_GREY)
        svg.text(left + 10, y + 19, name, 12, font_weight="bold")
        svg.text(left + 130, y + 19, value, 11, font_family=MONO)
        _arrow(svg, middle + 4, middle + 52, y + row / 2)
        svg.text(middle + 60, y + 19, reader, 12)
    return str(svg)


def _arrow(svg: Svg, start: float, end: float, y: float, color: str = _GREY) -> None:
    svg.line(start, y, end, y, stroke=color, stroke_width=1.2)
    svg.path([(end - 6, y - 4), (end, y), (end - 6, y + 4)], stroke=color, stroke_width=1.2)


def gguf_svg() -> str:
    """A small model's file from its first byte to its last, and what becomes of its parts."""
    config = LlamaConfig(n_vocab=512, n_ctx=64, n_embd=64, n_head=4, n_layer=2, n_ff=192)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        save_llama(path, Llama(config).init(seed=1))
        with GgufFile(path) as file:
            return _gguf_svg(file, path.stat().st_size)


def _gguf_svg(file: GgufFile, size: int) -> str:
    tensors = sorted(file.tensors.values(), key=lambda info: info.offset)
    shown = [*tensors[:5], None, *tensors[-2:]]
    top, left, middle = 76, 90, 470
    heights = [44, 20 * 7 + 16, 34, *(22 if info is None else 30 for info in shown)]
    svg = Svg(860, top + sum(heights) + 60)
    svg.text(left, 24, f"A model of {size:,} bytes in a GGUF file", 15, font_weight="bold")
    svg.text(left, 44, "from the first byte to the last; heights are not to scale", 11, fill=_GREY)
    svg.text(middle + 60, 44, "what becomes of it when the model is opened", 11, fill=_GREY)
    y = float(top)

    def part(height: int, fill: str, offset: int | None = None) -> float:
        nonlocal y
        svg.rect(left, y, middle - left, height, fill=fill, stroke=_GREY)
        if offset is not None:
            at = f"{offset:,}"
            svg.text(left - 8, y + 12, at, 10, fill=_GREY, text_anchor="end", font_family=MONO)
        y += height
        return y - height

    at = part(heights[0], _WHITE, 0)
    svg.text(left + 10, at + 18, "GGUF", 12, font_weight="bold", font_family=MONO)
    counts = f"version 3, {len(file.metadata)} entries, {len(tensors)} tensors"
    svg.text(left + 10, at + 35, counts, 11)
    _arrow(svg, middle + 4, middle + 52, at + 22)
    svg.text(middle + 60, at + 26, "each count is held against the bytes there are", 12)
    at = part(heights[1], _GREEN)
    svg.text(left + 10, at + 19, "entries", 12, font_weight="bold")
    keys = [k for k in file.metadata if k.startswith("llama.")][:5]
    for k, line in enumerate([*(f"{key} = {file.metadata[key]}" for key in keys), "…"]):
        svg.text(left + 10, at + 39 + 19 * k, line, 10, font_family=MONO)
    _arrow(svg, middle + 4, middle + 52, at + 78)
    svg.text(middle + 60, at + 72, "LlamaConfig: the sizes", 12)
    svg.text(middle + 60, at + 90, "Tokenizer: the tokenizer.* entries", 12)
    at = part(heights[2], _GREEN)
    svg.text(left + 10, at + 21, "tensor records", 12, font_weight="bold")
    svg.text(left + 130, at + 21, "name, axes, type, offset", 11)
    _arrow(svg, middle + 4, middle + 52, at + 17)
    svg.text(middle + 60, at + 21, "checked: names, axes, types, places in the file", 12)
    begin = y
    for height, info in zip(heights[3:], shown, strict=True):
        if info is None:
            at = part(height, _WHITE)
            svg.text(left + 10, at + 15, f"… {len(tensors) - len(shown) + 1} more", 10, fill=_GREY)
        else:
            _draw_tensor(svg, info, part(height, _BLUE, info.offset), left, middle)
    svg.text(left - 8, y + 4, f"{size:,}", 10, fill=_GREY, text_anchor="end", font_family=MONO)
    for k, line in enumerate(_MAPPED):
        svg.text(middle + 60, begin + 84 + 18 * k, line, 12)
    bracket = [(middle + 8, begin + 4), (middle + 16, begin + 4), (middle + 16, y - 4)]
    svg.path([*bracket, (middle + 8, y - 4)], stroke=_GREY, stroke_width=1.2)
    _arrow(svg, middle + 16, middle + 52, begin + 98)
    text = "offsets of tensors are multiples of general.alignment, 32; axes are in ggml's order, "
    svg.text(left, y + 28, text + "the contiguous one first", 11, fill=_GREY)
    return str(svg)


_MAPPED = (
    "mapped, not copied: a weight is a leaf of the",
    "graph whose memory is these bytes of the file.",
    "Processes share them; the system drops them and",
    "reads them again as it needs memory.",
)


def _draw_tensor(svg: Svg, info: TensorInfo, y: float, left: float, middle: float) -> None:
    svg.text(left + 10, y + 19, info.name, 11, font_family=MONO)
    axes = " × ".join(map(str, reversed(info.shape)))
    text = f"{axes}  {info.type}"
    svg.text(middle - 10, y + 19, text, 11, text_anchor="end", fill=_GREY)


DIAGRAMS: dict[str, Callable[[], str]] = {"record.svg": record_svg, "gguf.svg": gguf_svg}
