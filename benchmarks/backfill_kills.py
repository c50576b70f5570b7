"""Whether a backfill that is killed loses anything: kill -9, again and again, at random moments, in several kinds of store.

python benchmarks/backfill_kills.py --kills 50 --stores exact,faiss,usearch,postgres,lancedb,qdrant      (about 30 minutes)

Each store holds 2,500 real texts (the embedded collection) under LSA of 64 dimensions; a child process backfills it to LSA of 256
dimensions and is killed after a random time: while it opens the store, between batches, within a write. Now and then, and when
all rows have moved, a child that takes the generation back is killed as well. After every kill all rows are read back (the vector
of each must be the right one of the generation in which it stands, to the rounding of the store) and searched over both
generations: each must be found by its own vector, once. FAISS searches a graph, and the graphs of FAISS and usearch are kept in
snapshots every few batches, so that kills fall into these too. Qdrant runs in its local mode, with 500 texts.

Written to `results/backfill_kills.json`, where each store keeps its last run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from instar.bench import environment
from instar.data.collecting import open_collection
from instar.encoders.lsa import Lsa
from instar.interfaces import Floats, Generation, Index
from instar.retrieval import snapshots
from instar.retrieval.backfill import Backfill
from instar.retrieval.opening import adopt_index, open_index
from instar.retrieval.verify import Verification

RESULTS = Path(__file__).parent / "results"
ROWS, ASKED, BATCH = 2500, 200, 16
FEWER = {"qdrant": 500}
"""Rows of stores that look at each in Python, for every query."""
DIMS = (64, 256)
PROCESSES = multiprocessing.get_context("forkserver")
snapshots._LEAST = 200  # here and in the children, which import this module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--stores", default="exact,faiss,usearch,postgres,lancedb,qdrant")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    PROCESSES.set_forkserver_preload(["instar.retrieval.backfill", "instar.retrieval.exact"])
    with tempfile.TemporaryDirectory() as folder:
        vectors = encoded(Path(folder))
        for name in given.stores.split(","):
            found = killed(name, vectors, Path(folder), given.kills, given.seed)
            command = f"python benchmarks/backfill_kills.py --kills {given.kills} --stores {name} --seed {given.seed}"
            put({**found, "command": command, "environment": environment.describe(), "load": environment.load()})


def put(row: dict[str, Any]) -> None:
    """Take a store's run into the record, in place of its last one."""
    path = RESULTS / "backfill_kills.json"
    kept = {one["store"]: one for one in json.loads(path.read_text())["stores"]} if path.exists() else {}
    record = {"batch": BATCH, "stores": list({**kept, row["store"]: row}.values())}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def encoded(folder: Path) -> list[Floats]:
    """The same texts under the old and the new encoder, also in files for the children."""
    texts = open_collection("topics").texts
    assert texts is not None
    found = []
    for number, dims in enumerate(DIMS):
        found.append(Lsa.fit(texts, {"dims": dims}).encode(texts[:ROWS]))
        np.save(folder / f"{number}.npy", found[-1])
    return found


def generation(number: int) -> Generation:
    return Generation(number, f"lsa of {DIMS[number]} dimensions", DIMS[number])


@contextmanager
def address(kind: str, folder: Path) -> Iterator[str]:
    """The address of a new store, for as long as its server runs."""
    if kind == "postgres":
        import pgserver

        server = pgserver.get_server(str(folder / "postgres"), cleanup_mode="delete")
        try:
            server.psql("CREATE EXTENSION vector")
            yield f"{server.get_uri()}#passages"
        finally:
            server.cleanup()
    elif kind in ("lancedb", "qdrant"):
        yield f"{kind}:{folder / kind}#passages"
    else:
        yield f"{kind}:{folder / f'store.{kind}'}"


