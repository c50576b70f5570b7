"""Run the middle layers of a small Llama several times: train it looped, then loop more and fewer times than in training.

python examples/loop_a_decoder.py       # half a minute on one core; needs `pip install instar[models]`
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from instar.bench.seeds import stream
from instar.doors import hf_loop


def batch(generator: torch.Generator, rows: int = 32, length: int = 48) -> torch.Tensor:
    """Rows that repeat a random pattern of 3 to 8 tokens: each is predictable once its pattern has been seen."""
    found = []
    for _ in range(rows):
        period = int(torch.randint(3, 9, (), generator=generator))
        found.append(torch.randint(32, (period,), generator=generator).repeat(length // period + 1)[:length])
    return torch.stack(found)


def main(steps: int = 150) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    train, test = stream(0, "train"), batch(stream(0, "test"), rows=64)
    with hf_loop.loop(model, first=1, last=1) as looped:
        for step in range(steps):
            looped.loops = 1 + int(torch.randint(5, (), generator=train))  # drawn anew, so that any number works later
            ids = batch(train)
            loss = model(ids, labels=ids, use_cache=False).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if (step + 1) % 50 == 0:
                print(f"step {step + 1}/{steps}: {float(loss.detach()):.3f} nats")
        model.eval()
        with torch.no_grad():
            for loops in (1, 2, 3, 4, 6):
                looped.loops = loops
                print(f"{loops} loops: {float(model(test, labels=test, use_cache=False).loss):.3f} nats on new rows")
            # Each row stops by itself, when a loop changes it by less than a share of its length.
            looped.loops, looped.tolerance = 6, 0.3
            loss = float(model(test, labels=test, use_cache=False).loss)
            assert looped.taken is not None
            print(f"stopping by itself: {loss:.3f} nats, {float(looped.taken.double().mean()):.1f} loops on average")


if __name__ == "__main__":
    main()
