"""Hopfield layers against the authors' (hopfield-layers): equal values and gradients, time of a forward and of a training step.

    PYTHONPATH=FOLDER python benchmarks/hopfield.py [--quick] [--out FILE]

FOLDER holds the authors' package `hflayers`, which is not on PyPI: github.com/ml-jku/hopfield-layers, commit
f56f929c95b77a070ae675ea4f56b6d54d36e730, version 1.0.2; without it only ours is timed. Both have the same weights (the state
dict of theirs), one thread, float32 for time, float64 for parity; they take turns, call by call: minimum and median. A ratio is
the peer's time over ours, round by round, its median. Where states settle, each stops by its own rule (theirs by the weights of
the whole batch), so that the work differs as well.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from turns import Call, spread, turns

from instar.errors import InstarError
from instar.mixers import hopfield_layers

WIDTH, HEADS = 128, 4
CASES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "self-association, 256 tokens": ("Hopfield", (4, 256, WIDTH), {}),
    "self-association, 1024 tokens": ("Hopfield", (1, 1024, WIDTH), {}),
    "pooling, 16 bags of 512": ("HopfieldPooling", (16, 512, WIDTH), {}),
    "look-up, 16 states, 256 patterns": ("HopfieldLayer", (16, 1, WIDTH), {"quantity": 256}),
    "small, 8 sequences of 32": ("Hopfield", (8, 32, WIDTH), {}),
}
"""Class, shape of the input and arguments beside width and heads."""
STEPS: tuple[int | None, ...] = (0, 1, 3, None)


def peer() -> Any:
    try:
        return importlib.import_module("hflayers")
    except ImportError:
        return None


def pair(theirs: Any, kind: str, arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, nn.Module]:
    """Ours and theirs with one set of weights, larger than at the start, so that associations are not all flat."""
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {"instar": getattr(hopfield_layers, kind)(**arguments).to(dtype)}
    with torch.no_grad():
        for parameter in made["instar"].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if theirs is not None:
        made["hopfield-layers"] = getattr(theirs, kind)(**arguments).to(dtype)
        made["hopfield-layers"].load_state_dict(
            {name: value for name, value in made["instar"].state_dict().items() if not name.endswith("_extra_state")}
        )
    return made


def parity(theirs: Any, kind: str, shape: tuple[int, ...], arguments: dict[str, Any]) -> dict[str, float]:
    """Largest differences of outputs and of gradients, float64, relative to the largest value; every update is made."""
    layers = pair(theirs, kind, arguments | {"update_steps_eps": 1e-12}, torch.float64)
    x = torch.randn(min(2, shape[0]), min(64, shape[1]), shape[2], dtype=torch.float64)
    found: dict[str, list[Tensor]] = {}
    for name, layer in layers.items():
        own = x.clone().requires_grad_()
        y = layer(own)
        wanted = [own, *(dict(layer.named_parameters())[n] for n, p in layers["hopfield-layers"].named_parameters())]
        found[name] = [y.detach(), *torch.autograd.grad(y.square().sum(), wanted)]
    differences = [float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in zip(*found.values(), strict=True)]
    return {"values": differences[0], "gradients": max(differences[1:])}


def compared(calls: dict[str, Call], rounds: int) -> dict[str, Any]:
    taken = {name: one.wall for name, one in turns(calls, rounds, warm=2).items()}
    result: dict[str, Any] = {name: spread(seconds) for name, seconds in taken.items()}
    if len(taken) > 1:
        own, other = taken["instar"], taken["hopfield-layers"]
        result["ratio"] = statistics.median(b / a for a, b in zip(own, other, strict=True))
        result["ratio_of_minima"] = min(other) / min(own)
    return result


def times(theirs: Any, kind: str, shape: tuple[int, ...], arguments: dict[str, Any], rounds: int) -> dict[str, Any]:
    layers = pair(theirs, kind, arguments, torch.float32)
    x = torch.randn(shape)

    def forward(layer: nn.Module) -> Callable[[], object]:
        def call() -> None:
            with torch.no_grad():
                layer(x)

        return call

    def training(layer: nn.Module) -> Callable[[], object]:
        own = x.clone().requires_grad_()

        def call() -> None:
            layer.zero_grad(set_to_none=True)
            layer(own).sum().backward()

        return call

    found: dict[str, Any] = {"load": os.getloadavg()[0]}
    for name, way in (("forward", forward), ("training", training)):
        found[name] = compared({who: way(layer) for who, layer in layers.items()}, rounds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "hopfield.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    theirs = peer()
    if theirs is None:
        print("The authors' hflayers is not importable: only ours is timed.")
    rows: list[dict[str, Any]] = []
    for case, (kind, shape, more) in CASES.items():
        for steps in STEPS:
            arguments = {"input_size": WIDTH, "num_heads": HEADS, "update_steps_max": steps, **more}
            row: dict[str, Any] = {"case": case, "updates": "until settled" if steps is None else steps}
            try:
                row |= times(theirs, kind, shape, arguments, 3 if options.quick else 5)
                if theirs is not None and steps is not None:
                    row["difference"] = parity(theirs, kind, shape, arguments)
            except InstarError as error:
                row["failed"] = str(error)
            rows.append(row)
            print(line(row), flush=True)
    result = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "peer": None if theirs is None else "hopfield-layers 1.0.2, commit f56f929c95b77a070ae675ea4f56b6d54d36e730",
        "rows": rows,
    }
    if not options.quick:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def line(row: dict[str, Any]) -> str:
    text = f"{row['case']:<36}{row['updates']!s:>14}"
    for way in ("forward", "training"):
        if way in row:
            ratio = f" ({row[way]['ratio']:4.1f}× theirs)" if "ratio" in row[way] else ""
            text += f"  {way} {1e3 * row[way]['instar']['min']:8.2f} ms{ratio}"
    if "difference" in row:
        text += f"  difference {row['difference']['values']:.0e}, gradients {row['difference']['gradients']:.0e}"
    return text + (f"  {row['failed']}" if "failed" in row else "")


if __name__ == "__main__":
    main()
