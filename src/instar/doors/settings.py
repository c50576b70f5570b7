"""The settings of the doors of local models: documented, typed, and refused when they make no sense."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instar.errors import ModelError

LOADING = {
    "dtype": "of the weights: float32 (default), bfloat16 or float16",
    "quantize": "int8: linear layers in 8 bits, activations scaled batch by batch (so answers depend a little on the batch)",
    "layers": "use only the first so many layers",
    "device": "where it runs: cpu (default), cuda, cuda:1, mps",
    "threads": "of the CPU; default: torch's choice",
    "seed": "of torch; answers are greedy and do not depend on it unless the model draws (default 0)",
    "timeout": "seconds after which the run is stopped; default: a day",
}
ASKING = {
    "batch": "items (in multiple choice: answers) at a time (default 16)",
    "max_length": "most tokens of an input; default: what the model takes",
    "prompt": "what is asked, with {input} for the item's text; @file.txt reads it from a file (default {input})",
}
SPEAKING = {
    "max_new_tokens": "most tokens of a generated answer (default 64)",
    "stop": "text that ends a generated answer and is cut off; a list for several; \\n is a line break",
    "normalize": "multiple choice: divide the log-likelihood of an answer by its characters (also: true) or tokens; default none",
}
CHATTING = {"chat": "true: ask in the model's chat template"}
SEARCHING = {
    "document_prompt": "retrieval: as `prompt`, for the documents",
    "k": "retrieval: how many documents are returned (default 100)",
}

_CHOICES = {
    "dtype": ("float32", "bfloat16", "float16"),
    "quantize": ("none", "int8"),
    "normalize": ("none", "characters", "tokens"),
}
_DAY = 86400.0


@dataclass(frozen=True)
class Settings:
    """All settings with their defaults; `of` makes them from what a user wrote."""

    dtype: str = "float32"
    quantize: str = "none"
    layers: int | None = None
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0
    timeout: float = _DAY
    batch: int = 16
    max_length: int | None = None
    prompt: str = "{input}"
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    normalize: str = "none"
    chat: bool = False
    document_prompt: str = "{input}"
    k: int = 100

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """Read values as Python or as text from a command line. Raises ModelError."""
        return cls(**{name: _read(name, value) for name, value in given.items()})

    def facts(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """The resolved values of the named settings."""
        return {name: getattr(self, name) for name in names}


_TYPES = {f.name: str(f.type) for f in dataclasses.fields(Settings)}


def _read(name: str, value: Any) -> Any:
    kind = _TYPES[name]
    if name == "stop":
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) and t for t in texts):
            raise _wrong(name, "text or a list of texts, none empty", value)
        return tuple(t.replace("\\n", "\n") for t in texts)
    if name == "normalize" and str(value).lower() in ("true", "false"):
        value = "characters" if str(value).lower() == "true" else "none"
    if name == "quantize" and value in (None, False):
        value = "none"
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise _wrong(name, " or ".join(_CHOICES[name]), value)
        return value
    if kind.startswith("bool"):
        if str(value).lower() not in ("true", "false"):
            raise _wrong(name, "true or false", value)
        return str(value).lower() == "true"
    if kind.startswith(("int", "float")):
        return _number(name, value, kind)
    return _template(name, str(value)) if name.endswith("prompt") else str(value)


def _number(name: str, value: Any, kind: str) -> int | float | None:
    if value is None and kind.endswith("None"):
        return None
    try:
        number = float(value) if kind.startswith("float") else int(str(value))
    except ValueError:
        raise _wrong(name, "a number" if kind.startswith("float") else "a whole number", value) from None
    if not (number > 0 or (name == "seed" and number == 0)):
        raise _wrong(name, "a number above 0", value)
    return number


def _template(name: str, value: str) -> str:
    if value.startswith("@"):
        try:
            value = Path(value[1:]).expanduser().read_text("utf-8")
        except (OSError, ValueError) as error:
            raise ModelError(f"The setting {name} names the file {value[1:]}, which cannot be read: {error}") from error
    if "{input}" not in value:
        raise _wrong(name, "a text with {input}, where the item's text goes", value[:80])
    return value


def _wrong(name: str, expected: str, value: Any) -> ModelError:
    return ModelError(f"The setting {name} expects {expected}; received {value!r}.")
