"""The contract of `Mixer`: every check, and the capability tags that decide whether it is asked."""

from __future__ import annotations

from instar.checks.ecosystem import check_compile, check_copies, check_inference
from instar.checks.numerics import (
    check_autocast,
    check_deterministic,
    check_extremes,
    check_gradients,
    check_half,
    check_precision,
    check_reference,
    check_seeded,
)
from instar.checks.promises import check_arguments, check_state_bytes
from instar.checks.sequence import (
    check_causality,
    check_future,
    check_inputs,
    check_max_len,
    check_mixing,
    check_padding,
    check_refuses_state,
    check_reset,
    check_rows,
    check_shapes,
    check_split,
    check_value,
)
from instar.checks.subject import Check

CONTRACT = (
    Check("arguments", check_arguments),
    Check("shapes", check_shapes),
    Check("inputs", check_inputs),
    Check("mixing", check_mixing),
    Check("causality", check_causality, unless="bidirectional"),
    Check("future", check_future, needs="bidirectional"),
    Check("split", check_split, needs="streaming"),
    Check("value", check_value, needs="streaming"),
    Check("refuses_state", check_refuses_state, unless="streaming"),
    Check("padding", check_padding),
    Check("reset", check_reset),
    Check("rows", check_rows),
    Check("reference", check_reference),
    Check("precision", check_precision),
    Check("gradients", check_gradients, unless="surrogate_grad"),
    Check("deterministic", check_deterministic, unless="stochastic"),
    Check("seeded", check_seeded, needs="stochastic"),
    Check("extremes", check_extremes),
    Check("autocast", check_autocast),
    Check("half", check_half),
    Check("max_len", check_max_len, needs="max_len"),
    Check("compile", check_compile),
    Check("copies", check_copies),
    Check("inference", check_inference),
    Check("state_bytes", check_state_bytes, costs=True),
)
"""A stochastic mixer is held to everything in eval mode, and in training mode to `seeded`; one that reads statistics of a batch
in eval mode. A surrogate gradient is held to its formula by `reference`; a state of partial chunks (`chunk_is_semantics`) to
every split, as any other."""
