"""On which side of the threshold each attention head of a model stands: norms, and what a polynomial gradient would need."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from instar.adapters.layer import Adapted
from instar.adapters.limits.attention import choose_for
from instar.anatomy.find import role
from instar.anatomy.linear import Linear, is_linear
from instar.errors import ModelError
from instar.models.modes import evaluating

_NORM = re.compile(r"^(q|k|qk|query|key)_?(layer_?)?(norm|ln)$|norm_(q|k|query|key)$")
"""Names of what normalises queries and keys."""


@dataclass(frozen=True)
class Head:
    """One attention head, on the inputs that were shown. Norms are largest entries, of queries and keys times d^(-1/4) each."""

    layer: str
    """Path of the attention module."""
    head: int
    tokens: int
    """L, the longest input's."""
    query: float
    """Γ_Q = max |(X_Q W_Q)_ij|"""
    key: float
    """Γ_K = max |(X_K W_K)_ij|"""
    adapter: float
    """max |(α/r X_Q B_Q A_Q)_ij| of what an active adapter adds to the queries; 0 without one."""
    threshold: float
    """√(ln L)"""
    reach: float
    """max ‖q‖ max ‖k‖ / √d: no score is larger; rotary positions leave it as it is."""
    degree: int | None
    """Of the least polynomial that keeps the gradient within the tolerance; None where there is none."""
    rank: int
    """Its features, k_1 = binom(d + g, g); 0 for none."""
    cheaper: float
    """Multiplications of the exact gradient over those of the polynomial one; above 1 it pays."""

    @property
    def ratio(self) -> float:
        """max(Γ_Q, Γ_K) / √(ln L): the paper's condition is that it tends to 0; well below 1 low degrees do."""
        return max(self.query, self.key) / self.threshold


def diagnose(model: nn.Module, batches: Sequence[Any], *, tolerance: float = 0.01) -> list[Head]:
    """Look at every head of a model while it reads some inputs; adapters that are active count. Nothing is changed.

    model: attention with one linear layer each for query and key, or one for query, key and value, as `instar.anatomy` names
        them, and a `config` with the number of heads. batches: keyword arguments of `model`, or tensors.

    Raises ModelError where no such layer is found, where scores are more than q·k/√d of what these layers give (queries or keys
    that are normalised, another scale), for fused layers with fewer keys than queries, and for queries that are not finite.
    """
    config = getattr(model, "config", None)
    heads = next((getattr(config, n) for n in ("num_attention_heads", "n_head", "num_heads") if getattr(config, n, None)), None)
    if heads is None:
        raise ModelError(f"{type(model).__name__} does not say in its config how many attention heads it has.")
    watched = _watched(model)
    for path, (part, module) in watched.items():
        _require_plain(model, path, part, module, heads, config)
    seen: dict[tuple[str, str], _Largest] = {}
    handles = [module.register_forward_hook(_watch(seen, path, part, heads, config)) for path, (part, module) in watched.items()]
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                model(**batch) if isinstance(batch, dict) else model(batch)
    finally:
        for handle in handles:
            handle.remove()
    layers = list(dict.fromkeys(path for path, _ in seen))
    found = []
    for layer in layers:
        query, key = seen[layer, "query"], seen[layer, "key"]
        for head in range(heads):
            shared = head * len(key.entry) // heads
            reach = float(query.norm[head] * key.norm[shared]) / math.sqrt(query.width)
            if not math.isfinite(reach):
                raise ModelError(f"Queries or keys of {layer} are not finite.")
            choice = choose_for(reach, query.width, query.width, query.tokens, tolerance)
            root = query.width**-0.25
            found.append(
                Head(
                    layer=layer,
                    head=head,
                    tokens=query.tokens,
                    query=root * float(query.entry[head]),
                    key=root * float(key.entry[shared]),
                    adapter=root * float(query.added[head]),
                    threshold=math.sqrt(math.log(max(2, query.tokens))),
                    reach=reach,
                    degree=choice.degree,
                    rank=choice.rank,
                    cheaper=choice.cheaper,
                )
            )
    return found


