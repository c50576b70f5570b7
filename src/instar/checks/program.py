"""The contract of what becomes a program: the file that is printed says what the model says, on every input that there is."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from instar.checks import labeller
from instar.checks.labeller import fitted, world
from instar.checks.subject import Check, Subject
from instar.errors import ContractError
from instar.lab.programs.printing import python

HOSTILE = ("<s>", '"""', "'); raise SystemExit('x')", "\\", "\n#{x}\u2028\ud800")
"""Tokens that would end a literal, a docstring or a comment, or that no file can hold as they are."""
_WIDE = 88


def check_equal(subject: Subject) -> None:
    """Model, program and printed file agree on every sequence of up to four tokens, each asked for or pooled, causal or not."""
    for pooled, causal in ((False, False), (False, True), (True, False)):
        examples = world(pooled, causal)
        learner = fitted(subject, examples)
        tokens = sorted({token for row in examples.tokens for token in row})
        every = [list(row) for n in range(1, 5) for row in itertools.product(tokens, repeat=n)]
        _agree(learner, every)


def check_hostile(subject: Subject) -> None:
    """Whatever characters tokens and labels hold, they stand in the file as literals."""
    examples = world(pooled=True, words=HOSTILE)
    learner = fitted(subject, examples)
    _agree(learner, examples.tokens)


def check_text(subject: Subject) -> None:
    """Twice the same text; laid out in lines of at most 88 characters; nothing but the standard library is imported."""
    learner = fitted(subject)
    text = python(learner.program())
    again = python(fitted(subject).program())
    if text != again:
        raise ContractError("Taught twice with the same seed, it prints two different programs.")
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > _WIDE or line != line.rstrip() or "\t" in line:
            raise ContractError(f"Line {number} of the program is too wide, or ends in spaces, or holds a tab: {line!r}.")
    names = {alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names} | {
        node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)
    }
    if not names <= {"__future__", "sys", "collections.abc"}:
        raise ContractError(f"The program imports {', '.join(map(str, names))}: it must run alone.")


def check_strangers(subject: Subject) -> None:
    """The file refuses tokens that it does not know (unless it learnt rare ones), no tokens, and too many, with a ValueError."""
    learner = fitted(subject)
    run, longest = executed(python(learner.program())), learner.program().length
    asked = {"no tokens": [], "too many tokens": ["a"] * (longest + 1)}
    if learner.program().unknown is None:
        asked["a token that is not known"] = ["<s>", "zebra"]
    for what, tokens in asked.items():
        try:
            run(tokens)
        except ValueError as error:
            if "received" in str(error) or "zebra" in str(error):
                continue
            raise ContractError(f"For {what} the file says only {str(error)!r}; say what was received.") from error
        raise ContractError(f"The file takes {what}; it must raise ValueError.")


def check_explained(subject: Subject) -> None:
    """What the variables add, summed over variables, are the scores by which the label is chosen."""
    for pooled in (False, True):
        examples = world(pooled)
        program = fitted(subject, examples).program()
        for tokens in examples.tokens[:12]:
            added = program.contributions(program.stream(tokens)).values()
            rows = [[sum(column) for column in zip(*(one[i] for one in added), strict=True)] for i in range(len(tokens))]
            expected = [[sum(column) for column in zip(*rows, strict=True)]] if pooled else rows
            if [list(row) for row in program.scores(tokens)] != expected:
                raise ContractError(f"For {tokens} the contributions of variables do not sum to the scores.")


def executed(text: str) -> Callable[[Sequence[str]], list[str]]:
    """`run` of a printed program, executed in an empty namespace, from the bytes that would be written."""
    namespace: dict[str, Any] = {}
    exec(compile(text.encode(), "program.py", "exec"), namespace)
    run: Callable[[Sequence[str]], list[str]] = namespace["run"]
    return run


def _agree(learner: Any, sequences: Sequence[Sequence[str]]) -> None:
    program = learner.program()
    run = executed(python(program))
    for tokens, said in zip(sequences, learner.predict(sequences), strict=True):
        if program.run(tokens) != said:
            raise ContractError(f"For {tokens} the model says {said}, and the program {program.run(tokens)}.")
        if run(tokens) != said:
            raise ContractError(f"For {tokens} the model says {said}, and the printed file {run(tokens)}.")


CONTRACT: tuple[Check, ...] = (
    *labeller.GENERAL,
    Check("equal", check_equal, needs="program"),
    Check("hostile", check_hostile, needs="program"),
    Check("text", check_text, needs="program"),
    Check("strangers", check_strangers, needs="program"),
    Check("explained", check_explained, needs="program"),
)
