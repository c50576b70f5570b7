"""Endpoints over loopback: what is asked, what the answers become, and servers that break in every way."""

from __future__ import annotations

import email.utils
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import api_server as api
import numpy as np
import pytest
from api_server import serving

from instar.cli.command import command
from instar.doors import asking, wire
from instar.doors.openai import Endpoint
from instar.doors.wire import Address
from instar.errors import DataError, InstarError, ModelError, ShapeError, UnknownNameError
from instar.gate.predictions import Cases

KEY = "sk-very-secret-1234"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def cases(*texts: str, **more: Any) -> Cases:
    texts = texts or ("one", "two", "three", "four", "five", "six")
    return Cases("cases", [f"i{n}" for n in range(len(texts))], list(texts), **more)


def replies(*texts: str) -> api.Reply:
    """Answers by the number in the prompt: `0` -> the first text."""
    return lambda handler, body: handler.say(texts[int(api.prompt(body))])


def numbered(n: int, **more: Any) -> Cases:
    return cases(*map(str, range(n)), **more)


# what is asked


def test_answers_come_in_order_with_times_and_facts() -> None:
    told: list[tuple[int, int]] = []
    with serving(lambda h, b: (time.sleep(0.05 if api.prompt(b) == "one" else 0), api.echo(h, b))[1]) as server:
        found = Endpoint(server.url).run(cases(labels=["x"] * 6, columns={"c": [1] * 6}), "generation", lambda *d: told.append(d))
    assert found.outputs == ["one", "two", "three", "four", "five", "six"]
    assert found.seconds is not None
    assert 0.05 <= found.seconds[0] < 2
    assert (found.seconds > 0).all()
    assert not found.errors
    assert told[-1] == (6, 6)
    assert [done for done, _ in told] == [1, 2, 3, 4, 5, 6]
    assert found.labels == ["x"] * 6
    assert found.columns == {"c": [1] * 6}
    assert found.costs["wall_seconds"] >= 0.05
    assert found.facts["model"] == "tiny"
    assert found.facts["served_model"] == ["tiny-2"]
    assert found.facts["system_fingerprint"] == ["fp_1"]
    assert found.facts["retries"] == 0


def test_settings_reach_the_request(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('Say {"a": {input}} now')
    told = {"prompt": f"@{tmp_path / 'p.txt'}", "system": "Be brief", "max_tokens": "7", "seed": 3, "stop": '["\\n", "END"]'}
    with serving(api.echo) as server:
        found = Endpoint(f"{server.url}/chat/completions#org/m", {**told, "body": '{"top_p": 0.5}'}).run(
            cases("{input}"), "generation"
        )
        path, body, _ = server.asked[0]
    assert path == "/v1/chat/completions"
    assert found.outputs == ['Say {"a": {input}} now']
    assert body.pop("messages")[0] == {"role": "system", "content": "Be brief"}
    assert body == {"model": "org/m", "temperature": 0.0, "max_tokens": 7, "seed": 3, "stop": ["\n", "END"], "top_p": 0.5}
    with serving(api.echo) as server:
        Endpoint(server.url, {"api": "completions", "temperature": "none", "model": "m", "stop": "\\n"}).run(
            cases("a"), "generation"
        )
        assert server.asked[0][:2] == ("/v1/completions", {"model": "m", "prompt": "a", "stop": "\n"})


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ({"timeout": "soon"}, ShapeError),
        ({"retries": -1}, ShapeError),
        ({"concurrency": 1.5}, ShapeError),
        ({"temperature": float("nan")}, ShapeError),
        ({"max_tokens": True}, ShapeError),
        ({"api": "chats"}, ShapeError),
        ({"api": "completions", "system": "x"}, ShapeError),
        ({"prompt": "no place"}, ShapeError),
        ({"prompt": 3}, ShapeError),
        ({"body": "[1]"}, ShapeError),
        ({"body": "{"}, ShapeError),
        ({"stop": "[1]"}, ShapeError),
        ({"stop": ""}, ShapeError),
        ({"document_prompt": "no place"}, ShapeError),
        ({"k": 0}, ShapeError),
        ({"prompt": "@/no/such/file"}, ShapeError),
        ({"key_env": "NO_SUCH_VARIABLE_HERE"}, ModelError),
        ({"promt": "{input}"}, UnknownNameError),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_asked(told: dict[str, Any], error: type[InstarError]) -> None:
    with pytest.raises(error):
        Endpoint("http://127.0.0.1:1/v1", told)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://a/b", "127.0.0.1:80", "http://", "http://a:99999999/v1", "http://a b/v1", "http://[::1/v1", ""],
)
def test_only_http_addresses(url: str) -> None:
    with pytest.raises(ModelError, match="http or https"):
        Endpoint(url)


