"""Outliers of a model's activations, and the layers whose inputs eight bits break: a diagnosis that changes nothing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from instar.anatomy.linear import is_linear
from instar.compression import observing
from instar.compression.blocks import BlockFormat
from instar.errors import DataError
from instar.models.modes import evaluating

_SCALES = {
    "per_tensor": BlockFormat(8, 0, 0, "float32"),
    "per_token": BlockFormat(8, 1, 0, "float32"),
    "block_64": BlockFormat(8, 1, 64, "power"),
}
BROKEN = 0.02
"""Relative squared error of an input above which a layer counts as broken (a signal of 17 dB)."""


@dataclass
class TensorFacts:
    """One activation: means over sequences, each over its real tokens only."""

    kind: str
    """linear_input, linear_output or norm_output."""
    max_norm: float = 0.0
    """max |x| over tokens and channels."""
    kurtosis: float = 0.0
    """μ4 / (σ⁴ + 1e−6) over all values of the sequence, σ with n − 1: 3 for a normal distribution."""
    largest: float = 0.0
    """max |x| over all sequences."""
    channel: int = -1
    """Its channel."""
    token: int = -1
    """Its place in its sequence."""
    int8_error: dict[str, float] = field(default_factory=dict)
    """‖x − x̂‖² / ‖x‖² of an input in 8 bits, by the grain of the scale."""


@dataclass
class OutlierReport:
    """What `outlier_report` found."""

    tensors: dict[str, TensorFacts]
    sink_mass: dict[str, float]
    """Layer -> share of attention on the first token, by queries after the first 32 (the second half of shorter sequences); empty
    where the model does not tell its attention."""
    sequences: int

    @property
    def max_norm(self) -> float:
        """The largest mean max norm among all tensors."""
        return max(facts.max_norm for facts in self.tensors.values())

    @property
    def kurtosis(self) -> float:
        """The mean kurtosis over all tensors."""
        return sum(facts.kurtosis for facts in self.tensors.values()) / len(self.tensors)

    def broken(self, grain: str = "per_tensor") -> list[str]:
        """Linear layers whose input loses more than `BROKEN` in 8 bits with a scale of this grain, the worst first."""
        errors = {name: facts.int8_error.get(grain, 0.0) for name, facts in self.tensors.items()}
        return sorted((name for name, error in errors.items() if error > BROKEN), key=lambda name: -errors[name])

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {
            **{"max_norm": self.max_norm, "kurtosis": self.kurtosis, "sequences": self.sequences, "sink_mass": self.sink_mass},
            "broken": {grain: self.broken(grain) for grain in _SCALES},
            "tensors": {name: asdict(facts) for name, facts in self.tensors.items()},
        }

    def text(self, rows: int = 8) -> str:
        """For people: what matters, the worst tensors first."""
        lines = [f"{len(self.tensors)} activations over {self.sequences} sequences: largest {self.max_norm:.4g}, "]
        lines[0] += f"mean kurtosis {self.kurtosis:.4g} (3 is normal)."
        if self.sink_mass:
            name = max(self.sink_mass, key=lambda n: self.sink_mass[n])
            lines.append(f"Attention on the first token: up to {self.sink_mass[name]:.2f} ({name}).")
        for grain in _SCALES:
            found = self.broken(grain)
            shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
            lines.append(f"8 bits, {grain.replace('_', ' ')}: " + (f"breaks {shown}" if found else "breaks no layer"))
        worst = sorted(self.tensors.items(), key=lambda item: -item[1].max_norm)[:rows]
        lines.append("Largest values (tensor, max norm, kurtosis, channel, token):")
        lines += [f"  {n}  {f.max_norm:.4g}  {f.kurtosis:.4g}  {f.channel}  {f.token}" for n, f in worst]
        return "\n".join(lines)


@torch.no_grad()
def outlier_report(model: nn.Module, batches: Iterable[Any]) -> OutlierReport:
    """Norms, kurtosis and sinks of every linear layer's input and output and every norm's output, and what 8 bits do to inputs.

    Args:
        batches: what the model is called with; mappings may hold `attention_mask` [B, T], and padding then counts for nothing.

    Activations are seen one at a time, none is kept. The paper (arXiv 2306.12929) leaves open which tensor its norm is of: here
    all are told. Weights, modes and settings stay as they are; transformers keeps the hooks by which it tells its attention.
    Raises DataError for no batches or values that are not finite.
    """
    sums: dict[str, TensorFacts] = {}
    counts: dict[str, int] = {}
    sinks: dict[str, list[float]] = {}
    sequences = 0
    mask: Tensor | None = None

    def see(name: str, kind: str, x: Any) -> None:
        if not isinstance(x, Tensor) or x.dim() < 3:
            return
        for row, sequence in enumerate(x.float()):
            places = torch.arange(len(sequence)) if mask is None else mask[row].nonzero().view(-1).cpu()
            _add(sums.setdefault(name, TensorFacts(kind)), sequence[places.to(x.device)], places, name)
            counts[name] = counts.get(name, 0) + 1

    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, module in model.named_modules():
            if is_linear(module):
                stack.callback(module.register_forward_pre_hook(_before(see, f"{name}.input")).remove)
                stack.callback(module.register_forward_hook(_after(see, f"{name}.output", "linear_output")).remove)
            elif "norm" in type(module).__name__.lower():
                stack.callback(module.register_forward_hook(_after(see, f"{name}.output", "norm_output")).remove)
        stack.enter_context(_telling(model))
        for batch in batches:
            mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            found = observing.call(model, batch)
            first = next(iter(batch.values())) if isinstance(batch, Mapping) else batch
            sequences += len(first)
            for layer, weights in enumerate(getattr(found, "attentions", None) or ()):
                sinks.setdefault(f"layer {layer}", []).append(_sink(weights, mask))
    if not sums:
        raise DataError("An outlier report needs at least one batch of sequences that reaches a linear layer or a norm.")
    for name, facts in sums.items():
        facts.max_norm, facts.kurtosis = facts.max_norm / counts[name], facts.kurtosis / counts[name]
        facts.int8_error = {grain: error / counts[name] for grain, error in facts.int8_error.items()}
    told = {name: sum(values) / len(values) for name, values in sinks.items() if not math.isnan(sum(values))}
    return OutlierReport(sums, told, sequences)


def kurtosis(x: Tensor) -> float:
    """μ4 / (σ⁴ + 1e−6) of all values, σ with n − 1 as the paper's code has it. Not the excess: 3 for a normal distribution."""
    values = x.double().flatten()
    centred = values - values.mean()
    return float((centred**4).mean() / (centred.square().sum() / max(1, len(values) - 1)).square().add(1e-6))


