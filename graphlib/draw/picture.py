"""Pictures written to files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import graphviz

from yupana.graphlib.draw.details import Details
from yupana.graphlib.draw.dot import to_dot
from yupana.graphlib.draw.outline import make_outline
from yupana.graphlib.draw.plan import plan_svg
from yupana.graphlib.draw.select import Which
from yupana.graphlib.draw.select import between as find_between
from yupana.graphlib.draw.select import neighbourhood as find_neighbourhood
from yupana.graphlib.draw.timeline import profile_svg
from yupana.graphlib.draw.trace import trace_json
from yupana.graphlib.errors import GraphError, SettingError
from yupana.graphlib.graph import Graph
from yupana.graphlib.memory import Plan
from yupana.graphlib.profile import Profile

_RENDERED = (".svg", ".png", ".pdf")
_SOURCE = (".dot", ".gv")
_PAGE = "11.1,7.7"  # inches that a printer reaches on A4 across
_MOST_BOXES = 500  # in a notebook


class Wanted(TypedDict, total=False):
    """What `draw_graph` can be asked to show of each tensor; see `Details`."""

    sizes: bool
    flops: bool
    profile: Profile | None
    plan: Plan | None


def draw_graph(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    title: str = "",
    fold: bool = True,
    fuse: bool = True,
    around: Which | None = None,
    depth: int = 3,
    between: tuple[Which, Which] | None = None,
    **details: Unpack[Wanted],
) -> Path:
    """Draw a graph: what it reads, computes, differentiates and writes.

    Boxes are numbered. Where arrows would be too many to follow, a box says the numbers of what
    it reads. Layers repeated alike are drawn once, in a frame with their number.

    Args:
        path: a file ending in .svg, .png or .pdf, which the program `dot` of graphviz draws; or
            in .dot, its source. A PDF fits a page of A4.
        fold: draw repeated layers once.
        fuse: frame the nodes that a compiled program runs as one kernel.
        around: draw what is near a tensor only: itself or its name; the part before a dot stands
            for all that it begins, as "blk.0.attn_q" for weight and bias.
        depth: how many arrows are near.
        between: draw what lies between two tensors only, again by name or themselves.
        sizes: show bytes.
        flops: show the floating-point operations of each node.
        profile: show measured times, from `yupana.graphlib.profile.profile` of a program of the
            graph; a joint kernel's stands in its last box.
        plan: show where in the arena results lie.
            What stands for several layers shows bytes and work of one, the mean of times, and the
            first and last place.
    Returns:
        The file written. Where `dot` is missing that is the source, ending in .dot, and a warning
        says what to install.
    Raises:
        SettingError: the suffix is another, the folder does not exist, or profile or plan are of
            another graph.
        GraphError: no tensor of that name, no path, or `dot` failed.

    >>> import tempfile
    >>> import yupana as yp
    >>> x = yp.tensor([1.0, 2.0], name="x")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(draw_graph(yp.Graph(x.silu()), f"{folder}/silu.dot").name)
    silu.dot
    """
    target = check_path("draw", path, (*_RENDERED, *_SOURCE))
    if around is not None and between is not None:
        raise SettingError("draw: got both around and between, want one of them.")
    part = None
    if around is not None:
        part = find_neighbourhood(graph, around, depth)
    elif between is not None:
        part = find_between(graph, between)
    outline = make_outline(graph, fold, fuse, part)
    page = _PAGE if target.suffix == ".pdf" else ""
    source = to_dot(outline, title, Details.of(graph.nodes, **details), page)
    if target.suffix in _SOURCE:
        return _write(target, source.encode())
    picture = _render(source, target.suffix[1:], str(target))
    return _write_source(target, source) if picture is None else _write(target, picture)


def graph_svg(graph: Graph) -> str | None:
    """A graph as SVG for a notebook; None if `dot` is missing or the picture would be too large."""
    outline = make_outline(graph)
    if len(outline.boxes) > _MOST_BOXES:
        return None
    picture = _render(to_dot(outline, "", Details()), "svg", "a graph")
    if picture is None:
        return None
    text = picture.decode()
    return text[text.index("<svg") :]


def _render(source: str, suffix: str, what: str) -> bytes | None:
    """What `dot` makes of it; None if it is not installed."""
    try:
        return bytes(graphviz.Source(source).pipe(suffix))
    except graphviz.ExecutableNotFound:
        return None
    except graphviz.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip()
        raise GraphError(
            f"draw: the program dot failed on {what}: {said}. A path ending in .dot gets its "
            "source."
        ) from error


def draw_plan(
    plan: Plan,
    path: str | os.PathLike[str],
    *,
    title: str = "",
    against: Mapping[str, Plan] | None = None,
) -> Path:
    """Draw the memory of a plan over time: a rectangle for each block of the arena.

    To the right run the tasks, upwards the bytes. Rectangles are coloured by class; lines mark
    the peak and the lower bound; large blocks carry their names.

    Args:
        path: a file ending in .svg.
        against: title to plan of others, drawn below on the same scales.
    Returns:
        The file written.
    Raises:
        SettingError: the suffix is another, or the folder does not exist.

    >>> import tempfile
    >>> import yupana as yp
    >>> plan = yp.Graph(yp.tensor([1.0, 2.0]).exp()).plan()
    >>> draw_plan(plan, Path(tempfile.mkdtemp()) / "plan.svg").name
    'plan.svg'
    """
    target = check_path("draw", path, (".svg",))
    return _write(target, plan_svg(plan, title, against).encode())


def draw_profile(
    profile: Profile,
    path: str | os.PathLike[str],
    *,
    title: str = "",
    zoom: tuple[float, float] | None = None,
) -> Path:
    """Draw the watched run of a profile: for each thread what it computes, against time.

    Below stand the ops that take most time, with what they achieve on one thread.

    Args:
        path: a file ending in .svg.
        zoom: first and last ms of a part to enlarge; None: the first tenth of a run of many steps.
    Returns:
        The file written.
    Raises:
        SettingError: the suffix is another, the folder does not exist, or `zoom` lies outside.

    >>> import tempfile
    >>> import yupana as yp
    >>> program = yp.Graph(yp.tensor([1.0, 2.0]).exp()).compile(threads=1)
    >>> found = yp.graphlib.profile.profile(program)
    >>> draw_profile(found, Path(tempfile.mkdtemp()) / "run.svg").name
    'run.svg'
    """
    target = check_path("draw", path, (".svg",))
    whole = profile.watched.ns / 1e6
    if zoom is not None and not 0 <= zoom[0] < zoom[1] <= whole:
        raise SettingError(f"draw: zoom: got {zoom}, want two times from 0 to {whole:.4g} ms.")
    return _write(target, profile_svg(profile, title, zoom).encode())


def save_trace(profile: Profile, path: str | os.PathLike[str]) -> Path:
    """Write the watched run of a profile as a trace that chrome://tracing and Perfetto open.

    Args:
        path: a file ending in .json.
    Returns:
        The file written.
    Raises:
        SettingError: the suffix is another, or the folder does not exist.
    """
    target = check_path("trace", path, (".json",))
    return _write(target, trace_json(profile).encode())


def check_path(what: str, path: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    """`path`, if it has one of the suffixes and its folder exists."""
    target = Path(path)
    if target.suffix not in suffixes:
        raise SettingError(
            f"{what}: got file {target}, want a name ending in {' '.join(suffixes)}."
        )
    if not target.parent.is_dir():
        raise SettingError(f"{what}: got file {target}, want one in a folder that exists. Make it.")
    return target


def _write_source(target: Path, source: str) -> Path:
    beside = _write(target.with_suffix(".dot"), source.encode())
    warnings.warn(
        f"draw: the program dot is missing, so {beside} was written instead of {target}. Install "
        "graphviz (Debian: apt install graphviz; macOS: brew install graphviz), then "
        f"`dot -T{target.suffix[1:]} {beside} -o {target}`.",
        stacklevel=4,
    )
    return beside


def _write(target: Path, content: bytes) -> Path:
    """Write the whole file or nothing."""
    unfinished = target.with_name(f".{target.name}.part")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target
