"""Causal tracing: in which layers a model looks up facts at the subject, and where other answers can be put in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from instar.bench.seeds import stream
from instar.editing import targets
from instar.editing.above import Above
from instar.editing.facts import subject_end
from instar.editing.layout import Layout, Parts, layout
from instar.editing.rows import pack, row, tokens
from instar.editing.running import Change, on_output, resting
from instar.editing.targets import Objective
from instar.errors import EditError, ModelError
from instar.interfaces import Fact

_REACH = Objective(["block"], lr=0.5, steps=20, clamp=4.0, kl=0.0, decay=0.0)
_NOISE = 3.0


@dataclass(frozen=True)
class Trace:
    """Figures by layer, means over facts that the model knows."""

    facts: int
    removed: list[float]
    """Log-probability of the known answer that is lost when the FFN puts out its mean over all subjects at the subject."""
    restored: list[float]
    """Log-probability that comes back when the FFN puts out at a subject of noise what it does at the subject itself."""
    reachable: list[float]
    """NLL of another answer that a free vector at the block's output reaches: what an edit of this layer can hope for."""

    def layers(self, count: int = 5) -> list[int]:
        """Up to `count` layers in a row, which end where another answer is still in reach.

        The last is the highest layer whose reachable NLL is within a quarter (or 0.1 nats) of the least; of layers below it those
        count in which FFNs matter as much as the mean of all.
        """
        least = min(self.reachable)
        last = max(i for i, nll in enumerate(self.reachable) if nll <= max(1.25 * least, least + 0.1))
        effect = [max(a, b) for a, b in zip(self.removed, self.restored, strict=True)]
        mean = sum(effect) / len(effect)
        while last > 0 and effect[last] < mean and max(effect[:last]) >= mean:
            last -= 1
        return list(range(max(0, last - count + 1), last + 1))


def trace(
    model: nn.Module, tokenizer: Any, facts: Sequence[Fact], *, parts: Parts | None = None, most: int = 20, seed: int = 0
) -> Trace:
    """Trace facts whose `old` answer the model knows (it is the likeliest), the first `most` of them.

    Meng et al. 2022 (arXiv 2202.05262), of the FFN and of the subject's last token alone. Costs 2 · layers passes, and 20 forward
    and backward for each layer from it up. Raises EditError where no such fact is known.
    """
    where = layout(model, parts)
    known = _known(model, where, tokenizer, facts)[:most]
    if not known:
        raise EditError("Causal tracing needs facts whose `old` answer the model knows; of these it knows none.")
    device = next(model.parameters()).device
    rows = pack([row(tokenizer, f.prompt, f.subject, f.old or "") for f in known], device)
    above = Above(model, where, rows, 0)
    with resting(model), torch.no_grad():
        reads = {f"{layer.index}": (layer.ffn.module, "out") for layer in where.layers}
        logits, clean = above.run(read=reads)
        whole = _logp(logits, rows.target)
        noise = _noise(model, tokenizer, known, rows.ids.shape, device, seed)
        embedding = _embedding(model)
        with on_output(embedding, lambda value: value + noise.to(value.dtype)):
            broken = _logp(above.run()[0], rows.target)
        removed, restored = [], []
        for layer in where.layers:
            mine = clean[f"{layer.index}"]
            mean = mine.mean(0, keepdim=True).expand_as(mine)
            removed.append(whole - _logp(above.run(change={layer.ffn.module: _put(rows.subject, mean)})[0], rows.target))
            with on_output(embedding, lambda value: value + noise.to(value.dtype)):
                back = above.run(change={layer.ffn.module: _put(rows.subject, mine)})[0]
            restored.append(_logp(back, rows.target) - broken)
    # Each is asked to say what another one does.
    others = [replace(f, target=known[(i + 1) % len(known)].old or "") for i, f in enumerate(known)]
    apart = [o for o, f in zip(others, known, strict=True) if o.target != f.old] or known
    reachable = [
        float(targets.find(model, where, tokenizer, apart, [], layer.index, _REACH).nll.mean()) for layer in where.layers
    ]
    return Trace(len(known), removed, restored, reachable)


def _known(model: nn.Module, where: Layout, tokenizer: Any, facts: Sequence[Fact]) -> list[Fact]:
    from instar.editing.evaluation import scores

    asked = [fact for fact in facts if fact.old]
    found = scores(model, where, [row(tokenizer, f.prompt, None, f.old or "") for f in asked]) if asked else []
    return [fact for fact, (_, right) in zip(asked, found, strict=True) if right == 1]


def _logp(logits: Tensor, target: Tensor) -> float:
    """Mean over rows of the mean log-probability of a target's tokens."""
    real = target >= 0
    likely = logits.float().log_softmax(-1).gather(-1, target.clamp(min=0)[..., None])[..., 0]
    return float(((likely * real).sum(1) / real.sum(1)).mean())


def _put(subject: Tensor, values: Tensor) -> Change:
    each = torch.arange(len(subject), device=subject.device)
    return lambda output: output.index_put((each, subject), values.to(output.dtype))


def _embedding(model: nn.Module) -> nn.Module:
    found = next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)
    if found is None:
        raise ModelError(f"{type(model).__name__} has no torch.nn.Embedding, at which tracing puts noise on a subject.")
    return found


def _noise(model: nn.Module, tokenizer: Any, facts: Sequence[Fact], shape: torch.Size, device: torch.device, seed: int) -> Tensor:
    """Normal, three times as wide as the embeddings, at the tokens of subjects; [B, T, D]."""
    weight = _embedding(model).weight
    assert isinstance(weight, Tensor)
    noise = torch.randn(*shape, weight.shape[1], generator=stream(seed, "tracing")).to(device)
    inside = torch.zeros(shape, device=device)
    for i, fact in enumerate(facts):
        end = subject_end(fact.prompt, fact.subject)
        for place, (start, stop) in enumerate(tokens(tokenizer, fact.prompt.rstrip())[1]):
            inside[i, place] = float(start < stop and start < end and stop > end - len(fact.subject.strip()))
    return noise * inside[..., None] * _NOISE * float(weight.detach().float().std())
