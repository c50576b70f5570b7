"""Residual MLP of Drift-Adapter (Vejendla 2025, arXiv 2509.23471)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.bench.seeds import initialising, stream
from instar.compat import fitting, ridge, training
from instar.compat.fitting import Moments
from instar.compat.mapping import Map
from instar.errors import ShapeError
from instar.interfaces import Monitor, Pairs


class ResidualMLP(Map):
    """g(x) = W x + c + W₂ GELU(W₁ x + c₁), trained on mean ‖y − g(x)‖².

    Args:
        hidden: units of the branch; the paper's 256.
        held_out: share of the pairs that are not trained on; what was best on them is kept, once an epoch. The paper's fifth.

    Differs from the paper: W and c start as the ridge map and W₂ as 0, so that training begins where the linear map ends and
    keeps nothing that is worse on the held-out pairs. The diagonal scaling S g(x) is part of W, c and W₂. Its optimiser and
    schedule were not available; ours are those of every head (`compat.training`).

    Time O(N D (D + O) + D³) and then 6 (D O + (D + O) · hidden) FLOPs a pair and epoch. Raises ShapeError for hidden below 1 or
    a share outside 0 … 0.5; `fit` raises DataError for fewer than 10 pairs, DivergedError.
    """

    RECIPE = training.Recipe(epochs=50, batch=256)

    def __init__(
        self, new_dim: int, old_dim: int, *, input_dim: int | None = None, hidden: int = 256, held_out: float = 0.2
    ) -> None:
        super().__init__(new_dim, old_dim, input_dim=input_dim)
        if hidden < 1 or not 0 < held_out <= 0.5:
            raise ShapeError(f"hidden expects 1 or more and held_out a share in (0, 0.5]; received {hidden} and {held_out}.")
        self.hidden, self.held_out = hidden, held_out
        self.skip = nn.Linear(new_dim, old_dim)
        self.down = nn.Linear(new_dim, hidden)
        self.up = nn.Linear(hidden, old_dim, bias=False)

    def fit(self, pairs: Pairs, *, steps: int | None = None, seed: int = 0, monitor: Monitor | None = None) -> None:
        """Start at ridge and train; the best of the epochs on the held-out pairs stays. The head changes only at the end.

        Raises DataError, ShapeError, DivergedError.
        """
        fitting.check(self, pairs, least=10)
        order = torch.randperm(len(pairs.old), generator=stream(seed, "held out")).to(pairs.old.device)
        few = max(1, round(self.held_out * len(order)))
        judged, taught = (Pairs(pairs.old[part], pairs.new[part]) for part in (order[:few], order[few:]))
        head = self._begun(taught, seed)
        best = _Best(head, judged, len(taught.old))

        def mean_loss(places: Tensor) -> Tensor:
            return _loss(head, taught.new[places], taught.old[places])

        def watch(step: int, loss: float) -> bool | None:
            best.after(step)
            return None if monitor is None else monitor(step, loss)

        training.train(head, mean_loss, len(taught.old), recipe=self.RECIPE, steps=steps, seed=seed, monitor=watch)
        best.look()
        with torch.no_grad():
            for name, value in best.weights.items():
                self.get_parameter(name).copy_(value)

    def bring(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.up(F.gelu(self.down(x)))

    def _begun(self, pairs: Pairs, seed: int) -> ResidualMLP:
        """A head that is the ridge map of the pairs, on their device."""
        weight, bias = ridge.solve(Moments.of(pairs, centred=True), None)
        with initialising(seed), torch.no_grad():
            head = ResidualMLP(self.new_dim, self.old_dim, hidden=self.hidden, held_out=self.held_out).to(pairs.new)
            head.up.weight.zero_()
            head.skip.weight.copy_(weight)
            head.skip.bias.copy_(bias)
        return head


class _Best:
    """The weights that were best on held-out pairs."""

    def __init__(self, head: ResidualMLP, pairs: Pairs, items: int) -> None:
        self._head, self._pairs = head, pairs
        self._every = max(1, items // head.RECIPE.batch_size(items))
        self._loss = float("inf")
        self.weights: dict[str, Tensor] = {}
        self.look()

    def after(self, step: int) -> None:
        """Look once an epoch."""
        if step % self._every == 0:
            self.look()

    @torch.no_grad()
    def look(self) -> None:
        """Keep the weights of now where they are better than all before."""
        if (loss := float(_loss(self._head, self._pairs.new, self._pairs.old))) < self._loss:
            self._loss = loss
            self.weights = {name: value.detach().clone() for name, value in self._head.named_parameters()}


def _loss(head: ResidualMLP, new: Tensor, old: Tensor) -> Tensor:
    return (head.bring(new) - old).square().sum(1).mean()
