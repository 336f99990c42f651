"""Kernels for other processors: chosen when numba is imported, so in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TARGETS = {
    "AVX2": ("haswell", "+avx2,+fma,+f16c,+avx,+sse4.2,+sse4.1,+ssse3,+sse3,+popcnt,+bmi,+bmi2"),
    "SSE2": ("x86-64", "+sse2"),
}


def shared_cache(factory: pytest.TempPathFactory, target: str) -> str:
    """A folder for the kernels of a target, that all processes of this run of pytest share."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / f"kernels-{target}"
    folder.mkdir(exist_ok=True)
    return str(folder)


def in_process(
    *arguments: str, target: str, cache: str | None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with kernels compiled for `target`, "" for this processor, kept in `cache`."""
    environment = os.environ | variables
    if cache:
        environment["YUPANA_CACHE_DIR"] = cache
    if target:
        environment["NUMBA_CPU_NAME"], environment["NUMBA_CPU_FEATURES"] = TARGETS[target]
    root = Path(__file__).parent.parent
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment | {"PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
