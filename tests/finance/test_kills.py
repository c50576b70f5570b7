"""Killed at any moment and run again, a store is the one that was never disturbed, to the last byte."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import made_news as made
import pytest

pytest.importorskip("duckdb")
pytest.importorskip("exchange_calendars")

from instar.data.finance.catalogue import opened
from instar.data.finance.config import Config
from instar.data.finance.loading import verify
from instar.data.finance.pipeline import STAGES, NewsPricePipeline
from instar.errors import OutputError

PROGRAM = Path(__file__).with_name("killed.py")


def hashes(config: Config) -> dict[str, str]:
    with opened(config.store) as catalogue:
        return catalogue.hashes()


def undisturbed(root: Path) -> Config:
    news = made.jsonl(root / "news" / "dump.jsonl", made.articles(12))
    config = made.config(root, [str(news)], made.prices(root / "prices"))
    NewsPricePipeline(config, now=made.clock).run()
    return config


def killed(folder: Path, how: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, str(PROGRAM), str(folder), how], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["7", "20", "timer"])
def test_killed_again_and_again_it_ends_where_an_undisturbed_one_does(tmp_path: Path, how: str) -> None:
    # Paths of files are part of what a store remembers, so that both stand in a folder of the same name, one after the other.
    found = killed(tmp_path / "world", how)
    (tmp_path / "world").rename(tmp_path / "killed")
    config = undisturbed(tmp_path / "world")
    assert found["kills"] > (0 if how == "timer" else 3)  # how far it comes in some milliseconds is the machine's affair
    assert found["hashes"] == hashes(config)
    tables = {
        path.relative_to(tmp_path / "killed" / "store"): path.read_bytes()
        for path in (tmp_path / "killed" / "store" / "tables").rglob("*.*")
    }
    whole = {path.relative_to(config.store): path.read_bytes() for path in (config.store / "tables").rglob("*.*")}
    assert tables == whole  # byte for byte, and nothing left over


def test_stopped_after_every_stage_it_goes_on(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path / "world")
    expected = hashes(whole)
    (tmp_path / "world" / "store").rename(tmp_path / "first")
    for name in STAGES:
        NewsPricePipeline(whole, now=made.clock).run([name])
    assert hashes(whole) == expected


def test_a_full_disk_in_the_middle_is_told_and_room_again_is_enough(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path / "world")
    expected = hashes(whole)
    (tmp_path / "world" / "store").rename(tmp_path / "first")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (1_000, 60_000, None, 400, 1_500, 6_000):
        if room is None:  # there is room for the catalogue, and for the raw store
            NewsPricePipeline(whole, now=made.clock).run(["ingest"])
            continue
        process = os.fork()
        if process == 0:
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
                NewsPricePipeline(whole, now=made.clock).run()
                os._exit(1)
            except OutputError:
                os._exit(0)
            except BaseException:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, room
    NewsPricePipeline(whole, now=made.clock).run()
    assert hashes(whole) == expected
    assert verify(whole.store) == []
