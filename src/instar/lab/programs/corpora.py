"""Sentences as examples: questions of TREC with their class, and a user's own tagged sentences."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from instar.data.sentences import Labelled, sentences
from instar.errors import DataError, ShapeError
from instar.interfaces import Examples
from instar.lab.programs.tasks import BOS, EOS

LONGEST = 30
"""Tokens of a sentence, `<s>` and `</s>` among them, where nobody says."""
_FEWEST = 30
_WORD = re.compile(r"\w+|[^\w\s]")


def trec(length: int = LONGEST) -> tuple[Examples, Examples, Examples]:
    """TREC's questions, in lower case, cut after `length` tokens: one of six classes each. Raises what `sentences` raises."""
    if length < 4:
        raise ShapeError(f"A sentence has room for 4 tokens or more; received length={length}.")
    found = sentences("trec")

    def examples(part: Labelled) -> Examples:
        rows = [[BOS, *_WORD.findall(text.lower())[: length - 2], EOS] for text in part.texts]
        return Examples(rows, [[label.partition(":")[0]] for label in part.labels], pooled=True)

    return examples(found.train), examples(found.valid), examples(found.test)


def tagged(path: Path, length: int = LONGEST) -> tuple[Examples, Examples, Examples]:
    """A file of tagged sentences: on each line a token and, last, its tag; an empty line between sentences.

    Lines that begin with -DOCSTART- are passed over. Tags of the form IOB1 become IOB2. Sentences of more than `length` − 2
    tokens are left out, as in the paper. A tenth, by the hash of the sentence, is kept to test and a tenth to choose. Raises
    DataError for a file that cannot be read, a line without a tag, or fewer than 30 sentences.
    """
    if length < 4:
        raise ShapeError(f"A sentence has room for 4 tokens or more; received length={length}.")
    rows = [row for row in _sentences(path) if len(row) <= length - 2]
    if len(rows) < _FEWEST:
        raise DataError(f"{path} has {len(rows)} sentences of at most {length - 2} tokens; {_FEWEST} are the least.")
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    longest = max(range(len(rows)), key=lambda place: len(rows[place]))
    for place, row in enumerate(rows):
        tenth = int.from_bytes(hashlib.sha256(" ".join(token for token, _ in row).encode()).digest()[:8], "big") % 10
        # The longest is trained on, since what is longer than all of training cannot be read.
        parts[0 if place == longest else {0: 2, 1: 1}.get(tenth, 0)].append(place)
    made = []
    for name, places in zip(("training", "validation", "test"), parts, strict=True):
        if not places:
            raise DataError(f"{path} leaves no sentences for {name}; give more.")
        chosen = [rows[place] for place in places]
        tokens = [[BOS, *(token for token, _ in row), EOS] for row in chosen]
        made.append(Examples(tokens, [[None, *_iob2([tag for _, tag in row]), None] for row in chosen]))
    return made[0], made[1], made[2]


def _sentences(path: Path) -> list[list[tuple[str, str]]]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}.") from error
    found: list[list[tuple[str, str]]] = [[]]
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts:
            found.append([])
        elif parts[0] != "-DOCSTART-":
            if len(parts) < 2:
                raise DataError(f"{path}, line {number}: expected a token and its tag, received {line[:40]!r}.")
            found[-1].append((parts[0], parts[-1]))
    return [row for row in found if row]


def _iob2(tags: list[str]) -> list[str]:
    """I-X that begins a chunk becomes B-X; IOB2 stays as it is."""
    made, before = [], "O"
    for tag in tags:
        begins = tag.startswith("I-") and before[1:] != tag[1:]
        made.append(f"B-{tag[2:]}" if begins else tag)
        before = tag
    return made
