"""The gradient of a LoRA adapter in one attention head: how exact, and what it costs by length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch

from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.errors import ShapeError
from instar.interfaces import AttentionHead, Data, Items, Monitor, Problem, Workload
from instar.lab.limits.measuring import Adapted, draw, error, kept_bytes

SIZES = (0.5, 1.0, 2.0, 3.0)
LENGTHS = (1024, 2048, 4096, 8192)
_WIDTH, _KEPT = 4, 2048
"""Of the timing pass, where no score is above 1, as in `benchmarks/lora_gradient.py`; the length at which bytes are counted."""


class HeadGradientProblem(Problem):
    """Heads of normal queries, keys, values and adapters, by the largest entry Γ of queries and keys. An item is a head.

    Args: tokens: L. width: d. rank: of the adapter. test_heads: in each split, other ones for each seed.

    Metrics: relative error of ∂loss/∂A_Q at Γ of 0.5 to 3, scores unscaled as in the paper (`error`; √(ln 512) is 2.5); seconds
    of both passes by length, float32; bytes that are kept between them. Nothing is trained. Source: Hu et al. 2024 (2406.03136).
    """

    accepts: ClassVar = {AttentionHead: "head"}

    def __init__(self, *, tokens: int = 512, width: int = 3, rank: int = 2, test_heads: int = 8) -> None:
        if min(width, rank, test_heads) < 1 or tokens < 2:
            raise ShapeError(
                f"head_gradient expects tokens ≥ 2, and width, rank and test_heads ≥ 1; received {tokens}, {width}, {rank} and "
                f"{test_heads}."
            )
        self.tokens, self.width, self.rank, self.test_heads = tokens, width, rank, test_heads
        self.tokens_per_step = tokens

    def load(self, seed: int) -> Data:
        """Heads of the seed's own."""
        valid, test = (
            [draw(self.tokens, self.width, self.rank, generator) for _ in range(self.test_heads)]
            for generator in (stream(seed, "valid"), stream(seed, "test"))
        )
        facts = {
            **{"name": "generated attention heads", "item": "head", "train_items": None},
            **{"valid_items": self.test_heads, "test_items": self.test_heads},
        }
        made = f"head_gradient/1/{self.tokens}/{self.width}/{self.rank}/{self.test_heads}"
        return Data(None, valid, test, made, facts)

    def head(self, build: Build, data: Data, seed: int) -> AttentionHead:
        """As its arguments say."""
        made = build.cls(**build.arguments)
        assert isinstance(made, AttentionHead)
        return made

    def fit(
        self,
        subject: AttentionHead,
        train: None,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Nothing is learnt; the last steps are told."""
        if monitor is not None:
            for step in sorted({max(1, steps - 1), steps}):
                monitor(step, 0.0)

    def evaluate(self, subject: AttentionHead, split: list[Adapted]) -> dict[str, Items]:
        """Every head at every size."""
        return {f"error@{size:g}": Items([error(subject, given, size) for given in split], [1.0] * len(split)) for size in SIZES}

    def costs(self, subject: AttentionHead) -> dict[str, float]:
        """Bytes kept for the gradient of one head of 2,048 tokens and width 4, float32."""
        q, k, v, _ = _small(_KEPT)
        return {"kept_bytes": float(kept_bytes(lambda: subject(q.requires_grad_(), k.requires_grad_(), v.requires_grad_())))}

    def workloads(self) -> Iterator[Workload]:
        """Both passes by length."""
        for length in LENGTHS:
            yield Workload(f"seconds@{length}", lambda subject, length=length: _passes(subject, length))  # type: ignore[misc]


def _small(length: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    q, k, v, up = (torch.randn(1, length, _WIDTH, generator=generator) for _ in range(4))
    return [q / q.norm(dim=-1).max(), k / k.norm(dim=-1).max(), v, up]


def _passes(subject: Any, length: int) -> Callable[[], object]:
    q, k, v, up = _small(length)

    def call() -> None:
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        torch.autograd.grad(subject(*leaves), leaves, up)

    return call
