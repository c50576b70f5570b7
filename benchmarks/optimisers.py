"""What a second-order step costs: refreshing a factor against inverting it, and whole steps on a decoder of ten million weights.

    python benchmarks/optimisers.py refresh [--out FILE]
    python benchmarks/optimisers.py step [--out FILE]

refresh: MKOR's rank-one update of an inverse [d, d], float32 and bfloat16, against a Cholesky inverse, an LU inverse and an
eigendecomposition of a covariance of that size, which K-FAC may use; slopes of log time over log d.
step: forward, backward and optimiser step of a decoder (softmax attention, width 320, 8 layers, 256 bytes a row, 8 rows), and the
optimiser alone, averaged over ten steps, as many as f = 10 shares.

One thread, all take turns in one process; minimum and median of the turns, CPU time beside wall-clock.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from turns import Call, turns

from instar.optim.adamw import AdamW
from instar.optim.inverse import updated
from instar.optim.kfac import KFAC
from instar.optim.mkor import MKOR
from instar.optim.sgd import SGD

RESULT = Path(__file__).parent / "results" / "optimisers.json"
SIZES = (256, 512, 1024, 2048, 4096)
LARGEST_EIGH = 2048
ROUNDS = 15
SECONDS = 20.0  # of one size or model


def refresh(d: int) -> dict[str, Call]:
    """One new inverse each."""
    torch.manual_seed(0)
    rows = torch.randn(2 * d, d)
    covariance = rows.T @ rows / len(rows) + 1e-3 * torch.eye(d)
    v = rows.mean(0)
    inverse = torch.eye(d)
    half = inverse.bfloat16()
    found: dict[str, Call] = {
        "rank_one": lambda: updated(inverse, v, "released", 0.95),
        "rank_one_bf16": lambda: updated(half.float(), v, "released", 0.95).bfloat16(),
        "cholesky_inverse": lambda: torch.cholesky_inverse(torch.linalg.cholesky(covariance)),
        "lu_inverse": lambda: torch.linalg.inv(covariance),
    }
    if d <= LARGEST_EIGH:
        found["eigh"] = lambda: torch.linalg.eigh(covariance)
    return found


def steps() -> tuple[dict[str, Call], int]:
    """Ten training steps of each optimiser on its own copy of a decoder, and its parameters."""
    from instar.models.decoder import Decoder

    targets = torch.randint(256, (8, 257), generator=torch.Generator().manual_seed(0))

    def made(build: Callable[[nn.Module], Any]) -> Call:
        torch.manual_seed(0)
        model = Decoder(256, 320, 8, "softmax", heads=5)
        optimiser = build(model)

        def call() -> None:
            for _ in range(10):
                logits = model(targets[:, :-1])[0]
                nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten()).backward()
                optimiser.step()
                optimiser.zero_grad()

        return call

    torch.manual_seed(0)
    count = sum(p.numel() for p in Decoder(256, 320, 8, "softmax", heads=5).parameters())
    builds: dict[str, Callable[[nn.Module], Any]] = {
        "sgd": lambda model: SGD(model, lr=1e-3),
        "adamw": lambda model: AdamW(model, lr=1e-4),
        "mkor": lambda model: MKOR(model, "adamw", lr=1e-4, f=10),
        "mkor_f1": lambda model: MKOR(model, "adamw", lr=1e-4, f=1),
        "kfac": lambda model: KFAC(model, lr=1e-4, f=10),
    }
    return {name: made(build) for name, build in builds.items()}, count


def measured(calls: dict[str, Call]) -> dict[str, dict[str, float]]:
    return {name: taken.both() for name, taken in turns(calls, ROUNDS, seconds=SECONDS).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("refresh", "step"))
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file of the record; the other record in it stays")
    given = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "command": f"python benchmarks/optimisers.py {given.what}",
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "threads": 1,
        "load_before": os.getloadavg(),
    }
    if given.what == "refresh":
        record["sizes"] = {}
        for d in SIZES:
            found = measured(refresh(d))
            record["sizes"][d] = found
            shown = {name: f"{1e3 * one['cpu_minimum']:.2f}" for name, one in found.items()}
            ratio = found["cholesky_inverse"]["cpu_minimum"] / found["rank_one"]["cpu_minimum"]
            print(f"d {d}: ms {shown}; a Cholesky inverse costs {ratio:.1f} rank-one updates", flush=True)
        for name in ("rank_one", "cholesky_inverse"):
            for low, high in ((256, 2048), (1024, 4096)):
                a, b = (record["sizes"][d][name]["cpu_minimum"] for d in (low, high))
                slope = math.log(b / a) / math.log(high / low)
                record.setdefault("slopes", {})[f"{name} {low}-{high}"] = slope
                print(f"{name}: slope {slope:.2f} from {low} to {high}")
    else:
        calls, count = steps()
        found = measured(calls)
        record |= {"parameters": count, "steps": found}
        for name, one in found.items():
            ratio = one["cpu_median"] / found["adamw"]["cpu_median"]
            print(f"{name}: {100 * one['cpu_median']:.1f} ms a step, {ratio:.2f} of AdamW's")
    record["load_after"] = os.getloadavg()
    old = json.loads(given.out.read_text("utf-8")) if given.out.is_file() else {}
    given.out.write_text(json.dumps({**old, given.what: record}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
