"""ATLAS, OmegaNet and Titans: a training step by length against `titans-pytorch`, equal values and gradients, slopes, capacity.

    PYTHONPATH=FOLDER python benchmarks/atlas.py [--quick] [--out FILE]

FOLDER has `titans-pytorch` and what it needs (`pip install --target FOLDER --no-deps titans-pytorch assoc-scan einops einx …`).

*The same model*: both have one update a token, gradients at the weights before a block of 16 tokens, momentum and forgetting for
each token, an MLP with a residual for each head, and read after writing (`chunk_size=1, batch_size=16` there, `chunk=16` here).
`titans_same` is our kernel behind the peer's own projections and gates: one function of the same parameters; outputs and all
gradients are compared in float64. `peer_chunk_16` is that package as it is mostly used, for scale: one update for 16 tokens, and
reads that lag behind, which is another model.

float32, B 1, D 64, H 4, one thread. All take turns, call by call, in one process; minimum and median of the turns are kept, of
wall-clock and of CPU time. Ratios and slopes are of CPU time, which other work on the machine disturbs less. Slopes: 1K to 16K.

Capacity: N random unit pairs in R^16 are read once by a matrix memory, each step 1 over the largest eigenvalue of its window's
Gram matrix; the share of keys whose answer is nearest to their own value, mean of 10 draws.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.kernels.memory_network import MemoryNetwork
from instar.kernels.omega_rule import OmegaRule
from instar.kernels.polynomial_features import PolynomialFeatures
from instar.mixers.atlas import Atlas
from instar.mixers.gated_delta_net import GatedDeltaNet
from instar.mixers.omeganet import OmegaNet
from instar.mixers.titans import Titans

D, H, C = 64, 4, 16
PEER = "titans_pytorch.neural_memory"
BASE, LONGEST, SLOW = 1024, 16384, 1024
"""Lengths; the longest for `titans-pytorch`, which keeps the weights after every token."""
Call = Callable[[], Tensor]
OURS = ("titans_same", "titans", "omeganet", "atlas", "gated_delta_net")


class ResidualMLP(nn.Module):
    """x + W₁ gelu(W₂ x), in the peer's layout."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Parameter(torch.empty(width, hidden)), nn.Parameter(torch.empty(hidden, width))
        for p in self.parameters():
            nn.init.xavier_uniform_(p)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(x @ self.inner) @ self.outer


