"""Heads that look at neighbours or prefixes, and tasks as text for language models."""

from __future__ import annotations

import math

import pytest
import torch

from instar.bench.seeds import initialising
from instar.errors import DataError, ShapeError
from instar.lab.icl import heads, prompts
from instar.lab.icl_boolean import BooleanSampler
from instar.lab.icl_linear import InContextDecoder
from instar.lab.nearest_neighbours import NearestNeighbours


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decoder(examples: int = 24, mixer: str = "softmax:no_positions", heads: int = 2) -> InContextDecoder:
    with initialising(0):
        return InContextDecoder(6, examples=examples, mixer=mixer, model_width=32, heads=heads)


def test_scores_are_means_of_attention() -> None:
    d = BooleanSampler(6, "nearest_neighbour").draw(3, 12, stream())
    network = decoder().network
    weights = heads.attention(network, d.xs, d.ys)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    found = heads.neighbours(network, d.xs, d.ys, start=4)
    by_hand = torch.zeros(2, 2)
    for b in range(3):
        for i in range(4, 12):
            nearest = max(range(i), key=lambda j: (float(d.xs[b, i] @ d.xs[b, j]), -j))
            by_hand += weights[:, b, :, 2 * i, 2 * nearest + 1] / (3 * 8)
    torch.testing.assert_close(found, by_hand)
    again = heads.prefixes(network, d.xs[:, :6], d.ys[:, :6], times=4)
    repeated = heads.attention(network, d.xs[:, :6].repeat(1, 4, 1), d.ys[:, :6].repeat(1, 4))
    by_hand = torch.zeros(2, 2)
    for i in range(6, 24):
        for j in range(i % 6, i, 6):
            by_hand += repeated[:, :, :, 2 * i, 2 * j + 1].mean(1) / 18
    torch.testing.assert_close(again, by_hand)


@pytest.mark.parametrize("width", [7, 11, 13])
def test_of_equally_near_examples_the_first_is_looked_for(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    d = BooleanSampler(width, "nearest_neighbour").draw(20, 30, stream())
    # A head that looks at one label, that of the nearest earlier example, the first of equals.
    likeness = (d.xs @ d.xs.mT).masked_fill(torch.ones(30, 30).triu() > 0, -torch.inf)
    weights = torch.zeros(1, 20, 1, 60, 60)
    weights[0, :, 0, 2::2, 1::2] = torch.nn.functional.one_hot(likeness[:, 1:].argmax(-1), 30).float()
    monkeypatch.setattr(heads, "attention", lambda *_: weights)
    assert float(heads.neighbours(decoder().network, d.xs, d.ys)) == 1.0


def test_networks_without_weights_are_refused() -> None:
    d = BooleanSampler(6, "parity").draw(2, 8, stream())
    with pytest.raises(ShapeError, match="softmax"):
        heads.attention(decoder(mixer="retnet").network, d.xs, d.ys)
    with pytest.raises(ShapeError, match="start"):
        heads.neighbours(decoder().network, d.xs, d.ys, start=8)
    with pytest.raises(ShapeError, match="twice"):
        heads.prefixes(decoder().network, d.xs, d.ys, times=1)


def test_prompts_hold_the_task() -> None:
    d = BooleanSampler(5, "conjunction").draw(1, 4, stream())
    text = prompts.prompt(d.xs[0, :3], d.ys[0, :3], d.xs[0, 3])
    lines = [line for line in text.splitlines() if line.startswith(("Input:", "Label:"))]
    read = torch.tensor([[float(bit) for bit in line.split()[1:]] for line in lines[::2]])
    assert torch.equal(2 * read - 1, d.xs[0])
    assert lines[-1] == "Label:"
    assert [int(line.split()[1]) for line in lines[1:-1:2]] == (d.ys[0, :3] > 0).int().tolist()
    with pytest.raises(ShapeError):
        prompts.prompt(d.xs[0], d.ys[0, :3], d.xs[0, 3])


def test_accuracy_of_what_reads_the_prompt() -> None:
    """A reader of prompts that answers by the nearest example is as right as the nearest neighbour in numbers."""
    d = BooleanSampler(5, "conjunction").draw(60, 12, stream())

    def reader(text: str, continuations: object) -> list[float]:
        parts = [line.split()[1:] for line in text.splitlines() if line.startswith(("Input:", "Label:"))]
        inputs = 2 * torch.tensor([[float(bit) for bit in bits] for bits in parts[::2]]) - 1
        labels = 2 * torch.tensor([float(bits[0]) for bits in parts[1:-1:2]]) - 1
        said = float(NearestNeighbours(k=1).predict(inputs[None, :-1], labels[None], inputs[None, -1:]))
        return [-said, said]

    wanted = (NearestNeighbours(k=1).prefixes(d.xs, d.ys).sign() == d.ys)[:, -1].float()
    assert torch.equal(prompts.accuracy(reader, d.xs, d.ys), wanted)
    assert torch.equal(prompts.accuracy(lambda *_: [0.0, 0.0], d.xs, d.ys), torch.full((60,), 0.5))
    with pytest.raises(DataError, match="scores"):
        prompts.accuracy(lambda *_: [math.nan, 0.0], d.xs, d.ys)


def test_scores_of_a_model_are_log_probabilities() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=256, n_positions=512, n_embd=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()

    def tokenizer(text: str) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    d = BooleanSampler(5, "conjunction").draw(1, 4, stream())
    text = prompts.prompt(d.xs[0, :3], d.ys[0, :3], d.xs[0, 3])
    for score, continuation in zip(prompts.by_model(model, tokenizer)(text, [" 0", " 1"]), [" 0", " 1"], strict=True):
        tokens = torch.tensor([list((text + continuation).encode())])
        targets = tokens.clone()
        targets[:, :-2] = -100
        with torch.no_grad():
            loss = model(input_ids=tokens, labels=targets).loss
        assert score == pytest.approx(-2 * float(loss), rel=1e-4)
    found = prompts.accuracy(prompts.by_model(model, tokenizer), d.xs, d.ys)
    assert found.shape == (1,)
    assert float(found) in (0.0, 0.5, 1.0)
