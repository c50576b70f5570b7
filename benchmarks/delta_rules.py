"""The delta rules and Mamba-2's scan in chunks against `transformers`' PyTorch forms: a training step, a forward pass, slopes.

    python benchmarks/delta_rules.py [--quick] [--out FILE]

Operators alone, float32, B 1, H 4, one thread: keys and values of width 64 for the delta rules; values of width 64, a state of
128 and one group for the scan. All take turns, call by call, in one process; minimum and median of the turns are kept, of
wall-clock and of CPU time. Ratios and slopes are of CPU time, which other work on the machine disturbs less.

`transformers`' forms are what its Qwen3-Next and Mamba-2 run where the authors' kernels are not installed; it has no delta rule
without a gate. The backward pass of its delta rule is quadratic in the number of chunks (the slice of a chunk makes a zero tensor
of the whole sequence), so it stops at `SLOW` tokens. Its scan is measured with blocks of 64 tokens, as ours, and of 256, its
default. `gla` is this library's gated linear attention with one gate a head, the same function as the scan but for shared keys.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from turns import spread, turns

from instar.kernels.delta_rule import gated_delta_rule
from instar.kernels.gated_linear import gated_linear_attention
from instar.kernels.state_space_dual import state_space_dual

H, K, V, N = 4, 64, 64, 128
SLOW = 4096
"""Longest sequence for `transformers`."""
BASE, LONGEST = 1024, 16384
Call = Callable[[], Tensor]
PEERS = {"delta": "hf_gated_delta", "gated_delta": "hf_gated_delta", "scan": "hf_scan_64", "gla": "hf_scan_64"}
"""What each of ours is divided into."""


def theirs() -> tuple[dict[str, Callable[..., Any]], str]:
    """The functions of `transformers`, and its version or why it is left out."""
    try:
        from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
        from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule
    except ImportError as error:
        return {}, f"left out: {error}"
    version = importlib.metadata.version("transformers")
    return {"delta": torch_chunk_gated_delta_rule, "scan": mamba2_chunk_scan}, f"transformers {version}"


def calls(T: int, peers: dict[str, Callable[..., Any]]) -> dict[str, Call]:
    """One forward pass each, on inputs that they share."""
    torch.manual_seed(0)
    q, k = (F.normalize(torch.randn(1, T, H, K), dim=-1).requires_grad_() for _ in range(2))
    v, beta = torch.randn(1, T, H, V, requires_grad=True), torch.rand(1, T, H, requires_grad=True)
    g = (F.logsigmoid(torch.randn(1, T, H)) / 16).requires_grad_()
    x, step = torch.randn(1, T, H, V, requires_grad=True), (0.1 * torch.rand(1, T, H)).requires_grad_()
    A = (-4.0 * torch.arange(1.0, H + 1.0)).requires_grad_()
    keys, queries = (torch.randn(1, T, 1, N, requires_grad=True) for _ in range(2))

    def gla() -> Tensor:
        shared = (part.expand(1, T, H, N) for part in (queries, keys))
        return gated_linear_attention(*shared, x * step.unsqueeze(-1), (A * step).unsqueeze(-1), scale=1.0)[0]

    found: dict[str, Call] = {
        "delta": lambda: gated_delta_rule(q, k, v, beta)[0],
        "gated_delta": lambda: gated_delta_rule(q, k, v, beta, g)[0],
        "scan": lambda: state_space_dual(x * step.unsqueeze(-1), keys, queries, A * step)[0],
        "gla": gla,
    }
    if peers and T <= SLOW:
        delta, scan = peers["delta"], peers["scan"]
        found["hf_gated_delta"] = lambda: delta(q, k, v, g, beta)[0]
        found["hf_scan_64"] = lambda: scan(x, step, A, keys, queries, chunk_size=64)
        found["hf_scan_256"] = lambda: scan(x, step, A, keys, queries, chunk_size=256)
    return found


def stepped(call: Call, train: bool) -> Callable[[], object]:
    """Forward, and backward where it is trained."""

    def step() -> None:
        with torch.set_grad_enabled(train):
            out = call()
        if train:
            out.backward(torch.ones_like(out))

    return step


def measure(T: int, rounds: int, peers: dict[str, Callable[..., Any]], train: bool) -> dict[str, Any]:
    functions = calls(T, peers)
    taken = turns({name: stepped(call, train) for name, call in functions.items()}, rounds)
    found: dict[str, Any] = {name: {"wall": spread(spent.wall), "cpu": spread(spent.cpu)} for name, spent in taken.items()}
    ratios = {}
    for own, peer in PEERS.items():
        if peer in found:
            ratios[own] = {kind: found[peer]["cpu"][kind] / found[own]["cpu"][kind] for kind in ("min", "median")}
    return {"seconds": found, "times_faster": ratios, "load": os.getloadavg()[0]}


def agreement(peers: dict[str, Callable[..., Any]]) -> dict[str, float]:
    """Largest difference of our outputs from theirs, over the largest output."""
    if not peers:
        return {}
    functions = calls(500, peers)
    with torch.no_grad():
        outputs = {name: call() for name, call in functions.items()}
    return {
        own: float((outputs[own] - outputs[PEERS[own]]).abs().max() / outputs[own].abs().max())
        for own in ("gated_delta", "scan", "gla")
    }


def slope(training: dict[str, Any], name: str) -> float:
    """Of log time over log length, between the ends."""
    first, last = (training[str(T)]["seconds"][name]["cpu"]["min"] for T in (BASE, LONGEST))
    return math.log(last / first) / math.log(LONGEST / BASE)


def table(result: dict[str, Any]) -> str:
    names = list(next(iter(result["training"].values()))["seconds"])
    lines = ["forward + backward, one thread: min of CPU time in ms", "       T " + "".join(f"{n:>15}" for n in names)]
    for T, row in result["training"].items():
        cells = [f"{1e3 * row['seconds'][n]['cpu']['min']:.2f}" if n in row["seconds"] else "-" for n in names]
        lines.append(f"  {T:>6} " + "".join(f"{cell:>15}" for cell in cells))
    for kind in ("training", "forward"):
        for T, row in result[kind].items():
            ratios = ", ".join(f"{n} {r['min']:.2f} (median {r['median']:.2f})" for n, r in row["times_faster"].items())
            if ratios:
                lines.append(f"  {kind} at {T}: transformers' time over ours: {ratios}")
    lines += [f"  log-log slope {BASE} to {LONGEST}: {name} {value:.3f}" for name, value in result["slopes"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round at 1024 and 2048 tokens, nothing written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "delta_rules.json")
    options = parser.parse_args()
    quick = options.quick
    torch.set_num_threads(1)
    peers, version = theirs()
    lengths = [1024, 2048] if quick else [1024, 2048, 4096, 8192, 16384]
    rounds = 1 if quick else 11
    result: dict[str, Any] = {
        "heads": H,
        "key_width": K,
        "value_width": V,
        "state_of_scan": N,
        "threads": 1,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "compared_with": version,
        "difference_from_transformers": agreement(peers),
        "load_before": os.getloadavg(),
        "training": {str(T): measure(T, rounds, peers, train=True) for T in lengths},
        "forward": {str(T): measure(T, rounds, peers, train=False) for T in lengths[:3]},
    }
    result["slopes"] = (
        {} if quick else {name: slope(result["training"], name) for name in ("delta", "gated_delta", "scan", "gla")}
    )
    result["load_after"] = os.getloadavg()
    print(table(result))
    print(f"  {version}")
    if not quick:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
