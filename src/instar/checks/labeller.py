"""The contract of `Labeller`: what holds of everything that learns to label sequences, whatever it is."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from instar import formula
from instar.catalogue import variables
from instar.checks.arguments import constructed, keeps
from instar.checks.subject import Check, Subject
from instar.errors import ContractError, DataError, ShapeError
from instar.interfaces import Examples, Labeller, Monitor

STEPS, BATCH = 6, 8
WORDS = ("<s>", "a", "b", "c")


def world(pooled: bool = False, causal: bool = False, words: tuple[str, ...] = WORDS) -> Examples:
    """Forty sequences of up to five tokens; the label is whether a token was there before, or the last token."""
    generator = torch.Generator().manual_seed(7)
    rows: list[list[str]] = []
    for i in range(40):
        drawn = torch.randint(1, len(words), (1 + i % 4,), generator=generator).tolist()
        rows.append([words[0], *(words[j] for j in drawn)])
    if pooled:
        return Examples(rows, [[row[-1]] for row in rows], pooled=True)
    labels = [[None, *("old" if token in row[:i] else "new" for i, token in enumerate(row) if i)] for row in rows]
    return Examples(rows, labels, causal=causal)


def fitted(
    subject: Subject,
    examples: Examples | None = None,
    *,
    monitor: Monitor | None = None,
    checkpoint: Path | None = None,
) -> Any:
    """The subject after a few steps."""
    learner = subject.cls(**subject.arguments)
    if not isinstance(learner, Labeller):
        raise ContractError(f"{subject.cls.__name__} is no instar.interfaces.Labeller: derive the class from it.")
    given = world() if examples is None else examples
    steps = STEPS * int(getattr(learner, "restarts", 1))
    learner.fit(given, given, steps=steps, batch=BATCH, seed=3, monitor=monitor, checkpoint=checkpoint)
    return learner


def check_arguments(subject: Subject) -> None:
    """Every argument is kept under its name; presets and ends of knobs construct."""
    for what, values, made in constructed(subject):
        keeps(subject, what, values, made, "a saved one is rebuilt from it")


def check_answers(subject: Subject) -> None:
    """A label of training for each token, or one for a sequence; each sequence by itself, in any order and company."""
    for pooled in (False, True):
        examples = world(pooled)
        labels = {label for row in examples.labels for label in row if label is not None}
        learner = fitted(subject, examples)
        said = learner.predict(examples.tokens)
        for tokens, row in zip(examples.tokens, said, strict=True):
            if len(row) != (1 if pooled else len(tokens)) or not set(row) <= labels:
                raise ContractError(f"For {tokens} it says {row}; expected is {'one label' if pooled else 'a label a token'}.")
        if [learner.predict([tokens])[0] for tokens in examples.tokens] != said:
            raise ContractError("A sequence alone gets other labels than beside others: padding, or the batch, counts.")
        if learner.predict([]) != []:
            raise ContractError("For no sequences the answer must be an empty list.")


def check_causal(subject: Subject) -> None:
    """Taught with causal examples, it labels a token by it and those before: a prefix keeps its labels."""
    examples = world(causal=True)
    learner = fitted(subject, examples)
    for tokens, row in zip(examples.tokens, learner.predict(examples.tokens), strict=True):
        for end in range(1, len(tokens)):
            if learner.predict([tokens[:end]])[0] != row[:end]:
                raise ContractError(f"The labels of {tokens[:end]} change with what follows, although examples are causal.")


def check_repeats(subject: Subject) -> None:
    """The same seed gives the same answers, and the global generator is left alone."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = fitted(subject)
    if not torch.equal(state, torch.get_rng_state()):
        raise ContractError("Learning draws from the global generator; seed inside, or draw from a stream of its own.")
    torch.manual_seed(2)
    if _scores(first) != _scores(fitted(subject)):
        raise ContractError("Taught a second time with the same seed, it answers otherwise.")


def check_resumes(subject: Subject) -> None:
    """Interrupted after two steps and called again with its folder, it ends the same."""
    whole = _scores(fitted(subject))
    with tempfile.TemporaryDirectory() as folder:
        stop: list[int] = []

        def monitor(step: int, loss: float) -> bool:
            stop.append(step)
            return step == 2

        fitted(subject, monitor=monitor, checkpoint=Path(folder))
        if stop and _scores(fitted(subject, checkpoint=Path(folder))) != whole:
            raise ContractError("Interrupted and taken up again it does not end as an uninterrupted one does.")


def check_refusals(subject: Subject) -> None:
    """New tokens (unless it learns rare ones), empty sequences, texts, asking too early, and bad examples are refused."""
    learner = fitted(subject)
    unknown = [] if getattr(learner, "rare", 0) else [("a token that it never saw", partial(learner.predict, [["<s>", "zebra"]]))]
    single = Examples([["a"]] * 4, [["x"]] * 4)
    uneven = Examples([["a", "b"]] * 4, [["x"]] * 4)
    asked = [
        *unknown,
        ("an empty sequence", partial(learner.predict, [[]])),
        ("a text in place of tokens", partial(learner.predict, ["abc"])),
        ("asking before learning", partial(subject.cls(**subject.arguments).predict, [["a"]])),
        ("a single label", partial(fitted, subject, single)),
        ("a label too few", partial(fitted, subject, uneven)),
        ("no examples", partial(fitted, subject, Examples([], []))),
    ]
    for what, call in asked:
        try:
            call()
        except (DataError, ShapeError):
            continue
        except Exception as error:
            raise ContractError(f"{what} must be a DataError; received {type(error).__name__}: {error}") from error
        raise ContractError(f"{what} must be refused; it went through.")


def check_costs(subject: Subject) -> None:
    """What is learnt has the bytes of the card's formula."""
    assert subject.card.cost is not None
    learner = fitted(subject)
    if learner.parameters() <= 0 or subject.cls(**subject.arguments).parameters() != 0:
        raise ContractError("parameters() is 0 before fit, and counts what was learnt after it.")
    longest = max(map(len, world().tokens))
    sizes = {"T": longest, "V": len(WORDS) + bool(getattr(learner, "rare", 0)), "C": 2}
    embedded = getattr(learner, "embedded", 0)
    k = getattr(learner, "k", None) or max(longest, 0 if embedded else len(WORDS))
    values = variables(subject.cls, subject.arguments, K=k, M=max(1, embedded) + 1, **sizes)
    expected = formula.evaluate(subject.card.cost.state, values)
    if 4 * learner.parameters() != expected:
        raise ContractError(f"What is learnt takes {4 * learner.parameters()} bytes; the card's formula gives {expected:g}.")


def _scores(learner: Any) -> Any:
    """What shows a difference in the last bit where there are weights to be seen."""
    network = getattr(learner, "network", None)
    if isinstance(network, torch.nn.Module):
        return {name: tensor.tolist() for name, tensor in network.state_dict().items()}
    return learner.predict(world().tokens)


GENERAL: tuple[Check, ...] = (
    Check("arguments", check_arguments),
    Check("answers", check_answers),
    Check("causal", check_causal),
    Check("repeats", check_repeats),
    Check("resumes", check_resumes),
    Check("refusals", check_refusals),
    Check("costs", check_costs, costs=True),
)
