"""Aaren against softmax attention: the cost of a streamed token by position, and of training by length.

    python benchmarks/aaren_streaming.py [--quick] [--out FILE]

Both layers run in one process and take turns: windows of 128 tokens in the stream, call by call in training. One thread
first, two beside it. Ratios count; seconds are of this machine. Minimum and median of the turns are kept, as JSON and as a
table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from turns import spread, turns

from instar import state as states
from instar.kernels.prefix_attention import prefix_attention
from instar.mixers.aaren import Aaren
from instar.mixers.softmax import Softmax

WIDTH, HEADS, WINDOW = 128, 4, 128


def summary(seconds: list[float]) -> dict[str, float]:
    return {"min": min(seconds), "median": statistics.median(seconds)}


def stream(tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds per token and bytes of state, over windows of WINDOW tokens that end at powers of two (and at the end)."""
    torch.manual_seed(0)
    layers = {"aaren": Aaren(WIDTH, heads=HEADS).eval(), "softmax": Softmax(WIDTH, heads=HEADS).eval()}
    ends = [n for n in (256, 512, 1024, 2048, 4096, 8192, 16384) if n <= tokens]
    taken: dict[str, dict[int, list[float]]] = {name: {n: [] for n in ends} for name in layers}
    size: dict[str, dict[int, int]] = {name: {} for name in layers}
    total: dict[str, list[float]] = {name: [] for name in layers}
    with torch.no_grad():
        for _ in range(rounds):
            held: dict[str, Any] = dict.fromkeys(layers)
            spent = dict.fromkeys(layers, 0.0)
            for begin in range(0, tokens, WINDOW):
                x = torch.randn(WINDOW, 1, 1, WIDTH)
                for name, layer in layers.items():
                    seconds = []
                    for token in x:
                        start = time.perf_counter()
                        _, held[name] = layer(token, held[name])
                        seconds.append(time.perf_counter() - start)
                    spent[name] += sum(seconds)
                    if (end := begin + WINDOW) in ends:
                        taken[name][end] += seconds
                        size[name][end] = states.nbytes(held[name])
            for name in layers:
                total[name].append(spent[name])
    found: dict[str, Any] = {
        name: {
            "token_seconds": {n: summary(taken[name][n]) for n in ends},
            "state_bytes": size[name],
            "stream_seconds": summary(total[name]),
            "last_over_first": {
                kind: summary(taken[name][ends[-1]])[kind] / summary(taken[name][ends[0]])[kind] for kind in ("min", "median")
            },
        }
        for name in layers
    }
    found["crossover_tokens"] = next(
        (n for n in ends if found["softmax"]["token_seconds"][n]["median"] > found["aaren"]["token_seconds"][n]["median"]), None
    )
    return found


def training(lengths: list[int], rounds: int) -> dict[str, Any]:
    """Seconds of forward and backward: the layers, and their kernels alone (B = 1, H = 4, K = V = 32)."""
    torch.manual_seed(0)
    aaren, softmax = Aaren(WIDTH, heads=HEADS), Softmax(WIDTH, heads=HEADS)
    found: dict[str, Any] = {}
    for T in lengths:
        x = torch.randn(1, T, WIDTH, requires_grad=True)
        q, k, v = (torch.randn(1, HEADS, T, WIDTH // HEADS, requires_grad=True) for _ in range(3))
        s, values = torch.randn(1, T, HEADS, requires_grad=True), torch.randn(1, T, HEADS, WIDTH // HEADS, requires_grad=True)
        calls: dict[str, Callable[[], torch.Tensor]] = {
            "aaren": lambda x=x: aaren(x)[0],
            "softmax": lambda x=x: softmax(x)[0],
            "prefix_attention": lambda s=s, values=values: prefix_attention(s, values)[0],
            "sdpa": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        }
        taken = turns({name: lambda call=call: call().sum().backward() for name, call in calls.items()}, rounds)
        found[str(T)] = {name: spread(one.wall) for name, one in taken.items()}
    return found


def table(result: dict[str, Any]) -> str:
    lines = []
    for threads, part in result["threads"].items():
        lines += ["", f"{threads} thread(s)", "streamed token (median ms, state bytes)     aaren               softmax"]
        a, s = part["stream"]["aaren"], part["stream"]["softmax"]
        for n in a["token_seconds"]:
            cells = [f"{1e3 * p['token_seconds'][n]['median']:8.3f} {p['state_bytes'][n]:>11,}" for p in (a, s)]
            lines.append(f"  token {n:>6}                         {cells[0]} {cells[1]}")
        lines.append(
            f"  last / first (median)               {a['last_over_first']['median']:8.2f} {s['last_over_first']['median']:20.2f}"
        )
        lines.append(f"  softmax dearer from token {part['stream']['crossover_tokens']}")
        lines.append("forward + backward (min ms)     aaren   softmax    ratio |  prefix      sdpa    ratio")
        for T, row in part["training"].items():
            ms = {name: 1e3 * value["min"] for name, value in row.items()}
            lines.append(
                f"  T = {T:>5}                {ms['aaren']:10.2f} {ms['softmax']:9.2f} {ms['softmax'] / ms['aaren']:7.2f}× |"
                f"{ms['prefix_attention']:8.2f} {ms['sdpa']:9.2f} {ms['sdpa'] / ms['prefix_attention']:7.2f}×"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2048 tokens, lengths up to 1024, nothing written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "aaren_streaming.json")
    options = parser.parse_args()
    tokens, lengths, rounds = (2048, [512, 1024], 1) if options.quick else (16384, [512, 1024, 2048, 4096, 8192], 3)
    result: dict[str, Any] = {
        "width": WIDTH,
        "heads": HEADS,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load_before": os.getloadavg(),
        "threads": {},
    }
    for threads in (1, 2):
        torch.set_num_threads(threads)
        result["threads"][str(threads)] = {"stream": stream(tokens, rounds), "training": training(lengths, 3 * rounds)}
    result["load_after"] = os.getloadavg()
    print(table(result))
    if not options.quick:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
