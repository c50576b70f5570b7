"""Instar: take a transformer to its next version without breaking what worked, and with evidence.

Public names are loaded when they are first used: importing this package imports neither torch nor any method.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "CompatibleHead": "instar.interfaces",
    "Decoder": "instar.models.decoder",
    "Encoder": "instar.interfaces",
    "Forecaster": "instar.interfaces",
    "Index": "instar.interfaces",
    "InstarError": "instar.errors",
    "Mixer": "instar.interfaces",
    "Policy": "instar.gate.policy",
    "Problem": "instar.interfaces",
    "Receipt": "instar.receipt",
    "Request": "instar.bench.plan",
    "check": "instar.checks",
    "cite": "instar.catalogue",
    "compare": "instar.bench.compare",
    "get": "instar.catalogue",
    "judge": "instar.gate.judge",
    "methods": "instar.catalogue",
    "problems": "instar.catalogue",
    "report": "instar.report",
    "reproduce": "instar.bench.reproduce",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'instar' has no attribute '{name}'; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