def _add(facts: TensorFacts, x: Tensor, places: Tensor, name: str) -> None:
    """Add a sequence [T, D] to the sums."""
    if not x.numel():
        return
    size = x.abs()
    top = int(size.argmax())
    largest = float(size.flatten()[top])
    if not math.isfinite(largest):
        raise DataError(f"{name} holds NaN or infinity: the model is broken before it is quantised.")
    if largest >= facts.largest:
        facts.largest = largest
        facts.channel, facts.token = top % x.shape[1], int(places[top // x.shape[1]])
    facts.max_norm += largest
    facts.kurtosis += kurtosis(x)
    if facts.kind == "linear_input":
        power = max(float(x.double().square().sum()), 1e-30)
        for grain, format in _SCALES.items():
            error = float((format.quantise(x).dequantise() - x).double().square().sum()) / power
            facts.int8_error[grain] = facts.int8_error.get(grain, 0.0) + error


def _before(see: Any, name: str) -> Any:
    return lambda module, given: see(name, "linear_input", given[0])


def _after(see: Any, name: str, kind: str) -> Any:
    return lambda module, given, found: see(name, kind, found)


@contextlib.contextmanager
def _telling(model: Any) -> Any:
    """Let a model of transformers return its attention, and put its settings back afterwards.

    One that attends by a function of ours keeps it: eager attention would be another function.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(model, "set_attn_implementation") or str(config._attn_implementation).startswith("instar_"):
        yield
        return
    before, told = config._attn_implementation, config.output_attentions
    try:
        model.set_attn_implementation("eager")
        config.output_attentions = True
        yield
    finally:
        config.output_attentions = told
        model.set_attn_implementation(before)


def _sink(weights: Tensor, mask: Tensor | None) -> float:
    """Mean attention [B, H, T, T] of later queries on the first real key; NaN where there is none."""
    total, count = 0.0, 0
    for row, one in enumerate(weights):
        real = torch.arange(one.shape[-1]) if mask is None else mask[row].nonzero().view(-1).cpu()
        late = real[min(32, len(real) // 2) :]
        if len(real) > 1:
            total += float(one[:, late.to(one.device), int(real[0])].float().mean())
            count += 1
    return total / count if count else math.nan
