"""Every store keeps the contract of an index, and the contract notices stores that do not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import index_defects as defects
import numpy as np
import pytest
import usearch.index

from instar.checks import index as contract
from instar.checks.index import Stores
from instar.errors import ContractError
from instar.interfaces import Floats, Generation, Id
from instar.retrieval.exact import ExactIndex
from instar.retrieval.faiss_index import FaissIndex
from instar.retrieval.usearch_index import UsearchIndex

Make = Callable[[Generation, Sequence[Id], Floats], str]


def _exact(folder: Path, generation: Generation, ids: Sequence[Id], vectors: Floats) -> str:
    place = _fresh(folder)
    ExactIndex.adopt(str(place), generation=generation, vectors=vectors, ids=ids).close()
    return f"exact:{place}"


def _faiss(factory: str, metric: int, folder: Path, generation: Generation, ids: Sequence[Id], vectors: Floats) -> str:
    index, place = faiss.index_factory(generation.dim, factory, metric), _fresh(folder) / "own.faiss"
    index.train(vectors)
    if factory.startswith("IVF"):
        index.nprobe = 4
    if "HNSW" in factory:
        faiss.downcast_index(getattr(index, "index", index)).hnsw.efSearch = 64
    named = isinstance(ids[0], str)
    if factory.startswith(("IVF", "IDMap")) and not named:
        index.add_with_ids(vectors, np.asarray(ids))
    else:
        index.add(vectors)
    faiss.write_index(index, str(place))
    FaissIndex.adopt(str(place), generation=generation, ids=ids if named else None).close()
    return str(place)


def _usearch(metric: str, dtype: str, folder: Path, generation: Generation, ids: Sequence[Id], vectors: Floats) -> str:
    index, place = usearch.index.Index(ndim=generation.dim, metric=metric, dtype=dtype), _fresh(folder) / "own.usearch"
    named = isinstance(ids[0], str)
    index.add(np.arange(len(ids)) if named else np.asarray(ids), vectors)
    index.save(str(place))
    UsearchIndex.adopt(str(place), generation=generation, ids=ids if named else None).close()
    return str(place)


def _fresh(folder: Path) -> Path:
    place = folder / str(len(list(folder.iterdir())))
    place.mkdir()
    return place


IP, L2 = faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2
STORES = {
    "exact": (_exact, Stores()),
    "exact, numbers": (_exact, Stores(ids="int")),
    "faiss flat": (functools.partial(_faiss, "Flat", IP), Stores(ids="int")),
    "faiss flat, L2, map of ids": (functools.partial(_faiss, "IDMap2,Flat", L2), Stores(ids="int")),
    "faiss graph, list of ids": (functools.partial(_faiss, "HNSW16", IP), Stores(recall=0.95)),
    "faiss graph, map of ids, L2": (functools.partial(_faiss, "IDMap,HNSW16", L2), Stores(ids="int", recall=0.95)),
    "faiss cells": (functools.partial(_faiss, "IVF8,Flat", IP), Stores(ids="int", recall=0.9)),
    "usearch": (functools.partial(_usearch, "cos", "f32"), Stores(ids="int", recall=0.95)),
    "usearch, bf16, list of ids": (functools.partial(_usearch, "ip", "bf16"), Stores(recall=0.9, tolerance=8e-3)),
}


# What the processes of one journal do is the same for all that keep one: a kind of base each is enough.
PROCESSES = (contract.check_readers, contract.check_killed_moving, contract.check_killed_rollback)
CASES = [
    (name, check)
    for name in STORES
    for check in contract.CONTRACT
    if check not in PROCESSES or name in ("exact", "faiss graph, list of ids", "usearch")
]


@pytest.mark.parametrize(("name", "check"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_contract(name: str, check: Callable[[Stores], None], tmp_path: Path) -> None:
    make, stores = STORES[name]
    check(Stores(**{**stores.__dict__, "make": functools.partial(make, tmp_path)}))


@pytest.mark.parametrize("name", ["faiss graph, list of ids", "faiss cells", "usearch"])
def test_stages_of_an_index_that_is_large_enough_to_be_searched_approximately(name: str, tmp_path: Path) -> None:
    make, stores = STORES[name]
    contract.check_stages(Stores(**{**stores.__dict__, "make": functools.partial(make, tmp_path), "rows": 3000}))


@pytest.mark.parametrize(
    ("defect", "check", "words"),
    [
        (defects.FindsMovedRows, "stages", "does not stand there"),
        (defects.LosesARowOfEveryMove, "stages", "counts says"),
        (defects.RoundsScores, "stages", "not the cosines"),
        (defects.ForgetsWhatItClosed, "reopened", "counts says"),
        (defects.RollsBackAllButARow, "stages", "After a rollback: counts says"),
        (defects.SkipsARowBetweenPages, "pages", "Pages of 7 ids list"),
        (defects.BringsRemovedRowsBack, "removed", "counts says"),
        (defects.TakesAnything, "refusals", "went through"),
        (defects.LetsStrangersBegin, "refusals", "went through"),
        (defects.ReturnsTooFew, "edges", "expected 20 x"),
        (defects.DropsEquals, "stages", "of the 10 nearest"),
        (defects.MovesRowByRow, "killed_moving", "rows of a batch have moved"),
        (defects.ReadsOnlyAtOpening, "readers", "still found in the old generation"),
        (defects.LooksAtTheNewestFirst, "readers", "results"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_defect_is_caught(defect: type[ExactIndex], check: str, words: str) -> None:
    stores = Stores(open=functools.partial(defects.opened, defect))
    with pytest.raises(ContractError, match=words):
        getattr(contract, f"check_{check}")(stores)


def test_the_whole_contract_is_reported() -> None:
    outcomes = {outcome.name: outcome for outcome in contract.check_index(Stores(processes=False, rows=200))}
    assert outcomes.pop("readers").status == "skipped"
    assert {outcome.status for outcome in outcomes.values()} == {"passed"}
    assert len(outcomes) == len(contract.CONTRACT) - 1
