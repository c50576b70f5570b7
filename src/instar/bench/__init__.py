"""Comparing: plan → run → record → statistics → claims. Names load when used, so that reading records needs no torch."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Comparison": "instar.bench.compare",
    "Request": "instar.bench.plan",
    "compare": "instar.bench.compare",
    "reproduce": "instar.bench.reproduce",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'instar.bench' has no attribute '{name}'; it has {', '.join(__all__)}")