def test_the_only_model_is_taken_and_several_are_listed() -> None:
    with serving(api.echo, models=("a", "b")) as server:
        with pytest.raises(ModelError, match="2 models; name one after #: a, b"):
            Endpoint(server.url).run(cases(), "generation")
        assert Endpoint(server.url + "#b").run(cases(), "generation").facts["model"] == "b"


# tasks


def test_classification_matches_known_labels() -> None:
    said = ("Positive.", " negative\n", "NEUTRAL", "mixed", "2")
    labels = ["positive", "negative", "Neutral", "positive", 2]
    with serving(replies(*said)) as server:
        found = Endpoint(server.url).run(numbered(5, labels=labels), "classification")
        assert found.outputs == ["positive", "negative", "Neutral", "mixed", 2]
        assert Endpoint(server.url).run(numbered(4), "classification").outputs == ["Positive.", "negative", "NEUTRAL", "mixed"]


def test_multiple_choice_lists_the_options_and_maps_the_answer() -> None:
    said = ("B", "(c)", "**A**", "The answer is D.", "B. Paris", "paris", "Rome, of course", "A cat", "no idea", "", "(b) Paris")
    options = ["Oslo", "Paris", "Rome", "Bern"]
    expected = ["Paris", "Rome", "Oslo", "Bern", "Paris", "Paris", "Rome", "A cat", "no idea", "", "Paris"]
    with serving(lambda h, b: h.say(said[int(api.prompt(b).split("\n")[0])])) as server:
        found = Endpoint(server.url).run(numbered(len(said), choices=[options] * len(said)), "multiple_choice")
        assert found.outputs == expected
        assert not found.errors
        asked = {api.prompt(body) for _, body, _ in server.asked}
    assert "0\n\nA. Oslo\nB. Paris\nC. Rome\nD. Bern\n\nAnswer with the letter of the right choice alone." in asked
    with serving(lambda h, _: h.say("b")) as server:  # letters that the model never saw
        found = Endpoint(server.url, {"prompt": "{input}"}).run(cases("q", choices=[["b", "a"]]), "multiple_choice")
    assert found.outputs == ["b"]
    with pytest.raises(DataError, match="choices"):
        Endpoint("http://127.0.0.1:1/v1#m").run(cases(), "multiple_choice")


def test_regression_takes_the_one_number() -> None:
    with serving(replies("3.5", "It is -2.", "1,200 kg", "between 3 and 4", "many", "2024.05.01")) as server:
        found = Endpoint(server.url).run(numbered(6), "regression")
    assert found.outputs == [3.5, -2.0, 1200.0, None, None, None]
    said = ("between 3 and 4", "many", "2024.05.01")
    assert found.errors == {f"i{i}": f"not one number: '{text}'" for i, text in enumerate(said, 3)}


def vector(text: str) -> list[float]:
    return [text.count("a") + 0.0, text.count("b") + 0.0, 0.1]


