"""The whole pipeline: twice is once, any order is the same, late articles touch their cells, nothing is seen before its time."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import made_news as made
import numpy as np
import pytest

pytest.importorskip("duckdb")
pytest.importorskip("exchange_calendars")
pytest.importorskip("feedparser")

from instar.data.finance import loading
from instar.data.finance.catalogue import Catalogue, opened
from instar.data.finance.config import Config, read_config
from instar.data.finance.loading import load_daily, status, verify
from instar.data.finance.pipeline import STAGES, NewsPricePipeline, Ran
from instar.data.finance.sessions import sessions
from instar.data.finance.sources import Given
from instar.data.finance.transport import ReplayTransport, Response
from instar.errors import DataError, ShapeError, UnknownNameError


def run(config: Config, **rest: Any) -> Ran:
    return NewsPricePipeline(config, now=made.clock, **rest).run()


def hashes(config: Config) -> dict[str, str]:
    with opened(config.store) as catalogue:
        return catalogue.hashes()


def rows(config: Config, table: str) -> list[dict[str, Any]]:
    with opened(config.store) as catalogue:
        return catalogue.read(table, catalogue.shas("main", table)).to_pylist()


def same(one: Any, two: Any) -> None:
    drop = ["build_id"]
    assert one.drop(columns=drop).equals(two.drop(columns=drop))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = made.world(tmp_path_factory.mktemp("world"))
    run(config)
    return config


def test_every_table_is_filled_and_joined(built: Config) -> None:
    told = status(built.store)
    assert set(told["rows"]) >= {
        "raw_item",
        "record",
        "price",
        "article",
        "article_symbol",
        "summary",
        "sentiment",
        "aligned",
        "daily",
    }
    assert told["rows"]["article"] == 60
    assert set(told["symbols"]) == {one.symbol for one in made.SYMBOLS}
    assert list(told["stages"]) == [name for name in STAGES if name != "ingest"]
    frame = load_daily(built, ["ALU"])
    calendar = sessions("XNYS", date(2023, 1, 1), date(2023, 7, 1))
    expected = [
        day for day in calendar.days if date(2023, 1, 3) <= date(1970, 1, 1) + timedelta(days=int(day)) <= date(2023, 6, 30)
    ]
    assert [(day - date(1970, 1, 1)).days for day in frame["session"]] == expected  # the price's sessions are the calendar's
    assert frame["scored"].sum() == frame["articles"].sum() > 5
    assert verify(built.store) == []


def test_each_article_stands_in_the_first_session_that_closes_after_it(built: Config) -> None:
    known = {row["id"]: row["known_at_utc"] for row in rows(built, "article")}
    calendar = sessions("XNYS", date(2023, 1, 1), date(2023, 12, 31))
    for row in rows(built, "aligned"):
        place = int(np.searchsorted(calendar.days, (row["session"] - date(1970, 1, 1)).days))
        at = known[row["article"]].timestamp() * 1e6
        assert calendar.closes[place - 1] <= at < calendar.closes[place]


def test_words_of_others_are_in_no_table_that_is_handed_on(built: Config) -> None:
    frame = load_daily(built)
    assert [name for name in frame.columns if frame[name].dtype.kind not in "fiu"] == ["symbol", "session", "build_id"]


def test_twice_is_once(built: Config) -> None:
    before, manifest = hashes(built), (built.store / "manifest.jsonl").read_bytes()
    ran = run(built)
    assert ran.ingested is not None
    assert (ran.ingested.new, ran.ingested.unchanged) == (0, 4)
    assert all((done.made, done.gone) == (0, 0) for done in ran.stages)
    assert hashes(built) == before
    assert (built.store / "manifest.jsonl").read_bytes() == manifest


@pytest.mark.parametrize("seed", [0, 1])
def test_any_order_and_batching_of_arrivals_gives_the_same_table(built: Config, tmp_path: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    articles = made.articles(60)
    order = [articles[place] for place in draw.permutation(60)]
    cuts = [0, *sorted(draw.choice(np.arange(1, 60), 2, replace=False).tolist()), 60]
    files = made.prices(tmp_path / "prices")
    for number in range(3):
        made.jsonl(tmp_path / "news" / f"{number}.jsonl", order[cuts[number] : cuts[number + 1]])
        config = made.config(tmp_path, [str(tmp_path / "news" / "*.jsonl")], files if number else [])
        NewsPricePipeline(config, now=lambda number=number: made.NOW + timedelta(days=number)).run()
    same(load_daily(config), load_daily(built))


def test_large_parts_are_read_a_group_at_a_time(built: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instar.data.finance.parts._GROUP", 7)
    config = made.config(
        tmp_path, [str(made.jsonl(tmp_path / "news" / "dump.jsonl", made.articles(60)))], made.prices(tmp_path / "p")
    )
    run(config)
    same(load_daily(config), load_daily(built))
    with opened(config.store) as catalogue:
        (part,) = (sha for sha in catalogue.shas("main", "record") if catalogue.files.groups("record", sha) != [0])
        assert catalogue.files.groups("record", part) == [7] * 8 + [4]
        assert catalogue.files.group("record", part, 8).equals(catalogue.read("record", [part])[56:])


def test_the_same_news_as_feeds_give_the_same_articles(built: Config, tmp_path: Path) -> None:
    articles, urls = made.articles(60), [f"https://feeds.example/{number}" for number in range(3)]
    for number, url in enumerate(urls):
        made.record(tmp_path / "recordings", url, made.rss(articles[20 * number : 20 * number + 25]))  # they overlap
    sources = (Given("wire", "feed", {"urls": urls}), Given("bars", "prices", {"files": made.prices(tmp_path / "prices")}))
    config = dataclasses.replace(built, store=tmp_path / "store", sources=sources)
    run(config, transport=ReplayTransport(tmp_path / "recordings"))
    same(load_daily(config), load_daily(built))
    assert rows(config, "duplicate") == []  # the same article in two feeds is one article, not a copy


def test_a_late_article_changes_its_cells_alone(tmp_path: Path) -> None:
    config = made.world(tmp_path)
    run(config)
    before = load_daily(config)
    late = made.article(777, "Cato Machines", datetime(2023, 3, 15, 15, tzinfo=UTC))
    made.jsonl(tmp_path / "late.jsonl", [late])
    more = dataclasses.replace(
        config, sources=(*config.sources, Given("late", "dump", {"files": [str(tmp_path / "late.jsonl")]}))
    )
    ran = run(more)
    made_cells = {done.stage: done.made for done in ran.stages}
    assert made_cells == {"normalise": 1, "dedupe": 1, "link": 1, "summarise": 1, "score": 1, "align": 1, "build": 1}
    after = load_daily(more)
    changed = before.drop(columns="build_id").compare(after.drop(columns="build_id"))
    touched = after.loc[changed.index]
    assert set(touched["symbol"]) == {"CAT"}
    assert touched["session"].min() == date(2023, 3, 15)
    next_news = after[(after.symbol == "CAT") & (after.session > date(2023, 3, 15)) & (after.scored > 0)]["session"].min()
    assert touched["session"].max() < next_news
    fresh = dataclasses.replace(more, store=tmp_path / "fresh")
    run(fresh)
    assert hashes(fresh) == hashes(more)  # and it is what a store would be that had it from the beginning


def test_nothing_after_a_session_reaches_its_row(built: Config, tmp_path: Path) -> None:
    edge = datetime(2023, 4, 12, 20, tzinfo=UTC)  # the close of that session
    articles = [row for row in made.articles(60) if datetime.fromisoformat(row["Date"][:19]).replace(tzinfo=UTC) < edge]
    assert 10 < len(articles) < 60
    news = made.jsonl(tmp_path / "news.jsonl", articles)
    config = made.config(tmp_path, [str(news)], made.prices(tmp_path / "prices", last=edge.date()))
    run(config)
    whole = load_daily(built, end=edge.date())
    same(load_daily(config), whole)
    assert whole["session"].max() == edge.date()


def test_copies_with_tracking_parameters_are_one_article_and_later_ones_are_counted(tmp_path: Path) -> None:
    first = made.article(1, "Alu Works", datetime(2023, 3, 15, 15, tzinfo=UTC))
    again = {**first, "Url": first["Url"] + "&gclid=x#top"}
    later = {**first, "Url": "https://other.example/copy", "Date": "2023-03-17 15:00:00 UTC"}
    near = {
        **later,
        "Url": "https://third.example/",
        "Date": "2023-03-20 15:00:00 UTC",
        "Article": first["Article"].replace("sea", "see", 1),
    }
    config = made.config(
        tmp_path, [str(made.jsonl(tmp_path / "n.jsonl", [near, later, again, first]))], made.prices(tmp_path / "p")
    )
    run(config)
    assert len(rows(config, "article")) == 1
    assert {row["rule"] for row in rows(config, "duplicate")} <= {"body", "near"}
    frame = load_daily(config, ["ALU"]).set_index("session")
    assert [frame.loc[date(2023, 3, day), "articles"] for day in (15, 17, 20)] == [1, 0, 0]
    assert [frame.loc[date(2023, 3, day), "copies"] for day in (15, 17, 20)] == [0, 1, 1]
    off = dataclasses.replace(config, store=tmp_path / "all", urls=False, near=False)
    run(off)
    assert len(rows(off, "article")) == 4


def test_the_table_as_of_a_date_has_what_had_been_retrieved_then(tmp_path: Path) -> None:
    config = made.world(tmp_path)
    run(config)
    early = load_daily(config)
    made.jsonl(tmp_path / "late.jsonl", [made.article(777, "Cato Machines", datetime(2023, 3, 15, 15, tzinfo=UTC))])
    more = dataclasses.replace(
        config, sources=(*config.sources, Given("late", "dump", {"files": [str(tmp_path / "late.jsonl")]}))
    )
    NewsPricePipeline(more, now=lambda: made.NOW + timedelta(days=3)).run()
    late = load_daily(more)
    assert not late["articles"].equals(early["articles"])
    as_of = load_daily(more, as_of=made.NOW + timedelta(days=1))
    same(as_of, early)
    assert as_of["build_id"].iloc[0] != early["build_id"].iloc[0]
    same(load_daily(more), late)  # the main build is where it was
    with pytest.raises(ShapeError, match="needs a zone"):
        NewsPricePipeline(more, as_of=datetime(2023, 1, 1))


def test_another_scorer_stands_beside_and_unchanged_texts_keep_their_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instar.data.finance.scoring import Lexicon

    asked: list[int] = []
    plain = Lexicon.rate
    monkeypatch.setattr(Lexicon, "rate", lambda self, opinions: asked.append(len(opinions)) or plain(self, opinions))
    config = made.world(tmp_path, scorers=("given",))
    run(config)
    assert sum(asked) == 60
    assert {row["model"] for row in rows(config, "sentiment")} == {"lexicon", "given"}
    assert {row["score"] for row in rows(config, "sentiment") if row["model"] == "given"} == {None}
    made.jsonl(
        tmp_path / "news" / "dump.jsonl", [*made.articles(60), made.article(777, "Alu Works", datetime(2023, 3, 1, tzinfo=UTC))]
    )
    run(config)
    assert sum(asked) == 61
    silent = dataclasses.replace(config, scorer="given", scorers=())
    run(silent)
    frame = load_daily(silent)
    assert frame["decayed"].isna().all()
    assert (frame["news_flag"] == 0).all()
    assert frame["articles"].sum() == 61


def test_unknown_symbols_and_broken_records_are_quarantined_and_nothing_is_lost(tmp_path: Path) -> None:
    good = made.article(1, "Alu Works", datetime(2023, 3, 15, 15, tzinfo=UTC))
    hostile = [
        {**good, "Url": "https://a.example/1", "Date": "soon"},
        {**good, "Url": "https://a.example/2", "Date": "2031-01-01 10:00:00 UTC"},
        {"Date": "2023-03-15 15:00:00 UTC", "Url": "javascript:alert(1)"},
        {
            **good,
            "Url": "https://a.example/3",
            "Stock_symbol": "ZZZ|<script>",
            "Article": "<script>x</script>" + "long " * 300_000,
        },
    ]
    path = made.jsonl(tmp_path / "n.jsonl", [good, *hostile])
    path.write_text(path.read_text() + '{"Date": "2023-03', "utf-8")
    bars = made.prices(tmp_path / "p")
    (tmp_path / "p" / "ALU.csv").write_text((tmp_path / "p" / "ALU.csv").read_text() + "2023-03-04,1,1,1,1,1,1\n")  # a Saturday
    made.record(tmp_path / "r", "https://feeds.example/bomb", b"<!DOCTYPE x [<!entity a 'b'>]><rss version='2.0'/>")
    made.record(tmp_path / "r", "https://feeds.example/gone", b"", 404)
    urls = [f"https://feeds.example/{name}" for name in ("bomb", "gone", "none")]
    config = made.config(tmp_path, [str(path)], bars)
    config = dataclasses.replace(config, sources=(*config.sources, Given("wire", "feed", {"urls": urls})))
    ran = run(config, transport=ReplayTransport(tmp_path / "r"))
    assert ran.ingested is not None
    assert len(ran.ingested.failed) == 2  # gone, and without a recording
    found = {row["stage"]: "" for row in rows(config, "quarantine")}
    for row in rows(config, "quarantine"):
        found[row["stage"]] += row["reason"] + "\n"
    for words in ("soon", "future", "neither text nor an address", "no JSON", "declares entities"):
        assert words in found["normalise"]
    assert "ZZZ is no symbol" in found["link"]
    assert "2023-03-04" in found["build"]
    assert len(rows(config, "article")) == 2
    assert max(len(row["text"]) for row in rows(config, "body")) <= 200_000
    assert verify(config.store) == []
    assert "<script" not in json.dumps([row["text"] for row in rows(config, "body")])


def test_values_beyond_all_bounds_are_quarantined_one_by_one(tmp_path: Path) -> None:
    good = made.article(1, "Alu Works", datetime(2023, 3, 15, 15, tzinfo=UTC))
    dates = ["9999-12-31", "0001-01-01T00:00:00+01:00", "9999-12-31T23:30:00-05:00", "<![foo[ x ]]>"]
    odd = [{**good, "Url": f"https://a.example/{place}", "Date": said} for place, said in enumerate(dates)]
    odd.append({**good, "Url": "https://a.example/score", "Score": 10**400})
    told = {**good, "Url": "https://a.example/markup", "Article": "Alu Works won. <![foo[ x ]]> Its rival lost."}
    path = made.jsonl(tmp_path / "n.jsonl", [*odd, told, good])
    url, bars = "https://api.example/v1", made.prices(tmp_path / "p")
    rows_ = [{"d": "2023-03-15", "t": "Alu Works", "s": symbols} for symbols in (5, True, ["ALU"])]
    made.record(tmp_path / "r", url, json.dumps(rows_).encode())
    with (tmp_path / "p" / "ALU.csv").open("a") as file:
        file.writelines(f"{day},1,1,1,1,1,1\n" for day in ("0001-01-01", "9999-12-31"))
    config = made.config(tmp_path, [str(path)], bars)
    api = Given("api", "json", {"urls": [url], "fields": {"date": "d", "title": "t", "symbols": "s"}})
    config = dataclasses.replace(config, sources=(*config.sources, api))
    run(config, transport=ReplayTransport(tmp_path / "r"))
    assert [row["stage"] for row in rows(config, "quarantine")] == ["normalise"] * (len(odd) + 2 + 2)
    assert {row["url_canonical"] for row in rows(config, "article")} == {
        "https://a.example/markup", "https://news.example/1", ""
    }  # fmt: skip
    assert "Alu Works won. Its rival lost." in [row["text"] for row in rows(config, "body")]
    assert load_daily(config, ["ALU"])["session"].max() == date(2023, 6, 30)


def test_what_lies_outside_the_calendar_is_quarantined_alone(tmp_path: Path) -> None:
    inside = made.article(1, "Alu Works", datetime(2023, 3, 15, 1, tzinfo=UTC))
    outside = made.article(2, "Alu Works", datetime(1970, 1, 1, 10, tzinfo=UTC))
    again = {**outside, "Url": "https://other.example/copy", "Date": "1970-01-02 10:00:00 UTC"}
    (tmp_path / "ALU.csv").write_text(
        "Date,Open,High,Low,Close,Adj Close,Volume\n" + "".join(f"{day},1,1,1,1,1,1\n" for day in ("1970-01-05", "2023-03-15"))
    )
    files = [str(made.jsonl(tmp_path / f"{name}.jsonl", found)) for name, found in (("a", [inside]), ("b", [outside, again]))]
    config = made.config(tmp_path, files, [str(tmp_path / "ALU.csv")], calendar="XTKS")
    run(config)
    lost = rows(config, "quarantine")
    assert [row["stage"] for row in lost] == ["align", "align", "build"]
    assert [row["place"] for row in lost] == [0, -1, -1]
    assert "1970-01-01 10:00 UTC" in lost[0]["reason"]
    assert "1970-01-05" in lost[2]["reason"]
    assert [row["session"] for row in rows(config, "aligned")] == [date(2023, 3, 15)]
    assert [(row["session"], row["articles"]) for row in rows(config, "daily")] == [(date(2023, 3, 15), 1)]
    alone = dataclasses.replace(config, store=tmp_path / "alone", sources=made.config(tmp_path, files[1:], []).sources)
    run(alone)
    assert (len(rows(alone, "quarantine")), rows(alone, "daily")) == (2, [])


class Interface:
    """Three pages, of which each names the next; it dies or fails where it is told, and answers tags with 304."""

    def __init__(self, pages: list[list[dict[str, Any]]]) -> None:
        self.pages, self.asked, self.fails = pages, list[str](), dict[int, int | type[BaseException]]()

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        self.asked.append(url)
        number = int(url.rsplit("=", 1)[1])
        fails = self.fails.get(number)
        if isinstance(fails, int):
            return Response(url, fails)
        if fails is not None:
            raise fails
        following = url.replace(f"p={number}", f"p={number + 1}") if number + 1 < len(self.pages) else ""
        body = json.dumps({"data": self.pages[number], "next": following}).encode()
        tag = hashlib.sha256(body).hexdigest()
        if headers.get("If-None-Match") == tag:
            return Response(url, 304)
        return Response(url, 200, body, {"etag": tag})


@pytest.mark.parametrize("fails", [KeyboardInterrupt, 404], ids=["killed", "failed"])
@pytest.mark.parametrize("query", ["from={since}&p=0", "p=0"])
def test_a_round_that_lost_a_page_is_asked_again_whole(tmp_path: Path, fails: Any, query: str) -> None:
    pages = [[{"d": f"2023-03-{10 + n} 15:00:00 UTC", "t": f"Alu Works, {n}", "u": f"https://a.example/{n}"}] for n in range(3)]
    api = Given(
        "api",
        "json",
        {
            "urls": [f"https://api.example/v1?{query}"],
            "rows": "data",
            "next": "next",
            "per_minute": 1e9,
            "fields": {"date": "d", "title": "t", "url": "u"},
        },
    )
    config = dataclasses.replace(made.config(tmp_path, [], []), sources=(api,))
    host, days = Interface(pages), [made.NOW + timedelta(days=number) for number in range(5)]

    def update(day: int) -> list[str]:
        host.asked = []
        NewsPricePipeline(config, transport=host, now=lambda: days[day]).run()
        return host.asked

    host.fails = {1: fails}
    with contextlib.suppress(KeyboardInterrupt):
        update(0)
    host.fails = {}
    whole = [url.format(since="1970-01-01") for url in (f"https://api.example/v1?{query[:-1]}{number}" for number in range(3))]
    assert update(1) == whole
    assert len(rows(config, "article")) == 3
    assert update(2) == [url.replace("1970-01-01", days[1].date().isoformat()) for url in whole]
    host.pages[2] = [*host.pages[2], {"d": "2023-03-20 15:00:00 UTC", "t": "Alu Works, 9", "u": "https://a.example/9"}]
    host.fails = {2: fails}
    with contextlib.suppress(KeyboardInterrupt):
        update(3)
    host.fails = {}
    # The first pages are as they were; what comes after them is not.
    assert update(4) == [url.replace("1970-01-01", days[2].date().isoformat()) for url in whole]
    assert len(rows(config, "article")) == 4


def test_prices_that_come_back_are_the_prices(tmp_path: Path) -> None:
    path, header = tmp_path / "ALU.csv", "Date,Open,High,Low,Close,Adj Close,Volume\n"
    config = made.config(tmp_path, [], [str(path)])
    told = []
    for day, close in enumerate((10, 99, 10, 10)):
        path.write_text(f"{header}2023-03-15,{close},{close},{close},{close},{close},1\n")
        ran = NewsPricePipeline(config, now=lambda day=day: made.NOW + timedelta(days=day)).run()
        assert ran.ingested is not None
        told.append((ran.ingested.new, load_daily(config)["close"].tolist()))
    assert told == [(1, [10]), (1, [99]), (1, [10]), (0, [10])]
    assert load_daily(config, as_of=made.NOW + timedelta(days=1))["close"].tolist() == [99]


def test_news_that_come_back_were_seen_first_when_they_were(tmp_path: Path) -> None:
    one, two = ([made.article(number, "Alu Works", datetime(2023, 3, 15, 15, tzinfo=UTC))] for number in (1, 2))
    for day, found in enumerate((one, two, one)):
        config = made.config(tmp_path, [str(made.jsonl(tmp_path / "n.jsonl", found))], [])
        NewsPricePipeline(config, now=lambda day=day: made.NOW + timedelta(hours=9 * day)).run()
    assert len(rows(config, "raw_item")) == 3
    seen = sorted(row["first_seen_at"] for row in rows(config, "article"))
    assert seen == [made.NOW, made.NOW + timedelta(hours=9)]


@pytest.mark.parametrize("columns", ["Date,Url,Article_title", "Date,Article_title", "Date,Article"])
@pytest.mark.parametrize("together", [True, False])
def test_one_content_under_two_names_is_about_both_symbols(tmp_path: Path, columns: str, together: bool) -> None:
    cells = {"Date": "2023-03-15 15:00:00 UTC", "Url": "https://a.example/1"}
    row = ",".join(cells.get(name, "It won an order of eight ships on this day") for name in columns.split(","))
    for name in ("ALU", "CAT"):
        (tmp_path / f"{name}.csv").write_text(f"{columns}\n{row}\n")
    files = [str(tmp_path / f"{name}.csv") for name in ("ALU", "CAT")]
    given = [files] if together else [files[:1], files[1:]]
    sources = tuple(Given(f"s{place}", "dump", {"files": mine, "symbol": "stem"}) for place, mine in enumerate(given))
    config = dataclasses.replace(made.config(tmp_path, [], []), sources=sources)
    for day, upto in enumerate((sources[:1], sources)):
        part = dataclasses.replace(config, sources=upto)
        NewsPricePipeline(part, now=lambda day=day: made.NOW + timedelta(days=day)).run()
    assert [row["first_seen_at"] for row in rows(config, "article")] == [made.NOW]
    assert sorted((row["symbol"], row["articles"]) for row in rows(config, "daily")) == [("ALU", 1), ("CAT", 1)]
    apart = dataclasses.replace(config.compat(), store=tmp_path / "compat")
    run(apart)
    assert sorted(row["symbol"] for row in rows(apart, "aligned")) == ["ALU", "CAT"]


def test_an_article_listed_later_for_another_company_is_about_it_from_then_on(tmp_path: Path) -> None:
    text = "Date,Url,Article_title\n{},https://a.example/1,It won an order of eight ships on this day\n"
    for name, when in (("ALU", "2023-03-15 15:00:00 UTC"), ("CAT", "2023-03-17 15:00:00 UTC")):
        (tmp_path / f"{name}.csv").write_text(text.format(when))
    files = [str(tmp_path / f"{name}.csv") for name in ("ALU", "CAT")]
    config = dataclasses.replace(
        made.config(tmp_path, [], []), sources=(Given("lists", "dump", {"files": files, "symbol": "stem"}),)
    )
    run(config)
    found = {(row["symbol"], row["session"].day): (row["articles"], row["copies"]) for row in rows(config, "daily")}
    assert found == {("ALU", 15): (1, 0), ("ALU", 16): (0, 0), ("ALU", 17): (0, 1), ("CAT", 17): (1, 0)}


def test_fnspids_rule_on_the_same_news(built: Config, tmp_path: Path) -> None:
    compat = dataclasses.replace(built.compat(), store=tmp_path / "store", scorer="lexicon")
    run(compat)
    frame = load_daily(compat, ["ALU"])
    assert frame["log_return"].isna().all()
    days = [row["session"] for row in rows(compat, "aligned") if row["symbol"] == "ALU"]
    assert min(days) <= frame["session"].min()
    assert frame["session"].max() <= max(days)
    assert 0 < status(compat.store)["look_ahead_of_fnspid"] < 1


def test_damage_is_found_and_mended_from_the_raw_store(tmp_path: Path) -> None:
    config = made.world(tmp_path, 20)
    run(config)
    before = hashes(config)
    path = next((config.store / "tables" / "daily").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-5] + b"\0" * 5)
    assert "was changed" in verify(config.store)[0]
    with pytest.raises(DataError, match="build again"):
        load_daily(config)
    path.unlink()
    assert "is gone" in verify(config.store)[0]
    (config.store / "catalogue.duckdb").unlink()
    with pytest.raises(DataError, match="no store"):
        load_daily(config)
    run(config)
    assert verify(config.store) == []
    assert hashes(config) == before


def test_one_writer_at_a_time_and_clear_words_for_wrong_requests(built: Config, tmp_path: Path) -> None:
    with Catalogue(built.store), pytest.raises(DataError, match="another process"):
        run(built)
    with pytest.raises(UnknownNameError, match="stage"):
        NewsPricePipeline(built).run(["normalize"])
    with pytest.raises(UnknownNameError, match="symbol"):
        load_daily(built, ["ALUU"])
    with pytest.raises(DataError, match="no day"):
        load_daily(built, start="yesterday")
    empty = made.config(tmp_path, [], [])
    run(empty)
    with pytest.raises(DataError, match="no table yet"):
        load_daily(empty)
    for bad in ({"alignment": "strikt"}, {"summary": "x"}, {"scorer": "x"}, {"count": 0}, {"sources": (Given("../x", "feed"),)}):
        with pytest.raises((UnknownNameError, DataError)):
            Config(tmp_path, **bad)  # type: ignore[arg-type]


def test_a_configuration_is_read_and_its_errors_told(tmp_path: Path) -> None:
    path = tmp_path / "finance.toml"
    (tmp_path / "symbols.csv").write_text("symbol,name\nALU,Alu Works\n")
    text = 'store = "s"\nsymbols = "symbols.csv"\nnear = false\n[[sources]]\nname = "a"\nkind = "dump"\nfiles = ["n/*.csv"]\n'
    path.write_text(text)
    found = read_config(path)
    assert (found.store, found.near, found.symbols[0].symbol) == (tmp_path / "s", False, "ALU")
    assert found.sources[0].options["files"] == [str(tmp_path / "n/*.csv")]
    for bad, match in (
        ('stor = "s"', "Did you mean store"),
        ("near = true", "where the store is"),
        ('store = "s"\nnear = 1', "near is a bool"),
        ('store = "s"\nrate = "x"', "rate is a float"),
        ('store = "s"\n[[sources]]\nname = "a"', "a name and a kind"),
        ("store = ", "no TOML"),
    ):
        path.write_text(bad)
        with pytest.raises((DataError, UnknownNameError), match=match):
            read_config(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_config(tmp_path / "none.toml")
    assert loading.RawStore(tmp_path / "none").items() == []
