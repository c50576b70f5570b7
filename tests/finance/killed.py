"""A program for the tests: build a small store in processes that are killed again and again, and say what came out.

`python killed.py FOLDER HOW`. HOW is a number n: each process is killed at its n-th action that lasts (a file put in its place,
a line of the manifest, rows into the catalogue before their commit); or "timer": after some milliseconds, more each time. Every
process is a fork of this one, which imports everything and opens nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import exchange_calendars  # noqa: F401 - imported once, before any fork
import made_news as made
import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401

from instar.data.finance import Config, NewsPricePipeline
from instar.data.finance.catalogue import Catalogue, opened

_MOST = 400


class Clock:
    """Counts durable actions of this process, and ends it at the n-th."""

    def __init__(self, last: int) -> None:
        self.left = last

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, action: Callable[..., Any]) -> Callable[..., Any]:
        def told(*given: Any, **named: Any) -> Any:
            self.tick()
            found = action(*given, **named)
            self.tick()
            return found

        return told


def child(config: Config, how: str, trial: int) -> None:
    """One process: killed, or ended with code 0."""
    if how == "timer":
        threading.Timer(0.02 * (trial + 1), lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    else:
        clock = Clock(int(how))
        os.replace = clock.around(os.replace)
        os.ftruncate = clock.around(os.ftruncate)
        Catalogue._insert = clock.around(Catalogue._insert)  # type: ignore[method-assign]
    NewsPricePipeline(config, now=made.clock).run()


def main(folder: Path, how: str) -> None:
    """Print {"kills": …, "hashes": …}."""
    assert duckdb.__version__
    files = [made.jsonl(folder / "news" / "dump.jsonl", made.articles(12))]
    config = made.config(folder, [str(path) for path in files], made.prices(folder / "prices"))
    for trial in range(_MOST):
        process = os.fork()
        if process == 0:
            child(config, how, trial)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        if status == 0:
            break
        assert os.WIFSIGNALED(status), f"process {trial} ended with {status}"
    else:
        raise AssertionError(f"not done after {_MOST} kills")
    with opened(config.store) as catalogue:
        print(json.dumps({"kills": trial, "hashes": catalogue.hashes()}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
