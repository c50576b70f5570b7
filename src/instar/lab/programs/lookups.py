"""Feed-forward parts that end as lookup tables: a few variables in, one categorical variable out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instar.lab.programs.heads import gate
from instar.lab.programs.sampling import How, sample


class Lookups(nn.Module):
    """Each of M networks reads a few gated variables, concatenated, and puts out one of k values.

    logits = W_out relu(W_in [read_1; …; read_l] + b_in) + b_out, sampled after the log-softmax.

    Args:
        count: M. variables: how many there are to read. k: values of a variable. reads: l. hidden: width between.
        numerical: read numbers in place of one-hot variables.

    W_in begins normal / √hidden, W_out normal / √k, both biases at 0.
    """

    def __init__(self, count: int, variables: int, k: int, *, reads: int, hidden: int, numerical: bool) -> None:
        super().__init__()
        self.numerical, self.reads = numerical, reads
        width = reads * (1 if numerical else k)
        self.gates = nn.Parameter(torch.randn(count, reads, variables) / variables**0.5)
        self.w_in = nn.Parameter(torch.randn(count, width, hidden) / hidden**0.5)
        self.b_in = nn.Parameter(torch.zeros(count, hidden))
        self.w_out = nn.Parameter(torch.randn(count, hidden, k) / k**0.5)
        self.b_out = nn.Parameter(torch.zeros(count, k))

    def forward(self, variables: Tensor, tau: float, how: How) -> Tensor:
        """Variables [B, N, V, k], or numbers [B, N, U] -> [B, N, M, k]."""
        count, reads, _ = self.gates.shape
        if self.numerical:
            chosen = sample(self.gates, tau, how).to(variables.dtype)
            read = torch.einsum("bnu,mlu->bmnl", variables, chosen)
        else:
            gated = gate(self.gates.flatten(0, 1), variables, tau, how)  # [B, M·l, N, k]
            read = gated.unflatten(1, (count, reads)).transpose(2, 3).flatten(3)
        logits = self.logits(read)
        return sample(logits.log_softmax(-1), tau, how).transpose(1, 2)

    def logits(self, read: Tensor) -> Tensor:
        """What the networks make of their reads, concatenated: [B, M, N, l·k] (or [B, M, N, l]) -> [B, M, N, k]."""
        w_in, b_in, w_out, b_out = (t.to(read.dtype) for t in (self.w_in, self.b_in, self.w_out, self.b_out))
        hidden = torch.relu(torch.einsum("bmni,mih->bmnh", read, w_in) + b_in[:, None])
        return torch.einsum("bmnh,mhk->bmnk", hidden, w_out) + b_out[:, None]
