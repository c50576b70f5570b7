"""The door to any Python function, so that every model that can be called can be judged."""

from __future__ import annotations

import hashlib
import inspect
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from instar.doors import settings as reading
from instar.doors.asking import FIRST, refuse_hopeless
from instar.doors.version import Progress, Version, require_task
from instar.errors import ModelError, UnknownNameError
from instar.gate.predictions import Cases, Json, Predictions
from instar.locate import file_of, locate
from instar.report.units import printable

_DEEPEST = 20


class Function(Version):
    """A function `f(text) -> output`, run in this process.

    The output is what the task asks for (see `Version.run`): a label, a text, a number, a list; numpy and torch values are
    converted. A parameter named `choices` is given the choices of the item, one named `documents` all documents as (id, text)
    pairs. With `batch=n`, or an attribute `batch` of the function, it is given lists of at most n texts (and of their
    choices) and returns a list. An exception costs the item, or the batch's items one by one, and is its reason.

    Args:
        source: `path/to/file.py:name` or `package.module:name`; old and new may both have a `helper.py` beside them.
        settings: `batch`, and any further parameter of the function, given to it by name; text becomes a number or a truth
            value where the parameter's default is one.

    Raises what `locate` raises, ModelError when the name is nothing to call, UnknownNameError for a setting that the function
    does not take, ShapeError for one of the wrong type.
    """

    SETTINGS: ClassVar[Mapping[str, str]] = {"batch": "how many texts the function is given at once, as a list (0: one, as text)"}

    def __init__(self, source: str, settings: Mapping[str, Any] | None = None) -> None:
        self._begin(source, locate(source), settings)
        in_file = source.rpartition(":")[0].endswith(".py")
        self._facts = {"sha256": hashlib.sha256(file_of(source).read_bytes()).hexdigest()} if in_file else {}

    @classmethod
    def of(cls, function: Callable[..., Any], name: str = "", **settings: Any) -> Function:
        """A version from a function, or any object to call, that is at hand."""
        made = cls.__new__(cls)
        made._begin(name or getattr(function, "__qualname__", type(function).__qualname__), function, settings)
        made._facts = {}
        return made

    def _begin(self, source: str, function: Any, settings: Mapping[str, Any] | None) -> None:
        if not callable(function) or inspect.isclass(function):
            raise ModelError(f"{source} is {_a(function)}; name a function, or an object that can be called.")
        given = dict(settings or {})
        taken, open_ended = _parameters(function)
        free = list(taken)[1:]
        for name in given:
            if name not in self.SETTINGS and not (name in free or open_ended):
                raise UnknownNameError.among(f"setting of {source}", name, [*self.SETTINGS, *free])
        super().__init__(source, {name: value for name, value in given.items() if name in self.SETTINGS})
        self.settings = given
        self._function = function
        batch = given.get("batch", getattr(function, "batch", 0))
        self._batch = reading.value_of("batch", batch, reading.whole(0, 2**20))
        self._fixed = {
            name: reading.value_of(name, value, reading.like(taken.get(name)))
            for name, value in given.items()
            if name not in self.SETTINGS
        }
        self._wants = [name for name in ("choices", "documents") if name in free and name not in given]

    def run(self, cases: Cases, task: str, progress: Progress | None = None) -> Predictions:
        """Call the function on every case (see `Version.run`). Raises ModelError when the first items all fail alike."""
        require_task(task)
        wall, cpu = time.perf_counter(), time.process_time()
        outputs: list[Json] = []
        reasons: list[str | None] = []
        seconds: list[float] = []
        step = max(self._batch, 1)
        for start in range(0, len(cases), step):
            items = list(range(start, min(start + step, len(cases))))
            for output, reason, took in self._batched(cases, items) if self._batch else [self._single(cases, start)]:
                outputs.append(output)
                reasons.append(reason)
                seconds.append(took if reason is None else math.nan)
                if len(reasons) <= FIRST:
                    refuse_hopeless(self.source, reasons, len(cases))
            if progress is not None:
                progress(len(outputs), len(cases))
        return Predictions(
            name=self.name,
            ids=cases.ids,
            outputs=outputs,
            labels=cases.labels,
            inputs=cases.inputs,
            seconds=np.array(seconds),
            errors={name: reason for name, reason in zip(cases.ids, reasons, strict=True) if reason is not None},
            columns=cases.columns,
            costs={"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu},
            facts={"source": self.source, "kind": "function", "task": task, "settings": _shown(self.settings), **self._facts},
        )

    def _single(self, cases: Cases, item: int) -> tuple[Json, str | None, float]:
        """Output, reason of a failure, seconds."""
        given = {"choices": cases.choices[item] if cases.choices else None, "documents": cases.documents}
        found, reason, took = self._call(cases.inputs[item], given)
        return (*_json(found), took) if reason is None else (None, reason, took)

    def _batched(self, cases: Cases, items: list[int]) -> list[tuple[Json, str | None, float]]:
        """The same for a batch; one that fails is asked again item by item, so that one bad item costs no other."""
        given = {"choices": [cases.choices[i] for i in items] if cases.choices else None, "documents": cases.documents}
        found, reason, took = self._call([cases.inputs[i] for i in items], given)
        if reason is None:
            found = list(found) if getattr(found, "shape", ()) else found  # an array or a tensor
            if not isinstance(found, (list, tuple)):
                reason = f"the function returned {_a(found)} for a list of texts; it must return a list"
            elif len(found) != len(items):
                reason = f"the function returned {len(found)} outputs for {len(items)} texts"
        if reason is None:
            return [(*_json(output), took / len(items)) for output in found]
        if len(items) == 1:
            return [(None, reason, took)]
        return [self._batched(cases, [item])[0] for item in items]

    def _call(self, what: Any, given: Mapping[str, Any]) -> tuple[Any, str | None, float]:
        begin = time.perf_counter()
        try:
            found = self._function(what, **{name: given[name] for name in self._wants}, **self._fixed)
        except (Exception, SystemExit) as error:
            return None, _told(error), time.perf_counter() - begin
        return found, None, time.perf_counter() - begin


def _parameters(function: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Name -> default of the parameters, the first being the text, and whether any other name is taken too."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions written in C do not tell
        return {"text": None}, False
    named = {p.name: p.default for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind is p.VAR_KEYWORD for p in found)


def _json(value: Any, depth: int = 0) -> tuple[Json, str | None]:
    """A value as JSON holds it, or the reason why it cannot be one."""
    if hasattr(value, "tolist") and not isinstance(value, type):  # numpy's and torch's numbers and arrays
        try:
            value = value.tolist()
        except Exception as error:
            return None, _told(error)
    if value is None:
        return None, "the function returned None"
    problem = f"the function returned {_a(value)}, which JSON cannot hold; return text, a number or a list"
    if isinstance(value, int):
        return value, None
    if isinstance(value, str):
        return str(value).encode(errors="replace").decode(), None
    if isinstance(value, float):
        return (value, None) if math.isfinite(value) else (None, f"the function returned {value}")
    if depth == _DEEPEST or not isinstance(value, (list, tuple, dict)):
        return None, problem
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        return None, "the function returned a dict with keys that are no text"
    parts = [(None, None) if v is None else _json(v, depth + 1) for v in (value.values() if isinstance(value, dict) else value)]
    for _, reason in parts:
        if reason is not None:
            return None, reason
    held = [part for part, _ in parts]
    return (dict(zip(value, held, strict=True)) if isinstance(value, dict) else held), None


def _a(value: Any) -> str:
    return f"the class {value.__qualname__}" if inspect.isclass(value) else f"an object of type {type(value).__name__}"


def _told(error: BaseException) -> str:
    return printable(f"{type(error).__name__}: {error}")[:300].rstrip(": ")


def _shown(settings: Mapping[str, Any]) -> dict[str, Json]:
    """The settings as a record can hold them: an object that was given from Python, by its type."""
    return {name: value if _json(value)[1] is None else _a(value) for name, value in settings.items()}
