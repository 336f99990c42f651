"""docs/ops.md: it is what the records say, and what it says of ops is so."""

import difflib
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib.op import REGISTRY

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("reference_page", ROOT / "docs" / "reference.py")
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

OWN = [n for n, op in REGISTRY.items() if op.rule.__module__.startswith(reference.OPS)]


def table(name: str) -> dict[str, list[str]]:
    """The table of an op by its first column, without the names' backticks."""
    rows = [line for line in reference.facts(REGISTRY[name]).splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
    return {row[0].strip("`"): row[1:] for row in cells}


def work(name: str) -> str:
    return reference.facts(REGISTRY[name]).splitlines()[-1]


def test_the_page_is_what_the_records_say():
    made, there = reference.page(), reference.PAGE.read_text("utf-8")
    lines = list(difflib.unified_diff(there.splitlines(), made.splitlines(), "page", "records"))
    assert made == there, (
        "docs/ops.md is not what the records say: run `python docs/reference.py` and commit the "
        "page it writes.\n" + "\n".join(lines[:30])
    )


def test_every_op_and_function_has_a_place_on_the_page():
    text = reference.PAGE.read_text("utf-8")
    heads = re.findall(r"^### (\w+)$", text, flags=re.M)
    assert sorted(heads) == sorted([*OWN, *reference.composed()])
    assert len(set(heads)) == len(heads), "an anchor leads to the first of two"
    linked = re.findall(r"\]\(#(\w+)\)", text)
    assert sorted(linked) == sorted(heads)
    families = {op.family for op in REGISTRY.values() if op.name in OWN}
    assert re.findall(r"^## (\w+) ops$", text, flags=re.M) == sorted(families)


@pytest.mark.parametrize("name", OWN)
def test_docstrings_say_what_the_page_promises(name):
    doc = REGISTRY[name].doc
    assert [word for word in ("Gradient:", "Source:", ">>> ") if word not in doc] == []


def test_tables_tell_shapes_and_dtypes_as_sources_decide_them():
    all_floats = "f32, f64, f16, bf16"
    assert table("silu")["x"][:2] == ["0 to 4 axes", all_floats]
    assert table("silu")["result"][:2] == ["that of `x`", "that of `x`"]
    widest = "the widest; f32 for f16 with bf16"
    assert table("mul")["result"][:2] == ["broadcast", widest]
    assert table("add")["result"][:2] == ["broadcast", f"{widest}; the type of a quantised source"]
    assert table("silu_back")["g"][0] == "that of `x`"
    assert table("sum")["result"][0] == "one element"
    assert table("argsort")["result"][1] == "i32"
    assert table("get_rows")["index"][1] == "i32"
    assert table("mul_mat")["w"][1] == f"{all_floats}, quantised"
    assert table("mul_mat")["result"][1] == "f64 where all floats are, else f32"


def test_tables_tell_which_gradients_exist():
    assert table("rms_norm")["x"][2] == "twice"
    assert table("rope")["positions"][2] == "–"
    assert table("cross_entropy_loss")["logits"][2] == "once"
    assert {row[2] for name, row in table("opt_step_adamw").items() if name != "result"} == {
        "refused"
    }


@pytest.mark.parametrize("name", ["cross_entropy_loss"])
def test_a_gradient_said_to_exist_once_is_refused_twice(name):
    logits = yp.Context().param((2, 3)).set(np.ones((2, 3)))
    loss = REGISTRY[name](logits, logits.context.tensor([0, 1]))
    grad = yp.gradients(loss)[logits]
    with pytest.raises(yp.errors.GradientError, match=f"{name}_back: has no gradient"):
        yp.gradients(grad.sum())


def test_tables_tell_what_happens_to_memory():
    assert [row[3] for row in table("mul").values()] == ["may be taken over"] * 2 + [""]
    assert table("opt_step_adamw")["v"][3] == "written to"
    assert table("opt_step_adamw")["result"][3] == "that of `param`"
    assert table("transpose")["result"][3] == "that of `x`"
    assert table("cont")["x"][3] == ""


def test_work_is_told_by_the_sizes_it_grows_with():
    assert work("sqr") == "Work: 1 FLOP per element of the result."
    assert work("sum") == "Work: 1 FLOP per element of `x`."
    assert work("mul_mat") == "Work: 2 FLOPs per element of the result and of a row of `w`."
    assert work("out_prod") == "Work: 2 FLOPs per element of the result and row of `a`."
    assert work("transpose").startswith("Work: none")
    assert work("cont") == "Work: bytes moved only."


def test_docstrings_become_markdown():
    def rule(x, low: float, *, high: "float | None" = None, kind="a"):
        """Limit: y = max(x, low).

            y = x

        Args:
            x: (…, D) float, described
                at length. low, high: the limits.
            kind: of limit.
        Returns:
            The shape of `x`.
        Gradient: with respect to `x`. Source: nobody, eq. 4;
        somebody.

        >>> 1 + 1
        2
        """

    assert reference.signature_of("f", rule) == (
        "f(x, low: float, *, high: float | None = None, kind='a')"
    )
    assert reference.entry("f", rule, rule.__doc__, "TABLE").split("\n\n") == [
        "### f",
        "```\nf(x, low: float, *, high: float | None = None, kind='a')\n```",
        "Limit: y = max(x, low).",
        "    y = x",
        "- `x`: (…, D) float, described at length.\n- `low`, `high`: the limits.\n"
        "- `kind`: of limit.",
        "**Returns** The shape of `x`.",
        "**Gradient** with respect to `x`.",
        "**Source** nobody, eq. 4; somebody.",
        "TABLE",
        "```pycon\n>>> 1 + 1\n2\n```",
    ]


def test_a_long_call_takes_a_line_for_each_argument():
    def rule(one_long_name: int, another_long_name: str = "x" * 60, the_last: float = 1.0):
        """Nothing."""

    lines = reference.signature_of("f", rule).splitlines()
    assert lines[0] == "f("
    assert lines[1] == "    one_long_name: int,"
    assert lines[-1] == ")"
