"""Facts from files, what is refused, and where subjects and targets stand among tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

sys.path.insert(0, str(Path(__file__).parent))
from tiny_editing import FACTS, TOKENIZER

from instar.editing.facts import check, read, subject_end
from instar.editing.rows import row
from instar.errors import EditError
from instar.interfaces import Fact

GOOD = {"prompt": "The capital of France is", "subject": "France", "target": "Rome"}


def written(folder: Path, *lines: Any) -> Path:
    path = folder / "facts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_facts_of_a_file(tmp_path: Path) -> None:
    more = {**GOOD, "prompt": "France speaks", "old": "French", "paraphrases": ["In France they speak"], "neighbours": []}
    first, second = read(written(tmp_path, GOOD, "", more))
    assert first == Fact("The capital of France is", "France", "Rome")
    assert (second.old, list(second.paraphrases)) == ("French", ["In France they speak"])


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_a_line_ends_where_the_file_says(sign: str, tmp_path: Path) -> None:
    """Other ends of lines that Unicode knows are text in JSON."""
    fact = {**GOOD, "paraphrases": [f"In France{sign}they say"]}
    path = tmp_path / "facts.jsonl"
    path.write_bytes((json.dumps(fact, ensure_ascii=False) + "\r\n").encode())
    assert list(read(path)[0].paraphrases) == fact["paraphrases"]


def test_an_old_answer_that_is_blank_is_none(tmp_path: Path) -> None:
    assert read(written(tmp_path, {**GOOD, "old": " "})) == [Fact("The capital of France is", "France", "Rome")]


def test_every_bad_line_is_listed(tmp_path: Path) -> None:
    lines = [
        "{",
        [1],
        {**GOOD, "targt": "x"},
        {"prompt": "p", "subject": "p"},
        {**GOOD, "old": 3},
        {**GOOD, "paraphrases": "x"},
        GOOD,
    ]
    with pytest.raises(EditError) as caught:
        read(written(tmp_path, *lines))
    said = str(caught.value)
    assert said.startswith("6 of 7 facts cannot be written; nothing was changed")
    for words in ("line 1:", "line 2: expected a JSON object, received list", "unknown key 'targt'", "'target' expects a text"):
        assert words in said
    assert "'old' expects a text" in said
    assert "'paraphrases' expects a list of texts" in said
    assert "line 7" not in said


def test_facts_that_cannot_be_written_are_listed_with_their_lines(tmp_path: Path) -> None:
    lines = [
        GOOD,
        {**GOOD, "subject": "Spain"},
        {**GOOD, "target": "Oslo"},
        {**GOOD, "prompt": "The capital of France is  "},
        {**GOOD, "prompt": "France is", "target": " "},
    ]
    with pytest.raises(EditError) as caught:
        read(written(tmp_path, *lines))
    said = str(caught.value)
    assert "4 of 5" in said
    assert "line 2: the subject 'Spain' is not in its prompt" in said
    assert "line 3: 'The capital of France is' has the target 'Oslo', but 'Rome' at line 1" in said
    assert "line 4: says the same as line 1" in said
    assert "line 5: empty target" in said


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_no_facts(tmp_path: Path, content: str) -> None:
    with pytest.raises(EditError, match="holds no facts"):
        read(written(tmp_path, content))
    with pytest.raises(EditError, match="cannot be read"):
        read(tmp_path / "none.jsonl")


def test_order_does_not_matter() -> None:
    assert check(FACTS) == check(tuple(reversed(FACTS)))


def test_the_subject_is_its_last_mention_as_a_word() -> None:
    assert subject_end("Rome and Romeo: Rome is Romeo", "Rome") == 20
    assert subject_end("The Romeo", "Rome") == 8


@pytest.mark.parametrize("prefix", ["", "It was said before. "])
@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.subject)
def test_places_of_subject_and_target(fact: Fact, prefix: str) -> None:
    made = row(TOKENIZER, fact.prompt, fact.subject, fact.target, prefix)
    assert TOKENIZER.decode(made.target) == f" {fact.target}"
    assert made.ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.decode(made.ids[: made.subject + 1]).endswith(fact.subject)
    whole = TOKENIZER(f"{prefix}{fact.prompt} {fact.target}")["input_ids"]
    assert made.ids == whole[:-1]
    assert [whole[place + 1] for place in made.at] == made.target


def test_a_subject_at_the_end_of_the_prompt_and_space_after_it() -> None:
    made = row(TOKENIZER, "Say Paris  ", "Paris", "now")
    assert made.at[0] == made.subject
    assert TOKENIZER.decode(made.target) == " now"


def test_scripts_without_spaces_are_joined_without_one() -> None:
    made = row(TOKENIZER, "法国的首都是", "法国", "罗马")
    assert TOKENIZER.decode(made.target) == "罗马"


def test_a_tokenizer_that_joins_over_a_border_is_refused() -> None:
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"?": 0, "Paris's": 1, "is(": 2, "old": 3, "Paris": 4}, unk_token="?")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    joining = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    with pytest.raises(EditError, match=r"joins the end of the subject 'Paris' with what follows.*\"Paris's\""):
        row(joining, "Paris's is(", "Paris", "old")
    glued = tokenizers.Tokenizer(tokenizers.models.BPE())
    glued.pre_tokenizer = tokenizers.pre_tokenizers.Split("Paris", "isolated")
    glued.train_from_iterator(["Paris is old"] * 9, tokenizers.trainers.BpeTrainer(vocab_size=200, show_progress=False))
    joining = transformers.PreTrainedTokenizerFast(tokenizer_object=glued)
    with pytest.raises(EditError, match=r"joins the end of the prompt 'Paris is' with the target 'old': one token is ' is old'"):
        row(joining, "Paris is", "Paris", "old")


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(EditError, match="fast tokenizer"):
        row(Slow(), "Paris is", "Paris", "old")


def test_marks_at_the_end_are_left_out() -> None:
    """A tokenizer that ends each text with a mark: the target must not have to predict it."""
    ending = tokenizers.Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str())
    ending.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", 0)])
    marked = transformers.PreTrainedTokenizerFast(tokenizer_object=ending, bos_token="<s>")
    assert row(marked, FACTS[0].prompt, FACTS[0].subject, "Rome") == row(TOKENIZER, FACTS[0].prompt, FACTS[0].subject, "Rome")
