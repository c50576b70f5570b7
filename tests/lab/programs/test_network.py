"""The network: against its reference, and what holds of its parts."""

from __future__ import annotations

import pytest
import torch
from made_networks import SHAPES, network, sequences, tensors

from instar.errors import ShapeError
from instar.lab.programs import discretise, generate
from instar.lab.programs.heads import CategoricalHeads, NumericalHeads, distances
from instar.lab.programs.reference import reference
from instar.lab.programs.sampling import sample, temperature
from instar.lab.programs.training import accuracy
from instar.lab.programs.vocabulary import Vocabulary


@pytest.mark.parametrize("name", SHAPES)
def test_the_network_is_its_reference(name: str) -> None:
    model = network(3, **SHAPES[name]).double()
    rows = sequences(4, seed=1)
    ids, mask = tensors(rows)
    for how in ("softmax", "argmax"):
        whole = model(ids, mask, 0.7, how)
        for i, row in enumerate(rows):
            alone = reference(model, ids[i, : len(row)], 0.7, how)
            assert torch.allclose(whole[i] if model.shape.pooled else whole[i, : len(row)], alone, atol=1e-9)
    parameters = list(model.parameters())
    i = max(range(4), key=lambda j: len(rows[j]))
    ours = model(ids[i : i + 1, : len(rows[i])], mask[i : i + 1, : len(rows[i])], 0.7, "softmax")
    theirs = reference(model, ids[i, : len(rows[i])], 0.7, "softmax")
    up = torch.randn(theirs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mine = torch.autograd.grad((ours.reshape(up.shape) * up).sum(), parameters, allow_unused=True)
    other = torch.autograd.grad((theirs * up).sum(), parameters, allow_unused=True)
    for a, b, parameter in zip(mine, other, parameters, strict=True):
        zero = torch.zeros_like(parameter)
        assert torch.allclose(zero if a is None else a, zero if b is None else b, atol=1e-8)


@pytest.mark.parametrize("name", SHAPES)
def test_width_and_one_hot(name: str) -> None:
    model = network(1, **SHAPES[name])
    ids, mask = tensors(sequences(8))
    variables, numbers = model.stream(ids, mask, 1.0, "argmax")
    s = model.shape
    assert variables.shape[2] == max(1, s.embedded) + 1 + s.layers * (s.cat_heads + s.cat_mlps + s.num_mlps)
    assert numbers.shape[2] == 1 + s.layers * s.num_heads
    assert model.classifier.shape[1] == variables.shape[2] * s.k + numbers.shape[2]
    real = variables[mask]
    assert torch.equal(real.sum(-1), torch.ones_like(real.sum(-1)))
    assert torch.equal(real.max(-1).values, torch.ones_like(real.sum(-1)))
    assert torch.equal(numbers, numbers.round())


@pytest.mark.parametrize("how", ["softmax", "argmax"])
def test_a_causal_network_ignores_the_future(how: str) -> None:
    model = network(2, causal=True).double()
    ids, mask = tensors([["<s>", "a", "b", "c", "d"], ["<s>", "a", "b", "d", "a"]])
    first, second = model(ids, mask, 0.5, how)
    torch.testing.assert_close(first[:3], second[:3], rtol=0, atol=1e-12)
    assert how == "argmax" or not torch.allclose(first[3:], second[3:], rtol=0, atol=1e-6)


def looks(values: list[int], wants: list[int]) -> list[int]:
    """Where each place looks: `wants` says which value a value looks for."""
    torch.manual_seed(0)
    heads = CategoricalHeads(1, 2, 7, 7)
    with torch.no_grad():
        heads.predicate[0] = torch.eye(7)[torch.tensor([*wants, *range(len(wants), 7)])]
        for gates, variable in ((heads.query, 0), (heads.key, 0), (heads.value, 1)):  # values, and the places of keys
            only(gates, 0, variable)
    variables = torch.stack([torch.eye(7)[torch.tensor(values)], torch.eye(7)], 1)[None]
    return heads(variables, torch.ones(1, 7, 7, dtype=torch.bool), 1.0, "argmax")[0, :, 0].argmax(-1).tolist()


def test_the_nearest_match_wins_then_the_earlier_then_itself_then_the_first_place() -> None:
    assert looks([0, 1, 0, 1, 0, 2, 1], [0, 1, 2]) == [2, 3, 0, 1, 2, 5, 3]
    assert looks([0, 1, 0, 1, 0, 1, 1], [2, 2, 2]) == [0] * 7
    assert looks([0, 1, 1, 0, 0, 1, 1], [1, 0, 2]) == [1, 0, 3, 2, 5, 4, 4]


def test_distances_order_all_places_as_the_rule_says() -> None:
    for n in (2, 3, 8, 50):
        bias = distances(n)
        for i in range(n):
            rule = sorted(range(n), key=lambda j, i=i: (j == i, abs(j - i), j))
            assert sorted(range(n), key=lambda j, i=i: (-float(bias[i, j]), j)) == rule


def test_a_numerical_head_that_looks_for_itself_is_a_histogram() -> None:
    heads = NumericalHeads(1, 1, 1, 4)
    with torch.no_grad():
        heads.predicate[0] = torch.eye(4)
    values = torch.tensor([0, 1, 1, 3, 1])
    seen = torch.ones(1, 5, 5, dtype=torch.bool)
    counts = heads(torch.eye(4)[values][None, :, None], torch.ones(1, 5, 1), seen, 1.0, "argmax")
    assert counts[0, :, 0].tolist() == [1, 3, 3, 1, 3]
    with torch.no_grad():
        heads.predicate[0] = torch.eye(4)[[2, 2, 2, 2]]
    assert heads(torch.eye(4)[values][None, :, None], torch.ones(1, 5, 1), seen, 1.0, "argmax").sum() == 0


def test_samples_are_of_the_simplex_and_become_one_hot() -> None:
    logits = torch.tensor([[0.0, 1.0, 3.0]]).expand(4000, 3)
    torch.manual_seed(0)
    soft, cold, hard = (sample(logits, tau, how) for tau, how in ((1.0, "gumbel"), (1e-4, "gumbel"), (1.0, "gumbel_hard")))
    for found in (soft, cold, hard):
        assert torch.allclose(found.sum(-1), torch.ones(4000), atol=1e-5)
    assert (cold.max(-1).values > 0.999).float().mean() > 0.99
    assert set(hard.detach().round(decimals=5).unique().tolist()) <= {0.0, 1.0}
    # The Gumbel maximum draws from the softmax of the logits.
    assert torch.allclose(cold.round().mean(0), logits[0].softmax(-1), atol=0.03)
    leaf = logits[:5].clone().requires_grad_()
    sample(leaf, 1.0, "gumbel_hard")[:, 0].sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0
    assert temperature(0, 100) == 3.0
    assert temperature(99, 100) == pytest.approx(0.01)
    assert temperature(10, 100) / temperature(9, 100) == pytest.approx(temperature(60, 100) / temperature(59, 100))


def test_too_small_variables_are_refused() -> None:
    with pytest.raises(ShapeError, match="give k of 5 or more"):
        network(k=4)
    with pytest.raises(ShapeError, match="number its places"):
        network(k=5, length=6)
    assert network(k=5, embedded=1, tokens=500).shape.tokens == 500


def only(gates: torch.nn.Parameter, head: int, variable: int) -> None:
    """The gate of a head chooses this variable."""
    gates[head] = 0.0
    gates[head, variable] = 1.0


def test_a_histogram_written_by_hand_as_weights_is_a_program_without_errors() -> None:
    train, _, test = generate("hist", samples=300)
    vocabulary = Vocabulary.of(train, train)
    model = network(tokens=7, classes=7, length=8, k=8, layers=1, cat_heads=0, num_heads=1, cat_mlps=0, num_mlps=0)
    with torch.no_grad():
        attn = model.blocks[0]["num_attn"]  # type: ignore[index]
        only(attn.query, 0, 0)
        only(attn.key, 0, 0)
        attn.predicate[0] = torch.eye(8)
        count = torch.arange(1.0, 8.0)
        model.classifier.zero_()  # c·n − c²/2 is largest for the count c that is n
        model.classifier[:, -2], model.classifier[:, -1] = -(count**2) / 2, count
    program = discretise(model, vocabulary.tokens, "1234567")
    for part in (train, test):
        assert accuracy([program.run(row) for row in part.tokens], part) == 1.0


def test_an_induction_head_written_by_hand_as_weights_is_a_program_without_errors() -> None:
    train, _, test = generate("induction", samples=300)
    vocabulary = Vocabulary.of(train, train)
    labels, tokens = vocabulary.labels, vocabulary.tokens
    sizes = {"cat_heads": 1, "num_heads": 0, "cat_mlps": 0, "num_mlps": 0}
    model = network(tokens=9, classes=len(labels), length=9, k=9, layers=2, causal=True, **sizes)
    with torch.no_grad():
        before, same = (parts["attn"] for parts in model.blocks)  # type: ignore[index]
        only(before.query, 0, 1)
        only(before.key, 0, 1)
        only(before.value, 0, 0)
        before.predicate[0] = torch.eye(9).roll(-1, 1)  # each place looks at the one before it
        only(same.query, 0, 0)
        only(same.key, 0, 2)
        only(same.value, 0, 0)
        same.predicate[0] = torch.eye(9)  # each token looks for a place behind the same token
        model.classifier.zero_()
        for i, label in enumerate(labels):
            model.classifier[i, 3 * 9 + tokens.index("<s>" if label == "<unk>" else label)] = 1.0
    program = discretise(model, tokens, labels)
    for part in (train, test):
        assert accuracy([program.run(row) for row in part.tokens], part) == 1.0
