"""Gated linear attention against softmax attention and other chunked recurrences: training time by length, and decoding.

    python benchmarks/gated_linear.py [--quick] [--out FILE]

Forward and backward of the operators alone (B 1, H 4, K 32, V 64, float32); SDPA has heads of width 64. All take turns, call by
call, in one process; minimum and median of the turns are kept, of wall-clock and of CPU time. One thread first, two beside it.

`delta_rule` is the chunked PyTorch fallback of the gated delta rule in transformers (one gate for a head; it also solves a
triangular system, so it does more than ours). `fla_naive` is the PyTorch form of the same operator in flash-linear-attention,
a loop over tokens. Either is left out, with the reason, where it is not installed; the latter's file is read by itself, since
the package imports Triton.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
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
from torch import Tensor

from instar.kernels.gated_linear import gated_linear_attention
from instar.mixers.gla import GLA

H, K, V = 4, 32, 64
WIDTH, WINDOW = 128, 128
SLOW = 1024
"""Longest sequence for the loop over tokens."""
Call = Callable[[], Tensor]


def summary(seconds: list[float]) -> dict[str, float]:
    return {"min": min(seconds), "median": statistics.median(seconds)}


def delta_rule() -> tuple[Callable[..., Any] | None, str]:
    try:
        from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule
    except ImportError as error:
        return None, f"left out: {error}"
    return torch_chunk_gated_delta_rule, f"transformers {importlib.metadata.version('transformers')}, models/qwen3_next"


def fla_naive() -> tuple[Callable[..., Any] | None, str]:
    spec = importlib.util.find_spec("fla")
    if spec is None or spec.origin is None:
        return None, "left out: flash-linear-attention is not installed"
    path = Path(spec.origin).parent / "ops" / "gla" / "naive.py"
    try:
        found = importlib.util.spec_from_file_location("fla_naive", path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    except (OSError, ImportError) as error:
        return None, f"left out: {error}"
    return (
        module.naive_recurrent_gla,
        f"flash-linear-attention {importlib.metadata.version('flash-linear-attention')}, ops/gla/naive.py",
    )


def calls(T: int, others: dict[str, Callable[..., Any] | None]) -> dict[str, Call]:
    """One forward pass each, on inputs of its own."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, requires_grad=True)

    q, k, v = draw(1, T, H, K), draw(1, T, H, K), draw(1, T, H, V)
    g = (F.logsigmoid(torch.randn(1, T, H, K)) / 16).requires_grad_()
    g_head = (F.logsigmoid(torch.randn(1, T, H, 1)) / 16).requires_grad_()
    g_delta, beta = g_head.detach()[..., 0].clone().requires_grad_(), torch.rand(1, T, H, requires_grad=True)
    q_unit, k_unit = (F.normalize(x.detach(), dim=-1).requires_grad_() for x in (q, k))
    wide = [draw(1, H, T, V) for _ in range(3)]
    delta, naive = others["delta_rule"], others["fla_naive"]
    found: dict[str, Call] = {
        "gla": lambda: gated_linear_attention(q, k, v, g)[0],
        "gla_two_level": lambda: gated_linear_attention(q, k, v, g, form="two_level")[0],
        "gla_scalar_gate": lambda: gated_linear_attention(q, k, v, g_head)[0],
        "gla_no_gate": lambda: gated_linear_attention(q, k, v, None)[0],
        "sdpa": lambda: F.scaled_dot_product_attention(*wide, is_causal=True),
    }
    if delta is not None:
        found["delta_rule"] = lambda: delta(q_unit, k_unit, v, g_delta, beta)[0]
    if naive is not None and T <= SLOW:
        found["fla_naive"] = lambda: naive(q, k, v, g)[0]
    return found


def timed(call: Call) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    out = call()
    out.backward(torch.ones_like(out))
    return time.perf_counter() - wall, time.process_time() - cpu


