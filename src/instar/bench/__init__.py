"""Comparing: plan → run → record → statistics → claims."""

from instar.bench.compare import compare

__all__ = ["compare"]
