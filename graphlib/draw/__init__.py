"""Pictures of graphs, memory plans and measured runs; they need no display."""

from yupana.graphlib.draw.html import program_html, tensor_html
from yupana.graphlib.draw.picture import (
    draw_graph,
    draw_plan,
    draw_profile,
    graph_svg,
    save_trace,
)
from yupana.graphlib.draw.plan import plan_svg
from yupana.graphlib.draw.terminal import show_graph, show_plan, show_profile, show_program
from yupana.graphlib.draw.timeline import profile_svg

__all__ = [
    "draw_graph",
    "draw_plan",
    "draw_profile",
    "graph_svg",
    "plan_svg",
    "profile_svg",
    "program_html",
    "save_trace",
    "show_graph",
    "show_plan",
    "show_profile",
    "show_program",
    "tensor_html",
]
