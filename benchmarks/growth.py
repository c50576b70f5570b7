"""What growth costs: making a model of a hundred million weights larger, and a step through Pattention beside one through a FFN.

    python benchmarks/growth.py grow [--out FILE]
    python benchmarks/growth.py step [--out FILE]

grow: a TokenFormer of 12 layers, width 768 (n 768 and 3072: 113 million weights) to twice as many pairs, with an AdamW that has
state: the whole call, and the time that drawing the new weights alone takes, which no growth can avoid; undo; and the same of a
plain decoder (zero_ffn, hidden units doubled), whose larger weights and moments are copied. Most of the rest is the receipt's
three passes of SHA-256 over the weights.
step: forward and backward of Pattention, in one piece and grown in two and four, and of two linear layers with GELU between
them, of equally many weights and operations.

One thread, all take turns in one process; minimum and median of the turns, CPU time beside wall-clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from turns import Call, turns

from instar.growth import Pattention, TokenFormer, grow
from instar.growth.pattention import MODES, STD
from instar.growth.zero_ffn import ZeroFFN
from instar.models.decoder import Decoder

SIZES = ((256, 1024, 512), (512, 2048, 512), (768, 3072, 256), (768, 3072, 1024))
"""Width, pairs or hidden units, tokens."""
ROUNDS = 15
SECONDS = 15.0  # of one size
REPEATS = 3


def growth() -> dict[str, Any]:
    """Seconds of growing, of drawing the new weights alone, and of undo; the least of some repeats."""
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    models: dict[str, tuple[Any, Any, Any]] = {
        "tokenformer": (TokenFormer(257, 768, 12, heads=12), {"n": "2x"}, None),
        "zero_ffn": (Decoder(257, 768, 12, "softmax", heads=12, hidden=3072), {"hidden": "2x"}, ZeroFFN()),
    }
    while models:
        name, (model, plan, method) = models.popitem()
        optimiser = torch.optim.AdamW(model.parameters(), foreach=True)
        for parameter in model.parameters():
            optimiser.state[parameter] = {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(parameter)}
            optimiser.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        before = {p: p.shape for p in model.parameters()}
        count = sum(p.numel() for p in model.parameters())
        took: dict[str, list[float]] = {"grow": [], "cpu": [], "draw": [], "undo": []}
        for _ in range(REPEATS):
            cpu = time.process_time()
            grown, seconds = timed(lambda: grow(model, optimiser, plan, method=method))  # noqa: B023
            took["cpu"].append(time.process_time() - cpu)
            new = [p.shape for p in model.parameters() if p not in before]
            took["grow"].append(seconds)
            took["undo"].append(timed(grown.undo)[1])
            took["draw"].append(timed(lambda: [torch.empty(shape).normal_(std=STD) for shape in new])[1])  # noqa: B023
        least = {key: min(values) for key, values in took.items()}
        found[name] = {"parameters": count, **least, "beyond": least["grow"] - least["draw"]}
        del model, optimiser, grown, before
    return found


def timed(call: Call) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def steps(width: int, units: int, tokens: int) -> dict[str, Call]:
    """Forward and backward of each."""
    torch.manual_seed(0)
    x = torch.randn(tokens, width)
    up, down = nn.Linear(width, units, bias=False), nn.Linear(units, width, bias=False)
    layers: dict[str, nn.Module] = {"ffn": nn.Sequential(up, nn.GELU(), down)}
    for pieces in (1, 2, 4):
        layers[f"pattention_{pieces}"] = Pattention(width, width, [units // pieces] * pieces)
    if width == SIZES[0][0]:
        layers |= {mode: Pattention(width, width, units, mode=mode) for mode in MODES[1:]}

    def made(layer: nn.Module) -> Call:
        given = x.clone().requires_grad_()

        def call() -> None:
            layer.zero_grad(set_to_none=True)
            given.grad = None
            layer(given).sum().backward()

        return call

    return {name: made(layer) for name, layer in layers.items()}


def measured(calls: dict[str, Call]) -> dict[str, dict[str, float]]:
    return {name: taken.both() for name, taken in turns(calls, ROUNDS, seconds=SECONDS).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("grow", "step"))
    parser.add_argument("--out", type=Path, default=None, help="JSON file of the record; a record of the other kind in it stays")
    given = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "command": f"python benchmarks/growth.py {given.what}",
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "threads": 1,
        "load_before": os.getloadavg(),
    }
    if given.what == "grow":
        record["models"] = growth()
        for name, one in record["models"].items():
            print(
                f"{name}, {one['parameters'] / 1e6:.0f}M: grown in {one['grow']:.2f} s ({one['cpu']:.2f} s of CPU), of which "
                f"{one['draw']:.2f} s draw weights; {one['beyond']:.2f} s beyond; undone in {one['undo']:.2f} s"
            )
    else:
        record["sizes"] = []
        for width, units, tokens in SIZES:
            found = measured(steps(width, units, tokens))
            record["sizes"].append({"width": width, "units": units, "tokens": tokens, "steps": found})
            ratios = {name: f"{one['cpu_minimum'] / found['ffn']['cpu_minimum']:.2f}" for name, one in found.items()}
            shown = f"{1e3 * found['ffn']['cpu_minimum']:.1f} ms"
            print(f"width {width}, units {units}, {tokens} tokens: FFN {shown}; in its time: {ratios}", flush=True)
    record["load_after"] = os.getloadavg()
    if given.out:
        old = json.loads(given.out.read_text("utf-8")) if given.out.is_file() else {}
        given.out.write_text(json.dumps({**old, given.what: record}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
