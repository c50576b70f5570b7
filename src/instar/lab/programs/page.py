"""A program and how well it answers, side by side on one page that needs nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from instar.interfaces import Examples
from instar.lab.programs.making import Made
from instar.lab.programs.training import Try
from instar.report import shell

_WRONG = 12
"""Sequences answered wrongly that are shown."""


def page(task: str, made: Made, test: Examples, tries: Sequence[Try]) -> str:
    """HTML: the code; how many labels are right by length and by label; the first sequences that are answered wrongly."""
    by_length: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    by_label: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    wrong: list[tuple[str, str, str]] = []
    for tokens, labels in zip(test.tokens, test.labels, strict=True):
        said = made.program.run(tokens)
        pairs = [(label, one) for label, one in zip(labels, said, strict=True) if label is not None]
        for label, one in pairs:
            for count in (by_length[f"{len(tokens):3d}"], by_label[label]):
                count[0] += label == one
                count[1] += 1
        if len(wrong) < _WRONG and any(a != b for a, b in pairs):
            wrong.append((" ".join(tokens), " ".join(a for a, _ in pairs), " ".join(b for _, b in pairs)))
    tables = [
        (title, [(name, right, asked) for name, (right, asked) in sorted(counts.items())])
        for title, counts in (("By length", by_length), ("By label", by_label))
    ]
    # A lone surrogate in a token is escaped in the code; elsewhere it would be no text that a file can hold.
    text = shell.page("program.html", styles=["program.css"], task=task, made=made, tries=tries, tables=tables, wrong=wrong)
    return text.encode("utf-8", "backslashreplace").decode()
