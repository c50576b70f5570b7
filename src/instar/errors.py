"""The exception tree: everything Instar raises on purpose is an `InstarError`.

A message says what was received, what was expected, and what to do. The command line prints it without a traceback and
exits with `exit_code`; code 1 is kept for "the answer is no" (a failed check), 2 for wrong usage of the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InstarError(Exception):
    """Base of every error that Instar raises on purpose."""

    exit_code = 3


class UnknownNameError(InstarError):
    """A method, preset, problem, metric or knob that does not exist."""

    @classmethod
    def among(cls, what: str, name: str, known: Iterable[str]) -> UnknownNameError:
        """The error for `name`, with the nearest of the `known` names."""
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known) or 'none'}."
        return cls(f"Unknown {what} '{name}'. {hint}")


class CardError(InstarError):
    """A card that does not follow the schema."""


class FormulaError(InstarError):
    """A formula that uses more than arithmetic on known names."""


class ShapeError(InstarError, ValueError):
    """A tensor or setting of the wrong shape, type or range."""


class DataError(InstarError):
    """Data that is missing, empty, too small, corrupt or not of the expected kind."""


class BudgetError(InstarError):
    """A budget that cannot be read, or that does not pay for one step."""


class PlanError(InstarError):
    """A comparison that cannot be made as asked (no baseline, another plan in the folder, …)."""


class OutputError(InstarError):
    """A folder or file that cannot be written."""


class RecordError(InstarError):
    """A record that is truncated or not one of ours."""


class CheckpointError(InstarError):
    """A checkpoint with missing keys, wrong shapes, or that is no safetensors file."""


class ModelError(InstarError):
    """A model, endpoint or function that cannot be loaded or asked."""


class EnergyError(InstarError):
    """An energy that is not one a sample, not differentiable, not finite, or that couples samples."""


class ReceiptError(InstarError):
    """A receipt that does not fit the model, that is not the last one, or that is damaged."""


class StoreError(InstarError):
    """A vector store that cannot be opened, reached, read or written."""


class GenerationError(InstarError):
    """Vectors of an encoder, or of a generation, that an index does not hold or cannot compare."""


class AdapterError(InstarError):
    """An adapter that does not fit the model, of another base, or under a name that is taken or unknown."""


class EditError(InstarError):
    """Facts that cannot be written into a model, or that contradict each other."""


class TransformError(InstarError):
    """A model that a transformation cannot take, or a target that it cannot reach."""


class ContractError(InstarError):
    """A check of `instar.checks` that the method under test does not pass."""

    exit_code = 1


class BuildError(InstarError):
    """A compiled kernel that cannot be built, that is damaged, or that is not there."""


class DivergedError(InstarError):
    """Training or evaluation produced a value that is not finite."""


class MissingExtraError(InstarError, ImportError):
    """An optional dependency that is not installed."""
