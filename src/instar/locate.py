"""What a user names as `path/to/file.py:name` or `package.module:name`, imported."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instar.errors import DataError, UnknownNameError


def locate(location: str, kind: Callable[[Any], bool] = callable) -> Any:
    """Import the named object. This runs the file's code: it is the user's own.

    kind: which names of the module are offered when this one does not exist. Raises UnknownNameError, DataError.
    """
    where, _, name = location.rpartition(":")
    if not name or not where:
        raise UnknownNameError(f"'{location}' must read 'file.py:name' or 'package.module:name'.")
    module = _file(where) if where.endswith(".py") else _module(where, location)
    if not hasattr(module, name):
        offered = [n for n, v in vars(module).items() if kind(v) and getattr(v, "__module__", "") == module.__name__]
        raise UnknownNameError.among(f"name in {Path(where).name}", name, offered)
    return getattr(module, name)


def is_class(value: Any) -> bool:
    """Whether a value is a class."""
    return inspect.isclass(value)


def _module(where: str, location: str) -> Any:
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        raise UnknownNameError(f"'{location}': there is no module {error.name}.") from error


def _file(where: str) -> Any:
    file = Path(where).resolve()
    if not file.is_file():
        raise DataError(f"There is no file {file}.")
    spec = importlib.util.spec_from_file_location(f"instar_added_{file.stem}", file)
    assert spec is not None  # a .py file always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
