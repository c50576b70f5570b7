"""A second change of the encoder before the first has ended, and one after its end: three generations in one store."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from digits import PARTS, PIXELS, encoded, expect, unit
from store_contract import quick_folder

from instar.errors import GenerationError
from instar.interfaces import Generation
from instar.retrieval.opening import open_index

N = 90
VECTORS, QUERIES = encoded(N)
FEWER = Generation(2, "fewer-components-of-digits", 10, "fewer")
VECTORS[2], QUERIES[2] = (unit(v[:, : FEWER.dim]) for v in (VECTORS[1], QUERIES[1]))
IDS = list(range(N))


@pytest.fixture(params=["postgres", "lancedb", "qdrant"])
def address(request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    pytest.importorskip({"postgres": "psycopg", "lancedb": "lancedb", "qdrant": "qdrant_client"}[request.param])
    if request.param == "postgres":
        yield lambda: f"{request.getfixturevalue('postgres')}#made {uuid.uuid4().hex}"
    else:
        with quick_folder() as folder:
            yield lambda: f"{request.param}:{folder}#made"


def test_three_generations_and_a_fourth(address: Callable[[], str]) -> None:
    url = address()
    where = [0] * N

    def move(places: range, generation: int) -> None:
        index.move(list(places), VECTORS[generation][places.start : places.stop], generation)
        for place in places:
            where[place] = generation
        expect(index, IDS, VECTORS, QUERIES, where)

    with open_index(url, create=PIXELS) as index:
        index.add(IDS, VECTORS[0], 0)
        index.begin(PARTS)
        move(range(60), 1)
        index.begin(FEWER)
        before = list(where)
        move(range(40, 75), 2)
        with pytest.raises(GenerationError, match="newest"):
            index.move([80], VECTORS[1][80:81], 1)
        with pytest.raises(GenerationError, match="still stand"):
            index.finish()
        index.rollback()
        where = before
        expect(index, IDS, VECTORS, QUERIES, where)
        index.begin(FEWER)
        move(range(N), 2)
        index.finish()
    with open_index(url) as index:
        assert [g.number for g in index.generations()] == [2]
        expect(index, IDS, VECTORS, QUERIES, where)
        index.begin(Generation(3, PIXELS.encoder + " again", 64))
        VECTORS[3], QUERIES[3] = VECTORS[0], QUERIES[0]
        move(range(30), 3)
        index.rollback()
        where = [2] * N
        expect(index, IDS, VECTORS, QUERIES, where)
        hits = index.search({**QUERIES, 9: QUERIES[0]}, 3)
        assert (hits.generations == 2).all()
        np.testing.assert_array_equal(hits.ids, index.nearest(2, QUERIES[2], 3).ids)


def test_ids_of_a_new_store_are_what_the_first_rows_bring(address: Callable[[], str]) -> None:
    url = address()
    text = str(uuid.UUID(int=5)) if url.startswith("qdrant") else "row 'five'"
    for name in (text, 5):
        at = url + ("" if name == 5 else "-t")
        with open_index(at, create=PIXELS) as index:
            index.add([name], VECTORS[0][:1], 0)
        with open_index(at, create=PIXELS) as index:
            assert index.ids(0) == [name]
            assert index.search(QUERIES, 2).ids[0].tolist() == [name, None]
    with pytest.raises(GenerationError, match="stamped already"):
        open_index(url, create=Generation(0, "another", 64))
