"""What all tests share: no work that nobody looks at, and the profiles of hypothesis.

`pytest --hypothesis-profile=thorough` draws a hundred times more.
"""

import gc
import os
import signal
import sys

if "PYTEST_XDIST_WORKER" in os.environ:  # every core has its process already
    # Threads that wait for one another would take the cores from the other process. Tests of
    # threads say how many. Read when yupana is imported, and by the processes that tests start.
    os.environ.setdefault("YUPANA_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from yupana.graphlib import limits
from yupana.graphlib.kernels import companion
from yupana.graphlib.op import REGISTRY
from yupana.train.report import measured

# A shell that starts the tests in the background has them ignore Ctrl-C, which their processes
# would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    companion.WORTH_A_PROCESS = sys.maxsize

# Reports measure, over and over for the best time. Here nobody reads the times.
measured._MOST_RUNS = 2
limits._BURSTS = 2

# Helpers that import torch where they stand: imported by tests that ask for it first.
collect_ignore_glob = ["torch_*.py"]

# Kernels compile on first use, which may fall into any example: no deadline, no verdict on speed.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

# The same few examples in every run: a failure is the change's, and the run is short.
settings.register_profile("default", **_COMMON, max_examples=12, derandomize=True, database=None)
settings.register_profile(
    "ci", **_COMMON, max_examples=100, derandomize=True, database=None, print_blob=True
)
# New examples in every run; failing ones are kept and tried first next time.
settings.register_profile("thorough", **_COMMON, max_examples=2000, print_blob=True)
settings.load_profile("default")  # hypothesis itself would choose by the CI variable


def pytest_collection_finish():
    """Spare the garbage collector what lives as long as the process: modules and tests."""
    gc.freeze()


@pytest.fixture(autouse=True)
def registry_as_it_was():
    """Ops that a test declares are gone after it."""
    before = dict(REGISTRY)
    yield
    if len(REGISTRY) != len(before):
        REGISTRY.clear()
        REGISTRY.update(before)
