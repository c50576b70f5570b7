"""AdamW with its state in a file: six strategies at one budget, on a disk and on an emulated one, beside what was predicted.

    python benchmarks/offload.py [--folder FOLDER] [--repeats 5] [--out FILE]

A decoder of 26 million weights (state 201 MB) learns the source of Python's `email`, 64 bytes a step. Strategies: in memory
(torch's AdamW, and ours with ratio 0, which differs in going block by block through the cache); state mapped from a file and left
to the kernel, which no budget holds; all state streamed, sequential or pipelined; as much of it resident as the budget of 40 %
allows, the rest streamed after the residents (static split) or among them (interleaved). Stores: direct I/O on FOLDER's disk; the
same buffered and mapped, whose pages the kernel keeps outside of the budget; memory at 2 GB/s in each direction (EMULATED).

All take turns in one process, their order shuffled in each of the repeats; a turn is four steps, of which the last three count.
Medians of step() alone and of the whole iteration. At the end the weights of all are compared: they must be equal to the bit.
"""

from __future__ import annotations

import argparse
import email
import json
import os
import platform
import random
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.models.decoder import Decoder
from instar.optim.adamw import AdamW
from instar.optim.offload.calibration import calibrate
from instar.optim.offload.plan import Hardware, plan_offload
from instar.optim.offload.store import StoreSpec
from instar.optim.offloaded_adamw import OffloadedAdamW

WIDTH, DEPTH, HEADS, LENGTH = 512, 8, 8, 64
SHARE = 0.4
STEPS, TIMED = 4, 3
RATE = 2e9
TEXT = b"".join(path.read_bytes() for path in sorted(Path(email.__file__).parent.glob("*.py")))


