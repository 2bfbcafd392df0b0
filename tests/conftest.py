"""Before torch is loaded: tests share their cores with others."""

from utils.launch import use_cores_considerately

use_cores_considerately()


def pytest_collection_modifyitems(config, items):
    """Fast tests first; where workers share files, the slow files first, so that none is left over at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    shares = hasattr(config, "workerinput")
    items.sort(key=lambda item: (item.path in slow) != shares)
