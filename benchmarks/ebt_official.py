"""EBT against the authors' code: equal losses and gradients, time of a training step, and of a step of thinking.

    PYTHONPATH=FOLDER python benchmarks/ebt_official.py [--quick] [--out FILE]

FOLDER holds the authors' package `model`, see `ebt_peer.py`; without it only ours is timed.

Both have the same weights and sizes, float32, one thread, and take turns in one process, call by call. A training step is loss
and backward pass: System 1 (two steps on two landscapes) and System 2 (two steps, noise, random step sizes, truncated), both
without replay buffer, which would make both batches larger by half. A step of thinking is (6 steps - 2 steps) / 4: ours about one
position behind a cached context, theirs about all positions, as in their inference, which has no cache. Ratios are of processor
seconds, ours over theirs, round by round: the minimum, and the median.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ebt_peer import COMMIT, RECIPES, pair, peer, translated
from torch import Tensor
from turns import Call, spread, turns

from instar import files
from instar.bench import environment
from instar.inference.thinker import Thinker

RESULT = Path(__file__).parent / "results" / "ebt_official.json"
SHAPES: dict[str, dict[str, int]] = {
    "bytes, width 128": {"width": 128, "depth": 2, "heads": 2, "vocabulary": 257, "batch": 8, "length": 128},
    "bytes, width 256": {"width": 256, "depth": 4, "heads": 4, "vocabulary": 257, "batch": 8, "length": 64},
    "8192 tokens, width 256": {"width": 256, "depth": 4, "heads": 4, "vocabulary": 8192, "batch": 4, "length": 64},
}
CONTEXTS = (64, 256)


def losses(models: dict[str, Any], tokens: Tensor) -> dict[str, Callable[[], Tensor]]:
    found: dict[str, Callable[[], Tensor]] = {"instar": lambda: models["instar"].loss(tokens[:, :-1], tokens[:, 1:])}
    if "official" in models:
        found["official"] = lambda: models["official"].forward_loss_wrapper({"input_ids": tokens.unsqueeze(1)}, "train")["loss"]
    return found


def parity(theirs: Any, recipe: str) -> dict[str, float]:
    """Differences of loss and gradients from z = 0, without noise and random sizes, relative to the largest value."""
    shape = {"width": 32, "depth": 2, "heads": 2, "vocabulary": 23, "batch": 3, "length": 12}
    still = {"denoising_initial_condition": "zeros", "langevin_dynamics_noise": 0.0, "randomize_mcmc_step_size_scale": 1.0}
    models = pair(theirs, recipe, shape, start="zeros", **still)
    models["instar"].step_size.spread = 1.0
    tokens = torch.randint(shape["vocabulary"] - 1, (shape["batch"], shape["length"] + 1))
    values = {name: loss() for name, loss in losses(models, tokens).items()}
    for loss in values.values():
        loss.backward()
    wanted = {name: p.grad for name, p in models["official"].named_parameters() if p.grad is not None}
    found = translated(models["instar"], lambda p: p.grad)
    assert wanted.keys() == found.keys(), wanted.keys() ^ found.keys()
    scale = max(float(g.abs().max()) for g in wanted.values())
    return {
        "loss": float((values["instar"] - values["official"]).abs().detach()),
        "gradients": max(float((found[name] - g).abs().max()) for name, g in wanted.items()) / scale,
    }


def compared(calls: dict[str, Call], rounds: int) -> dict[str, Any]:
    taken = turns(calls, rounds)
    row: dict[str, Any] = {name: {**spread(spent.cpu), "rounds": len(spent.cpu)} for name, spent in taken.items()}
    if "official" in taken:
        row["over_official"] = spread([a / b for a, b in zip(taken["instar"].cpu, taken["official"].cpu, strict=True)])
    return row


def training(theirs: Any, recipe: str, shape: dict[str, int], rounds: int) -> dict[str, Any]:
    models = pair(theirs, recipe, shape)
    tokens = torch.randint(shape["vocabulary"] - 1, (shape["batch"], shape["length"] + 1))

    def step(name: str, loss: Callable[[], Tensor]) -> Call:
        def call() -> None:
            models[name].zero_grad(set_to_none=True)
            loss().backward()

        return call

    return compared({name: step(name, loss) for name, loss in losses(models, tokens).items()}, rounds)


def thinking(theirs: Any, context: int, rounds: int) -> dict[str, Any]:
    """One step of thinking about the token behind a context, batch 1."""
    shape = {**SHAPES["bytes, width 256"], "batch": 1, "length": context}
    models = pair(theirs, "s2", shape, langevin_dynamics_noise=0.0)
    tokens = torch.randint(shape["vocabulary"] - 1, (1, context))
    own = models["instar"].eval()
    with torch.no_grad():
        observed = own.observe(tokens)
    start = torch.randn(1, 1, shape["vocabulary"])

    def ours(steps: int) -> Call:
        thinker = Thinker(steps=steps, step_size=5.0, probe=False)

        def call() -> None:
            with torch.no_grad():
                thinker(own.energy(observed, first=context - 1), start, point=own.point)

        return call

    def official(steps: int) -> Call:
        def call() -> None:
            models["official"].hparams["randomize_mcmc_num_steps"] = steps - 1  # without randomness one more is made
            models["official"](tokens, learning=False, return_raw_logits=True)

        return call

    ways = {"instar": ours} | ({"official": official} if theirs is not None else {})
    taken = turns({f"{name}@{n}": way(n) for name, way in ways.items() for n in (2, 6)}, rounds)
    seconds = {name: [(b - a) / 4 for a, b in zip(taken[f"{name}@2"].cpu, taken[f"{name}@6"].cpu, strict=True)] for name in ways}
    row: dict[str, Any] = {name: {**spread(spent), "rounds": len(spent)} for name, spent in seconds.items()}
    if theirs is not None:
        row["over_official"] = {kind: row["instar"][kind] / row["official"][kind] for kind in ("min", "median")}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of the smallest shape, nothing written")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    theirs, absent = peer()
    rounds = 1 if asked.quick else 9
    facts: dict[str, Any] = {
        "command": "PYTHONPATH=FOLDER python benchmarks/ebt_official.py",
        "compared_with": f"github.com/alexiglad/EBT, commit {COMMIT}" if theirs else "left out: not in PYTHONPATH",
        "stood_in_for": absent,
        "load_before": environment.load(),
        "environment": environment.describe(),
        "differences": {recipe: parity(theirs, recipe) for recipe in RECIPES} if theirs else {},
        "training": {},
        "thinking": {},
    }
    print(f"differences: {facts['differences']}", flush=True)
    for name, shape in list(SHAPES.items())[: 1 if asked.quick else None]:
        for recipe in RECIPES:
            row = training(theirs, recipe, shape, rounds)
            facts["training"][f"{recipe}, {name}"] = {**shape, **row}
            print(f"training, {recipe}, {name}: {row}", flush=True)
    for context in CONTEXTS[: 1 if asked.quick else None]:
        facts["thinking"][str(context)] = thinking(theirs, context, rounds)
        print(f"thinking behind {context}: {facts['thinking'][str(context)]}", flush=True)
    facts["load_after"] = environment.load()
    if not asked.quick:
        files.write_json(asked.out, facts)


if __name__ == "__main__":
    main()
