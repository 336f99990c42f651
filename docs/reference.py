"""Write the reference of the ops, docs/ops.md: `python docs/reference.py`.

Text and formulas are the docstrings. What stands in the tables is read from the records, or seen
on calls that the ops' own samples draw, which are the calls they are proved for.
"""

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

import yupana as yp
from yupana.graphlib.errors import GradientError
from yupana.graphlib.methods import Methods
from yupana.graphlib.op import REGISTRY, Op
from yupana.graphlib.sampler import Sampler, random_numbers

OPS = "yupana.graphlib.ops."  # not those of somebody's own file
PAGE = Path(__file__).parent / "ops.md"
DRAWS = 60  # calls of each op that are looked at, as drawn; half as many with f64 throughout
DTYPES = ("f32", "f64", "f16", "bf16", "i32", "i16", "i8", "quantised")
WIDTH = 98
_SECTION = re.compile(
    r"(?:^|(?<=\. )|(?<=\)\. ))(?=(?:Args|Returns|Raises|Gradient|Source):)", re.M
)
METHODS = textwrap.fill(
    ", ".join(
        f"`{name}`" for name in sorted(vars(Methods)) if name[0] != "_" and hasattr(yp.ops, name)
    ),
    WIDTH,
    break_on_hyphens=False,
)
HEAD = f"""# Operations

Every op of the registry, and below them the functions composed of ops. All are in `yp.ops`. This
page is made by `python docs/reference.py` from the records and docstrings that the library itself
works with.

Those that are methods of tensors too, as in `x.silu()`:
{METHODS}.

In the tables, **shape** and **dtype** are those the op is proved for (`yupana check NAME` proves
them again), seen on calls that its samples draw. **Gradient** tells with respect to which sources
there is one: *twice* where it can be differentiated again, *once* where that is refused when the
second backward pass is built, *refused* where the first is; `–` is a source that no gradient
reaches, as an index. Sources whose **memory may be taken over** are not copied when nobody reads
them later. Shape letters: B batch, T time, D width, H heads, K head width, V vocabulary.
"""


@dataclass(frozen=True)
class Seen:
    """One call of an op: its sources by the names of the rule's arguments, and the result."""

    sources: dict[str, yp.Tensor]
    result: yp.Tensor


