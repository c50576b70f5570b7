"""Optional dependencies: imported where they are used, with a message that says how to install them."""

from __future__ import annotations

import importlib
from types import ModuleType

from instar.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra of Instar brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"This needs the package '{module.partition('.')[0]}' ({error}). Install it with: pip install 'instar[{extra}]'"
        ) from error
