"""The surveys' methods against their PyPI packages: equal outputs where both define the same function, and time by length.

    python benchmarks/survey_parity.py [--quick] [--out FILE]

Peers are linformer, nystrom-attention, local-attention, performer-pytorch and reformer-pytorch; one that is not installed is
left out with a reason. Weights, random directions and hashes are the peer's. Then forward and backward by length of every
method's layer and of exact attention (SDPA between the same projections, D 128, H 4, B 1, float32, one thread), in turns, call
by call: minimum and median, and from which length on a method is faster than exact attention (causal, if it is).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import spread, turns

import instar
from instar.kernels.lsh_attention import lsh_attention
from instar.kernels.window_attention import window_attention
from instar.mixers.bidirectional_performer import BidirectionalPerformer
from instar.mixers.linformer import Linformer
from instar.mixers.nystromformer import Nystromformer
from instar.mixers.projecting import Projecting
from instar.mixers.softmax import rotate

B, N, D, H = 2, 256, 64, 4
WIDTH, HEADS = 128, 4
CAUSAL = ("local_window", "mean_attention", "retnet", "performer", "lstm")
BOTH_SIDES = ("bidirectional_performer", "linformer", "longformer", "bigbird", "nystromformer", "reformer")
SLOW = 2048
"""Longest sequence for a recurrence without parallel form."""


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def take(peer: nn.Module, own: Projecting, names: dict[str, Tensor]) -> None:
    """Our layer with the peer's weights; the peer's output bias, which we lack here, is set to zero."""
    with torch.no_grad():
        for name, value in names.items():
            own.get_parameter(name).copy_(value)
        for name, value in peer.named_parameters():
            if name.startswith("to_out") and name.endswith("bias"):
                value.zero_()


def of_linformer(x: Tensor) -> dict[str, Any]:
    from linformer.linformer import LinformerSelfAttention

    peer = LinformerSelfAttention(D, N, k=64, heads=H).double()
    own = Linformer(D, heads=H, rank=64, max_len=N).double()
    names = {f"{n}_proj.weight": peer.get_parameter(f"to_{n}.weight") for n in "qkv"} | {"o_proj.weight": peer.to_out.weight}
    take(peer, own, names | {"E": peer.proj_k.mT.unsqueeze(0), "F": peer.proj_v.mT.unsqueeze(0)})
    return {"difference": largest(own(x)[0], peer(x)), "difference_of_shorter": largest(own(x[:, :99])[0], peer(x[:, :99]))}


def of_nystrom(x: Tensor) -> dict[str, Any]:
    from nystrom_attention import NystromAttention

    found = {}
    for heads in (1, H):
        peer = NystromAttention(D, dim_head=D // heads, heads=heads, num_landmarks=32)
        own = Nystromformer(D, heads=heads, landmarks=32)
        q, k, v = peer.to_qkv.weight.chunk(3)
        names = {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v, "o_proj.weight": peer.to_out[0].weight}
        take(peer, own, names | {"conv.weight": peer.res_conv.weight})
        single = x.float()
        found[f"difference_heads_{heads}_batch_1"] = largest(own(single[:1])[0], peer(single[:1]))
    extreme = torch.cat([single[:1], 30 * single[1:]])
    found["peer_row_alone_against_beside_another"] = largest(peer(extreme)[:1], peer(single[:1]))
    found["own_row_alone_against_beside_another"] = largest(own(extreme)[0][:1], own(single[:1])[0])
    return found


def of_local(x: Tensor) -> dict[str, Any]:
    from local_attention import LocalAttention

    q, k, v = (torch.randn(B, H, N, D // H) for _ in range(3))
    peer = LocalAttention(window_size=32, causal=True, look_backward=1, exact_windowsize=True, dim=D // H)
    turned = rotate((q, k), torch.arange(N).unsqueeze(0), 10000.0)
    own = window_attention(*turned, v, torch.zeros(1, N, dtype=torch.int64), before=32)
    return {"difference": largest(own, peer(q, k, v))}


def of_performer(x: Tensor) -> dict[str, Any]:
    from performer_pytorch import FastAttention
    from performer_pytorch.performer_pytorch import gaussian_orthogonal_random_matrix

    found = {}
    for kernel in ("relu", "softmax"):
        own = BidirectionalPerformer(D, heads=H, features=64, kernel=kernel).double()  # type: ignore[arg-type]
        peer = FastAttention(D // H, nb_features=64, generalized_attention=kernel == "relu").double()
        own.w.copy_(peer.projection_matrix)
        q, k, v = own.project(x)
        found[f"difference_{kernel}"] = largest(own(x)[0], own.leave(peer(q, k, v)))
        exact = own.leave(F.scaled_dot_product_attention(q, k, v))
        found[f"own_error_{kernel}"], found[f"peer_error_{kernel}"] = (
            largest(own(x)[0], exact),
            largest(own.leave(peer(q, k, v)), exact),
        )
    own_mean, peer_mean = torch.zeros(16), torch.zeros(16)
    for seed in range(400):  # the mean of the directions' entries on the diagonal of each block: 0 without a bias
        torch.manual_seed(seed)
        peer_mean += gaussian_orthogonal_random_matrix(16, 16).diag() / 400
        own.redraw(seed)
        own_mean += own.w[:16].diag().float() / 400
    found["mean_of_direction_own"], found["mean_of_direction_peer"] = float(own_mean.mean()), float(peer_mean.mean())
    return found


def of_reformer(x: Tensor) -> dict[str, Any]:
    from reformer_pytorch import LSHAttention

    q, v = (torch.randn(B, N, D // H) for _ in range(2))
    peer = LSHAttention(bucket_size=32, n_hashes=4, attend_across_buckets=False, allow_duplicate_attention=False).eval()
    want, _, buckets = peer(q, v)
    bucket = buckets.view(B, 4, 1, N) % (N // 32)  # the peer tells rounds apart by an offset
    own = lsh_attention(q.unsqueeze(1), v.unsqueeze(1), bucket, torch.full((B,), N), 32)[:, 0]
    return {"difference": largest(own, want)}


PEERS: dict[str, tuple[str, Callable[[Tensor], dict[str, Any]]]] = {
    "linformer": ("linformer", of_linformer),
    "nystromformer": ("nystrom-attention", of_nystrom),
    "local_window": ("local-attention", of_local),
    "performer": ("performer-pytorch", of_performer),
    "reformer": ("reformer-pytorch", of_reformer),
}


def parity() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for method, (package, compare) in PEERS.items():
        torch.manual_seed(0)
        try:
            found[method] = {"peer": f"{package} {importlib.metadata.version(package)}"}
            found[method] |= compare(torch.randn(B, N, D, dtype=torch.float64))
        except ImportError as error:
            found[method] = {"left_out": str(error)}
    return found


class Exact(Projecting):
    """SDPA between the same projections."""

    def __init__(self, causal: bool) -> None:
        super().__init__(WIDTH, HEADS, False)
        self.causal = causal

    def init_state(self, batch: int) -> None:
        return

    def forward(self, x: Tensor, state: Any = None, **flags: Any) -> tuple[Tensor, Any]:
        return self.leave(F.scaled_dot_product_attention(*self.project(x), is_causal=self.causal)), None

    reference = forward


def layers(tokens: int) -> dict[str, nn.Module]:
    made: dict[str, nn.Module] = {"exact_causal": Exact(True), "exact": Exact(False)}
    for name in (*CAUSAL, *BOTH_SIDES):
        if name == "lstm" and tokens > SLOW:
            continue
        more = {"max_len": tokens} if name == "linformer" else {}
        made[name] = instar.get(name)(WIDTH, heads=HEADS, **more)
    return made


def training(lengths: list[int], rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tokens in lengths:
        torch.manual_seed(0)
        made = layers(tokens)
        x = torch.randn(1, tokens, WIDTH, requires_grad=True)
        calls = {name: lambda layer=layer, x=x: layer(x)[0].sum().backward() for name, layer in made.items()}
        found[str(tokens)] = {name: spread(one.wall) for name, one in turns(calls, rounds).items()}
        found[str(tokens)]["load"] = os.getloadavg()[0]
    return found


def crossover(found: dict[str, Any], name: str) -> int | None:
    """The first of the lengths from which on the method is faster than exact attention of its kind."""
    exact = "exact_causal" if name in CAUSAL else "exact"
    rows = {int(tokens): row for tokens, row in found.items() if name in row}
    faster = {tokens: row[name]["min"] < row[exact]["min"] for tokens, row in rows.items()}
    return next((t for t in sorted(faster) if all(faster[later] for later in faster if later >= t)), None)


def table(result: dict[str, Any]) -> str:
    lines = ["largest difference from the peer"]
    for method, row in result["parity"].items():
        facts = ", ".join(f"{k} {v:.2e}" if isinstance(v, float) else str(v) for k, v in row.items() if k != "peer")
        lines.append(f"  {method:<16}{row.get('peer', ''):<26}{facts}")
    times = result["training"]
    lines += ["", "forward + backward of a layer, min ms; in brackets times exact attention of its kind", "  " + " " * 26]
    lines[-1] += "".join(f"{'T = ' + tokens:>19}" for tokens in times)
    for name in next(iter(times.values())):
        if name == "load":
            continue
        exact = "exact_causal" if name in (*CAUSAL, "exact_causal") else "exact"
        cells = [
            f"{1e3 * row[name]['min']:10.2f} ({row[name]['min'] / row[exact]['min']:5.2f}×)" if name in row else "-"
            for row in times.values()
        ]
        faster = "" if name.startswith("exact") else f"   faster from {result['faster_from'][name]}"
        lines.append(f"  {name:<26}" + "".join(f"{cell:>19}" for cell in cells) + faster)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="lengths up to 1024, nothing written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "survey_parity.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg(),
        "parity": parity(),
        "training": training([256, 1024] if options.quick else [256, 512, 1024, 2048, 4096], 2 if options.quick else 5),
    }
    result["faster_from"] = {name: crossover(result["training"], name) for name in (*CAUSAL, *BOTH_SIDES)}
    result["load_after"] = os.getloadavg()
    print(table(result))
    if not options.quick:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
