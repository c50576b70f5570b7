"""What a user names as `path/to/file.py:name` or `package.module:name`, imported."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from instar.errors import DataError, InstarError, ModelError, UnknownNameError


def locate(location: str, kind: Callable[[Any], bool] = callable) -> Any:
    """Import the named object. This runs the file's code: it is the user's own.

    At its top a file may import modules that lie beside it. They are not shared with another file's: old and new are often one
    file in two folders, and were `helper` kept under that name, the second would silently be given the first one's.

    kind: which names of the module are offered when this one does not exist. Raises UnknownNameError, DataError, and ModelError
    when the code fails.
    """
    where, _, name = location.rpartition(":")
    if not name or not where:
        raise UnknownNameError(f"'{location}' must read 'file.py:name' or 'package.module:name'.")
    try:
        module = _run(file_of(location)) if where.endswith(".py") else importlib.import_module(where)
    except InstarError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{where}.".startswith(f"{error.name}."):
            raise UnknownNameError(f"'{location}': there is no module {error.name}.") from error
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}, line {last.lineno}"
        raise ModelError(f"{where} cannot be imported: {type(error).__name__}: {str(error)[:300]} ({place}).") from error
    if not hasattr(module, name):
        offered = [n for n, v in vars(module).items() if kind(v) and getattr(v, "__module__", "") == module.__name__]
        raise UnknownNameError.among(f"name in {Path(where).name}", name, offered)
    return getattr(module, name)


def file_of(location: str) -> Path:
    """The file of `path/to/file.py:name`. Raises DataError where there is none."""
    file = Path(location.rpartition(":")[0]).resolve()
    if not file.is_file():
        raise DataError(f"There is no file {file}.")
    return file


def is_class(value: Any) -> bool:
    """Whether a value is a class."""
    return inspect.isclass(value)


def _run(file: Path) -> ModuleType:
    """Import a file under a name of its own, with the modules beside it, which are forgotten afterwards."""
    name = f"instar_added_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # a .py file always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))
    importlib.invalidate_caches()
    try:
        spec.loader.exec_module(module)
    finally:
        with contextlib.suppress(ValueError):  # the file may have changed the path itself
            sys.path.remove(str(file.parent))
        for added in set(sys.modules) - before - {name}:
            top = file.parent / added.partition(".")[0]
            if top.with_suffix(".py").is_file() or (top / "__init__.py").is_file():
                del sys.modules[added]
    return module