def embeddings(handler: api.Handler, body: dict[str, Any]) -> None:
    if "bad" in body["input"]:
        return handler.json({"error": {"message": "too long"}}, 400)
    rows = [{"index": i, "embedding": vector(text)} for i, text in enumerate(body["input"])]
    return handler.json({"data": rows[::-1]})


def test_retrieval_orders_documents_by_cosine() -> None:
    documents = [(f"d{n}", "a" * n + "b" * (9 - n)) for n in range(10)]
    with serving(embeddings) as server:
        found = Endpoint(server.url, {"batch": 2}).run(cases("aaa", "bbb", "bad", "ab", documents=documents), "retrieval")
    assert found.outputs[0] == [f"d{n}" for n in range(9, -1, -1)]
    assert found.outputs[1] == [f"d{n}" for n in range(10)]
    assert found.outputs[2] is None
    assert found.errors == {"i2": "HTTP 400: too long"}
    assert set(found.outputs[3][:2]) == {"d4", "d5"}
    with serving(embeddings) as server:
        few = Endpoint(server.url, {"k": "2"}).run(cases("aaa", documents=documents), "retrieval")
        assert few.outputs == [["d9", "d8"]]
    with serving(embeddings) as server:
        whole = Endpoint(server.url).run(cases("aaa", "b", documents=documents * 1), "retrieval")
        assert np.allclose(np.linalg.norm(whole.embeddings, axis=1), 1)
        with pytest.raises(ModelError, match="document 'x'"):
            Endpoint(server.url, {"batch": 1}).run(cases("a", documents=[*documents, ("x", "bad")]), "retrieval")
    with pytest.raises(DataError, match="documents"):
        Endpoint("http://127.0.0.1:1/v1#m").run(cases(), "retrieval")


@pytest.mark.parametrize(
    "rows",
    [
        [{"index": 0, "embedding": [0.0, 0.0]}],
        [{"index": 0, "embedding": [1e300, 1.0]}],
        [{"index": 0, "embedding": []}],
        [{"index": 0, "embedding": "QUJD"}],
        [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1]}],
        [{"embedding": [1]}],
        None,
    ],
)
def test_vectors_that_are_none_are_refused(rows: Any) -> None:
    with serving(lambda h, _: h.json({"data": rows})) as server, pytest.raises(ModelError, match="the reply"):
        Endpoint(server.url).run(cases("q", documents=[("d", "text")]), "retrieval")


# servers that break


@pytest.mark.parametrize(
    "bad",
    [api.status(500), api.status(503), api.status(408), api.status(429), api.close, api.cut],
    ids=["500", "503", "408", "429", "close", "cut"],
)
def test_what_may_pass_is_asked_again(bad: api.Reply) -> None:
    with serving(api.first(2, bad)) as server:
        found = Endpoint(server.url).run(cases("one", "two"), "generation")
        assert found.outputs == ["one", "two"]
        assert found.facts["retries"] == 4
        assert len(server.asked) == 6


def test_retry_after_is_honoured_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = api.stopwatch()
    with serving(api.first(1, api.status(429, {"Retry-After": "0.6"}))) as server:
        assert Endpoint(server.url).run(cases("one"), "generation").outputs == ["one"]
    assert clock() >= 0.6
    monkeypatch.setattr(asking, "_LONGEST_WAIT", 0.05)
    for told in ("3600", "1e400", "nan", "-5", "soon", email.utils.formatdate(time.time() + 900)):
        clock = api.stopwatch()
        with serving(api.first(1, api.status(429, {"Retry-After": told}))) as server:
            assert Endpoint(server.url).run(cases("one"), "generation").outputs == ["one"]
        assert clock() < 2


