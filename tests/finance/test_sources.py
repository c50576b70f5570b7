"""What comes in: recordings, politeness, feeds and dumps that lie, and a raw store that keeps every byte."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import made_news as made
import pytest

from instar.data.finance.dumps import Dump
from instar.data.finance.feeds import Feed
from instar.data.finance.json_api import JsonApi
from instar.data.finance.prices import Prices
from instar.data.finance.raw import RawItem, RawStore
from instar.data.finance.sources import Given, NewsRecord, PriceRecord, Record, Reject, source
from instar.data.finance.transport import FetchError, Network, Offline, Polite, ReplayTransport, Response
from instar.errors import DataError, OutputError, ShapeError, UnknownNameError

URL = "https://feeds.example/rss"


def raw(url: str = URL, content_type: str = "") -> RawItem:
    return RawItem("s", url, made.NOW.isoformat(), 200, "0" * 64, 1, "", content_type)


class Scripted:
    """A host that answers as it is told, and a clock that only sleeping moves."""

    def __init__(self, *answers: int | OSError, **headers: str) -> None:
        self.answers, self.headers, self.now = list(answers), headers, 0.0
        self.asked: list[float] = []
        self.slept: list[float] = []

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        self.asked.append(self.now)
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return Response(url, answer, b"x", {name.replace("_", "-"): value for name, value in self.headers.items()})

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def polite(self, **rest: Any) -> Polite:
        return Polite(self, sleep=self.sleep, clock=lambda: self.now, **rest)


def test_errors_that_pass_are_waited_out_longer_each_time() -> None:
    host = Scripted(503, OSError("reset"), 429, 200)
    assert host.polite(per_minute=6000).get(URL, {}).status == 200
    assert [wait for wait in host.slept if wait >= 1] == [1, 2, 4]
    host = Scripted(429, 200, retry_after="120")
    assert host.polite().get(URL, {}).status == 200
    assert host.slept[0] == 120
    assert Scripted(404).polite().get(URL, {}).status == 404  # that will not pass
    assert Scripted(500, 500).polite(tries=2).get(URL, {}).status == 500
    with pytest.raises(FetchError, match="2 tries"):
        Scripted(OSError("a"), OSError("b")).polite(tries=2).get(URL, {})


def test_a_host_is_not_asked_more_often_than_it_likes() -> None:
    host = Scripted(*[200] * 6)
    polite = host.polite(per_minute=20)
    for _ in range(5):
        polite.get(URL, {})
    polite.get("https://other.example/", {})
    assert host.asked == [0, 3, 6, 9, 12, 12]
    hosts: dict[str, float] = {}
    host = Scripted(200, 200)
    for _ in range(2):  # two sources of one host
        host.polite(per_minute=20, hosts=hosts).get(URL, {})
    assert host.asked == [0, 3]
    with pytest.raises(DataError, match="above 0"):
        Polite(host, per_minute=0)


def test_nothing_is_asked_unless_allowed_and_only_the_web() -> None:
    with pytest.raises(FetchError, match="network is off"):
        Offline().get(URL, {})
    with pytest.raises(FetchError, match="http"):
        Network().get("file:///etc/passwd", {})


class _Host(BaseHTTPRequestHandler):
    """A host on this machine: a page with a tag, one that is too long, ways to elsewhere."""

    def do_GET(self) -> None:
        if self.path == "/page":
            known = self.headers.get("If-None-Match") == "tag"
            self.send_response(304 if known else 200)
            self.send_header("ETag", "tag")
            self.end_headers()
            self.wfile.write(b"" if known else b"body")
        elif self.path == "/cut":
            self.send_response(200)
            self.send_header("ETag", "tag")
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"the first 23 bytes, and")
        elif self.path == "/cut-piece":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3e8\r\nthe first 23 bytes, and")
        elif self.path == "/no-http":
            self.wfile.write(b"\0\1\2\r\n")
        elif self.path == "/nowhere":
            self.send_response(302)
            self.send_header("Location", "http://[::1")
            self.end_headers()
        elif self.path == "/long":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(1000):
                    self.wfile.write(b"x" * 1000)
        elif self.path in ("/there", "/ftp", "/file"):
            self.send_response(302)
            self.send_header(
                "Location", {"/there": "/page", "/ftp": "ftp://x.example/", "/file": "file:///etc/passwd"}[self.path]
            )
            self.end_headers()
        else:
            self.send_response(404)
            self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextlib.contextmanager
def hosted() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_network_reads_up_to_a_limit_and_follows_the_web_alone() -> None:
    network = Network(largest=1000)
    with hosted() as root:
        found = network.get(f"{root}/page", {})
        assert (found.status, found.body, found.headers["etag"]) == (200, b"body", "tag")
        assert network.get(f"{root}/page", {"If-None-Match": "tag"}).status == 304
        assert network.get(f"{root}/there", {}).body == b"body"
        assert network.get(f"{root}/none", {}).status == 404
        with pytest.raises(FetchError, match="more than 1000 bytes"):
            network.get(f"{root}/long", {})
        with pytest.raises(FetchError, match="no address of http"):
            network.get(f"{root}/ftp", {})
        assert network.get(f"{root}/file", {}).body == b""
    with pytest.raises(FetchError, match="2 tries"):
        Polite(network, tries=2, sleep=lambda _: None).get(f"{root}/page", {})


@pytest.mark.parametrize("page", ["cut", "cut-piece", "no-http", "nowhere", "a b"])
def test_an_answer_that_breaks_off_is_none_and_stops_its_address_alone(page: str) -> None:
    with hosted() as root:
        with pytest.raises(OSError, match=r"977 bytes|IncompleteRead|BadStatus|IPv6|InvalidURL"):
            Network(largest=5000).get(f"{root}/{page}", {})
        with pytest.raises(FetchError, match="2 tries"):
            Polite(Network(), tries=2, sleep=lambda _: None).get(f"{root}/{page}", {})


def test_recordings_answer_by_address_and_entity_tag(tmp_path: Path) -> None:
    replay = ReplayTransport(tmp_path)
    replay.record(Response(URL, 200, b"body", {"etag": '"1"'}))
    assert replay.get(URL, {}).body == b"body"
    assert replay.get(URL, {"If-None-Match": '"1"'}).status == 304
    assert replay.get(URL, {"If-None-Match": '"0"'}).status == 200
    with pytest.raises(FetchError, match="no recording"):
        replay.get(URL + "?x", {})
    replay.path(URL).with_suffix(".json").write_text("{")
    with pytest.raises(FetchError, match="damaged"):
        replay.get(URL, {})


def news(records: Iterator[Record]) -> list[NewsRecord]:
    return [one for one in records if isinstance(one, NewsRecord)]


def rejects(records: Iterator[Record]) -> list[str]:
    return [one.reason for one in records if isinstance(one, Reject)]


def feed(body: bytes, content_type: str = "") -> list[Record]:
    pytest.importorskip("feedparser")
    return list(Feed("s", urls=[URL]).parse(body, raw(content_type=content_type)))


def test_feeds_of_both_kinds_are_read() -> None:
    rows = made.articles(3)
    found = feed(made.rss(rows))
    assert [(one.title, one.url) for one in news(iter(found))] == [(row["Article_title"], row["Url"]) for row in rows]
    atom = (
        '<feed xmlns="http://www.w3.org/2005/Atom"><title>t</title><entry><title>Alu Works</title><link href="https://a.example/1"/>'
        "<updated>2023-05-01T10:00:00Z</updated><content type='html'>&lt;p&gt;Long text&lt;/p&gt;</content></entry>"
        "<entry><title>No date</title></entry></feed>"
    )
    first, second = feed(atom.encode())
    assert isinstance(first, NewsRecord)
    assert (first.date, first.url) == ("2023-05-01T10:00:00Z", "https://a.example/1")
    assert "Long text" in first.body
    assert isinstance(second, Reject)


def test_feeds_that_lie_about_their_encoding_are_read_as_what_they_are() -> None:
    text = (
        '<?xml version="1.0" encoding="utf-8"?><rss version="2.0"><channel>'
        + "<item><title>Café</title><pubDate>2023-05-01</pubDate></item></channel></rss>"
    )
    for encoding in ("latin-1", "utf-8", "utf-16"):
        (one,) = news(iter(feed(text.replace("utf-8", "utf-8" if encoding == "latin-1" else encoding).encode(encoding))))
        assert one.title == "Café", encoding


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE r [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    '<rss version="2.0"><channel><item><title>&b;</title></item></channel></rss>'
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_before_they_grow(encoding: str) -> None:
    with pytest.raises(DataError, match="entities"):
        feed(BOMB.encode(encoding))


@pytest.mark.parametrize("said", ["&#xD800; is no character", "&lt;![foo[ x ]]&gt;", "&amp;#xD800;", "&#99999999999;"])
def test_a_feed_of_odd_characters_is_read_or_is_no_feed(said: str) -> None:
    rows = [{**made.articles(1)[0], "Article": said}]
    with contextlib.suppress(DataError):
        assert len(feed(made.rss(rows))) == 1


@pytest.mark.parametrize("body", [b"", b"\x00" * 100, b"<html><body>Sign in</body></html>", b"{}", b"GIF89a" + bytes(range(256))])
def test_what_is_no_feed_is_told(body: bytes) -> None:
    with pytest.raises(DataError, match="no feed"):
        feed(body)


def test_a_feed_that_breaks_off_gives_what_came_before() -> None:
    whole = made.rss(made.articles(5))
    assert len(news(iter(feed(whole[: len(whole) * 2 // 3])))) >= 2


def dump(text: str | bytes, name: str = "aa.csv", **options: Any) -> list[Record]:
    body = text if isinstance(text, bytes) else text.encode()
    return list(Dump("s", files=["*"], **options).parse(body, raw(f"/data/{name}")))


def test_dumps_in_the_layouts_of_fnspid_are_read() -> None:
    hub = 'Unnamed: 0,Date,Article_title,Stock_symbol,Url,Publisher,Author,Article\n0,2023-05-01 10:00:00 UTC,"Alu, up",ALU,https://a.example/1,P,A,"Two\nlines"\n'
    (one,) = news(iter(dump(hub)))
    assert (one.title, one.symbols, one.body, one.publisher) == ("Alu, up", ("ALU",), "Two\nlines", "P")
    scored = "Date,Url,Sentiment_gpt\n2023-05-01 03:52:00+00:00,https://a.example/1,5.0\n2023-05-02 03:52:00+00:00,https://a.example/2,\n"
    one, two = news(iter(dump(scored, symbol="stem")))
    assert (one.symbols, one.score, two.score) == (("AA",), 5.0, None)
    marked = "\ufeffDate,Headline,URL,Mark\n14 HOURS AGO,First,https://a.example/1,1\n2 DAYS AGO,Premium,https://a.example/2,2\n"
    assert [one.title for one in news(iter(dump(marked)))] == ["First"]
    lines = '{"date": "2023-05-01", "title": "T", "symbols": ["A", "B"]}\n\n{"date": "2023-05-01", "when": 1, "ticker": "A|B"}\n'
    assert [one.symbols for one in news(iter(dump(lines)))] == [("A", "B"), ("A", "B")]
    (one,) = news(iter(dump('{"date": "2023-05-01", "title": "T", "symbols": ["A"], "article": "One\u2028two"}\r\n')))
    assert one.symbols == ("A",)
    assert news(iter(dump("when,Titel\n2023-05-01,T\n", columns={"date": "When", "title": "titel"})))[0].title == "T"


def test_broken_rows_are_rejected_and_the_others_kept() -> None:
    rows = [
        "Date,Title,Score",
        "2023-05-01,a,1",
        "2023-05-01,b",
        ",c,2",
        "2023-05-01,d,good",
        "2023-05-01,e,inf",
        "2023-05-01,f,3",
    ]
    text = "\n".join([*rows, '2023-05-01,"cut off'])
    found = dump(text)
    assert [one.title for one in news(iter(found))] == ["a", "f"]
    assert len(rejects(iter(found))) == 5
    assert any("line 3 has 2 cells" in reason for reason in rejects(iter(found)))
    found = dump('{"date": "2023-05-01", "title": "a"}\n{"date": "2023\n[1]\n' + "[" * 100_000)
    assert [one.title for one in news(iter(found))] == ["a"]
    assert len(rejects(iter(found))) == 3
    with pytest.raises(DataError, match="no column of dates"):
        dump("Title\na\n")
    with pytest.raises(DataError, match="no text in UTF-8"):
        dump(b"Date,Title\n2023-05-01,\xff\xff\n")
    for options, match in (({"columns": {"datum": "x"}}, "datum"), ({"clock": "wrong"}, "fnspid")):
        with pytest.raises(ShapeError, match=match):
            dump("", **options)  # type: ignore[arg-type]


def test_an_interface_is_followed_page_by_page(tmp_path: Path) -> None:
    first, second = "https://api.example/v1?from=1970-01-01", "https://api.example/v1?page=2"
    pages = {
        first: {"data": [{"at": 1682935200, "t": {"x": "One"}, "tickers": ["ALU"], "s": 4}], "next": "?page=2"},
        second: {"data": [{"at": "", "t": {"x": "Two"}}, {"at": "2023-05-01", "s": "?"}, 7], "next": "?page=2"},
    }
    for url, page in pages.items():
        made.record(tmp_path, url, json.dumps(page).encode())
    fields = {"date": "at", "title": "t.x", "symbols": "tickers", "score": "s"}
    api = JsonApi("s", urls=["https://api.example/v1?from={since}"], rows="data", fields=fields, next="next")
    replay, found = ReplayTransport(tmp_path), []
    for item in api.list(None, {}):
        found += list(api.parse(api.fetch(item, replay).body, raw(item.location)))
    assert [(one.title, one.date, one.symbols, one.score) for one in news(iter(found))] == [("One", "1682935200", ("ALU",), 4.0)]
    assert len(rejects(iter(found))) == 3
    for body, match in ((b"<html>", "no JSON"), (b'{"data": 3}', "no list"), (b"[" * 100_000, "no JSON")):
        with pytest.raises(DataError, match=match):
            list(api.parse(body, raw()))
    for fields_, match in (({"title": "t"}, "date"), ({"date": "d", "colour": "c"}, "colour")):
        with pytest.raises(ShapeError, match=match):
            JsonApi("s", urls=[URL], fields=fields_)


def test_values_of_any_kind_are_read_or_rejected_one_by_one() -> None:
    fields = {"date": "at", "title": "t", "symbols": "tickers", "score": "s"}
    values: list[Any] = [
        5,
        True,
        1.5,
        {"x": [1]},
        [[]],
        [None, {"y": 1}],
        "ALU",
        "",
        None,
        10**400,
        -(10**400),
        [10**400],
        "9" * 400,
    ]
    rows = [{"at": "2023-05-01", "t": "T", key: value} for value in values for key in ("tickers", "s", "t", "at")]
    found = list(JsonApi("s", urls=[URL], fields=fields).parse(json.dumps(rows).encode(), raw()))
    assert [one.place for one in found] == list(range(len(rows)))
    assert any("neither a text nor a list: 5" in reason for reason in rejects(iter(found)))
    assert any("too large" in reason for reason in rejects(iter(found)))
    lines = "".join(json.dumps({"date": "2023-05-01", key: value}) + "\n" for value in values for key in ("symbols", "score"))
    assert len(dump(lines)) == 2 * len(values)


def test_an_interface_of_several_pages_is_asked_without_tags_and_says_where_it_lost_its_way(tmp_path: Path) -> None:
    pages = [f"https://api.example/v1?page={number}" for number in range(4)]
    made.record(tmp_path, pages[0], json.dumps({"data": [], "next": pages[1]}).encode(), etag="0")
    made.record(tmp_path, pages[1], b"<html>Please wait</html>", etag="1")
    made.record(tmp_path, pages[2], json.dumps({"data": [], "next": "http://[::1"}).encode())
    made.record(tmp_path, pages[3], json.dumps({"data": []}).encode())
    api = JsonApi("s", urls=[pages[0], pages[2], pages[3]], rows="data", fields={"date": "at"}, next="next")
    asked: list[str] = []

    def ask() -> None:
        for one in api.list(None, {pages[0]: "0", pages[1]: "1"}):
            asked.append(one.location)
            assert api.fetch(one, ReplayTransport(tmp_path)).status == 200

    with pytest.raises(DataError, match=r"page=1 names no next page.*page=2 names no next page"):
        ask()
    assert asked == pages  # the others are asked all the same
    alone = JsonApi("s", urls=[pages[0]], fields={"date": "at"})
    assert [one.etag for one in alone.list(None, {pages[0]: "0"})] == ["0"]


BARS = "Date,Open,High,Low,Close,Adj Close,Volume\n"


def test_prices_are_read_and_impossible_bars_rejected() -> None:
    rows = ["2023-05-01,1,2,0.5,1.5,1.4,100"] * 2 + [
        "2023-05-02,1,0.5,2,1,1,1",
        "2023-05-03,null,1,1,1,1,1",
        "2023-05-04,-1,1,1,1,1,1",
    ]
    rows.append(f"2023-05-09,{'9' * 400},1,1,1,1,1")
    text = BARS + "\n".join([*rows, "x,1,1,1,1,1,1", "2023-05-05,1", "2023-05-08,1,1,1,1,,", ""])
    found = list(Prices("s", files=["*"]).parse(text.encode(), raw("/data/alu.csv")))
    good = [one for one in found if isinstance(one, PriceRecord)]
    assert [(one.symbol, one.session.day, one.adj_close) for one in good] == [("ALU", 1, 1.4), ("ALU", 8, 1.0)]
    assert good[1].volume != good[1].volume
    assert len(rejects(iter(found))) == 7
    assert len(rejects(Prices("s", files=["*"], floats="hasty").parse(text.encode(), raw("/data/alu.csv")))) == 7
    with pytest.raises(DataError, match="lacks the columns close"):
        list(Prices("s", files=["*"]).parse(b"Date,Open,High,Low,Volume\n", raw()))
    several = "symbol," + BARS + "A,2023-05-01,1,2,0.5,1.5,1.4,100\nB,2023-05-01,1,2,0.5,1.5,1.4,100\n"
    assert [one.symbol for one in Prices("s", files=["*"]).parse(several.encode(), raw()) if isinstance(one, PriceRecord)] == [
        "A",
        "B",
    ]


def test_sources_are_made_by_name_and_their_errors_told(tmp_path: Path) -> None:
    assert source(Given("a", "feed", {"urls": [URL]})).kind == "news"
    with pytest.raises(UnknownNameError, match="feed"):
        source(Given("a", "fead", {}))
    with pytest.raises(ShapeError, match="colour"):
        source(Given("a", "feed", {"urls": [URL], "colour": 1}))
    with pytest.raises(DataError, match="no file"):
        list(source(Given("a", "dump", {"files": [str(tmp_path / "*.csv")]})).list(None, {}))
    with pytest.raises(DataError, match="a list of addresses"):
        list(source(Given("a", "dump", {"files": "x.csv"})).list(None, {}))


def item(store: RawStore, body: bytes, url: str = URL, **rest: Any) -> bool:
    import hashlib

    sha256 = hashlib.sha256(body).hexdigest() if body else ""
    return store.add(RawItem("s", url, made.NOW.isoformat(), 200 if body else 404, sha256, len(body), **rest), body)


def test_the_raw_store_keeps_each_content_once_and_knows_when_one_was_changed(tmp_path: Path) -> None:
    store = RawStore(tmp_path)
    assert [item(store, b"one"), item(store, b"one"), item(store, b"two"), item(store, b"one", URL + "2")] == [
        True,
        False,
        True,
        True,
    ]
    again = RawStore(tmp_path)
    assert [one.url for one in again.items()] == [URL, URL, URL + "2"]
    assert item(again, b"two") is False
    assert item(again, b"one", URL + "2") is False
    assert list(again.problems()) == []
    path = again.path(again.items()[1].sha256)
    path.write_bytes(b"tw0")
    with pytest.raises(DataError, match="was changed"):
        again.body(path.name)
    path.unlink()
    assert "cannot be read" in next(iter(again.problems()))


def test_a_content_that_comes_back_is_what_the_address_says_now(tmp_path: Path) -> None:
    bodies = (b"good", b"good", b"bad", b"good", b"", b"good", b"", b"bad")
    assert [item(RawStore(tmp_path), body) for body in bodies] == [True, False, True, True, True, False, False, True]
    store = RawStore(tmp_path)
    assert [item(store, body) for body in (b"bad", b"good", b"good")] == [False, True, False]


def test_what_a_source_is_asked_since_is_when_its_last_complete_round_began(tmp_path: Path) -> None:
    store, began = RawStore(tmp_path), made.NOW + timedelta(hours=1)
    assert store.known("s") == (None, {})
    item(store, b"one", etag="1")  # as stores have it that know no rounds
    assert store.known("s") == (made.NOW, {URL: "1"})
    store.finish("s", began)  # nothing waits for it
    assert store.known("s")[0] == made.NOW
    item(store, b"two", waits=True)
    item(store, b"two", URL + "2", etag="2", waits=True)
    assert store.known("s") == (made.NOW, {URL + "2": "2"})  # the tag of another content would say "as before" of it
    assert store.known("other") == (None, {})
    store.finish("other", began)
    assert RawStore(tmp_path).known("s")[0] == made.NOW
    store.finish("s", began)
    lines = store.manifest.read_bytes()
    store.finish("s", began + timedelta(hours=1))
    assert store.manifest.read_bytes() == lines
    assert RawStore(tmp_path).known("s") == (began, {URL + "2": "2"})
    assert len(store.items()) == 3
    item(store, b"three", waits=True)
    assert RawStore(tmp_path).known("s")[0] == began
    store.manifest.write_bytes(lines.replace(b"13:00:00+00:00", b"13:00:00"))
    with pytest.raises(DataError, match="line 4"):
        store.items()


def test_a_torn_line_at_the_end_was_never_promised_and_any_other_is_told(tmp_path: Path) -> None:
    store = RawStore(tmp_path)
    item(store, b"one")
    with store.manifest.open("ab") as file:
        file.write(b'{"source": "s", "url')
    assert len(RawStore(tmp_path).items()) == 1
    again = RawStore(tmp_path)
    item(again, b"two")
    assert [one.size for one in RawStore(tmp_path).items()] == [3, 3]
    store.manifest.write_bytes(b'{"source"\n' + store.manifest.read_bytes())
    with pytest.raises(DataError, match="line 1"):
        RawStore(tmp_path).items()


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    import resource

    store = RawStore(tmp_path)
    item(store, b"one")
    before = store.manifest.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (len(before) + 10, 1000):  # no room for the line; room for the line, none for the content
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
        try:
            with pytest.raises(OutputError, match="unchanged"):
                item(store, b"two" * (1000 if room == 1000 else 1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert store.manifest.read_bytes() == before
    assert item(store, b"two")
    assert list(RawStore(tmp_path).problems()) == []
