"""Two small forecasters for the experiment: ridge regression, and a network of one hidden layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from instar.errors import UnknownNameError

Floats = NDArray[np.float64]
Parts = Mapping[str, tuple[Floats, Floats, NDArray[np.int64]]]
_PENALTIES = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5)
_HIDDEN, _EPOCHS, _PATIENCE, _BATCH, _RATE, _DECAY = 32, 30, 4, 256, 1e-3, 1e-3


def forecast(model: str, parts: Parts, seed: int) -> Floats:
    """Targets of `parts["test"]`, learnt from `train`; `valid` chooses the penalty, or when to stop.

    Features have mean 0 and variance 1 in training, and are cut off at 5 deviations; targets are standardised alike.
    """
    x, y, _ = parts["train"]
    mean, deviation = x.mean(0), x.std(0)
    deviation[deviation < 1e-12] = 1
    ready = {name: ((part[0] - mean) / deviation).clip(-5, 5) for name, part in parts.items()}
    centre, unit = float(y.mean()), float(y.std()) or 1.0
    targets = {name: (part[1] - centre) / unit for name, part in parts.items()}
    if model == "ridge":
        said = _ridge(ready, targets)
    elif model == "mlp":
        said = _mlp(ready, targets, seed)
    else:
        raise UnknownNameError.among("model", model, ("ridge", "mlp"))
    return said * unit + centre


def _ridge(x: Mapping[str, Floats], y: Mapping[str, Floats]) -> Floats:
    """w = (XᵀX + λI)⁻¹ Xᵀy, λ by the loss on `valid`; the largest λ among equals."""
    gram, cross = x["train"].T @ x["train"], x["train"].T @ y["train"]
    found = [(np.linalg.solve(gram + penalty * np.eye(len(gram)), cross), penalty) for penalty in _PENALTIES]
    best, _ = min(found, key=lambda pair: (float(((x["valid"] @ pair[0] - y["valid"]) ** 2).mean()), -pair[1]))
    return x["test"] @ best


def _mlp(x: Mapping[str, Floats], y: Mapping[str, Floats], seed: int) -> Floats:
    """32 hidden units, AdamW, stopped when `valid` has not improved for 4 epochs; the best weights are kept."""
    import torch
    from torch import nn

    draw = torch.Generator().manual_seed(seed)
    tensors = {name: (torch.from_numpy(x[name]).float(), torch.from_numpy(y[name]).float()) for name in x}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(x["train"].shape[1], _HIDDEN), nn.GELU(), nn.Dropout(0.1), nn.Linear(_HIDDEN, 1))
        optimiser = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
        best, waited, said = float("inf"), 0, np.zeros(len(x["test"]))
        rows, targets = tensors["train"]
        for _ in range(_EPOCHS):
            net.train()
            for places in torch.randperm(len(rows), generator=draw).split(_BATCH):
                optimiser.zero_grad()
                nn.functional.mse_loss(net(rows[places])[:, 0], targets[places]).backward()
                optimiser.step()
            net.eval()
            with torch.no_grad():
                loss = float(nn.functional.mse_loss(net(tensors["valid"][0])[:, 0], tensors["valid"][1]))
                if loss < best:
                    best, waited = loss, 0
                    said = net(tensors["test"][0])[:, 0].double().numpy()
                else:
                    waited += 1
            if waited >= _PATIENCE:
                break
    return said
