"""A small server that speaks the OpenAI API over loopback, and misbehaves on demand."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, body, dict(self.headers)))
        self.server.reply(self, body)

    def do_GET(self) -> None:
        self.json({"data": [{"id": name} for name in self.server.models]})

    def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.raw(json.dumps(value).encode(), status, headers)

    def raw(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client may have had enough
            self.wfile.write(data)

    def say(self, text: str | None, **more: Any) -> None:
        choice = {"message": {"role": "assistant", "content": text}, "text": text, "finish_reason": "stop"}
        self.json({"model": "tiny-2", "system_fingerprint": "fp_1", "choices": [choice], **more})

    def log_message(self, *_: Any) -> None:
        pass


class Api(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, reply: Reply, models: tuple[str, ...] = ("tiny",)) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.models = reply, models
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.lock = threading.Lock()
        self.gone = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(reply: Reply, models: tuple[str, ...] = ("tiny",)) -> Iterator[Api]:
    with Api(reply, models) as server:
        threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True).start()
        try:
            yield server
        finally:
            server.gone.set()
            server.shutdown()


def prompt(body: dict[str, Any]) -> str:
    """What the user says in a request."""
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


def echo(handler: Handler, body: dict[str, Any]) -> None:
    handler.say(prompt(body))


def hang(handler: Handler, _: dict[str, Any]) -> None:
    handler.server.gone.wait(20)


def drip_head(handler: Handler, _: dict[str, Any]) -> None:
    _drip(handler, b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 1000)


def drip_body(handler: Handler, _: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    _drip(handler, b" " * 1000)


def _drip(handler: Handler, data: bytes) -> None:
    with contextlib.suppress(OSError):
        for byte in data:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            if handler.server.gone.wait(0.03):
                return


def huge(handler: Handler, _: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(OSError):
        while not handler.server.gone.is_set():
            handler.wfile.write(b" " * 2**20)


def close(handler: Handler, _: dict[str, Any]) -> None:
    handler.connection.close()


def cut(handler: Handler, _: dict[str, Any]) -> None:
    handler.raw(b'{"choices": [', headers={"Content-Length": "100"})


def first(times: int, bad: Reply, then: Reply = echo) -> Reply:
    """`bad` for the first requests of each prompt, `then` afterwards."""
    seen: dict[str, int] = {}

    def reply(handler: Handler, body: dict[str, Any]) -> None:
        with handler.server.lock:
            seen[prompt(body)] = seen.get(prompt(body), 0) + 1
            now = seen[prompt(body)]
        (bad if now <= times else then)(handler, body)

    return reply


def status(code: int, headers: dict[str, str] | None = None, message: str = "no") -> Reply:
    return lambda handler, _: handler.json({"error": {"message": message}}, code, headers)


def stopwatch() -> Callable[[], float]:
    begin = time.monotonic()
    return lambda: time.monotonic() - begin
