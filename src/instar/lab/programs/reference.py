"""The network written to be read beside the paper: one head, one query and one key at a time. The oracle of `ProgramNetwork`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.lab.programs.network import ProgramNetwork
from instar.lab.programs.sampling import How, sample


def reference(network: ProgramNetwork, ids: Tensor, tau: float, how: How) -> Tensor:
    """Logits [N, classes] (or [classes]) of one sequence ids [N], from the network's parameters.

    `how` must draw no noise (softmax, argmax), since draws come in another order. Equal to `network(…)` in values and gradients.
    """
    shape, N, k = network.shape, len(ids), network.shape.k
    kind = torch.float64 if how == "argmax" else network.classifier.dtype

    def choose(logits: Tensor) -> Tensor:
        return sample(logits, tau, how).to(kind)

    def read(gate: Tensor, stream: list[Tensor]) -> Tensor:
        """The projection [π_1 I; …; π_V I] applied to the concatenated variables."""
        pi, width = choose(gate), stream[0].shape[1]
        projection = torch.cat([p * torch.eye(width, dtype=kind) for p in pi])
        return torch.cat(stream, 1) @ projection

    if shape.embedded:
        categorical = [choose(network.embedding[ids, i]) for i in range(shape.embedded)]
    else:
        categorical = [F.one_hot(ids, k).to(kind)]
    categorical.append(F.one_hot(torch.arange(N), k).to(kind))
    numerical = [torch.ones(N, 1, dtype=kind)]
    for parts in network.blocks:
        attn, num_attn, mlp, num_mlp = (parts[name] for name in ("attn", "num_attn", "mlp", "num_mlp"))  # type: ignore[index]
        new: list[Tensor] = []
        counts: list[Tensor] = []
        for heads, found in ((attn, new), (num_attn, counts)):
            for h in range(len(heads.query)):
                query, key = read(heads.query[h], categorical), read(heads.key[h], categorical)
                P = choose(heads.predicate[h])
                S = [[(P.T @ query[i]) @ key[j] for j in range(N)] for i in range(N)]
                seen = [[j for j in range(N) if j <= i or not shape.causal] for i in range(N)]
                if heads is num_attn:
                    value = read(heads.value[h], numerical)
                    found.append(torch.stack([sum((S[i][j] * value[j] for j in seen[i]), value[0] * 0) for i in range(N)]))
                else:
                    rows = [_attend(S[i], i, seen[i], shape.length, k, tau, how) for i in range(N)]
                    found.append(torch.stack(rows) @ read(heads.value[h], categorical))
        categorical, numerical = categorical + new, numerical + counts
        outputs = []
        for tables, stream in ((mlp, categorical), (num_mlp, numerical)):
            for i in range(len(tables.gates)):
                x = torch.cat([read(gate, stream) for gate in tables.gates[i]], 1)
                hidden = torch.relu(x @ tables.w_in[i].to(kind) + tables.b_in[i].to(kind))
                logits = hidden @ tables.w_out[i].to(kind) + tables.b_out[i].to(kind)
                outputs.append(choose(logits.log_softmax(-1)))
        categorical = categorical + outputs
    weights = network.weights() if how == "argmax" else network.classifier
    x = torch.cat([*categorical, *numerical], 1)
    if shape.pooled:
        return weights @ (x.sum(0) if how == "argmax" else x.mean(0))
    return x @ weights.T


def _attend(S: list[Tensor], i: int, seen: list[int], n: int, k: int, tau: float, how: How) -> Tensor:
    """A row of attention over all places, 0 where nothing may be seen."""
    s = torch.stack([S[j] for j in seen]).sum()
    m = s / (s + 1e-10)
    logits = []
    for j in seen:
        score = S[j] + torch.relu(1 - m) if j == 0 else S[j]
        apart = j - i
        if apart == 0:
            bias = -2.0
        elif apart > 0:
            bias = -(apart - 1) / max(1, n - 2)
        else:
            bias = -(-apart - 1) / max(1, n - 1)
        logits.append(torch.log(score + 1e-20) + bias)
    row = sample(torch.stack(logits) / k**0.5, tau, how)
    return torch.cat([row, row.new_zeros(len(S) - len(seen))])