def peer(chunk: int, block: int | None) -> nn.Module:
    model = ResidualMLP(D // H, 4 * D // H)
    memory: Any = importlib.import_module(PEER).NeuralMemory
    return memory(D, chunk_size=chunk, batch_size=block, dim_head=D // H, heads=H, model=model, mem_model_norm_add_residual=False)


class Same(nn.Module):
    """`OmegaRule` behind the peer's own projections and gates, so that both are one function of the same parameters."""

    def __init__(self, theirs: nn.Module) -> None:
        super().__init__()
        self.theirs = theirs
        self.rule = OmegaRule(MemoryNetwork(2), chunk=C, momentum=True)

    def forward(self, x: Tensor) -> Tensor:
        m: Any = self.theirs
        stored, read = m.store_norm(x), m.retrieve_norm(x)
        q, k, v = m.to_queries(read), m.to_keys(stored), m.to_values(stored)
        q, k, v = (part.unflatten(-1, (H, -1)) for part in (q, k, v))
        eta = m.to_adaptive_step[0](stored).sigmoid() * (2 * H / D)  # its loss is the mean, without a half
        forget, theta = m.to_decay_factor[0](stored), m.to_momentum[0](stored)
        inner, outer = m.memory_model_parameters
        initial = [outer.mT, inner.mT]
        o, _ = self.rule(initial, lambda z: z, q, k, v, F.logsigmoid(-forget), F.logsigmoid(theta), eta, None)
        gate = m.retrieve_gate[0](read).sigmoid().unsqueeze(-1)
        return m.combine_heads((o * gate).flatten(2))


def agreement() -> dict[str, float]:
    """Largest difference over the largest value: outputs, gradients of the input and of every parameter; 70 tokens, float64."""
    torch.manual_seed(0)
    theirs = peer(1, C).double()
    ours, found = Same(theirs), []
    for module in (ours, theirs):
        x = torch.randn(2, 70, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        y = module(x)
        y = y[0] if isinstance(y, tuple) else y
        parameters = [p for p in theirs.parameters() if p.requires_grad]
        found.append((y, *torch.autograd.grad(y.sin().sum(), [x, *parameters], materialize_grads=True, allow_unused=True)))
    apart = [float((a - b).detach().abs().max() / a.detach().abs().max().clamp(min=1e-9)) for a, b in zip(*found, strict=True)]
    return {"output": apart[0], "input_gradient": apart[1], "parameter_gradients": max(apart[2:])}


def calls(T: int, peers: bool) -> dict[str, Call]:
    """One forward pass each."""
    torch.manual_seed(0)
    x = torch.randn(1, T, D, requires_grad=True)
    layers: dict[str, nn.Module] = {
        "titans": Titans(D, heads=H, chunk=C),
        "omeganet": OmegaNet(D, heads=H, chunk=C),
        "atlas": Atlas(D, heads=H, chunk=C),
        "gated_delta_net": GatedDeltaNet(D, heads=H),
    }
    if peers:
        same = peer(1, C)
        layers["titans_same"] = Same(same)
        if T <= SLOW:
            layers |= {"peer_same": same, "peer_chunk_16": peer(C, None)}
    return {name: lambda layer=layer: _output(layer(x)) for name, layer in layers.items()}


def _output(found: Any) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


def summary(seconds: list[float]) -> dict[str, float]:
    return {"min": min(seconds), "median": statistics.median(seconds)}


def measure(T: int, rounds: int, peers: bool) -> dict[str, Any]:
    functions = calls(T, peers)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, call in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call().sum().backward()
            if turn:  # the first turn warms up
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    found: dict[str, Any] = {
        name: {"wall": summary([w for w, _ in spent]), "cpu": summary([c for _, c in spent])} for name, spent in taken.items()
    }
    ratios = {
        name: {kind: found[name]["cpu"][kind] / found["titans_same"]["cpu"][kind] for kind in ("min", "median")}
        for name in ("peer_same", "peer_chunk_16")
        if name in found
    }
    return {"seconds": found, "times_faster": ratios, "load": os.getloadavg()[0]}


def recalled(pairs: int, degree: int, window: int, hebbian: bool = False) -> float:
    """Share of the pairs that a matrix memory recalls after one pass."""
    found, width = [], D // H
    features = PolynomialFeatures(width, degree)
    rule = OmegaRule(MemoryNetwork(1, hebbian=hebbian), window=window, chunk=1)
    for seed in range(10):
        torch.manual_seed(seed)
        k, v = (F.normalize(torch.randn(pairs, width), dim=-1) for _ in range(2))
        with torch.no_grad():
            phi = features(k)
            steps = [float(torch.linalg.matrix_norm(phi[max(0, t + 1 - window) : t + 1], 2)) ** -2 for t in range(pairs)]
            key, value = (x.view(1, pairs, 1, width) for x in (k, v))
            eta = torch.tensor(steps).view(1, -1, 1)
            start, flat = [torch.zeros(1, width, features.size)], torch.zeros(1, pairs, 1)
            gamma = torch.ones(1, pairs, 1, window)
            W = rule(start, features, key, key, value, flat, None, eta, gamma)[1].weights[0][0, 0]
        found.append(float((torch.cdist(phi @ W.T, v).argmin(1) == torch.arange(pairs)).float().mean()))
    return statistics.mean(found)


def capacity() -> dict[str, dict[str, float]]:
    ways: dict[str, tuple[int, int, bool]] = {"hebbian": (1, 1, True), "delta": (1, 1, False)}
    ways |= {f"window_{c}": (1, c, False) for c in (8, 32)}
    ways |= {"products": (2, 1, False)} | {f"products_window_{c}": (2, c, False) for c in (8, 32)}
    return {str(n): {name: recalled(n, *way) for name, way in ways.items()} for n in (16, 32, 64)}


def table(result: dict[str, Any]) -> str:
    lines = ["forward + backward, one thread: min of CPU time in ms"]
    names = sorted({name for row in result["training"].values() for name in row["seconds"]})
    lines.append("       T " + "".join(f"{n:>17}" for n in names))
    for T, row in result["training"].items():
        cells = [f"{1e3 * row['seconds'][n]['cpu']['min']:.1f}" if n in row["seconds"] else "-" for n in names]
        lines.append(f"  {T:>6} " + "".join(f"{cell:>17}" for cell in cells) + f"   load {row['load']:.1f}")
        lines += [f"         {n}: {r['min']:.2f} times ours (median {r['median']:.2f})" for n, r in row["times_faster"].items()]
    lines += [f"  log-log slope {BASE} to {LONGEST}: {name} {value:.3f}" for name, value in result["slopes"].items()]
    lines += [f"  difference of {name}: {value:.1e}" for name, value in result["difference_from_peer"].items()]
    for pairs, row in result["capacity"].items():
        lines.append(f"  {pairs} pairs recalled: " + ", ".join(f"{name} {value:.2f}" for name, value in row.items()))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round at 256 and 512 tokens, nothing written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "atlas.json")
    options = parser.parse_args()
    quick = options.quick
    torch.set_num_threads(1)
    try:
        importlib.import_module(PEER)
        version = f"titans-pytorch {importlib.metadata.version('titans-pytorch')}"
    except ImportError as error:
        version = f"left out: {error}"
    peers = not version.startswith("left out")
    training = {}
    for T in [256, 512] if quick else [1024, 4096, 16384]:
        training[str(T)] = measure(T, 1 if quick else max(1, 3072 // T), peers)
    timed = [name for name in OURS if name in next(iter(training.values()))["seconds"]]
    ends = {name: [training[str(T)]["seconds"][name]["cpu"]["min"] for T in (BASE, LONGEST)] for name in ([] if quick else timed)}
    result: dict[str, Any] = {
        "width": D,
        "heads": H,
        "chunk": C,
        "threads": 1,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "compared_with": version,
        "difference_from_peer": agreement() if peers else {},
        "training": training,
        "slopes": {name: math.log(last / first) / math.log(LONGEST / BASE) for name, (first, last) in ends.items()},
        "capacity": {} if quick else capacity(),
    }
    print(table(result))
    print(f"  {version}")
    if not quick:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