def look_at(op: Op[Any]) -> list[Seen]:
    """Calls as the op's samples draw them, recorded; the same ones every time."""
    seen = []
    for dtype, draws in ((None, DRAWS), ("f64", DRAWS // 2)):
        rng = np.random.default_rng(0)
        for _ in range(draws):
            call = op.samples(Sampler(random_numbers(rng), dtype=dtype))
            node = op(*call.args, **call.kwargs)
            seen.append(Seen(dict(_sources(op, call.args, call.kwargs, node)), node))
    return seen


def _sources(op: Op[Any], args: Any, kwargs: Any, node: yp.Tensor) -> Iterator[Any]:
    signature = inspect.signature(op.rule)
    given = signature.bind(*args, **kwargs).arguments
    tensors: dict[yp.Tensor, str] = {}
    for name, value in given.items():
        values = value if isinstance(value, tuple | list) else (value,)
        tensors.update((x, name) for x in reversed(values) if isinstance(x, yp.Tensor))
    for src in reversed(node.srcs):  # of several parts of one name the first counts: it comes last
        made_of = src
        while made_of not in tensors:  # the rule has copied what it was given
            made_of = made_of.srcs[0]
        yield tensors[made_of], src


def dtypes_of(tensors: list[yp.Tensor]) -> str:
    """The dtypes that occur."""
    names = {"quantised" if t.dtype.is_quantized else t.dtype.name for t in tensors}
    return ", ".join(name for name in DTYPES if name in names)


def result_dtype(seen: list[Seen]) -> str:
    """The dtype of the result as it follows from those of the sources."""
    got = [s.result.dtype.name for s in seen]
    if len(set(got)) == 1:
        return got[0]
    for name in _always(seen):
        if got == [s.sources[name].dtype.name for s in seen]:
            return f"that of `{name}`"
    floats = [{t.dtype.name for t in s.sources.values() if t.dtype.is_float} for s in seen]
    if got == [_widest(names) for names in floats]:
        return "the widest; f32 for f16 with bf16"
    blocks = [[t.dtype.name for t in s.sources.values() if t.dtype.is_quantized] for s in seen]
    if got == [b[0] if b else _widest(names) for b, names in zip(blocks, floats, strict=True)]:
        return "the widest; f32 for f16 with bf16; the type of a quantised source"
    if got == ["f64" if names == {"f64"} else "f32" for names in floats]:
        return "f64 where all floats are, else f32"
    for name in _always(seen):
        if got == [_wide(s.sources[name].dtype.name) for s in seen]:
            return f"f64 where `{name}` is, else f32"
    return dtypes_of([s.result for s in seen])


def _widest(names: set[str]) -> str:
    return next(iter(names)) if len(names) == 1 else _wide("f64" if "f64" in names else "f32")


def _wide(name: str) -> str:
    return "f64" if name == "f64" else "f32"


def _always(seen: list[Seen]) -> list[str]:
    """Sources that are never left out, in the order of the arguments."""
    return [name for name in _names(seen) if all(name in s.sources for s in seen)]


def _names(seen: list[Seen]) -> list[str]:
    longest = max(seen, key=lambda s: len(s.sources))
    return list(reversed(longest.sources))


def shape_of(pick: Callable[[Seen], yp.Tensor], earlier: list[str], seen: list[Seen]) -> str:
    """A shape in words: as that of an earlier source, or how many axes there are."""
    shapes = [pick(s).shape for s in seen]
    same = [name for name in earlier if shapes == [s.sources[name].shape for s in seen]]
    if len(same) < len(earlier) > 1 and shapes == [_broadcast(s, earlier) for s in seen]:
        return "broadcast"
    if same:
        return f"that of `{same[0]}`"
    least, most = min(map(len, shapes)), max(map(len, shapes))
    span = f"{least}" if least == most else f"{least} to {most}"
    return "one element" if most == 0 else f"{span} {'axis' if span == '1' else 'axes'}"


def _broadcast(seen: Seen, names: list[str]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(*(seen.sources[name].shape for name in names))
    except ValueError:
        return None


def gradient_of(op: Op[Any], index: int) -> str:
    """Whether a source has a gradient, and that gradient another."""
    if op.vjp is None:
        return "none: a constant" if op.stops_gradient else "refused"
    if op.vjp[index] is None:
        return "–"
    rng, found = np.random.default_rng(0), "–"
    for _ in range(20):
        call = op.samples(Sampler(random_numbers(rng), dtype="f32", smooth=True))
        node = op(*call.args, **call.kwargs)
        if index < len(node.srcs) and node.dtype.is_float and node.srcs[index].dtype.is_float:
            node.srcs[index].root.is_param = True
            found = _derived_twice(node)
            if found == "once":
                break
    return found


def _derived_twice(node: yp.Tensor) -> str:
    grads = yp.gradients(node.sqr().sum())
    try:
        for grad in grads.values():
            yp.gradients(grad.sqr().sum())
    except GradientError as error:
        # Other refusals are of this sum: constant, or of memory that is written to.
        return "once" if "has no gradient" in str(error) else "twice"
    return "twice"


def cost_of(op: Op[Any], seen: list[Seen]) -> str:
    """Floating-point operations by the sizes they grow with."""
    if op.is_view:
        return "none; it looks at the memory of its source"
    if not callable(op.cost):
        return _flops(op.cost, "per element of the result")
    seen = [s for s in seen if s.result.size and all(t.size for t in s.sources.values())]
    flops = [op.cost_of(s.result).flops for s in seen]
    for words, count in _counts(seen):
        rates = {round(f / count(s), 6) for f, s in zip(flops, seen, strict=True)}
        if len(rates) == 1:
            rate = rates.pop()
            return _flops(rate, words)
    return "counted from shapes and settings"


def _flops(rate: float, words: str) -> str:
    return f"{rate:g} FLOP{'s' if rate != 1 else ''} {words}" if rate else "bytes moved only"


def _counts(seen: list[Seen]) -> Iterator[tuple[str, Callable[[Seen], float]]]:
    yield "per element of the result", lambda s: s.result.size
    for name in _always(seen):
        yield f"per element of `{name}`", lambda s, n=name: s.sources[n].size
    for name in _always(seen):
        if all(s.sources[name].ndim for s in seen):
            words = f"per element of the result and of a row of `{name}`"
            yield words, lambda s, n=name: s.result.size * s.sources[n].shape[-1]
        if all(s.sources[name].ndim > 1 for s in seen):
            words = f"per element of the result and row of `{name}`"
            yield words, lambda s, n=name: s.result.size * s.sources[n].shape[-2]


def facts(op: Op[Any]) -> str:
    """The table of an op and its cost."""
    seen = look_at(op)
    names, always = _names(seen), _always(seen)
    rows = [_row("", "shape", "dtype", "gradient", "memory"), "|---|---|---|---|---|"]
    order = _positions(op, seen)
    for name in names:
        index, some = order[name], [s for s in seen if name in s.sources]
        earlier = always[: always.index(name)] if name in always else []
        memory = "may be taken over" if index in op.inplace else ""
        memory = "written to" if index in op.mutates else memory
        shape = shape_of(lambda s, n=name: s.sources[n], earlier, some)
        dtypes = dtypes_of([s.sources[name] for s in some])
        rows.append(_row(f"`{name}`", shape, dtypes, gradient_of(op, index), memory))
    shape = shape_of(lambda s: s.result, always, seen)
    viewed = all(s.result.view_src is not None for s in seen)
    memory = f"that of `{names[op.mutates[0] if op.mutates else 0]}`" if viewed else ""
    rows.append(_row("result", shape, result_dtype(seen), "", memory))
    return "\n".join([*rows, "", f"Work: {cost_of(op, seen)}."])


def _row(*cells: str) -> str:
    return re.sub(" +", " ", f"| {' | '.join(cells)} |")


def _positions(op: Op[Any], seen: list[Seen]) -> dict[str, int]:
    """Where each named source stands among the node's."""
    found: dict[str, int] = {}
    for s in seen:
        for name, src in s.sources.items():
            found.setdefault(name, next(k for k, x in enumerate(s.result.srcs) if x is src))
    return found


def signature_of(name: str, rule: Callable[..., Any]) -> str:
    """The call, with types other than tensors; one argument a line if it is long."""
    parts: list[str] = []
    for p in inspect.signature(rule).parameters.values():
        if p.kind is p.KEYWORD_ONLY and not any(part[0] == "*" for part in parts):
            parts.append("*")
        text = re.sub(r": '([^']*)'", r": \1", str(p))  # an annotation that is not evaluated
        text = re.sub(r"\b(?:[a-z_]\w*\.)+(\w+)", r"\1", text)
        parts.append(text.removesuffix(": Tensor"))
    line = f"{name}({', '.join(parts)})"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), ")"])


