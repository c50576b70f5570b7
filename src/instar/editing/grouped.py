"""Prompts of some facts that run together: no wider than the fastest memory holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from instar.editing.layout import Part
from instar.editing.rows import Row
from instar.editing.shifted import Shifted


def together(made: Sequence[Sequence[Row]], most: int) -> list[int]:
    """Sizes, in rows, of groups of facts, the shortest first: up to `most` tokens from the subject on, as padded.

    A group ends as well where a longer fact comes and it holds a quarter of that: what is padded is wasted.
    """
    sizes = [0]
    widest = 0
    for rows in made:
        width = max(widest, length(rows))
        full = (sizes[-1] + len(rows)) * width > most
        if sizes[-1] and (full or (width > widest and 4 * sizes[-1] * widest >= most)):
            sizes.append(0)
            width = length(rows)
        sizes[-1] += len(rows)
        widest = width
    return sizes


def length(rows: Sequence[Row]) -> int:
    """Tokens of the longest, from the subject on."""
    return max(len(one.ids) - one.subject for one in rows)


class Group:
    """Facts with P prompts each, in one pass."""

    def __init__(self, said: Shifted, prompts: int) -> None:
        self.said, self.prompts = said, prompts

    def __len__(self) -> int:
        return len(self.said.target) // self.prompts

    def take(self, places: Tensor) -> Group:
        """The same for some of the facts."""
        rows = places[:, None] * self.prompts + torch.arange(self.prompts, device=places.device)
        return Group(self.said.take(rows.flatten()), self.prompts)

    def outputs(self, parts: Sequence[Part]) -> dict[Part, Tensor]:
        """v₀ [F, D]: what parts put out on the bare prompts, which are the first."""
        return {part: value[:: self.prompts].float() for part, value in self.said.outputs(parts).items()}

    def nll(self, delta: Mapping[Part, Tensor], ease: float, *, gradient: bool) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """NLL of the facts' targets under shifts [F, D]; whether they are the likeliest at every place; `ease` · NLL where they
        are, else NLL; and gradients of that. Each [F], but gradients [F, D] of each part, if asked for.
        """
        leaves = {part: value.detach().requires_grad_(gradient) for part, value in delta.items()}
        with torch.set_grad_enabled(gradient):
            shift = {part: value.repeat_interleave(self.prompts, dim=0) for part, value in leaves.items()}
            logp = self.said.run(shift).float().log_softmax(-1)
            target = self.said.target
            real = target >= 0
            each = -logp.gather(-1, target.clamp(min=0)[..., None])[..., 0]
            nll = ((each * real).sum(-1) / real.sum(-1)).view(-1, self.prompts).mean(-1)
            right = ((each <= -logp.amax(-1)) | ~real).view(len(nll), -1).all(1)
            eased = torch.where(right, ease, 1.0) * nll
            total = eased.sum()
        grads = list(torch.autograd.grad(total, list(leaves.values()))) if gradient else []
        return nll.detach(), right, eased.detach(), grads
