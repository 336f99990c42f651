"""The rules of the repository's frame: layers, links, packages, names, sizes."""

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LINKED = ("graphlib", "models", "train")

# From top to bottom; a module imports from its own layer and from those below.
# A name covers the modules inside it, except that each module of graphlib is named.
LAYERS = (
    ("yupana",),
    ("yupana.train",),
    ("yupana.models",),
    (
        "yupana.graphlib.draw",
        "yupana.graphlib.limits",
        "yupana.graphlib.profile",
        "yupana.graphlib.watch",
        "yupana.graphlib.check",
        "yupana.graphlib.compare",
        "yupana.graphlib.properties",
        "yupana.graphlib.finite",
        "yupana.graphlib.reference",
        "yupana.graphlib.sampler",
    ),
    (
        "yupana.graphlib.graph",
        "yupana.graphlib.autograd",
        "yupana.graphlib.remat",
        "yupana.graphlib.budget",
        "yupana.graphlib.order",
        "yupana.graphlib.memory",
        "yupana.graphlib.task",
        "yupana.graphlib.needs",
        "yupana.graphlib.fusion",
        "yupana.graphlib.schedule",
        "yupana.graphlib.program",
        "yupana.graphlib.pool",
        "yupana.graphlib.verify",
    ),
    ("yupana.graphlib.ops",),
    (
        "yupana.graphlib.op",
        "yupana.graphlib.arguments",
        "yupana.graphlib.context",
        "yupana.graphlib.tensor",
        "yupana.graphlib.methods",
    ),
    ("yupana.graphlib.kernels",),
    (
        "yupana.graphlib.dtypes",
        "yupana.graphlib.quants",
        "yupana.graphlib.quants_k",
        "yupana.graphlib.quants_iq",
        "yupana.graphlib.quant_parts",
        "yupana.graphlib.config",
        "yupana.graphlib.errors",
    ),
)

# Upward imports that are wanted: (importer, imported): reason.
UPWARD = {
    ("yupana.graphlib.tensor", "yupana.graphlib.program"): "Tensor.numpy() runs what it stands for",
    ("yupana.graphlib.methods", "yupana.graphlib.ops"): "x.silu() records the op of that name",
    ("yupana.graphlib.graph", "yupana.graphlib.draw"): "Graph.draw()",
    ("yupana.graphlib.memory", "yupana.graphlib.draw"): "Plan.draw()",
    ("yupana.graphlib.program", "yupana.graphlib.draw"): "programs in terminals and notebooks",
    ("yupana.graphlib.tensor", "yupana.graphlib.draw"): "tensors in notebooks",
    ("yupana.graphlib.program", "yupana.graphlib.profile"): "YUPANA_DEBUG=2 times each node",
}

# Where packages that are not Python's own may be imported.
EVERYWHERE = ("yupana", "yupana.graphlib", "yupana.models", "yupana.train")
EXTERNAL = {
    "numpy": EVERYWHERE,
    "numba": ("yupana.graphlib",),
    "llvmlite": ("yupana.graphlib.kernels",),  # comes with numba
    "graphviz": ("yupana.graphlib.draw",),
    "tokenizers": ("yupana.models", "yupana.train"),
    "safetensors": ("yupana.models", "yupana.train"),
    "tyro": ("yupana", "yupana.train"),
    "rich": ("yupana", "yupana.train"),
    "jinja2": ("yupana.models", "yupana.train"),
    "matplotlib": ("yupana", "yupana.graphlib.draw", "yupana.train"),
    "hypothesis": ("yupana",),  # strategies for the users' own tests
}
# In an extra, so imported by the function that needs it.
OPTIONAL = {"matplotlib": "plot", "hypothesis": "test"}

# Lines beyond which a file should become two; those that should not, each with its reason.
MOST_LINES = 400
LONG_FILES: dict[str, str] = {}


class Import(NamedTuple):
    target: str
    line: int
    at_top: bool  # runs when the module is imported


