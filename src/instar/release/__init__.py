"""Model folders that carry their history: written whole or not at all, and taken back to the bit.

>>> from instar import release
>>> release.write(model, "next", source="previous", receipts=[receipt])    # doctest: +SKIP
>>> release.undo("next")                                                   # doctest: +SKIP
"""

from __future__ import annotations

from instar.release.undoing import undo
from instar.release.writing import write

__all__ = ["undo", "write"]
