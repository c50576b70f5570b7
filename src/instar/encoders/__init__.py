"""Encoders of texts, and vectors that lie in files."""

from __future__ import annotations

from instar.encoders.opening import KINDS, of, open_encoder

__all__ = ["KINDS", "of", "open_encoder"]
