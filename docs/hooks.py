"""What mkdocs does not do by itself: pages that lie beside docs/, and notebooks as pages.

The documents link to each other as files of the repository, so that they can be read there too.
Here such a link becomes one between pages of the site.
"""

import html
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert as mathml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Files of the repository outside docs/, and the pages they become.
BESIDE = {name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md")} | {
    f"notebooks/{path.name}": f"notebooks/{path.stem}.md"
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}
_PLACES = {page: place for place, page in BESIDE.items()}
_LINK = re.compile(r"(?<=\]\()(?!https?:)([^)\s#]+)(?=[)#])")
_MATH = re.compile(r"(\$\$?)(.+?)\1", flags=re.DOTALL)


def on_files(files: Files, config: MkDocsConfig):
    """Add the pages that lie beside docs/."""
    for place, page in BESIDE.items():
        text = (ROOT / place).read_text("utf-8")
        text = text if place == page else notebook(json.loads(text))
        files.append(File.generated(config, page, content=text))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files):
    """Turn links between files into links between pages."""
    here = page.file.src_uri
    folder = posixpath.dirname(_PLACES.get(here, f"docs/{here}"))

    def target(match: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(folder, match[1]))
        uri = BESIDE.get(place, place.removeprefix("docs/"))
        return posixpath.relpath(uri, posixpath.dirname(here) or ".")

    return _LINK.sub(target, markdown)


def notebook(content: dict[str, Any]) -> str:
    """A notebook as Markdown: prose, code, and what was stored as its output."""
    return "\n\n".join(
        part
        for cell in content["cells"]
        for part in (_code(cell) if cell["cell_type"] == "code" else [_prose(cell)])
    )


def _prose(cell: dict[str, Any]) -> str:
    def formula(match: re.Match[str]) -> str:
        return mathml(match[2], display="block" if match[1] == "$$" else "inline")

    return _MATH.sub(formula, "".join(cell["source"]))


def _code(cell: dict[str, Any]) -> list[str]:
    shown = [_output(output) for output in cell["outputs"]]
    return [f"```python\n{''.join(cell['source'])}\n```", *shown]


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {"text/plain": output.get("text", "")})
    for kind in ("image/svg+xml", "text/html"):
        if kind in data:
            lines = "".join(data[kind]).splitlines()
            return f'<div class="output">{" ".join(lines)}</div>'
    text = html.escape("".join(data["text/plain"]).rstrip())
    return f'<pre class="output">{text}</pre>'