class Mapped(AdamW):
    """torch's AdamW over state that lies in a mapped file without a name."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        super().__init__(model)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            sizes = [p.numel() for group in self.param_groups for p in group["params"]]
            flat = torch.from_file(file.name, shared=True, size=2 * sum(sizes), dtype=torch.float32)
        places = iter(flat.split([size for size in sizes for _ in range(2)]))
        for group in self.param_groups:
            for p in group["params"]:
                moments = {"exp_avg": next(places).view_as(p), "exp_avg_sq": next(places).view_as(p)}
                self.state[p] = {"step": torch.tensor(0.0), **moments}


class Trained:
    """A model of its own with its optimiser."""

    def __init__(self, build: Any) -> None:
        torch.manual_seed(0)
        self.model = Decoder(256, WIDTH, DEPTH, "softmax", heads=HEADS)
        self.optimiser = build(self.model)
        self.done = 0
        self.passes: list[float] = []
        self.steps: list[float] = []

    def turn(self, timed: bool) -> None:
        for number in range(STEPS):
            a = time.perf_counter()
            at = 64 * self.done % (len(TEXT) - LENGTH - 1)
            row = torch.tensor(list(TEXT[at : at + LENGTH + 1]))[None]
            loss: Tensor = F.cross_entropy(self.model(row[:, :-1])[0].flatten(0, 1), row[0, 1:])
            loss.backward()
            b = time.perf_counter()
            self.optimiser.step()
            c = time.perf_counter()
            self.optimiser.zero_grad(set_to_none=False)
            self.done += 1
            if timed and number >= STEPS - TIMED:
                self.passes.append(b - a)
                self.steps.append(c - b)
        if isinstance(self.optimiser, OffloadedAdamW):  # so that no write of this one goes on while another is measured
            self.optimiser.engine.staging.settle()
            self.optimiser.engine.store.medium.sync()


def streamed(store: StoreSpec, budget: int, **arguments: Any) -> Any:
    return lambda model: OffloadedAdamW(model, store=store, budget_bytes=budget, **arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the files of state lie")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="JSON file of the record")
    given = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()
    with torch.device("meta"):
        blank = Decoder(256, WIDTH, DEPTH, "softmax", heads=HEADS)
    weights = sum(p.numel() for p in blank.parameters())
    budget = int(SHARE * 8 * weights)
    ways: dict[str, dict[str, Any]] = {
        "sequential": {"schedule": "sequential", "ratio": 1.0},
        "pipelined": {"schedule": "pipelined", "ratio": 1.0},
        "static split": {"schedule": "pipelined"},
        "interleaved": {"schedule": "interleaved"},
    }
    direct, throttled = StoreSpec(given.folder, "direct"), StoreSpec(None, "throttled", RATE)
    stores = {"direct": direct, "throttled (emulated)": throttled}
    others = {"buffered": StoreSpec(given.folder, "buffered"), "mmap": StoreSpec(given.folder, "mmap")}
    runs: dict[str, Trained] = {"in memory": Trained(AdamW), "in memory, ours": Trained(streamed(direct, 2**40, ratio=0.0))}
    runs["mapped, left to the kernel"] = Trained(lambda model: Mapped(model, given.folder))
    kinds: dict[str, tuple[str, dict[str, Any]]] = {}
    for store, spec in stores.items():
        for name, way in ways.items():
            kinds[f"{name}, {store}"] = store, way
            runs[f"{name}, {store}"] = Trained(streamed(spec, budget, **way))
    for store, spec in others.items():
        runs[f"interleaved, {store}"] = Trained(streamed(spec, budget))
    began, order, chance = time.perf_counter(), list(runs), random.Random(0)
    for one in runs.values():
        one.turn(timed=False)
    for repeat in range(given.repeats):
        chance.shuffle(order)
        for name in order:
            runs[name].turn(timed=True)
        print(f"repeat {repeat + 1} of {given.repeats}, {time.perf_counter() - began:.0f} s", flush=True)
    first = runs["in memory"]
    equal = all(
        torch.equal(p, q) for one in runs.values() for p, q in zip(first.model.parameters(), one.model.parameters(), strict=True)
    )
    rates: dict[str, Hardware] = {name: calibrate(spec, extent=1 << 22, seconds=2.0) for name, spec in stores.items()}
    passes = statistics.median(first.passes)
    base = statistics.median([a + b for a, b in zip(first.passes, first.steps, strict=True)])
    found: dict[str, dict[str, Any]] = {}
    for name, one in runs.items():
        whole = statistics.median([a + b for a, b in zip(one.passes, one.steps, strict=True)])
        found[name] = {"step": statistics.median(one.steps), "iteration": whole, "of_in_memory": whole / base, "steps": one.steps}
        if isinstance(one.optimiser, OffloadedAdamW):
            division = one.optimiser.engine.division
            found[name] |= {"memory_bytes": one.optimiser.engine.memory.peak, "streamed": division.streamed, "of": division.count}
        text = f"{name}: step {1e3 * found[name]['step']:.0f} ms, iteration {1e3 * whole:.0f} ms, {whole / base:.2f} of in memory"
        if name in kinds:
            store, way = kinds[name]
            plan = plan_offload(blank, rates[store], budget, k="auto", pass_seconds=passes, **way)
            found[name] |= {"predicted_step": plan.step_seconds, "hiding_interval": plan.hiding_interval}
            off = (passes + plan.step_seconds) / whole - 1
            text += f"; predicted {1e3 * plan.step_seconds:.0f} ms, iteration off by {100 * off:+.0f} %"
        print(text)
    print(f"weights of all equal to the bit: {equal}")
    for store in stores:
        ours = found[f"interleaved, {store}"]
        for other in ("sequential", "pipelined", "static split"):
            step, iteration = (found[f"{other}, {store}"][figure] / ours[figure] for figure in ("step", "iteration"))
            print(f"{store}: interleaved is {step:.2f} times as fast as {other} (step), {iteration:.2f} times (iteration)")
    record = {
        "command": "python benchmarks/offload.py",
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "threads": 1,
        "repeats": given.repeats,
        "weights": weights,
        "budget_bytes": budget,
        "pass_seconds": passes,
        "rates": {name: asdict(rate) for name, rate in rates.items()},
        "equal_to_the_bit": equal,
        "strategies": found,
        "load_before": load,
        "load_after": os.getloadavg(),
    }
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
