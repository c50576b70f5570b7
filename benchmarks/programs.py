"""Transformer Programs: seconds to convert a trained model, and a printed `sort` against its model on ten thousand inputs.

    python benchmarks/programs.py [--steps N] [--out FILE]

`sort` with the paper's sizes (8 tokens, 8 places; three layers, four categorical and four numerical heads, two tables of each),
trained for some steps only: what is measured does not depend on what was learnt. Conversion is timed from network to text. The
file is executed in an empty namespace, and asked for 10,000 inputs of the task and 10,000 of random tokens; both it and the model
are timed on them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from instar import files
from instar.bench import environment
from instar.lab.programs import TransformerPrograms, discretise, generate, python
from instar.lab.programs.making import answers, drawn

RESULT = Path(__file__).parent / "results" / "programs.json"
INPUTS, ROUNDS = 10_000, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    load = environment.load()
    train, valid, test = generate("sort", samples=20_000)
    learner = TransformerPrograms(layers=3, cat_heads=4, num_heads=4, cat_mlps=2, num_mlps=2)
    learner.fit(train, valid, steps=asked.steps, batch=128)
    assert learner.network is not None
    assert learner.vocabulary is not None
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        program = discretise(learner.network, learner.vocabulary.tokens, learner.vocabulary.labels)
        text = python(program)
        seconds.append(time.process_time() - start)
    task = [*train.tokens, *valid.tokens, *test.tokens][:INPUTS]
    found = {}
    for name, rows in (("task", task), ("random", drawn(program, INPUTS, 1))):
        start = time.process_time()
        said = answers(text, rows)
        middle = time.process_time()
        model = learner.predict(rows)
        end = time.process_time()
        equal = sum(a == b for a, b in zip(said, model, strict=True))
        found[name] = {"inputs": len(rows), "equal": equal, "file_seconds": middle - start, "model_seconds": end - middle}
        print(f"{name}: equal on {equal} of {len(rows)}; file {middle - start:.2f} s, model {end - middle:.2f} s")
    lines = text.count("\n")
    print(f"conversion: {min(seconds):.2f} s at best, {max(seconds):.2f} s at worst; {lines} lines")
    facts = {
        "command": "python benchmarks/programs.py",
        "steps": asked.steps,
        "parameters": learner.parameters(),
        "lines": lines,
        "environment": environment.describe(),
        "load": load,
    }
    files.write_json(asked.out, {**facts, "conversion_seconds": seconds, "inputs": found})


if __name__ == "__main__":
    main()
