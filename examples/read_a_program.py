"""Learn to sort, read what was learnt, and ask why it says what it says.

python examples/read_a_program.py             # about a minute on one core; nothing is kept
python examples/read_a_program.py sort.py 60  # where the program is kept; fewer steps
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from instar import files
from instar.lab.programs import TransformerPrograms, generate
from instar.lab.programs.explaining import as_text
from instar.lab.programs.making import make


def main(out: str = "", steps: int = 1200) -> None:
    torch.set_num_threads(1)
    parts = generate("sort", vocab=6, length=6, samples=400)
    learner = TransformerPrograms(layers=2, cat_heads=4, num_heads=2, restarts=2)
    made = make(learner, parts, steps=steps, batch=64, pruned=0.0, monitor=lambda step, loss: say(step, steps, loss))
    if out:
        files.write(Path(out), made.text)
    print("beginnings, right on validation:", [round(one.accuracy, 3) for one in learner.tries])
    print(f"{out or 'the program'}: right on {made.accuracy:.1%} of test labels; {made.text.count(chr(10))} lines")
    if made.pruned is not None:
        print("no longer weighed:", ", ".join(made.pruned.dropped) or "nothing")
        print("steps taken out:", ", ".join(made.pruned.removed) or "none")

    tokens = ["<s>", "2", "0", "1", "</s>"]
    print("\n", " ".join(tokens), "->", " ".join(made.program.run(tokens)[1:-1]))
    print(as_text(made.program, tokens, place=1))


def say(step: int, steps: int, loss: float) -> None:
    if step % max(1, steps // 6) == 0:
        print(f"step {step} of {steps}: loss {loss:.3f}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
