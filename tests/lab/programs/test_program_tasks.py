"""The generators: labels by hand, sizes, no sequence twice; and examples from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from instar.errors import DataError, ShapeError, UnknownNameError
from instar.lab.programs import corpora, tasks
from instar.lab.programs.tasks import TASKS, generate


def test_labels_by_hand() -> None:
    assert tasks.reverse(["<", "a", "b", "c", ">"]) == [None, "c", "b", "a", None]
    assert tasks.sort(["<", "3", "1", "2", "1", ">"]) == [None, "1", "1", "2", "3", None]
    assert tasks.hist(["<", "a", "b", "a", "c", "a"]) == [None, "3", "1", "3", "1", "3"]
    assert tasks.double_hist(["<", "a", "b", "a", "c", "d", "d"]) == [None, "2", "2", "2", "2", "2", "2"]
    assert tasks.double_hist(["<", "a", "b", "a", "c"]) == [None, "1", "2", "1", "2"]
    assert tasks.most_freq(["<", "a", "b", "b", "c", "a", "b"]) == [None, "b", "a", "c", "<s>", "<s>", "<s>"]
    assert tasks.dyck(["<", *"(())"]) == [None, "P", "P", "P", "T"]
    assert tasks.dyck(["<", *"())("]) == [None, "P", "T", "F", "F"]
    assert tasks.dyck(["<", *"({)}"]) == [None, "P", "P", "F", "F"]
    assert tasks.dyck(["<", *"({})"]) == [None, "P", "P", "P", "T"]
    found = tasks.induction(["<", "a", "1", "b", "2", "a", "1", "b", "2"])
    assert found == [None, "<unk>", None, "<unk>", None, "1", None, "2", None]


@pytest.mark.parametrize("name", TASKS)
def test_sequences_differ_and_have_the_sizes_asked_for(name: str) -> None:
    parts = generate(name, samples=300)
    rows = [tuple(row) for part in parts for row in part.tokens]
    assert len(set(rows)) == len(rows) == 300
    assert [len(part) for part in parts] == [243, 27, 30]
    task = TASKS[name]
    for part in parts:
        assert part.causal == task.causal
        for tokens, labels in zip(part.tokens, part.labels, strict=True):
            assert len(tokens) == len(labels) <= task.length
            assert tokens[0] == "<s>"
            assert labels[0] is None
    assert len({token for row in rows for token in row}) == task.vocab - 1  # padding is no token
    again = generate(name, samples=300)
    assert [again[0].tokens, again[2].labels] == [parts[0].tokens, parts[2].labels]


def test_both_halves_of_the_dyck_languages_are_there() -> None:
    train, _, _ = generate("dyck2", samples=400)
    last = [row[-1] for row in train.labels]
    assert 0.1 < last.count("T") / len(last) < 0.5
    assert last.count("F") > 0.3 * len(last)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="sort"):
        generate("srt")
    with pytest.raises(ShapeError, match="length ≥ 4"):
        generate("sort", length=3)
    with pytest.raises(ShapeError, match="its own vocabulary"):
        generate("dyck1", vocab=9)
    with pytest.raises(DataError, match="only"):
        generate("hist", vocab=4, length=4)


def test_tagged_sentences(tmp_path: Path) -> None:
    path = tmp_path / "ner.txt"
    lines = ["-DOCSTART- -X- O", ""]
    for i in range(60):
        lines += [f"w{i} NN I-PER", "Smith NN I-PER", "met VB O", "Rome NN I-LOC", "IBM NN I-ORG", ""]
    path.write_text("\n".join(lines))
    parts = corpora.tagged(path)
    assert sum(map(len, parts)) == 60
    for part in parts:
        assert list(part.labels[0]) == [None, "B-PER", "I-PER", "O", "B-LOC", "B-ORG", None]
        assert part.tokens[0][0] == "<s>"
        assert part.tokens[0][-1] == "</s>"
    assert corpora._iob2(["B-X", "I-X", "B-X", "O", "I-X"]) == ["B-X", "I-X", "B-X", "O", "B-X"]
    with pytest.raises(DataError, match="at most 4 tokens"):
        corpora.tagged(path, length=6)
    path.write_text("alone\n")
    with pytest.raises(DataError, match="line 1"):
        corpora.tagged(path)
    with pytest.raises(DataError, match="cannot be read"):
        corpora.tagged(tmp_path / "none.txt")