def find_modules() -> dict[str, Path]:
    """Every module of the packages by its public name."""
    found = {f"yupana.{path.stem}": path for path in (ROOT / "yupana").glob("*.py")}
    folders = [p for p in (ROOT / "yupana").iterdir() if p.is_dir() and not p.is_symlink()]
    for folder in [*folders, *(ROOT / name for name in LINKED)]:
        for path in folder.rglob("*.py"):
            relative = path.relative_to(folder.parent).with_suffix("")
            found[".".join(("yupana", *relative.parts))] = path
    return {name.removesuffix(".__init__"): path for name, path in sorted(found.items())}


MODULES = find_modules()


def find_scripts() -> dict[str, str]:
    """Every other Python source of the repository, notebooks included, as text by path."""
    found = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for folder in ("tests", "benchmarks", "docs")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        found[str(path.relative_to(ROOT))] = re.sub(r"(?m)^\s*[%!].*$", "pass", text)
    return found


def find_imports(source: str, module: str = "", is_package: bool = False) -> Iterator[Import]:
    """What `source` imports, by absolute name; `from package import x` names x if a module."""
    package = module if is_package else module.rpartition(".")[0]
    for node, at_top in import_statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else base for name in inner]
        for name in names:
            yield Import(name, node.lineno, at_top)


def import_statements(
    parent: ast.AST, at_top: bool = True
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """The imports within a node, and whether they stand outside of functions."""
    at_top = at_top and not isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef)
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, at_top
        elif not isinstance(node, ast.expr):  # which holds no statements
            yield from import_statements(node, at_top)


def layer_of(module: str) -> int | None:
    """Index in LAYERS, or None for a module of graphlib that no layer names."""
    if module == "yupana.graphlib":
        return len(LAYERS) - 1  # holds nothing but the guard
    name = module
    while name not in ("", "yupana.graphlib"):
        for index, layer in enumerate(LAYERS):
            if name in layer:
                return index
        name = name.rpartition(".")[0]
    return None


def upward_imports(module: str, source: str, is_package: bool = False) -> list[str]:
    own = layer_of(module)
    assert own is not None, f"{module}: give it its place in LAYERS"
    return [
        f"{module}:{found.line} imports {found.target}"
        for found in find_imports(source, module, is_package)
        if found.target.split(".")[0] == "yupana"
        and (module, found.target) not in UPWARD
        and (layer := layer_of(found.target)) is not None
        and layer < own
    ]


def imports_of(module: str) -> list[Import]:
    path = MODULES[module]
    return list(find_imports(path.read_text("utf-8"), module, path.name == "__init__.py"))


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module):
    path = MODULES[module]
    assert not upward_imports(module, path.read_text("utf-8"), path.name == "__init__.py")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("yupana.graphlib.kernels.gemm", "import yupana.graphlib.op"),
        ("yupana.graphlib.kernels.gemm", "from yupana.graphlib.op import Op"),
        ("yupana.graphlib.kernels.gemm", "from ..op import Op"),
        ("yupana.graphlib.kernels.gemm", "from .. import op"),
        ("yupana.graphlib.config", "from yupana.graphlib import kernels"),
        ("yupana.graphlib.ops.math", "def f():\n    import yupana.graphlib.graph as g"),
        ("yupana.graphlib.draw", "if TYPE_CHECKING:\n    from yupana.models import llama"),
        ("yupana.models.llama", "from yupana.train.loop import fit"),
        ("yupana.train.loop", "import yupana as yp"),
    ],
)
def test_an_upward_import_is_caught(module, source):
    assert upward_imports(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("yupana.graphlib.ops.math", "from ..op import Op\nfrom . import views"),
        ("yupana.graphlib.graph", "from yupana.graphlib import autograd, errors"),
        ("yupana.cli", "from yupana.train import loop\nfrom .models import llama"),
    ],
)
def test_a_downward_import_is_allowed(module, source):
    assert not upward_imports(module, source)


def test_wanted_upward_imports_are_still_there():
    for module, target in UPWARD:
        assert target in {found.target for found in imports_of(module)}, "remove it from UPWARD"


