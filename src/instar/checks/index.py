"""The contract of an index, for any kind of store.

>>> from instar.checks.index import Stores, check_index
>>> [o for o in check_index(Stores(make=my_package.make, open=my_package.open)) if o.status == "failed"]       # doctest: +SKIP

Each check makes its own index and can be called alone: it returns None or raises ContractError.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from instar.checks import Outcome
from instar.checks.arguments import refused
from instar.checks.index_processes import check_killed_moving, check_killed_rollback, check_readers
from instar.checks.index_world import NEW, OLD, Stores, World, pages
from instar.errors import ContractError, DataError, GenerationError, InstarError, ShapeError
from instar.interfaces import Generation

__all__ = [
    *("CONTRACT", "NEW", "OLD", "Stores", "World", "check_index", "check_killed_moving", "check_killed_rollback"),
    *("check_readers", "make_exact", "open_address"),
]


def check_stages(stores: Stores) -> None:
    """Rows, vectors and results are what brute force says: before, at 0, 30 and 100 %, after a rollback, and after the end."""
    world = World(stores)
    order = np.random.default_rng(2).permutation(stores.rows)
    with stores.open(world.made(), False) as index:
        world.require(index, "Before a change")
        for turn in ("", " of the second change"):
            index.begin(NEW)
            world.require(index, f"At 0 %{turn}")
            world.move(index, order[: stores.rows * 3 // 10])
            world.require(index, f"At 30 %{turn}")
            world.move(index, order)  # those that moved already are moved again
            world.require(index, f"At 100 %{turn}")
            if not turn:
                index.rollback()
                world.moved[:] = False
                world.require(index, "After a rollback")
        index.finish()
        world.require(index, "After the end")
        if [g.number for g in index.generations()] != [1]:
            raise ContractError(f"After the end the generations are {index.generations()}, expected the new one alone.")


def check_reopened(stores: Stores) -> None:
    """What returned is there after closing and opening again, at every stage."""
    world = World(stores)
    url = world.made()

    def again(stage: str) -> None:
        with stores.open(url, False) as index:
            world.require(index, f"Opened again after {stage}")

    again("it was made")
    with stores.open(url, False) as index:
        index.begin(NEW)
        world.move(index, np.arange(0, stores.rows, 3))
    again("a third had moved")
    with stores.open(url, False) as index:
        index.rollback()
    world.moved[:] = False
    again("a rollback")
    with stores.open(url, False) as index:
        index.begin(NEW)
        world.move(index, np.arange(stores.rows))
        index.finish()
    again("the end")


def check_repeated(stores: Stores) -> None:
    """`begin` and `move` may be repeated; a row that is moved again has its last vector."""
    world = World(stores)
    some = np.arange(0, stores.rows, 4)
    with stores.open(world.made(), False) as index:
        index.begin(NEW)
        index.begin(NEW)
        for _ in range(2):
            world.move(index, some)
        index.move([world.ids[0], world.ids[4]], world.new[[4, 0]], 1)
        index.move([world.ids[1]], world.new[[1]], 1)
        world.moved[1] = True
        index.move([world.ids[0], world.ids[4]], world.new[[0, 4]], 1)
        world.require(index, "After moves that were repeated")


def check_removed(stores: Stores) -> None:
    """Rows that are removed during a change are gone in every generation, also after a rollback; they can be added again."""
    world = World(stores)
    with stores.open(world.made(), False) as index:
        index.begin(NEW)
        world.move(index, np.arange(0, 100))
        places = np.array([0, 50, 150, 151])
        index.remove([world.ids[i] for i in places])
        world.gone[places] = True
        world.require(index, "After rows were removed during a change")
        refused("fetch of a removed id", lambda: index.fetch([world.ids[0]]), DataError)
        refused("move of a removed id", lambda: index.move([world.ids[0]], world.new[[0]], 1), DataError)
        index.add([world.ids[150]], world.new[[150]], 1)
        world.gone[150], world.moved[150] = False, True
        world.require(index, "After a removed row was added in the new generation")
        refused("rollback while a row has no older vector", index.rollback, GenerationError)
        world.require(index, "After the refused rollback")
        index.remove([world.ids[150]])
        index.rollback()
        world.gone[150], world.moved[:] = True, False
        world.require(index, "After rows were removed and the change was rolled back")
        index.add([world.ids[i] for i in places], world.old[places], 0)
        world.gone[:] = False
        world.require(index, "After removed rows were added again")


def check_pages(stores: Stores) -> None:
    """Pages of ids list each row once, in an order that stays while rows move away; a page goes on after a row that moved."""
    world = World(stores)
    with stores.open(world.made(), False) as index:
        index.begin(NEW)
        order = pages(index, 0, 7)
        if order != pages(index, 0, 1000) or len(order) != stores.rows:
            raise ContractError(f"Pages of 7 ids list {len(order)} rows in another order than one page of all {stores.rows}.")
        first = index.ids(0, limit=20)
        at = {name: i for i, name in enumerate(world.ids)}
        moved = [*first[10:], order[25]]  # the row that the next page begins after is among them
        world.move(index, np.array([at[name] for name in moved]))
        rest = index.ids(0, after=first[-1], limit=stores.rows)
        if rest != [name for name in order[20:] if name != order[25]]:
            raise ContractError("A page after a row that has moved since does not go on where the page before ended.")
        if set(pages(index, 1, 3)) != set(moved):
            raise ContractError("The pages of the new generation do not list the rows that moved.")


def check_edges(stores: Stores) -> None:
    """More results than rows, no queries, one query, changes of no rows."""
    world = World(stores)
    everything = np.ones(stores.rows, bool)
    with stores.open(world.made(), False) as index:
        index.begin(NEW)
        world.move(index, np.arange(5))
        empty = {g: q[:0] for g, q in world.queries.items()}
        if index.search(empty, 3).ids.shape != (0, 3) or index.nearest(0, empty[0], 3).scores.shape != (0, 3):
            raise ContractError("A search with 0 queries gives [0, k].")
        k = stores.rows + 10
        hits = index.nearest(1, world.queries[1], k)
        world.require_hits(hits, world.moved, "More results than rows", k)
        world.require_hits(index.search(world.queries, k), everything, "More results than rows, search", k)
        if index.ids(0, limit=0) or index.ids(0, limit=-1):
            raise ContractError("A page of 0 ids has no ids.")
        index.move([], world.new[:0], 1)
        world.require(index, "After a move of no rows")


def check_refusals(stores: Stores) -> None:
    """Strangers and bad vectors are refused by the right error, and change nothing."""
    world = World(stores)
    a, b = world.ids[0], world.ids[1]
    fresh: Any = 10**6 if stores.ids == "int" else "fresh"
    two = world.new[:2]
    nan, zero, longer = two.copy(), two.copy(), two * np.float32(1.5)
    nan[1, 3], zero[1] = np.nan, 0
    with stores.open(world.made(), False) as index:
        refused("rollback of the only generation", index.rollback, GenerationError)
        refused("move before begin", lambda: index.move([a], world.new[:1], 1), GenerationError)
        refused("begin that leaves a number out", lambda: index.begin(Generation(2, "c" * 64, 32)), GenerationError)
        refused("begin of a held number by another encoder", lambda: index.begin(Generation(0, "c" * 64, 24)), GenerationError)
        refused("begin with the encoder of an older one", lambda: index.begin(Generation(1, OLD.encoder, 24)), GenerationError)
        index.begin(NEW)
        refused("begin by another encoder while one is open", lambda: index.begin(Generation(1, "c" * 64, 32)), GenerationError)
        refused("finish while rows are old", lambda: index.finish(), GenerationError)
        bad: tuple[tuple[str, Any, Any, type[InstarError]], ...] = (
            ("another width", [a, b], two[:, :-1], ShapeError),
            ("float64", [a, b], two.astype(np.float64), ShapeError),
            ("a single vector", [a], two[0], ShapeError),
            ("fewer vectors than ids", [a, b], two[:1], ShapeError),
            ("NaN", [a, b], nan, DataError),
            ("a zero row", [a, b], zero, DataError),
            ("vectors that are not unit vectors", [a, b], longer, DataError),
            ("an id twice", [a, a], two, DataError),
            ("an id that is no id", [a, 1.5], two, DataError),
        )
        for name, ids, vectors, error in bad:
            refused(f"move of {name}", functools.partial(index.move, ids, vectors, 1), error)
        refused("move of an unknown id", lambda: index.move([a, fresh], two, 1), DataError)
        refused("move to an older generation", lambda: index.move([a], world.old[:1], 0), GenerationError)
        refused("add to an unknown generation", lambda: index.add([fresh], two[:1], 5), GenerationError)
        refused("add of an id that exists", lambda: index.add([fresh, a], two, 1), DataError)
        refused("add of NaN", lambda: index.add([fresh, b], nan, 1), DataError)
        refused("remove of an unknown id", lambda: index.remove([a, fresh]), DataError)
        refused("fetch of an unknown id", lambda: index.fetch([a, fresh]), DataError)
        refused("nearest in an unknown generation", lambda: index.nearest(7, world.queries[1], 3), GenerationError)
        refused("queries of another width", lambda: index.nearest(1, world.queries[0], 3), ShapeError)
        refused("queries with NaN", lambda: index.nearest(1, nan, 3), DataError)
        refused("k = 0", lambda: index.nearest(1, two, 0), ShapeError)
        refused("search without queries for old rows", lambda: index.search({1: world.queries[1]}, 3), GenerationError)
        world.require(index, "After everything that was refused")


CONTRACT: tuple[Callable[[Stores], None], ...] = (
    *(check_stages, check_reopened, check_repeated, check_removed, check_pages, check_edges, check_refusals),
    *(check_readers, check_killed_moving, check_killed_rollback),
)
_PROCESSES = (check_readers,)


def check_index(stores: Stores) -> list[Outcome]:
    """Run the whole contract. A crash inside a check is a failed outcome that names the exception."""
    outcomes = []
    for one in CONTRACT:
        name = one.__name__.removeprefix("check_")
        if one in _PROCESSES and not stores.processes:
            outcomes.append(Outcome(name, "skipped", "one process at a time", 0.0))
            continue
        begin, message = time.perf_counter(), ""
        try:
            one(stores)
        except ContractError as error:
            message = str(error)
        except Exception as error:  # whatever a stranger's code raises is a finding
            message = f"raised {type(error).__name__}: {error}"
        outcomes.append(Outcome(name, "failed" if message else "passed", message, time.perf_counter() - begin))
    return outcomes
