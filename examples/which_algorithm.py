"""Which algorithm has a small transformer learnt in context? Train it on linear tasks, then hold it against the textbook.

python examples/which_algorithm.py               # about forty seconds on one core
python examples/which_algorithm.py retnet 3000   # another mixer of the catalogue, more steps
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from instar.bench.seeds import initialising, stream
from instar.lab.averaging import Averaging
from instar.lab.compiled_learner import CompiledLearner
from instar.lab.gradient_descent import GradientDescent
from instar.lab.icl import measures, shifts
from instar.lab.icl.tasks import TaskSampler
from instar.lab.icl_dynamics import LinearSelfAttention
from instar.lab.icl_linear import InContextDecoder
from instar.lab.least_squares import LeastSquares
from instar.lab.nearest_neighbours import NearestNeighbours

WIDTH, EXAMPLES = 2, 8
REFERENCES = {
    "least squares": LeastSquares(),
    "ridge, λ = 1/2": LeastSquares(ridge=0.5),
    "one step of descent": GradientDescent(lr=0.05),
    "averaging": Averaging(),
    "3 nearest neighbours": NearestNeighbours(),
}


def main(mixer: str = "softmax:no_positions", steps: int = 1200) -> None:
    torch.set_num_threads(1)
    sampler = TaskSampler(WIDTH)

    def tasks(step: int) -> tuple[Tensor, Tensor]:
        drawn = sampler.draw(64, EXAMPLES, stream(0, f"data/{step}"))
        return drawn.xs, drawn.ys

    with initialising(0):
        model = InContextDecoder(WIDTH, examples=EXAMPLES, mixer=mixer, model_width=32, heads=2, lr=3e-3)
    model.fit(tasks, lambda said, ys: (said - ys).square().mean(), steps=steps, monitor=lambda n, loss: say(n, steps, loss))
    model.eval()

    test = sampler.draw(500, EXAMPLES, stream(0, "test"))
    probes = torch.randn(500, 8, WIDTH, generator=stream(0, "probes"))
    with torch.no_grad():
        error = float((model.prefixes(test.xs, test.ys) - test.ys).square().sum() / test.ys.square().sum())
    print(f"\nerror over that of answering 0: {error:.3f}. The nearest reference first:")
    found = measures.compare(model, REFERENCES, test.xs, test.ys, probes)
    print(measures.table(found))
    linear = measures.implied(model, test.xs[:, :-1], test.ys[:, :-1], probes).linearity.median()
    print(f"its answers are linear in the query to R² = {float(linear):.3f} (median)\n")

    # The same tests for learners whose algorithm is known: weights that are ridge regression, and one layer of linear attention.
    learners = {
        "trained": model,
        "compiled ridge": CompiledLearner(WIDTH, examples=EXAMPLES, ridge=0.5),
        "linear attention": LinearSelfAttention(WIDTH, examples=EXAMPLES),
    }
    tests = shifts.shifts(sampler, EXAMPLES - 1, tasks=300, dtype=torch.float32)
    print(shifts.table({name: shifts.evaluate(learner, tests) for name, learner in learners.items()}))


def say(step: int, steps: int, loss: float) -> None:
    if step % 200 == 0 or step == steps:
        print(f"step {step}/{steps}: {loss:.3f}")


if __name__ == "__main__":
    main(*([sys.argv[1]] if len(sys.argv) > 1 else []), *([int(sys.argv[2])] if len(sys.argv) > 2 else []))
