"""The gradient of one attention head: autograd through softmax written out, SDPA, blocks, and polynomials of degree 6.

    python benchmarks/lora_gradient.py [--out FILE]

d = e = 4, float32 (the polynomial form is float64 inside); queries and keys such that no score is above 1. Forward and backward
by length, one thread; all take turns in one process. Ratios and slopes are of processor seconds. Bytes: the most that live
tensors take at once, beside the inputs. Errors: of the gradient of the queries against SDPA's in float64, relative.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker
from turns import spread, turns

from instar import files
from instar.adapters.limits.attention import attention
from instar.bench import environment

RESULT = Path(__file__).parent / "results" / "lora_gradient.json"
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
LONGEST_SQUARE = 8192
ROUNDS, SECONDS, WIDTH, DEGREE = 9, 20.0, 4, 6
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def forms(length: int) -> dict[str, Form]:
    found: dict[str, Form] = {"poly": partial(attention, mode="poly", degree=DEGREE)}
    if length <= LONGEST_SQUARE:
        found |= {
            "autograd": partial(attention, mode="exact"),
            "sdpa": lambda q, k, v: F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0],
        }
    return {**found, "blockwise": partial(attention, mode="blockwise")}


def step(form: Form, given: list[Tensor], up: Tensor) -> Tensor:
    leaves = [t.detach().requires_grad_() for t in given]
    return torch.autograd.grad(form(leaves[0], leaves[1], leaves[2]), leaves, up)[0]


def measure(length: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(length)
    q, k, v, up = (torch.randn(1, length, WIDTH, generator=generator) for _ in range(4))
    q, k = (t / t.norm(dim=-1).max() * WIDTH**0.25 for t in (q, k))
    calls = {name: partial(step, form, [q, k, v], up) for name, form in forms(length).items()}
    exact = step(lambda *t: F.scaled_dot_product_attention(*t), [q.double(), k.double(), v.double()], up.double())
    row: dict[str, Any] = {"length": length, "load": environment.load(), "forms": {}}
    for name, call in calls.items():
        tracker = MemTracker()
        with tracker:
            found = call()
        peak = sum(float(kinds["Total"]) for kinds in tracker.get_tracker_snapshot("peak").values())
        error = float((found.double() - exact).norm() / exact.norm())
        row["forms"][name] = {"bytes": peak, "error": error}
    for name, taken in turns(calls, ROUNDS, warm=0, seconds=SECONDS).items():
        row["forms"][name] |= {**spread(taken.cpu), "rounds": len(taken.cpu)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for length in LENGTHS:
        rows.append(measure(length))
        shown = "  ".join(
            f"{name} {one['min'] * 1e3:.1f} ms, {one['bytes'] / 1e6:.1f} MB, {one['error']:.0e}"
            for name, one in rows[-1]["forms"].items()
        )
        print(f"{length}: {shown}", flush=True)
    slopes = {}
    for name in rows[0]["forms"]:
        line = [(math.log(row["length"]), math.log(row["forms"][name]["min"])) for row in rows if name in row["forms"]]
        slopes[name] = statistics.linear_regression([a for a, _ in line], [b for _, b in line]).slope
    print("slopes: " + ", ".join(f"{name} {slope:.2f}" for name, slope in slopes.items()))
    facts = {
        "command": "python benchmarks/lora_gradient.py",
        "width": WIDTH,
        "degree": DEGREE,
        "environment": environment.describe(),
    }
    files.write_json(asked.out, {**facts, "rows": rows, "slopes": slopes})


if __name__ == "__main__":
    main()
