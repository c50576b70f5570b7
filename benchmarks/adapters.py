"""A training step and FLOPs of an adapted layer against T, and of a whole encoder: HUT in both spaces, LoRA, HiRA.

    python benchmarks/adapters.py [--quick] [--out FILE]

A layer is square, of width 384 or 1024, with a bias, frozen under its adapter (rank 8); its input takes gradients, as in the
middle of a model. A step is forward and backward. The whole encoder is MiniLM with adapters on query and value, 8 sentences of
64 tokens: T = 512. All take turns, call by call, in one process; minimum and median of the turns are kept, of wall-clock and of
CPU time. FLOPs are counted in a pass of their own. The frozen layer without an adapter stands beside them, as `base`.
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
from torch import Tensor, nn

from instar.adapters import HUT, HiRA, LoRA, flops
from instar.adapters.attached import adapted
from instar.data import pretrained
from instar.interfaces import Adapter

TOKENS = (16, 64, 256, 512, 1024, 4096)
WIDTHS = (384, 1024)
GOAL = 1.1
"""HUT's cheaper form may take so many times LoRA's step, at T = 512."""
METHODS: dict[str, Adapter | None] = {
    "base": None,
    "lora": LoRA(r=8),
    "hut_weight": HUT(r=8, impl="weight"),
    "hut_activation": HUT(r=8, impl="activation"),
    "hut_auto": HUT(r=8),
    "hira": HiRA(r=8),
}


def layer_of(method: Adapter | None, width: int) -> nn.Module:
    """A frozen layer with its adapter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width)).requires_grad_(False)
    if method is not None:
        method.attach(model, "0")
    return model


def step_of(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward, without an optimiser."""

    def call() -> None:
        x.grad = None
        model.zero_grad()
        model(x).sum().backward()

    return call


def timed(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each, in turns."""
    for call in calls.values():
        call()
        call()
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            a, b = time.process_time(), time.perf_counter()
            calls[name]()
            wall[name].append(time.perf_counter() - b)
            cpu[name].append(time.process_time() - a)
    return {
        name: {
            "wall_min": min(wall[name]),
            "wall_median": statistics.median(wall[name]),
            "cpu_min": min(cpu[name]),
            "cpu_median": statistics.median(cpu[name]),
        }
        for name in calls
    }


def layers(width: int, tokens: int, rounds: int) -> dict[str, Any]:
    """One width and one T."""
    models = {name: layer_of(method, width) for name, method in METHODS.items()}
    x = torch.randn(tokens, width, requires_grad=True)
    counted = {
        name: {
            "forward_flops": flops.forward(model, x.detach()),
            "step_flops": flops.step(model, x.detach()),
            "kept_bytes": flops.kept_bytes(model, x.detach()),
        }
        for name, model in models.items()
    }
    seconds = timed({name: step_of(model, x) for name, model in models.items()}, rounds)
    return {"width": width, "tokens": tokens, "methods": {name: {**counted[name], **seconds[name]} for name in models}}


def encoders(rounds: int) -> dict[str, Any]:
    """MiniLM, query and value of all blocks, T = 512."""
    calls: dict[str, Callable[[], None]] = {}
    ids = torch.randint(1000, 20000, (8, 64), generator=torch.Generator().manual_seed(0))
    for name, method in METHODS.items():
        if method is None:
            continue
        model, _ = pretrained.load("all-MiniLM-L6-v2", "encoder")
        method.attach(model)
        assert len(adapted(model)) == 12

        def call(model: nn.Module = model) -> None:
            model.zero_grad()
            model(input_ids=ids).last_hidden_state.square().mean().backward()

        calls[name] = call
    return {"model": "all-MiniLM-L6-v2", "tokens": ids.numel(), "methods": timed(calls, rounds)}


def ratios(methods: dict[str, dict[str, float]]) -> dict[str, float]:
    """Median wall-clock time of each over LoRA's."""
    lora = methods["lora"]["wall_median"]
    return {name: round(found["wall_median"] / lora, 3) for name, found in methods.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "adapters.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "command": "python benchmarks/adapters.py",
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "load_before": os.getloadavg(),
        "layers": [],
    }
    for width in WIDTHS:
        for tokens in TOKENS:
            rounds = 3 if asked.quick else max(9, min(60, 60 * 512 * 384 // (tokens * width)))
            row = layers(width, tokens, rounds)
            row["over_lora"] = ratios(row["methods"])
            found["layers"].append(row)
            print(f"layer {width:5d}  T {tokens:5d}  over LoRA: {row['over_lora']}", flush=True)
    whole = encoders(2 if asked.quick else 15)
    whole["over_lora"] = ratios(whole["methods"])
    whole["cheaper_over_lora"] = min(whole["over_lora"]["hut_weight"], whole["over_lora"]["hut_activation"])
    whole["goal"] = GOAL
    found["encoder"] = whole
    found["load_after"] = os.getloadavg()
    print(f"MiniLM, T = {whole['tokens']}, over LoRA: {whole['over_lora']}; the cheaper form {whole['cheaper_over_lora']}")
    asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