@pytest.mark.parametrize("code", [400, 401, 404, 413, 422])
def test_what_will_not_pass_is_asked_once(code: int) -> None:
    with serving(
        lambda h, b: (api.status(code, message="too long\x1b[31m") if "t" in api.prompt(b) else api.echo)(h, b)
    ) as server:
        found = Endpoint(server.url, {"concurrency": 1}).run(cases("one", "two", "six"), "generation")
        assert found.outputs == ["one", None, "six"]
        assert found.errors == {"i1": f"HTTP {code}: too long�[31m"}
        assert np.isnan(found.seconds[1])
        assert len(server.asked) == 3


@pytest.mark.parametrize("bad", [api.hang, api.drip_head, api.drip_body], ids=["hang", "drip head", "drip body"])
def test_the_deadline_holds(bad: api.Reply) -> None:
    clock = api.stopwatch()
    with serving(lambda h, b: (bad if api.prompt(b) == "two" else api.echo)(h, b)) as server:
        found = Endpoint(server.url, {"timeout": 0.4, "retries": 1}).run(cases("one", "two"), "generation")
        assert clock() < 2
    assert found.outputs == ["one", None]
    assert found.errors == {"i1": "no whole answer within 0.4 s"}


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (lambda h, _: h.raw(b"<html>\xff\x00"), "no JSON"),
        (lambda h, _: h.raw(DEEP), "no JSON"),
        (lambda h, _: h.raw(b""), "no JSON"),
        (lambda h, _: h.json([]), "not of the expected shape"),
        (lambda h, _: h.json({"choices": []}), "not of the expected shape"),
        (lambda h, _: h.json({"choices": [{"message": "text"}]}), "not of the expected shape"),
        (lambda h, _: h.say(None), "no text (finish_reason: stop)"),
        (api.huge, "larger than 8 MiB"),
        (lambda h, _: h.wfile.write(b"garbage\r\n\r\n"), "the connection broke (BadStatusLine"),
        (lambda h, _: h.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000), "the connection broke (LineTooLong"),
    ],
)
def test_garbage_costs_one_item(reply: api.Reply, reason: str) -> None:
    with serving(lambda h, b: (reply if api.prompt(b) == "two" else api.echo)(h, b)) as server:
        found = Endpoint(server.url, {"retries": 0}).run(cases("one", "two", "six"), "generation")
    assert found.outputs == ["one", None, "six"]
    assert reason in found.errors["i1"]
    assert found.errors["i1"].isprintable()


def test_a_lone_surrogate_can_be_written() -> None:
    with serving(lambda h, _: h.raw(b'{"choices": [{"message": {"content": "a\\ud800b"}}]}')) as server:
        found = Endpoint(server.url).run(cases("one"), "generation")
    assert found.outputs == ["a?b"]


def test_answers_that_were_cut_off_are_counted() -> None:
    choice = {"message": {"content": "so"}, "finish_reason": "length"}
    with serving(lambda h, _: h.json({"choices": [choice]})) as server:
        assert Endpoint(server.url).run(cases("a", "b"), "generation").facts["cut_off"] == 2


# the first items and the last ones


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    for model in ("", "#m"):
        clock = api.stopwatch()
        with pytest.raises(ModelError, match="connection refused"):
            Endpoint(url + model).run(numbered(10_000), "generation")
        assert clock() < 2


def test_first_items_that_fail_alike_end_the_run() -> None:
    with serving(api.status(401, message="bad key")) as server:
        with pytest.raises(ModelError, match="none of the first 3 items: HTTP 401: bad key"):
            Endpoint(server.url).run(numbered(1000), "generation")
        assert len(server.asked) < 30
        with pytest.raises(ModelError, match="none of the only item"):
            Endpoint(server.url).run(cases("one"), "generation")


def test_an_endpoint_that_dies_midway_leaves_what_it_said() -> None:
    def dies(handler: api.Handler, body: dict[str, Any]) -> None:
        (api.echo if len(handler.server.asked) <= 40 else api.close)(handler, body)

    clock = api.stopwatch()
    with serving(dies) as server:
        found = Endpoint(server.url).run(numbered(5000), "generation")
        assert len(server.asked) < 120
    assert clock() < 5
    answered = [output for output in found.outputs if output is not None]
    assert 30 <= len(answered) <= 40
    assert len(found.errors) == 5000 - len(answered)
    assert "not asked, since 10 items in a row had failed" in found.errors["i4999"]


