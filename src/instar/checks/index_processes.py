"""What an index owes to other processes: readers beside a writer, and writers that are killed at any moment."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from instar.checks.index_world import NEW, Stores, World, make_exact
from instar.errors import ContractError, GenerationError
from instar.interfaces import Index

_WAIT = 60.0
"""Seconds until a child that says nothing is given up."""


def check_readers(stores: Stores) -> None:
    """A reader in another process sees every row exactly once, with its right score, at every moment of a change."""
    world = World(stores)
    url = world.made()
    with stores.open(url, False) as index:
        index.begin(NEW)
        with _child(_reader, stores, url) as (pipe, _):
            _said(pipe, "searching")
            order = np.random.default_rng(1).permutation(stores.rows)
            for turn in range(2):
                world.move(index, order, batch=16)
                if turn == 0:
                    index.rollback()
                    world.moved[:] = False
                    index.begin(NEW)
            index.finish()
            pipe.send("stop")
            searches, complaint = _said(pipe, "done")
    if complaint:
        raise ContractError(f"A reader beside the writer, search {searches}: {complaint}")
    if searches < 3:
        raise ContractError(f"The reader could search only {searches} times during the whole change.")


def check_killed_moving(stores: Stores, rounds: int = 3, seed: int = 0) -> None:
    """kill −9 in the middle of moves: every batch is there as a whole or not at all, what was reported is there, no row is lost.

    Then the index goes on to the end. `rounds`: how many times one and the same change is killed.
    """
    world = World(stores)
    url = world.made()
    with stores.open(url, False) as index:
        index.begin(NEW)
    generator = np.random.default_rng(seed)
    for number in range(rounds):
        with _child(_mover, stores, url, seed) as (pipe, process):
            _said(pipe, "moving")
            time.sleep(generator.uniform(0, 0.15))
            _kill(process)
            reported = _heard(pipe)
        with stores.open(url, False) as index:
            _take_over(world, index, reported, seed, f"after kill {number + 1}")
            world.require(index, f"After kill {number + 1} in the middle of moves")
    with stores.open(url, False) as index:
        world.move(index, np.flatnonzero(~world.moved))
        index.finish()
        world.require(index, "After the change that was killed went on to its end")


def check_killed_rollback(stores: Stores, rounds: int = 2, seed: int = 0) -> None:
    """kill −9 during a rollback: it happened for all rows or for none, and calling it again ends it."""
    generator = np.random.default_rng(seed)
    for number in range(rounds):
        world = World(stores)
        url = world.made()
        with stores.open(url, False) as index:
            index.begin(NEW)
            world.move(index, np.arange(stores.rows // 2), batch=16)
        with _child(_roller, stores, url) as (pipe, process):
            _said(pipe, "rolling back")
            time.sleep(generator.uniform(0, 0.03))
            _kill(process)
        with stores.open(url, False) as index:
            if len(index.generations()) == 1:
                world.moved[:] = False
            world.require(index, f"After kill {number + 1} during a rollback")
            try:
                index.rollback()
            except GenerationError:
                if len(index.generations()) != 1:
                    raise
            world.moved[:] = False
            world.require(index, f"After the rollback that was killed ({number + 1}) was called again")


def _take_over(world: World, index: Index, reported: list[int], seed: int, stage: str) -> None:
    """What has moved, by the index itself, held against whole batches and what the killed process had reported."""
    _, generations = index.fetch(world.ids)
    moved = np.array(generations) == 1
    for number, batch in enumerate(_batches(len(moved), seed)):
        if world.stores.whole and moved[batch].any() != moved[batch].all():
            raise ContractError(f"{stage}: {int(moved[batch].sum())} of the {len(batch)} rows of a batch have moved.")
        if number in reported and not moved[batch].all():
            raise ContractError(f"{stage}: batch {number} had been moved and reported, and is gone.")
    if lost := int((world.moved & ~moved).sum()):
        raise ContractError(f"{stage}: {lost} rows that had moved before are old again.")
    world.moved = moved


def _batches(rows: int, seed: int) -> list[Any]:
    return np.array_split(np.random.default_rng(seed).permutation(rows), max(rows // 5, 1))


def _mover(stores: Stores, url: str, seed: int, pipe: Connection) -> None:
    world = World(stores)
    with stores.open(url, False) as index:
        _, generations = index.fetch(world.ids)
        pipe.send(("moving", None))
        for number, batch in enumerate(_batches(stores.rows, seed)):
            if generations[batch[0]] == 0:
                index.move([world.ids[i] for i in batch], world.new[batch], 1)
                pipe.send(("moved", number))
    time.sleep(_WAIT)


def _roller(stores: Stores, url: str, pipe: Connection) -> None:
    with stores.open(url, False) as index:
        index.counts()
        pipe.send(("rolling back", None))
        index.rollback()
    time.sleep(_WAIT)


def _reader(stores: Stores, url: str, pipe: Connection) -> None:
    world = World(stores)
    true = {g: world.queries[g].astype(np.float64) @ v.T for g, v in ((0, world.old), (1, world.new))}
    place = {name: i for i, name in enumerate(world.ids)}
    searches, complaint = 0, ""
    try:
        with stores.open(url, True) as index:
            pipe.send(("searching", None))
            while not pipe.poll() and not complaint:
                hits = index.search(world.queries, stores.rows)
                searches += 1
                complaint = _complaint(hits, true, place, stores)
            if not complaint and (index.search(world.queries, stores.rows).generations == 0).any():
                complaint = "after the change had ended, a row is still found in the old generation."
    except Exception as error:  # a finding, told to the parent
        complaint = f"raised {type(error).__name__}: {error}"
    pipe.send(("done", (searches, complaint)))
    pipe.recv()


def _complaint(hits: Any, true: dict[int, Any], place: dict[Any, int], stores: Stores) -> str:
    for row in range(len(hits.ids)):
        names = [name for name in hits.ids[row] if name is not None]
        if len(set(names)) != len(names) or len(names) < stores.recall * len(place):
            return f"{len(names)} results, {len(set(names))} of them different, for {len(place)} rows."
        at, generations = [place[name] for name in names], hits.generations[row, : len(names)]
        expected = np.where(generations == 1, true[1][row, at], true[0][row, at])
        if np.abs(hits.scores[row, : len(names)] - expected).max() > stores.tolerance:
            return "scores are not the cosines of the vectors of the generation that is told."
    return ""


@contextmanager
def _child(work: Callable[..., None], stores: Stores, *arguments: Any) -> Iterator[tuple[Connection, Any]]:
    """A process that runs `work(stores, *arguments, pipe)`; it is killed at the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["instar.checks.index_processes"])
    ours, theirs = context.Pipe()
    # What makes an index stays here: it may be a function that no other process could import.
    sent = dataclasses.replace(stores, make=make_exact)
    process = context.Process(target=work, args=(sent, *arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours, process
    finally:
        _kill(process)
        ours.close()


def _kill(process: Any) -> None:
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def _said(pipe: Connection, what: str) -> Any:
    try:
        if pipe.poll(_WAIT):
            kind, content = pipe.recv()
            if kind == what:
                return content
    except (EOFError, OSError):
        pass
    raise ContractError(f"The other process ended or was silent before it was {what}: does the store open from two processes?")


def _heard(pipe: Connection) -> list[int]:
    found = []
    try:
        while pipe.poll():
            found.append(pipe.recv()[1])
    except (EOFError, OSError):
        pass
    return found
