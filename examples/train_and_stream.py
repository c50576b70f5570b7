"""Train a small byte-level model on the English text inside Python, then let it write, one byte at a time from its state.

python examples/train_and_stream.py            # about half a minute on one core
python examples/train_and_stream.py aaren 600  # another mixer, more steps
"""

from __future__ import annotations

import sys
import tempfile

import torch

from instar import Decoder, catalogue
from instar.bench.run import lift
from instar.problems.text import BOS, TextProblem
from instar.state import nbytes


def main(mixer: str = "gla", steps: int = 150) -> None:
    torch.set_num_threads(1)
    problem = TextProblem(width=64, depth=2, length=128, lr=4e-3)
    data = problem.load(0)
    address = catalogue.parse(mixer)
    model = lift(problem, address.slug, address.arguments, data, 0)
    problem.fit(model, data.train, steps=steps, seed=0, monitor=lambda step, loss: say(step, steps, loss))
    bits = problem.evaluate(model, data.test)
    print("bits per byte:", {name.partition("@")[2]: round(items.value, 3) for name, items in bits.items()})

    prompt = torch.tensor([[BOS, *b"The statement "]])
    text = bytes(
        int(t) for t in model.stream(prompt, max_new_tokens=80, temperature=0.7, generator=torch.Generator().manual_seed(0))
    )
    print("The statement", text.decode(errors="replace"))
    print(
        "state after one token:",
        nbytes(model(prompt[:, :1])[1]),
        "bytes; after 2000:",
        nbytes(model(prompt[:, :1].repeat(1, 2000))[1]),
    )

    # A saved decoder is two plain files, and needs its mixer only by its address.
    with tempfile.TemporaryDirectory() as folder:
        own = Decoder(257, 64, 2, mixer, heads=4)
        own.load_state_dict(model.state_dict())
        own.save_pretrained(folder)
        again = Decoder.from_pretrained(folder)
        assert torch.equal(again.generate(prompt, max_new_tokens=5), model.generate(prompt, max_new_tokens=5))


def say(step: int, steps: int, loss: float) -> None:
    if step % 50 == 0 or step == steps:
        print(f"step {step}/{steps}: {loss / 0.6931:.2f} bits per byte")


if __name__ == "__main__":
    main(*([sys.argv[1]] if len(sys.argv) > 1 else []), *([int(sys.argv[2])] if len(sys.argv) > 2 else []))
