"""The source archive and the wheel built from it, installed and used in an empty folder."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"yupana": "yupana", **{f: f"yupana/{f}" for f in ("graphlib", "models", "train")}}
FILES = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in")


def setuptools_version() -> int:
    try:
        return int(version("setuptools").split(".")[0])
    except PackageNotFoundError:
        return 0


pytestmark = pytest.mark.skipif(
    setuptools_version() < 77, reason="building the wheel needs setuptools>=77 (the test extra)"
)


def run(*arguments: str | Path, cwd: Path, **environ: str) -> str:
    """Standard output of Python with `arguments`; nothing of this process's path leaks in."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "YUPANA"))}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**inherited, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    # From a copy: setuptools leaves its build folder beside the sources, and takes old files from
    # there into the next wheel.
    source = tmp_path_factory.mktemp("source")
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for folder in (*FOLDERS, "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignored)
    out = tmp_path_factory.mktemp("sdist")
    code = f"import setuptools.build_meta as b; b.build_sdist({str(out)!r})"
    run("-c", code, cwd=source)
    return next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--quiet")
    run("-m", "pip", "wheel", sdist, "--wheel-dir", out, *options, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    options = ("--no-index", "--no-deps", "--quiet", "--target", target)
    run("-m", "pip", "install", wheel, *options, cwd=target)
    return target


def sources() -> set[str]:
    """Files of the packages, by the place a wheel gives them."""
    found = {"yupana/py.typed", *(f"yupana/train/report/page.{kind}" for kind in ("html", "css"))}
    for folder, place in FOLDERS.items():
        base = ROOT / folder
        found |= {f"{place}/{path.relative_to(base)}" for path in real_files(base)}
    return found


def test_source_archive_holds_what_the_wheel_is_built_from(sdist):
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert set(FILES) <= names
    assert {name for name in names if name.endswith(".py")} - {"setup.py"} == {
        str(path.relative_to(ROOT)) for f in FOLDERS for path in real_files(ROOT / f)
    }
    assert not [member.name for member in members if member.issym() or member.islnk()]


def real_files(folder: Path) -> set[Path]:
    return {
        Path(top, name)
        for top, _, names in os.walk(folder)  # does not follow links
        for name in names
        if name.endswith(".py")
    }


def test_wheel_holds_every_module_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith("/METADATA"))).decode()
        entries = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == sources()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "License-Expression: MIT" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert re.search(r"yupana\s*=\s*yupana\.__main__:main", entries)


def test_installed_wheel_computes_in_an_empty_folder(installed, tmp_path):
    code = (
        "import graphlib, yupana as yp, yupana.graphlib as g, yupana.models, yupana.train;"
        "graphlib.TopologicalSorter;"
        "print(yp.__file__); print(g.__file__);"
        "print((yp.tensor([3.0, -4.0]) * 2.0).numpy().tolist())"
    )
    front, engine, value = run("-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()
    assert front == str(installed / "yupana" / "__init__.py")
    assert engine == str(installed / "yupana" / "graphlib" / "__init__.py")
    assert value == "[6.0, -8.0]"
    assert not list(tmp_path.iterdir())


def test_installed_command_lists_the_ops(installed, tmp_path):
    command = installed / "bin" / "yupana"
    table = run(command, "ops", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "mul_mat" in table
    assert not list(tmp_path.iterdir())
