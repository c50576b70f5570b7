"""What a step of thinking costs beside a step of a plain transformer: with the observed stream cached, and computed again.

    python benchmarks/thinking.py [--out FILE]

One thread, float32, width 256, 4 blocks, vocabulary 257, batch 1, as one token is decoded behind a context of C tokens:
    plain      one token through the same blocks over the same kind of cache, with a head of logits;
    cached     one step of thinking about one position over the cached stream, as (6 steps − 2 steps) / 4;
    uncached   the same step with the observed stream computed again in each step. (The authors' code computes all candidates
               again as well, which takes longer still.)
And a training step, batch 8, 64 tokens: Transformer++ and both recipes of EBT. All take turns in one process; the figures are
processor seconds, the minimum and the median of the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from turns import Call, spread, turns

from instar import catalogue, files
from instar.bench import environment
from instar.inference.ebt import Ebt
from instar.inference.thinker import Thinker
from instar.inference.transformer_pp import TransformerPP

RESULT = Path(__file__).parent / "results" / "thinking.json"
CONTEXTS = (64, 256, 1024)
ROUNDS = 7
SIZE: dict[str, Any] = {"width": 256, "depth": 4, "heads": 4}
S2 = catalogue.method("ebt").preset("s2_small")


def clocked(calls: dict[str, Call]) -> dict[str, list[float]]:
    return {name: taken.cpu for name, taken in turns(calls, ROUNDS).items()}


def decoding(context: int) -> dict[str, Any]:
    torch.manual_seed(0)
    plain, model = TransformerPP(**SIZE).eval(), Ebt(**SIZE, **S2).eval()
    tokens = torch.randint(256, (1, context))
    with torch.no_grad():
        observed = model.observe(tokens)
        past, x = [], plain.embedding(tokens)
        for block in plain.blocks:
            x, layer = block.observe(x, torch.arange(context)[None], None, None)
            past.append(layer)

    @torch.no_grad()
    def one_token() -> Tensor:
        x, position = plain.embedding(tokens[:, -1:]), torch.tensor([[context]])
        for block, layer in zip(plain.blocks, past, strict=True):
            x, _ = block.observe(x, position, layer, None)
        return plain.head(plain.norm(x))

    start = torch.randn(1, 1, 257)
    energy = model.energy(observed, first=context - 1)

    def again(p: Tensor) -> Tensor:
        return model.energy(model.observe(tokens), first=context - 1)(p)

    def think(of: Callable[[Tensor], Tensor], state: Tensor, steps: int) -> Callable[[], object]:
        thinker = Thinker(steps=steps, step_size=5.0, probe=False)

        def call() -> object:
            with torch.no_grad():
                return thinker(of, state, point=model.point)

        return call

    taken = clocked(
        {
            "plain": one_token,
            **{f"cached@{n}": think(energy, start, n) for n in (2, 6)},
            **{f"uncached@{n}": think(again, start, n) for n in (2, 6)},
        }
    )
    row: dict[str, Any] = {"context": context, "load": environment.load(), "plain": summary(taken["plain"])}
    for name in ("cached", "uncached"):
        row[name] = summary([(b - a) / 4 for a, b in zip(taken[f"{name}@2"], taken[f"{name}@6"], strict=True)])
    row["cached_over_plain"] = row["cached"]["median"] / row["plain"]["median"]
    row["uncached_over_cached"] = row["uncached"]["median"] / row["cached"]["median"]
    return row


def training() -> dict[str, Any]:
    torch.manual_seed(0)
    models = {
        "transformer_pp": TransformerPP(**SIZE),
        "ebt_s1": Ebt(**SIZE, **catalogue.method("ebt").preset("s1_small")),
        "ebt_s2": Ebt(**SIZE, **{**S2, "random_steps": 0}),
    }
    tokens = torch.randint(256, (8, 65))

    def step(model: Any) -> Callable[[], object]:
        def call() -> None:
            model.zero_grad(set_to_none=True)
            model.loss(tokens[:, :-1], tokens[:, 1:]).backward()

        return call

    taken = clocked({name: step(model.train()) for name, model in models.items()})
    rows = {name: summary(seconds) for name, seconds in taken.items()}
    plain = rows["transformer_pp"]["median"]
    return {**rows, "over_transformer_pp": {name: row["median"] / plain for name, row in rows.items()}}


def summary(seconds: list[float]) -> dict[str, float]:
    return {**spread(seconds), "rounds": len(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for context in CONTEXTS:
        rows.append(decoding(context))
        row = rows[-1]
        print(
            f"{context}: plain {row['plain']['median'] * 1e3:.2f} ms, cached {row['cached']['median'] * 1e3:.2f} ms "
            f"({row['cached_over_plain']:.1f} × plain), uncached {row['uncached_over_cached']:.1f} × cached",
            flush=True,
        )
    trained = training()
    print("training: " + ", ".join(f"{name} {ratio:.1f}" for name, ratio in trained["over_transformer_pp"].items()))
    facts = {"command": "python benchmarks/thinking.py", **SIZE, "environment": environment.describe()}
    files.write_json(asked.out, {**facts, "rows": rows, "training": trained})


if __name__ == "__main__":
    main()