def description(doc: str, names: Collection[str] = ()) -> tuple[str, str]:
    """A docstring as Markdown, and its example; `names` are the arguments'."""
    text, mark, example = inspect.cleandoc(doc).partition("\n>>> ")
    first, *sections = _SECTION.split(text)
    parts = [first.strip()]
    for section in sections:
        title, _, body = section.partition(":")
        if title == "Args":
            parts.append(_arguments(body, names))
        else:
            parts.append(_filled(f"**{title}**", body))
    return "\n\n".join(parts), f"{mark.strip()} {example}".strip()


def _arguments(body: str, names: Collection[str]) -> str:
    """One line an argument; a line of a docstring may describe several."""
    text = textwrap.dedent(body.strip("\n"))
    one = "|".join(sorted(map(re.escape, names), reverse=True)) or "$"
    start = re.compile(rf"(?:^|(?<=\. ))((?:{one})(?:, (?:{one}))*): ", flags=re.M)
    before, *pairs = start.split(text)
    items = [before] if before.strip() else []
    for listed, what in zip(pairs[::2], pairs[1::2], strict=True):
        items.append(f"{', '.join(f'`{name}`' for name in listed.split(', '))}: {what}")
    return "\n".join(_fill(f"- {item}", "  ") for item in items)


def _filled(title: str, body: str) -> str:
    paragraphs = re.split(r"\n\s*\n", body.strip())
    return "\n\n".join(_fill(f"{title} {p}" if k == 0 else p) for k, p in enumerate(paragraphs))


def _fill(text: str, indent: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def entry(name: str, rule: Callable[..., Any], doc: str, table: str = "") -> str:
    """The part of the page that describes one op or function."""
    text, example = description(doc, inspect.signature(rule).parameters)
    parts = [f"### {name}", f"```\n{signature_of(name, rule)}\n```", text, table]
    if example:
        parts.append(f"```pycon\n{example}\n```")
    return "\n\n".join(part for part in parts if part)


def composed() -> dict[str, Callable[..., Any]]:
    """Public functions made of ops, those that say what they follow."""
    found = {n: f for n, f in vars(yp.ops).items() if isinstance(f, FunctionType)}
    return {
        n: f for n, f in sorted(found.items()) if n[0] != "_" and "Source:" in (f.__doc__ or "")
    }


def page() -> str:
    """The whole page."""
    ops = {n: op for n, op in sorted(REGISTRY.items()) if op.rule.__module__.startswith(OPS)}
    families = sorted({op.family for op in ops.values()})
    by_family = {f: [op for op in ops.values() if op.family == f] for f in families}
    functions = composed()
    listed = [f"- [{f}](#{f}-ops): {_links([op.name for op in by_family[f]])}" for f in families]
    listed.append(f"- [composed functions](#composed-functions): {_links(list(functions))}")
    parts = [HEAD.strip(), "\n".join(_fill(line, "  ") for line in listed)]
    for family in families:
        parts.append(f"## {family} ops")
        parts += [entry(op.name, op.rule, op.doc, facts(op)) for op in by_family[family]]
    parts.append("## Composed functions")
    parts.append("They record ops, which is where their gradients come from.")
    parts += [entry(name, f, f.__doc__ or "") for name, f in functions.items()]
    return "\n\n".join(parts) + "\n"


def _links(names: list[str]) -> str:
    return ", ".join(f"[{name}](#{name})" for name in names)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