def killed(kind: str, vectors: Sequence[Floats], folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill so often, and look after every time."""
    vectors = [values[: FEWER.get(kind, ROWS)] for values in vectors]
    draw = random.Random(seed)
    seen: Counter[str] = Counter()
    problems: list[str] = []
    shares: list[float] = []
    started = time.perf_counter()
    with address(kind, folder) as url:
        fill(kind, url, vectors[0])
        backwards = False
        while seen["kills"] < kills:
            moment = one_kill(url, folder, draw, backwards)
            seen["kills"] += moment != "ended by itself"
            seen[moment + (" of a rollback" if backwards else " of a backfill")] += 1
            with open_index(url) as index:
                shares.append(look(index, vectors, problems))
                if backwards:
                    if len(index.generations()) > 1:
                        index.rollback()
                    look(index, vectors, problems)
                backwards = not backwards and (shares[-1] == 1 or draw.random() < 0.25)
        with open_index(url) as index:
            backfill(index, vectors[1])
            index.finish()
            last = look(index, vectors, problems)
    found = {
        "store": kind,
        "rows": len(vectors[0]),
        **seen,
        "rows_lost": sum(problem.startswith("lost") for problem in problems),
        "problems": problems,
        "shares_at_kills": shares,
        "all_new_at_the_end": last == 1,
        "seconds": round(time.perf_counter() - started, 1),
    }
    print({key: value for key, value in found.items() if key != "shares_at_kills"}, flush=True)
    return found


def fill(kind: str, url: str, vectors: Floats) -> None:
    """All rows, in generation 0."""
    if kind == "faiss":
        import faiss

        graph = faiss.IndexHNSWFlat(DIMS[0], 32, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efSearch = 64
        graph.add(vectors)
        faiss.write_index(graph, url.removeprefix("faiss:"))
        adopt_index(url, generation(0)).close()
        return
    with open_index(url, create=generation(0)) as index:
        index.add(list(range(len(vectors))), vectors, 0)


def one_kill(url: str, folder: Path, draw: random.Random, backwards: bool) -> str:
    """Start a child and kill it; says when."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=take_back if backwards else work, args=(url, folder, theirs))
    child.start()
    theirs.close()
    if draw.random() < 0.2:
        time.sleep(draw.uniform(0, 0.5))
    elif ours.poll(120):
        ours.recv()
        time.sleep(draw.uniform(0, 0.02 if backwards else 0.4))
    running = child.is_alive()
    child.kill()
    child.join()
    progress = ours.poll()
    return "kills in the middle" if running and progress else "kills early" if running else "ended by itself"


def work(url: str, folder: Path, say: Any) -> None:
    """The child: backfill, and say so after every batch."""
    with open_index(url) as index:
        backfill(index, np.load(folder / "1.npy"), lambda done, total: say.send(done))


def take_back(url: str, folder: Path, say: Any) -> None:
    """The child: roll back."""
    with open_index(url) as index:
        say.send(0)
        say.send(0)
        index.rollback()


def backfill(index: Index, vectors: Floats, progress: Any = None) -> None:
    """To the new generation; the "text" of a row is its number, and encoding it is looking it up."""
    texts = {str(i): str(i) for i in range(len(vectors))}
    Backfill(
        index, generation(1), lambda names: vectors[[0 if " " in name else int(name) for name in names]], texts, batch=BATCH,
        verify=Verification(2),
    ).run(progress)  # fmt: skip


def look(index: Index, vectors: Sequence[Floats], problems: list[str]) -> float:
    """Read everything back; what is wrong is put into `problems`. Returns the share of new rows."""
    counts, rows = index.counts(), len(vectors[0])
    if sum(counts.values()) != rows:
        problems.append(f"lost: {rows - sum(counts.values())} rows in {counts}")
    found, numbers = index.fetch(list(range(rows)))
    wrong = [i for i, (v, n) in enumerate(zip(found, numbers, strict=True)) if np.abs(v - vectors[n][i]).max() > 1e-4]
    if wrong:
        problems.append(f"wrong vectors: {len(wrong)} rows, the first is {wrong[0]}")
    listed = [name for number in counts for name in index.ids(number, limit=2 * rows)]
    if sorted(listed) != list(range(rows)):
        problems.append(f"lost: {rows - len(set(listed))} ids are not listed, {len(listed) - len(set(listed))} twice")
    queries = {g.number: vectors[g.number][:ASKED] for g in index.generations()}
    hits = index.search(queries, 10)
    for place in range(ASKED):
        names = list(hits.ids[place])
        best = [name for name, score in zip(names, hits.scores[place], strict=True) if score > 0.999]
        if place not in best or len(set(names)) < len(names):
            problems.append(f"lost: row {place} is not found by its own vector, or something is found twice: {names}")
    return counts.get(1, 0) / rows


if __name__ == "__main__":
    main()