def test_nobody_imports_the_folders_by_their_bare_names():
    sources = {str(p.relative_to(ROOT)): p.read_text("utf-8") for p in MODULES.values()}
    wrong = [
        f"{path}:{found.line} imports {found.target}; want yupana.{found.target}"
        for path, source in {**sources, **find_scripts()}.items()
        for found in find_imports(source)
        if found.target.split(".")[0] in LINKED
    ]
    assert not wrong


def test_packages_of_others_stay_where_they_belong():
    wrong = []
    for module in MODULES:
        for found in imports_of(module):
            name = found.target.split(".")[0]
            if name in sys.stdlib_module_names or name == "yupana":
                continue
            allowed = [a for a in EXTERNAL.get(name, ()) if is_inside(module, a)]
            if not allowed or (name in OPTIONAL and found.at_top):
                wrong.append(f"{module}:{found.line} imports {name}")
    assert not wrong


def is_inside(module: str, place: str) -> bool:
    if place == "yupana":  # the front door alone
        return not any(module.startswith(f"yupana.{name}") for name in LINKED)
    return module == place or module.startswith(f"{place}.")


def test_declared_dependencies_are_those_that_may_be_imported():
    project = read_pyproject()["project"]
    declared = {re.match(r"[\w-]+", text).group() for text in project["dependencies"]}
    assert declared == set(EXTERNAL) - set(OPTIONAL) - {"llvmlite"}
    extras = project["optional-dependencies"]
    assert all(any(t.startswith(name) for t in extras[e]) for name, e in OPTIONAL.items())
    assert not any(text.startswith("torch") for texts in extras.values() for text in texts)


def read_pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_environment_variables_are_read_in_config_only():
    wrong = []
    for module, path in MODULES.items():
        if module == "yupana.graphlib.config":
            continue
        text = path.read_text("utf-8")
        if "env" not in text:  # spares most files
            continue
        for node in ast.walk(ast.parse(text)):
            name = node.attr if isinstance(node, ast.Attribute) else None
            name = node.name if isinstance(node, ast.alias) else name
            if name in ("environ", "environb", "getenv", "getenvb", "putenv"):
                wrong.append(f"{module}:{node.lineno} uses {name}")
    assert not wrong


@pytest.mark.parametrize("name", LINKED)
def test_front_door_links_to_the_folders(name):
    link = ROOT / "yupana" / name
    assert link.is_symlink(), f"{link} is no link: check out with core.symlinks=true"
    assert os.readlink(link) == f"../{name}"


def test_package_list_names_every_folder():
    tools = read_pyproject()["tool"]["setuptools"]
    listed = tools["packages"]
    assert sorted(listed) == sorted({package_of(name) for name in MODULES}), "edit pyproject.toml"
    assert tools["package-dir"] == {"yupana": "yupana"} | {f"yupana.{n}": n for n in LINKED}
    missing = [p for p in MODULES.values() if not (p.parent / "__init__.py").exists()]
    assert not missing, "every folder of modules has an __init__.py"


def package_of(module: str) -> str:
    is_package = MODULES[module].name == "__init__.py"
    return module if is_package else module.rpartition(".")[0]


def test_files_stay_readable_in_one_sitting():
    others = [p for f in ("tests", "benchmarks", "docs") for p in (ROOT / f).rglob("*.py")]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines())
        for path in [*MODULES.values(), *others]
    }
    too_long = {path for path, lines in lengths.items() if lines > MOST_LINES}
    assert too_long == set(LONG_FILES), "split it, or add it to LONG_FILES with the reason"


def run_at_root(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_standard_graphlib_is_found_at_the_repository_root():
    code = (
        "import graphlib, sys; from graphlib import TopologicalSorter as T;"
        "print(*T({1: [2]}).static_order(), sys.modules['graphlib'].__file__);"
        "import yupana.graphlib; print(yupana.graphlib.__file__)"
    )
    standard, ours = run_at_root("-c", code).splitlines()
    assert standard == f"2 1 {Path(sysconfig.get_path('stdlib'), 'graphlib.py')}"
    assert ours == str(ROOT / "yupana" / "graphlib" / "__init__.py")


def test_pytest_starts_at_the_repository_root():
    assert run_at_root("-m", "pytest", "--version").startswith("pytest")
