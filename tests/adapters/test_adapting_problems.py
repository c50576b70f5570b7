"""The problems that adapt a model, and their data: splits, bad input, every item scored, training that works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

from instar import catalogue
from instar.bench.run import lift
from instar.data.e2e import prompts
from instar.data.sentences import SETS, sentences
from instar.errors import DataError, InstarError, MissingExtraError, ShapeError, UnknownNameError
from instar.items import Items
from instar.problems import adapting
from instar.problems.bleu import bleu
from instar.problems.classify import ClassifyProblem
from instar.problems.generate_text import IGNORED, GenerateTextProblem, Writer

WORDS = ("red", "green", "blue", "big", "small", "old", "new", "cat", "dog", "bird", "is", "the", "a", "where", "who", "how")


def available(name: str) -> None:
    from instar.data import datasets

    try:
        datasets.locate(name)
    except (DataError, MissingExtraError) as error:
        pytest.skip(f"needs {name}: {error}")


def tokenizer() -> Any:
    vocabulary = {word: place for place, word in enumerate(("[PAD]", "[UNK]", "[END]", "\n", *WORDS))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "removed")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]", bos_token="[END]"
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 20}
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**small)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("causal")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 20}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, eos_token_id=2)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def colours(path: Path, rows: int = 200) -> str:
    """Sentences whose first word is their class."""
    lines = [f"{WORDS[i % 3]} {WORDS[3 + i % 7]} {WORDS[7 + i % 5]} {WORDS[3 + i // 7 % 9]},{WORDS[i % 3]}" for i in range(rows)]
    path.write_text("text,label\n" + "\n".join(lines))
    return str(path)


@pytest.mark.parametrize("name", SETS)
def test_public_sets_have_three_parts_that_share_no_sentence(name: str) -> None:
    available(name)
    found = sentences(name)
    train, valid = set(found.train.texts), set(found.valid.texts)
    assert min(len(found.train), len(found.valid), len(found.test)) > 300
    assert len(found.train.texts) == len(found.train.labels)
    if name in ("trec", "custrev", "subj"):
        assert not train & valid
    assert len(found.classes) == {"trec": 6, "clinc150": 150}.get(name, 2)


def test_separators_of_lines_within_a_prompt_are_text(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    rows = [{"prompt": f"q{i}\u2028more", "target": f"a\u2029{i}"} for i in range(40)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    found = prompts(str(path))
    assert {one.prompt for part in (found.train, found.valid, found.test) for one in part} == {row["prompt"] for row in rows}


def test_e2e_is_split_by_what_is_to_be_said() -> None:
    available("e2e")
    found = prompts("e2e")
    parts = [{one.prompt for one in part} for part in (found.train, found.valid, found.test)]
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]
    assert sum(map(len, parts[:2])) == 547
    assert len(found.test[0].targets) > 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text,lable\na,b\n", "lacks label"),
        ("text,label\n,b\n", "line 2: the text is empty"),
        ("text,label\na,\n", "line 2: the label is empty"),
        ("text,label\n" + "".join(f"w{i},x\n" for i in range(100)), "nothing to learn"),
        ("text,label\n" + "".join(f"w{i},{i % 2}\n" for i in range(9)), "are the least"),
        ("text,label\nis it paid, or not,money\n" + "".join(f"w{i},{i % 2}\n" for i in range(100)), "line 2 has more fields"),
        ("", "lacks"),
        (b"text,label\n\xff\xfe,b\n", "UTF-8"),
    ],
)
def test_a_bad_csv_says_what_is_wrong(tmp_path: Path, content: str | bytes, words: str) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words):
        sentences(str(path))


def test_unknown_sets_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="trec"):
        sentences("treck")
    with pytest.raises(DataError, match="cannot be read"):
        sentences(str(tmp_path / "none.csv"))
    with pytest.raises(UnknownNameError, match="e2e"):
        prompts("e2")
    for line, words in (("{}", "line 1"), ('{"prompt": "a", "target": " "}', "not empty"), ("[", "line 1")):
        path = tmp_path / "own.jsonl"
        path.write_text(line)
        with pytest.raises(DataError, match=words):
            prompts(str(path))
    path.write_text("\n".join(json.dumps({"prompt": f"p{i}", "target": "t"}) for i in range(5)))
    with pytest.raises(DataError, match="are the least"):
        prompts(str(path))
    for wrong in ({"batch": 1}, {"train_items": 1}, {"length": 2}, {"head_lr": 0.0}):
        with pytest.raises(ShapeError):
            ClassifyProblem(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("slug", ["hut", "lora", "head_only", "full"])
def test_classify_learns_scores_every_item_and_repeats(slug: str, encoder: str, tmp_path: Path) -> None:
    available("clinc150")
    problem = ClassifyProblem(data=colours(tmp_path / "own.csv"), model=encoder, train_items=64, batch=8)
    data = problem.load(0)
    assert data.sha256 == problem.load(1).sha256
    address = catalogue.parse(slug)
    found: list[dict[str, Items]] = []
    for _ in range(2):
        settings = {"lr": 3e-3} if slug == "full" else {}  # random weights need more than pretrained ones
        subject = lift(problem, address.slug, settings, data, 0)
        losses: list[float] = []
        problem.fit(subject, data.train, steps=40, seed=0, monitor=lambda step, loss: losses.append(loss))  # noqa: B023
        found.append(problem.evaluate(subject, data.test))
    assert losses[-1] < losses[0]
    assert found[0] == found[1]
    assert len(found[0]["accuracy"].weights) == len(data.test)
    assert len(found[0]["neighbours"].weights) == 750
    if slug == "full":
        assert found[0]["accuracy"].value == 1.0
    costs = problem.costs(subject)
    assert costs["left_by_merging"] == 0
    assert (
        costs["trained"]
        == {
            "hut": 4 * (8 * 64 + 64),
            "lora": 4 * 8 * 64,
            "head_only": 0,
            "full": costs["parameters"] / 2 - 3 * 33,
        }[slug]
    )


def test_generate_text_scores_every_prompt_and_learns(causal: str, tmp_path: Path) -> None:
    available("wikitext2")
    path = tmp_path / "own.jsonl"
    rows = [{"prompt": f"{a} {b} {c}", "target": f"the {b} is {a}"} for a in WORDS[:6] for b in WORDS[7:10] for c in WORDS[10:13]]
    path.write_text("\n".join(map(json.dumps, rows)))
    problem = GenerateTextProblem(data=str(path), model=causal, written=3, new_tokens=6, retained=64, length=16)
    data = problem.load(0)
    subject = lift(problem, "full", {"lr": 1e-2}, data, 0)
    before = problem.evaluate(subject, data.test)
    problem.fit(subject, data.train, steps=30, seed=0)
    after = problem.evaluate(subject, data.test)
    assert len(before["nll"].weights) == len(data.test)
    assert before["nll"].weights == [5.0] * len(data.test)  # four words and the end
    assert len(before["bleu"].weights) == 3
    assert sum(before["wikitext_nll"].weights) == 63
    assert after["nll"].value < before["nll"].value - 0.3
    hut = lift(problem, "hut", {"r": 4}, data, 0)
    assert problem.costs(hut)["left_by_merging"] == 0
    assert problem.evaluate(hut, data.test)["nll"].value == pytest.approx(before["nll"].value, abs=1e-5)


def test_a_row_is_prompt_then_target_and_only_the_target_is_learnt() -> None:
    writer = Writer(tokenizer(), 8)
    ids, mask, targets = writer.batch([writer.row("big cat", "red"), writer.row("where is the old dog is the big", "a red cat")])
    assert (targets != IGNORED).sum(1).tolist() == [2, 4]
    assert mask.sum(1).tolist() == [4, 8]  # the longer prompt lost its beginning
    for row, want in zip(ids, targets, strict=True):
        assert torch.equal(row[want != IGNORED], want[want != IGNORED])
        assert int(want[want != IGNORED][-1]) == writer.end


def test_bleu_is_the_formula() -> None:
    assert bleu("the cat sat on the mat", ["the cat sat on the mat"]) == pytest.approx(1.0)
    assert bleu("", ["a"]) == 0.0
    assert bleu("dog", ["cat"]) == 0.0
    # 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, 0 of 1: one is added to both counts from pairs on
    assert bleu("a b c x", ["a b c d"]) == pytest.approx((3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert bleu("a b", ["a b c d"]) == pytest.approx(2.718281828**-1, rel=1e-6)
    assert bleu("the the the", ["the cat"]) < bleu("the cat", ["the cat"])


def test_what_is_off_a_rate_is_refused_before_training() -> None:
    with pytest.raises(InstarError):
        catalogue.get("hut")(lr=-1.0)
    assert adapting.TOKENS == (16, 64, 512, 4096)