def test_a_short_failure_in_between_costs_nothing() -> None:
    def flickers(handler: api.Handler, body: dict[str, Any]) -> None:
        (api.status(503) if 20 < len(handler.server.asked) <= 26 else api.echo)(handler, body)

    with serving(flickers) as server:
        found = Endpoint(server.url).run(numbered(100), "generation")
    assert not found.errors
    assert 3 <= found.facts["retries"] <= 9


# the key


def everything(found: Any) -> str:
    return repr((found.name, found.facts, found.errors, found.costs))


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MY_KEY", KEY)

    def leaks(handler: api.Handler, body: dict[str, Any]) -> None:
        if api.prompt(body) == "two":
            return handler.json({"error": {"message": f"wrong key {KEY}"}}, 400)
        return handler.say("x", system_fingerprint=KEY, model=KEY)

    with serving(leaks) as server:
        version = Endpoint(server.url.replace("//", "//user:pass-word@") + "?api-version=q-secret", {"key_env": "MY_KEY"})
        assert "pass-word" not in version.name + repr(vars(version))
        version = Endpoint(server.url + "?api-version=q-secret", {"key_env": "MY_KEY"})
        found = version.run(cases("one", "two"), "generation")
        assert server.asked[0][2]["Authorization"] == f"Bearer {KEY}"
        assert server.asked[0][0] == "/v1/chat/completions?api-version=q-secret"
    assert found.errors == {"i1": "HTTP 400: wrong key ***"}
    for secret in (KEY, "q-secret"):
        assert secret not in everything(found) + repr(vars(version))
    assert KEY not in "".join(capfd.readouterr())


