"""Before torch is loaded: tests share their cores with others."""

import os

import pytest

from utils.launch import use_cores_considerately

if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: one thread each, in what they start as well
    os.environ.setdefault("OMP_NUM_THREADS", "1")
use_cores_considerately()


def pytest_collection_modifyitems(config, items):
    """Fast tests first; where workers share files, the slow files first, so that none is left over at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    shares = hasattr(config, "workerinput")
    items.sort(key=lambda item: (item.path in slow) != shares)


@pytest.fixture
def own_state():
    """Accelerate remembers a process's precision: forget it before and after."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    singletons = (AcceleratorState, GradientState, PartialState)
    for state in singletons:
        state._reset_state()
    yield
    for state in singletons:
        state._reset_state()
