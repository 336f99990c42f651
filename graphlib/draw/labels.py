"""The text in the boxes of a picture of a graph."""

from __future__ import annotations

from pathlib import PurePath

from yupana.graphlib.draw.boxes import Box, common_name
from yupana.graphlib.draw.details import Details
from yupana.graphlib.draw.text import escape, printable
from yupana.graphlib.tensor import Tensor

_SMALL = 8  # points
_MANY = 5  # sources; more are said as numbers only
_WIDE = 46  # letters of a line
_FEW = 3  # names of what is not drawn


def box_label(box: Box, details: Details) -> str:
    """What stands in a box, in the HTML of graphviz."""
    tensor = box.tensor
    shape = f"{tensor.dtype.name} {tensor.shape}"
    lines = [_heading(box)]
    if box.name:
        lines.append(small(shape))
    else:
        lines[0] += "  " + small(shape)
    if said := details.line([tensor] if box.is_sum else box.tensors):
        lines.append(small(said))
    lines += [small(line) for line in _references(box)]
    if box.partners:
        lines.append(small(f"one kernel with {_reference(box.partners[0], [])}"))
    if box.data:
        owner = box.tensor.root.name and common_name([t.root.name for t in box.tensors])
        names = [leaf.name or _value(leaf.tensor) for leaf in box.data]
        lines += [small(line) for line in _packed("with", [_shortened(n, owner) for n in names])]
    if box.feeds:
        numbers = ", ".join(str(reader.number) for reader in box.feeds)
        lines.append(small(f"to {numbers} of the next layer"))
    if box.cut_sources:
        lines.append(small("… also reads " + _some(list(dict.fromkeys(box.cut_sources)))))
    if box.n_cut_readers:
        lines.append(small(f"… also read by {box.n_cut_readers}"))
    return "<" + "<br/>".join(lines) + ">"


def _some(labels: list[str]) -> str:
    more = f" and {len(labels) - _FEW} more" if len(labels) > _FEW else ""
    return ", ".join(labels[:_FEW]) + more


def _heading(box: Box) -> str:
    tensor = box.tensor
    ops = " · ".join(box.ops)
    if box.is_view:
        return small(" ".join([str(box.number), ops, box.name]).rstrip())
    name = box.name or ops or _value(tensor)
    detail = f" = {ops}" if box.name and ops else ""
    return f"{box.number} <b>{escape(name)}</b>{escape(detail + _params(tensor))}"


def _params(tensor: Tensor) -> str:
    """Numbers among the parameters of an op, where they are few."""
    numbers = [f"{k}={v:g}" for k, v in tensor.params.items() if isinstance(v, int | float)]
    return f" ({', '.join(numbers)})" if 0 < len(numbers) <= 2 else ""


def _references(box: Box) -> list[str]:
    if len(box.reads) > _MANY:
        return _packed("reads", [str(source.number) for source, _ in box.reads])
    found: list[str] = []
    for source, views in box.reads:
        found.append(_reference(source, views, box.reads[0][0].name if found else ""))
    return _packed("reads", found)


def _packed(verb: str, words: list[str]) -> list[str]:
    """Words after a verb, in lines of a readable length.

    >>> _packed("reads", ["12 blk.*.ffn_down.weight", "61 its grad", "114 settings", "148 add"])
    ['reads 12 blk.*.ffn_down.weight, 61 its grad,', '114 settings, 148 add']
    """
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 2 <= _WIDE:
            lines[-1] += f", {word}"
        elif lines:
            lines[-1] += ","
            lines.append(word)
        else:
            lines.append(f"{verb} {word}")
    return lines


def _shortened(name: str, owner: str) -> str:
    """What belongs to a tensor just named, without that name.

    >>> _shortened("blk.0.wq.grad", "blk.0.wq")
    'its grad'
    """
    is_part = owner and name.startswith(f"{owner}.")
    return f"its {name.removeprefix(f'{owner}.')}" if is_part else name


def _reference(source: Box, views: list[Box], owner: str = "") -> str:
    ops = [view.ops[-1] for view in views]
    name = _shortened(source.name, owner) or " · ".join(source.ops)
    return " · ".join([f"{source.number} {name}".rstrip(), *ops])


def _value(leaf: Tensor) -> str:
    """What a leaf without a name is called: its value if it is a number, else its shape."""
    if leaf.size == 1 and leaf.has_value:
        return f"{leaf.item():g}"
    return f"{leaf.dtype.name} {leaf.shape}"


def tooltip(box: Box) -> str:
    """What shows under the pointer."""
    lines = [tensor.label for tensor in box.tensors]
    file, _, line = box.tensor.site.rpartition(":")
    if file:
        lines.append(f"recorded at {PurePath(file).name}:{line}")
    return printable("\n".join(lines))


def small(text: str) -> str:
    """Text in small letters."""
    return f'<font point-size="{_SMALL}">{escape(text)}</font>'
