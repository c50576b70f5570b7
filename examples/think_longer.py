"""Train a small energy-based transformer on the English text inside Python, then think about its next byte for longer.

python examples/think_longer.py       # half a minute on one core
python examples/think_longer.py 600   # more steps of training
"""

from __future__ import annotations

import sys

import torch

from instar.bench.run import lift
from instar.bench.seeds import stream
from instar.inference.ebt import Ebt
from instar.problems.text import BOS
from instar.problems.think_text import ThinkTextProblem


def main(steps: int = 150) -> None:
    torch.set_num_threads(1)
    problem = ThinkTextProblem(test_blocks=1, width=48, length=24)
    data = problem.load(0)
    recipe = {"landscapes": 1, "random_steps": 1, "alpha": 5.0, "learn_alpha": False, "random_alpha": 2.0, "noise": 1.0}
    model: Ebt = lift(problem, "ebt", {**recipe, "detach": False, "truncate": True, "last_only": True}, data, 0)
    problem.fit(model, data.train, steps=steps, seed=0, monitor=lambda step, loss: say(step, steps, loss))
    model.eval()
    bits = problem.evaluate(model, data.test)
    print("bits per byte by steps:", {name.partition("@")[2]: round(items.value, 3) for name, items in bits.items()})

    # One prediction: its energy falls from step to step, refused steps included, and the lowest of several samples is kept.
    prompt = torch.tensor([[BOS, *b"The statement is the "]])
    logits, trace = model.think(prompt, steps=8, accept=True, generator=stream(0, "start"))
    assert trace.energies is not None
    print("energy of the next byte:", [round(float(e), 4) for e in trace.energies[:, 0, -1]], *trace.notes)
    assert bool((trace.energies.diff(dim=0) <= 0).all())
    logits, trace = model.think(prompt, steps=8, samples=4, generator=stream(0, "start"))
    assert trace.sampled is not None
    print("four samples end at:", [round(float(e), 4) for e in trace.sampled[:, 0, -1]])
    print("most likely:", [chr(int(b)) for b in logits[0, -1].topk(5).indices])

    # What was read is kept: a new byte costs its own thinking and nothing for the past.
    new = model.generate(prompt, max_new_tokens=40, steps=3, temperature=0.5, generator=stream(0, "sample"))
    print("The statement is the" + " " + bytes(int(b) for b in new[0] if b < 256).decode(errors="replace"))


def say(step: int, steps: int, loss: float) -> None:
    if step % 50 == 0 or step == steps:
        print(f"step {step}/{steps}: {loss:.2f} nats")


if __name__ == "__main__":
    main(*([int(sys.argv[1])] if len(sys.argv) > 1 else []))
