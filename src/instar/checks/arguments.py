"""What is asked of every constructor, and of every refusal: the shared parts of the contracts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from instar.checks.subject import Subject
from instar.errors import ContractError, InstarError

Values = dict[str, Any]


def settings(subject: Subject) -> dict[str, Values]:
    """Words -> arguments: the presets of the card, and its knobs at their choices or the ends of their range."""
    found = {f"preset {name}": dict(values) for name, values in subject.card.presets.items()}
    for name, knob in subject.card.knobs.items():
        for value in knob.choices or knob.range or ():
            found[f"knob {name} = {value}"] = {**subject.arguments, name: int(value) if knob.integer else value}
    return found


def constructed(subject: Subject, make: Callable[[Values], Any] | None = None) -> Iterator[tuple[str, Values, Any]]:
    """The default, presets and ends of knobs in words, their arguments, and what `make` (by default the class) makes of them.

    Raises ContractError for arguments that the constructor does not have, or does not take.
    """
    known = inspect.signature(subject.cls).parameters
    for what, values in {"the default": {}, **settings(subject)}.items():
        if unknown := values.keys() - known.keys():
            raise ContractError(f"{what}: {subject.cls.__name__} has no argument {', '.join(unknown)}, only {', '.join(known)}.")
        try:
            made = subject.cls(**values) if make is None else make(values)
        except ContractError:
            raise
        except Exception as error:
            raise ContractError(f"{what} does not construct: {error}") from error
        yield what, values, made


def keeps(subject: Subject, what: str, values: Values, made: Any, why: str) -> None:
    """Raise ContractError unless `made` has each argument, those of `values` and defaults, as an attribute of its name.

    A default of None may have become what it stands for.
    """
    for name, parameter in inspect.signature(subject.cls).parameters.items():
        given = values.get(name, parameter.default)
        chosen = given is None and name not in values
        if not hasattr(made, name) or (not chosen and getattr(made, name) != given):
            raise ContractError(f"{what}: keep the argument {name} as an attribute ({given!r}): {why}.")


def refused(what: str, action: Callable[[], object], error: type[InstarError] = InstarError) -> None:
    """Raise ContractError unless `action` raises that error."""
    try:
        action()
    except error:
        return
    except Exception as other:
        raise ContractError(
            f"{what} must raise {error.__name__} and say what was expected; it raised {type(other).__name__}: {other}"
        ) from other
    raise ContractError(f"{what} must be refused; it went through (expected {error.__name__}).")
