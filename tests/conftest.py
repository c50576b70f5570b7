"""For every test."""

from __future__ import annotations

import os
import signal

import pytest

# Two workers share two cores: threads beyond one each make small work several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts a job in the background has it ignore Ctrl-C, and so would every process that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may take longest begins first, so that no worker sits over it alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)