def training(lengths: list[int], rounds: int, others: dict[str, Callable[..., Any] | None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for T in lengths:
        torch.manual_seed(0)
        functions = calls(T, others)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
        for turn in range(rounds + 1):
            for name, call in functions.items():
                if name == "fla_naive" and turn > 2:
                    continue
                spent = timed(call)
                if turn:  # the first turn warms up
                    taken[name].append(spent)
        found[str(T)] = {
            name: {"wall": summary([w for w, _ in spent]), "cpu": summary([c for _, c in spent])} for name, spent in taken.items()
        }
        found[str(T)]["load"] = os.getloadavg()[0]
    return found


def crossover(found: dict[str, Any]) -> int | None:
    """The first of the lengths from which on the operator is faster than SDPA."""
    faster = {int(T): row["gla"]["wall"]["min"] < row["sdpa"]["wall"]["min"] for T, row in found.items()}
    lengths = sorted(faster)
    return next((T for i, T in enumerate(lengths) if all(faster[later] for later in lengths[i:])), None)


def decoding(tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds per token of the layer (D 128), over windows of WINDOW tokens that end at powers of two."""
    torch.manual_seed(0)
    layer = GLA(WIDTH, heads=H).eval()
    ends = [n for n in (256, 1024, 4096, 16384) if n <= tokens]
    taken: dict[int, list[float]] = {n: [] for n in ends}
    with torch.no_grad():
        for _ in range(rounds):
            state = None
            for begin in range(0, tokens, WINDOW):
                seconds = []
                for token in torch.randn(WINDOW, 1, 1, WIDTH):
                    start = time.perf_counter()
                    _, state = layer(token, state)
                    seconds.append(time.perf_counter() - start)
                if begin + WINDOW in taken:
                    taken[begin + WINDOW] += seconds
    found = {n: summary(seconds) for n, seconds in taken.items()}
    return {
        "token_seconds": found,
        "last_over_first": {kind: found[ends[-1]][kind] / found[ends[0]][kind] for kind in ("min", "median")},
    }


def agreement(naive: Callable[..., Any] | None) -> float | None:
    """Largest difference of our output from that of `fla_naive` (outputs are of size 1)."""
    if naive is None:
        return None
    torch.manual_seed(0)
    q, k, v, g = torch.randn(1, 200, H, K), torch.randn(1, 200, H, K), torch.randn(1, 200, H, V), torch.randn(1, 200, H, K)
    g = F.logsigmoid(g) / 16
    return float((gated_linear_attention(q, k, v, g)[0] - naive(q, k, v, g)[0]).abs().max())


def table(result: dict[str, Any]) -> str:
    lines = []
    for threads, found in result["threads"].items():
        names = [n for n in next(iter(found["training"].values())) if n != "load"]
        lines += ["", f"{threads} thread(s): forward + backward, min of wall-clock in ms; in brackets times the first column"]
        lines.append("       T " + "".join(f"{name:>19}" for name in names))
        for T, row in found["training"].items():
            own = row["gla"]["wall"]["min"]
            cells = [
                f"{1e3 * row[n]['wall']['min']:10.2f} ({row[n]['wall']['min'] / own:5.1f}×)" if n in row else "-" for n in names
            ]
            lines.append(f"  {T:>6} " + "".join(f"{cell:>19}" for cell in cells))
        lines.append(f"  faster than SDPA from T = {found['crossover_with_sdpa']} on")
        part = found["decoding"]
        cells = [f"{n}: {1e3 * s['median']:.3f} ms" for n, s in part["token_seconds"].items()]
        lines.append(
            f"  decoded token (layer, median) at {', '.join(cells)}; last / first {part['last_over_first']['median']:.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="lengths up to 1024, 1024 decoded tokens, nothing written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gated_linear.json")
    options = parser.parse_args()
    quick = options.quick
    lengths = [256, 512, 1024] if quick else [256, 512, 768, 1024, 2048, 4096, 8192]
    found = {"delta_rule": delta_rule(), "fla_naive": fla_naive()}
    others = {name: function for name, (function, _) in found.items()}
    result: dict[str, Any] = {
        "heads": H,
        "key_width": K,
        "value_width": V,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "compared_with": {name: text for name, (_, text) in found.items()},
        "difference_from_fla_naive": agreement(others["fla_naive"]),
        "load_before": os.getloadavg(),
        "threads": {},
    }
    for threads in (1, 2):
        torch.set_num_threads(threads)
        part = training(lengths, 2 if quick else 7, others)
        decoded = decoding(1024 if quick else 16384, 1 if quick else 3)
        result["threads"][str(threads)] = {"training": part, "crossover_with_sdpa": crossover(part), "decoding": decoded}
    result["load_after"] = os.getloadavg()
    print(table(result))
    for name, text in result["compared_with"].items():
        print(f"  {name}: {text}")
    if not quick:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
