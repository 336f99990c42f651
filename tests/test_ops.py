"""Every op of the registry times every property: see yupana/graphlib/check.py."""

import pytest
from hypothesis import given

from yupana.graphlib import check, schedule
from yupana.graphlib.op import REGISTRY
from yupana.testing import traces


@pytest.fixture(autouse=True)
def shared_however_small(monkeypatch):
    """Small steps run on one thread otherwise, and threads would have nothing to differ in."""
    monkeypatch.setattr(schedule, "_SOLO_NS", 0.0)


@pytest.mark.parametrize("name", REGISTRY)
def test_op(name):
    op = REGISTRY[name]

    @given(traces(op.samples))
    def holds(trace):
        for property_ in check.PROPERTIES:  # of one call: to draw it takes its time
            check.check_property(op, property_, trace, shrink=False)

    holds()


@pytest.mark.parametrize("name", REGISTRY)
def test_errors_are_as_promised(name):
    check.check_errors(REGISTRY[name])
