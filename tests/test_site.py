"""What makes a site of the documents: links, notebooks, examples of docstrings."""

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("mkdocs", reason="the extra docs is not installed")

ROOT = Path(__file__).parents[1]


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks, docstrings = load("hooks"), load("docstrings")


def links(text: str, uri: str) -> list[str]:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=uri))
    return re.findall(r"\]\(([^)]+)\)", hooks.on_page_markdown(text, page, None, None))


def test_links_between_files_become_links_between_pages():
    text = "[a](../notebooks/1_graph.ipynb) [b](ops.md#silu) [c](../CONTRIBUTING.md) [d](#here)"
    assert links(text, "index.md") == [
        "notebooks/1_graph.md",
        "ops.md#silu",
        "CONTRIBUTING.md",
        "#here",
    ]
    assert links("[a](docs/ops.md) [b](https://a.b/c)", "CONTRIBUTING.md") == [
        "ops.md",
        "https://a.b/c",
    ]
    assert links("[a](../docs/ops.md#add)", "notebooks/1_graph.md") == ["../ops.md#add"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_become_pages_with_all_that_is_in_them(path):
    content = json.loads(path.read_text("utf-8"))
    page = hooks.notebook(content)
    code = [c for c in content["cells"] if c["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert page.count("```python\n") == len(code)
    assert len(re.findall(r'^<(?:div|pre) class="output">', page, flags=re.M)) == len(outputs)
    assert page.count("<svg") == sum("image/svg+xml" in o.get("data", {}) for o in outputs)
    prose = re.sub(r"```python\n.*?```|<pre.*?</pre>", "", page, flags=re.S)
    assert "$" not in prose, "a formula that is not shown as one"


def test_every_page_has_a_place_in_the_navigation():
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    named = set(re.findall(r"[\w/]+\.md$", config, flags=re.M))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert named == pages | set(hooks.BESIDE.values())


def test_examples_of_docstrings_become_code():
    text = "Adds.\n\n>>> 1 + 1\n2\n\n>>> 2\n2\n\nMore."
    want = "Adds.\n\n```pycon\n>>> 1 + 1\n2\n\n>>> 2\n2\n```\n\nMore."
    assert docstrings.as_markdown(text) == want
    section = "Adds.\n\nRaises:\n    ShapeError: no\n    axes. OSError: no file.\n\n>>> 1\n1"
    assert docstrings.as_markdown(section) == (
        "Adds.\n\nRaises:\n    ShapeError: no axes.\n    OSError: no file.\n\n"
        "```pycon\n>>> 1\n1\n```"
    )
    assert docstrings.as_markdown("As in::\n\n    x = 1") == "As in:\n\n    x = 1"
