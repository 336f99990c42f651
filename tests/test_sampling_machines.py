"""Draws on processors with other vector instructions: none for NumPy, the least for kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.targets import TARGETS

ROOT = Path(__file__).parents[1]
# Every sampler, over scores that integers give; what it leaves is compared bit by bit.
DRAWS = """
import hashlib
import numpy as np
from yupana.models.sampling import RandomStream, Sampler, Sampling
found, bits = hashlib.sha256(), np.random.Philox(key=5)
def number(below): return int(bits.random_raw()) % below
for seed in range(150):
    n = 2 + number(3000)
    raw = (bits.random_raw(n) >> np.uint64(43)).astype(np.float64)
    logits = ((raw - 2**20) / (1 << 17)).astype(np.float32)
    sampler = Sampler(Sampling(
        temp=0.3 + number(16) / 8, dynatemp_range=number(3) / 4, dynatemp_exp=0.5 + number(5) / 3,
        top_k=number(3) * 20, top_p=1 - number(4) / 11, min_p=number(3) / 31,
        tfs=1 - number(3) / 9, typical=1 - number(3) / 7, top_nsigma=number(3) * 1.3 - 1,
        xtc_probability=number(3) / 2, repeat_penalty=1 + number(3) / 7, mirostat=number(3),
        dry_multiplier=number(2) * 0.8, adaptive_target=number(3) / 5 - 0.2,
    ))
    stream = RandomStream(seed)
    for _ in range(5):
        ids, chances = sampler.probabilities(logits, RandomStream(3))
        found.update(ids.tobytes() + chances.tobytes())
        token = sampler.pick(logits, stream)
        sampler.accept(token)
        found.update(token.to_bytes(4, "little"))
print(found.hexdigest())
"""


def draws(**variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", DRAWS],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_sampler_computes_the_same_bits_without_vector_instructions():
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    names = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
    if not names:
        pytest.skip("NumPy uses no more here than it does everywhere")
    plain = {"NPY_DISABLE_CPU_FEATURES": " ".join(names)}
    plain["NUMBA_CPU_NAME"], plain["NUMBA_CPU_FEATURES"] = TARGETS["SSE2"]
    assert draws() == draws(**plain) == EXPECTED


EXPECTED = "14eab82b6c0c84105a1c1371e56a9675ed38348643cdee2b6fb310e02855dd06"
