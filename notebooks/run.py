"""Run a notebook without Jupyter, and store what its cells show.

    python notebooks/run.py [--check] FILE

The cells run in order in one namespace, as a kernel would run them. What is stored is what Jupyter
stores, but for the notes that pictures show under the pointer, which are most of their bytes. With
`--check` nothing is written: it fails if a cell raises, or shows other kinds of things than are
stored.
"""

import ast
import contextlib
import io
import json
import linecache
import re
import sys
from pathlib import Path
from typing import Any

Output = dict[str, Any]

_NOTES = re.compile(
    r'<!--.*?-->\n?|<g id="a_[^"]*"><a [^>]*>\n|</a>\n</g>\n|<title>.*?</title>\n?', re.DOTALL
)
_SHOWN = {"_repr_svg_": "image/svg+xml", "_repr_html_": "text/html"}


class Cells:
    """The code cells of a notebook, run one after the other.

    Args:
        name: of the notebook, for tracebacks.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._outputs: list[Output] = []
        self._space: dict[str, Any] = {"__name__": "__main__", "display": self._display}

    def run(self, source: str, number: int) -> list[Output]:
        """Run a cell; what it prints and shows, in the order it does, as a notebook holds it."""
        self._outputs = []
        file = f"{self._name}[{number}]"
        linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
        body = ast.parse(source, file).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(_Printed(self._outputs)):
            exec(compile(ast.Module(body, []), file, "exec"), self._space)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), file, "eval"), self._space)
                if value is not None:
                    result = {"output_type": "execute_result", "execution_count": number}
                    self._outputs.append(result | {"metadata": {}, "data": _data_of(value)})
        return self._outputs

    def _display(self, value: Any, raw: bool = False) -> None:
        """What Jupyter calls display; raw values are what is shown by type."""
        data = _trimmed(value) if raw else _data_of(value)
        self._outputs.append({"output_type": "display_data", "metadata": {}, "data": data})


class _Printed(io.TextIOBase):
    """Takes what is printed, and adds it to a cell's outputs."""

    def __init__(self, outputs: list[Output]) -> None:
        self._outputs = outputs

    def write(self, text: str) -> int:
        if not self._outputs or self._outputs[-1]["output_type"] != "stream":
            self._outputs.append({"output_type": "stream", "name": "stdout", "text": ""})
        self._outputs[-1]["text"] += text
        return len(text)


def _data_of(value: Any) -> dict[str, str]:
    """What an object shows of itself, by type of content."""
    methods = {kind: getattr(value, name, None) for name, kind in _SHOWN.items()}
    data = {kind: method() for kind, method in methods.items() if method is not None}
    return _trimmed({"text/plain": repr(value), **{k: v for k, v in data.items() if v is not None}})


def _trimmed(data: dict[str, str]) -> dict[str, str]:
    return {k: _NOTES.sub("", v) if k == "image/svg+xml" else v for k, v in data.items()}


def run(notebook: dict[str, Any], name: str) -> None:
    """Run all code cells and put what they show into them."""
    cells, number = Cells(name), 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            number += 1
            outputs = cells.run("".join(cell["source"]), number)
            cell["execution_count"], cell["outputs"] = number, [_in_lines(o) for o in outputs]


def _in_lines(output: Output) -> Output:
    """Text as lists of lines, which is how Jupyter writes it."""
    if "text" in output:
        return output | {"text": output["text"].splitlines(keepends=True)}
    data = {kind: text.splitlines(keepends=True) for kind, text in output["data"].items()}
    return output | {"data": data}


def kinds(notebook: dict[str, Any]) -> list[list[tuple[str, ...]]]:
    """Of each code cell the kinds of what it shows."""
    return [
        [(output["output_type"], *sorted(output.get("data", ()))) for output in cell["outputs"]]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


def main() -> None:
    path = Path(sys.argv[-1])
    notebook = json.loads(path.read_text("utf-8"))
    stored = kinds(notebook)
    run(notebook, path.name)
    if "--check" not in sys.argv:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return
    for number, (before, now) in enumerate(zip(stored, kinds(notebook), strict=True), 1):
        if before != now:
            sys.exit(f"{path}: cell {number} shows {now}, stored is {before}. Store it anew.")


if __name__ == "__main__":
    main()