@pytest.mark.parametrize("before", range(0, 260, 13))
def test_no_part_of_a_secret_survives_where_messages_are_cut(before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that repeats the key (or the address, with a key in its query) in errors, names, redirects and answers."""
    monkeypatch.setenv("MY_KEY", KEY)
    client = Endpoint("http://127.0.0.1:1/v1?api_key=q-very-secret", {"key_env": "MY_KEY"})._client
    for secret in (KEY, "q-very-secret"):
        shown = client.shown("." * before + secret + "." * 300)
        assert len(shown) <= 240
        assert not any(secret[:n] in shown for n in range(4, len(secret)))


def test_an_answer_that_repeats_the_key_is_kept_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)

    def repeats(handler: api.Handler, body: dict[str, Any]) -> None:
        if api.prompt(body) == "two":
            return api.status(400, message="x" * 190 + f" {handler.path} {handler.headers['Authorization']}")(handler, body)
        if api.prompt(body) == "six":
            return api.status(307, {"Location": "http://elsewhere" + handler.path})(handler, body)
        return handler.say(f"you sent {handler.headers['Authorization']}")

    with serving(repeats) as server:
        version = Endpoint(server.url + "?api_key=q-very-secret", {"key_env": "MY_KEY"})
        found = version.run(cases("one", "two", "six"), "generation")
    assert found.outputs == ["you sent Bearer ***", None, None]
    assert set(found.errors) == {"i1", "i2"}
    assert "secret" not in everything(found)


def test_userinfo_becomes_basic_authentication() -> None:
    with serving(api.echo) as server:
        version = Endpoint(server.url.replace("//", "//user:p%40ssword@"))
        found = version.run(cases("one"), "generation")
        assert server.asked[0][2]["Authorization"] == "Basic dXNlcjpwQHNzd29yZA=="
    assert version.name == server.url
    assert "ssword" not in everything(found)


def test_the_default_key_stays_on_this_machine_or_on_https(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MY_KEY", KEY)
    headers = {
        url: Endpoint(url)._client.headers for url in ("http://model.example/v1", "https://model.example/v1", "http://[::1]:8/v1")
    }
    assert [bool(h) for h in headers.values()] == [False, True, True]
    assert Endpoint("http://model.example/v1", {"key_env": "MY_KEY"})._client.headers
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\nX-Evil: two")
    with pytest.raises(ModelError, match="no HTTP header") as caught:
        Endpoint("https://model.example/v1")
    assert "sk-one" not in str(caught.value)


def test_redirects_stay_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(api.echo) as other:
        for location in (f"{other.url}/chat/completions", "//127.0.0.2/v1", "file:///etc/passwd", "http://[", "/a\x7fb"):
            with serving(api.status(307, {"Location": location})) as server, pytest.raises(ModelError, match="redirect"):
                Endpoint(server.url).run(cases(), "generation")
        assert not other.asked

    def moved(handler: api.Handler, body: dict[str, Any]) -> None:
        (api.echo if handler.path.startswith("/v2") else api.status(308, {"Location": "/v2/chat"}))(handler, body)

    with serving(moved) as server:
        assert Endpoint(server.url).run(cases("one"), "generation").outputs == ["one"]
    with serving(api.status(308, {"Location": "/v1/chat/completions"})) as server:  # round and round
        with pytest.raises(ModelError, match="308"):
            Endpoint(server.url).run(cases("one"), "generation")
        assert len(server.asked) == 3


# stopping


def test_an_interrupt_ends_the_process_at_once() -> None:
    script = (
        "import sys, threading, _thread, time\n"
        "from instar.doors.openai import Endpoint\nfrom instar.gate.predictions import Cases\n"
        "threading.Timer(0.4, _thread.interrupt_main).start()\n"
        "ids = [str(n) for n in range(50)]\n"
        "begin = time.monotonic()\n"
        "try: Endpoint(sys.argv[1] + '#m').run(Cases('c', ids, ids), 'generation')\n"
        "except KeyboardInterrupt: print('stopped', time.monotonic() - begin < 2)\n"
    )
    with serving(api.hang) as server:
        done = subprocess.run([sys.executable, "-c", script, server.url], capture_output=True, text=True, timeout=20)
    assert done.stdout == "stopped True\n", done.stderr
    assert done.returncode == 0


def test_a_failure_of_the_caller_passes_through() -> None:
    def broken(*_: int) -> None:
        raise RuntimeError("progress")

    with serving(api.echo) as server, pytest.raises(RuntimeError, match="progress"):
        Endpoint(server.url).run(cases(), "generation", broken)
    before = threading.active_count()
    time.sleep(0.1)
    assert threading.active_count() <= before


@pytest.mark.parametrize("find", [lambda a: a.shown, repr], ids=["shown", "repr"])
def test_addresses_are_shown_without_secrets(find: Callable[[Address], str]) -> None:
    assert "pw" not in find(Address.parse("https://me:pw@host:8/v1/?key=pw"))
    assert Address.parse("https://me:pw@host:8/v1/?key=pw").shown == "https://host:8/v1"


def test_a_command_line_is_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        "gate",
        "http://bob:hunter2@host:8765/v1#m",
        "https://host/v1?api-key=TOP#m",
        "postgresql://u:p@w@db/t",
        "a b.jsonl",
    ]
    monkeypatch.setattr("sys.argv", ["instar", *given])
    assert command() == "instar gate 'http://host:8765/v1#m' 'https://host/v1#m' postgresql://db/t 'a b.jsonl'"


def test_replies_have_one_bound() -> None:
    text = "x" * (wire.LARGEST - 1000)
    with serving(lambda h, _: h.raw(json.dumps({"choices": [{"message": {"content": text}}]}).encode())) as server:
        assert Endpoint(server.url).run(cases("one"), "generation").outputs == [text]
