"""What a receipt says, and its JSON, which is untrusted when read."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from instar.errors import ReceiptError
from instar.receipts.fingerprint import Entry

FORMAT = "instar-receipt-1"
_LARGEST = 256 << 20
_MOST = 2**60
"""Elements of a tensor."""
_SHOWN = 5
_HASH = re.compile(r"[0-9a-f]{64}")
_PLAIN_TYPE = re.compile(r"u?int\d+|bool|b?float\w+|complex\d+")  # torch's quantised types crash where bytes become tensors


@dataclass(frozen=True)
class Change:
    """One tensor that an update changed, added (`before` is None) or removed (`after` is None)."""

    name: str
    before: Entry | None
    after: Entry | None

    @property
    def nbytes(self) -> int:
        """Its bytes after the update; those before it where it was removed."""
        line = self.after or self.before
        return line.nbytes if line else 0


@dataclass(frozen=True)
class Facts:
    """Everything a receipt says; the same after `save` and `load`."""

    method: str
    title: str
    settings: dict[str, Any]
    time: str
    """When, as ISO 8601 in UTC."""
    seconds: float
    """What the update took, without the receipt's own hashing."""
    source: str
    """Where the model came from; empty when not known."""
    parent: str
    """Id of the receipt that stood on the model before this one, in the same process; empty for none."""
    base: str
    """Fingerprint of the model before."""
    after: str
    """Fingerprint of the model after."""
    rest: str
    """Fingerprint of the tensors that did not change."""
    changes: tuple[Change, ...]
    moved: dict[str, str] = field(default_factory=dict)
    """Old name -> new name of tensors that live on under another name."""
    modules: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Path -> (class before, class after) of modules that came, went (empty text) or changed class."""
    attributes: tuple[str, ...] = ()
    """Other attributes that changed (`blocks.0.up.out_features`); those that start with _ and `training` are not listed."""

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits, computed from everything else here."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that changed."""
        return sum(change.nbytes for change in self.changes)

    @property
    def structural(self) -> bool:
        """Whether more than the bits of tensors changed: another model takes this update only if it has the same structure."""
        shapes = any(
            c.before is None or c.after is None or c.before != replace(c.after, sha256=c.before.sha256) for c in self.changes
        )
        return shapes or bool(self.moved or self.modules or self.attributes)

    def lines(self, side: str) -> dict[str, Entry]:
        """The changed tensors as they are before or after, by name."""
        return {change.name: line for change in self.changes if (line := getattr(change, side)) is not None}

    def json(self) -> dict[str, Any]:
        """For `receipt.json`."""
        return {"format": FORMAT, "id": self.id, **asdict(self)}


def settings(value: Any) -> dict[str, Any]:
    """A copy of settings as JSON has them. Raises ReceiptError for what a receipt could not keep."""
    try:
        plain = json.loads(json.dumps(value or {}, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ReceiptError(f"The settings of an update are kept as JSON, which these are not: {error}.") from error
    if not isinstance(plain, dict):
        raise ReceiptError(f"The settings of an update are a dict of names and values; received {type(value).__name__}.")
    return plain


def some(names: Iterable[str]) -> str:
    """The first of some names for a message, and how many are left out."""
    found = sorted(names)
    return ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def read(path: Path) -> Facts:
    """The facts in a file. Raises ReceiptError for anything that `Facts.json` would not have written."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise ValueError("it is missing, no plain file, or too large")
        found = json.loads(path.read_text("utf-8"))
        if found.pop("format") != FORMAT:
            raise ValueError(f"it is not of the format {FORMAT}")
        promised = found.pop("id")
        facts = _facts(found)
        known = facts.id
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ReceiptError(f"{path} is no receipt: {error}. Nothing was loaded.") from error
    if known != promised:
        raise ReceiptError(f"{path} was altered: it says {promised!r}, its content gives {known}. Nothing was loaded.")
    return facts


def _facts(found: dict[str, Any]) -> Facts:
    texts = ("method", "title", "time", "source", "parent")
    for key in texts:
        _is(found[key], str, key)
    for key in ("base", "after", "rest"):
        _hash(found[key])
    for key in ("settings", "moved", "modules"):
        _is(found[key], dict, key)
    if not 0 <= _is(found["seconds"], float, "seconds") < math.inf:
        raise ValueError(f"{found['seconds']} is no number of seconds")
    for key in ("changes", "attributes"):
        _is(found[key], list, key)
    for name in [*found["moved"].values(), *found["attributes"]]:
        _is(name, str, "a name")
    modules = {}
    for path, pair in found["modules"].items():
        before, after = pair
        modules[path] = (_is(before, str, "a class"), _is(after, str, "a class"))
    changes = tuple(
        Change(_is(c.pop("name"), str, "name"), _entry(c.pop("before")), _entry(c.pop("after")), **c) for c in found["changes"]
    )
    if len({change.name for change in changes}) != len(changes) or any(not (c.before or c.after) for c in changes):
        raise ValueError("a tensor is listed twice, or with neither side")
    return Facts(**{**found, "changes": changes, "modules": modules, "attributes": tuple(found["attributes"])})


def _entry(found: dict[str, Any] | None) -> Entry | None:
    if found is None:
        return None
    plain = _PLAIN_TYPE.fullmatch(_is(found["dtype"], str, "dtype"))
    if not plain or not isinstance(getattr(torch, found["dtype"], None), torch.dtype):
        raise ValueError(f"there is no type {found['dtype']!r}")
    shape = tuple(_is(found["shape"], list, "shape"))
    if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) >= _MOST:
        raise ValueError(f"{shape} is no shape")
    return Entry(
        **{**found, "shape": shape, "sha256": _hash(found["sha256"]), "persistent": _is(found["persistent"], bool, "persistent")}
    )


def _hash(text: Any) -> str:
    if not isinstance(text, str) or not _HASH.fullmatch(text):
        raise ValueError(f"{text!r} is no SHA-256")
    return text


def _is(value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"'{what}' expects {kind.__name__}, received {type(value).__name__}")
    return value