def table(heads: Sequence[Head]) -> str:
    """The diagnosis as text, a row a head."""
    lines = [
        f"{'layer':<40} {'head':>4} {'Γ/√ln L':>8} {'adapter':>8} {'scores':>8} {'degree':>6} {'features':>9} {'cheaper':>8}"
    ]
    for one in heads:
        degree = "none" if one.degree is None else str(one.degree)
        lines.append(
            f"{one.layer[-40:]:<40} {one.head:>4} {one.ratio:>8.2f} {one.adapter:>8.3f} {one.reach:>8.2f} {degree:>6} "
            f"{one.rank if one.rank < 1e7 else format(one.rank, '.1e'):>9} {one.cheaper:>8.2g}"
        )
    return "\n".join(lines)


@dataclass
class _Largest:
    """Of one layer's queries or keys, by head."""

    entry: Tensor
    norm: Tensor
    added: Tensor
    width: int
    tokens: int

    def take(self, other: _Largest) -> None:
        self.entry = torch.maximum(self.entry, other.entry)
        self.norm = torch.maximum(self.norm, other.norm)
        self.added = torch.maximum(self.added, other.added)
        self.tokens = max(self.tokens, other.tokens)


def _watched(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Path -> role (query, key or fused) and module, adapted layers as one."""
    found: dict[str, tuple[str, nn.Module]] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{other}.") for other in found)
        part = role(path)
        if part == "fused" and path.endswith("query_key_value"):
            raise ModelError(f"{path} keeps query, key and value of each head beside each other, which is not read here.")
        if not inside and part in ("query", "key", "fused") and (isinstance(module, Adapted) or is_linear(module)):
            found[path] = (part, module)
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no linear layers named as queries and keys of attention (q_proj, k_proj, query, key, "
            "c_attn, …); see instar.anatomy."
        )
    return found


def _require_plain(model: nn.Module, path: str, part: str, module: nn.Module, heads: int, config: Any) -> None:
    """Raise ModelError where scores are made of something else than what the watched layers give, over √d."""
    attention = model.get_submodule(path.rpartition(".")[0])
    normed = [name for name, child in attention.named_children() if _NORM.search(name) and not isinstance(child, nn.Identity)]
    if normed:
        raise ModelError(f"{path}: {normed[0]} changes queries or keys after that layer, which is not read here.")
    if part == "key":
        return
    shared = (getattr(config, "num_key_value_heads", None) or heads) != heads or getattr(config, "multi_query", False)
    if part == "fused" and shared:
        raise ModelError(f"{path} gives fewer keys than queries in one layer, which is not read here.")
    outputs = Linear(path, module.base_layer if isinstance(module, Adapted) else module).outputs
    width = outputs // (3 * heads if part == "fused" else heads)
    scaling = getattr(attention, "scaling", None)
    if isinstance(scaling, float) and not math.isclose(scaling, width**-0.5, rel_tol=1e-4):
        raise ModelError(f"{path}: scores are multiplied by {scaling:.4g} and not by 1/√{width}, which is not read here.")


def _watch(
    seen: dict[tuple[str, str], _Largest], path: str, part: str, heads: int, config: Any
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    layer = path.rsplit(".", 1)[0]

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        added = torch.zeros_like(output[..., :1])
        if isinstance(module, Adapted) and module.active is not None:
            added = output - module.base_layer(*inputs)
        both: dict[str, tuple[Tensor, Tensor]] = {part: (output, added)}
        if part == "fused":
            sides = (output.chunk(3, -1), added.chunk(3, -1) if added.shape == output.shape else (added,) * 3)
            both = {name: (sides[0][i], sides[1][i]) for i, name in enumerate(("query", "key"))}
        for name, (whole, more) in both.items():
            count = heads if name == "query" else (getattr(config, "num_key_value_heads", None) or heads)
            one = _largest(whole, more, count)
            if (layer, name) in seen:
                seen[layer, name].take(one)
            else:
                seen[layer, name] = one

    return hook


def _largest(x: Tensor, added: Tensor, heads: int) -> _Largest:
    rows = x.reshape(-1, heads, x.shape[-1] // heads).double()
    more = added.expand_as(x).reshape(-1, heads, x.shape[-1] // heads)
    return _Largest(
        rows.abs().amax((0, 2)), rows.norm(dim=-1).amax(0), more.abs().amax((0, 2)).double(), rows.shape[-1], x.shape[-2]
    )
