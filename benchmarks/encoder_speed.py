"""What a change of encoder costs in time, against the goals that were set before.

python benchmarks/encoder_speed.py training      heads on 100,000 pairs of 384 dimensions, one core (goal: 3 minutes)
python benchmarks/encoder_speed.py projection    `project` against the bare matrix product of the same shape (goal: 1.3 times)
python benchmarks/encoder_speed.py search        a half-changed index against one of new rows, same store (goal: 1.15 times)
python benchmarks/encoder_speed.py backfill      backfill against the encoder alone on the same texts (goal: 1.2 times)
python benchmarks/encoder_speed.py report        the report on 20,000 texts beyond encoding (goal: 3 minutes)

One thread. What is compared is measured round by round in turn in one process; minimum and median of the rounds. Vectors are of
real texts (MiniLM on the sentences of CLINC150 and on Python's documentation) where their content matters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from turns import Call, spread, turns

from instar import catalogue
from instar.bench import environment
from instar.compat import pairs as pairing
from instar.errors import MissingExtraError
from instar.interfaces import Generation, Index

RESULT = Path(__file__).parent / "results" / "encoder_speed.json"
ROUNDS = 9
DIM = 384
STORES = {
    **{"exact": 100_000, "faiss flat": 100_000, "lancedb": 100_000},
    **{"exact, fewer": 20_000, "faiss hnsw": 20_000, "usearch": 20_000, "postgres hnsw": 20_000},
}
"""With how many rows: a graph takes minutes to build."""


def main(asked: list[str]) -> None:
    torch.set_num_threads(1)
    known = {"training": training, "projection": projection, "search": search, "backfill": backfill, "report": report}
    for name in asked or known:
        print(f"== {name}")
        keep(name, known[name]())


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    """Add to the record, beside what other parts measured."""
    held = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    command = f"python benchmarks/encoder_speed.py {name}"
    held[name] = {"command": command, "environment": environment.describe(), "load": environment.load(), "rows": rows}
    RESULT.write_text(json.dumps(held, indent=1) + "\n")


def rounds(parts: dict[str, Call], count: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Seconds of each part, in turn."""
    return {name: spread(one.wall) for name, one in turns(parts, count).items()}


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def related(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors under two encoders that share much: a rotation and noise. What is timed does not depend on their content."""
    draw = np.random.default_rng(seed)
    new = unit(draw.standard_normal((count, DIM)).astype(np.float32))
    turn = np.linalg.qr(draw.standard_normal((DIM, DIM)))[0].astype(np.float32)
    return unit(new @ turn + 0.02 * draw.standard_normal((count, DIM)).astype(np.float32)), new


def training() -> list[dict[str, Any]]:
    """Seconds of `fit` with its own number of steps, with labels of 1,000 classes."""
    old, new = related(100_000)
    labels = np.random.default_rng(1).integers(0, 1000, len(new)).tolist()
    pairs = pairing.of(old, new, labels)
    found = []
    for slug, card in catalogue.methods().items():
        if card.interface != "CompatibleHead":
            continue
        head = catalogue.Build(card, catalogue.load(card), {})(DIM, old_dim=DIM)
        begin, cpu = time.perf_counter(), time.process_time()
        head.fit(pairs, seed=0)
        found.append({"head": slug, "seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu})
        print(f"{slug:18} {found[-1]['seconds']:7.1f} s  (CPU {found[-1]['cpu_seconds']:.1f} s)", flush=True)
    return found


def projection() -> list[dict[str, Any]]:
    """Projecting 4,096 and 1 vectors; the bare product has the shape of the head's largest factor, or of all for networks."""
    old, new = related(5_000)
    pairs = pairing.of(old, new)
    found = []
    for slug, card in catalogue.methods().items():
        if card.interface != "CompatibleHead" or slug == "no_map":
            continue
        head = catalogue.Build(card, catalogue.load(card), {})(DIM, old_dim=DIM)
        head.fit(pairs, steps=20, seed=0)
        weights = [p for p in head.state_dict().values() if p.ndim == 2 and min(p.shape) > 1]
        for batch in (4096, 1):
            x = torch.from_numpy(new[:batch])
            inputs = [torch.randn(batch, w.shape[1]) for w in weights]

            def bare(weights: list[torch.Tensor] = weights, inputs: list[torch.Tensor] = inputs) -> None:
                for w, i in zip(weights, inputs, strict=True):
                    i @ w.T

            with torch.inference_mode():
                repeats = 1 if batch > 1 else 200
                took = rounds({
                    "project": lambda x=x, head=head, n=repeats: [head.project(x, 0) for _ in range(n)],
                    "bare": lambda n=repeats, bare=bare: [bare() for _ in range(n)],
                })  # fmt: skip
            row = {"head": slug, "batch": batch, "products": [list(w.shape) for w in weights], **took}
            row["ratio"] = took["project"]["min"] / took["bare"]["min"]
            found.append(row)
            print(f"{slug:18} batch {batch:5}: {row['ratio']:.2f} times the bare products", flush=True)
    return found


def search() -> list[dict[str, Any]]:
    """Latency of one query (k = 10): all rows changed, and half of them, apart and in one padded space.

    recall: of what the exact index of the same rows finds in the same layout.
    """
    found = []
    exact: dict[tuple[int, str], Any] = {}
    for store, count in STORES.items():
        old, new, norm = nested(count)
        draw = np.random.default_rng(2)
        asked = unit(new[:64] + 0.3 * draw.standard_normal((64, DIM)).astype(np.float32) / np.sqrt(DIM))
        both = {0: unit(asked[:, : old.shape[1]]), 1: asked}
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            try:
                made = _stores(store, folder, old, new, norm, stack)
            except MissingExtraError as error:
                print(f"{store}: left out ({error})")
                continue

            def ask(index: Index, queries: dict[int, np.ndarray]) -> list[Any]:
                return [index.search({g: of[i : i + 1] for g, of in queries.items()}, 10) for i in range(16)]

            queries = {name: {0: asked} if name == "whole" else both for name in made}
            took = rounds({name: partial(ask, index, queries[name]) for name, index in made.items()})
            row: dict[str, Any] = {"store": store, "rows": count, **took}
            for name, index in made.items():
                ids = index.search(queries[name], 10).ids
                truth = exact.setdefault((count, name), ids)
                recall = float(np.mean([len(set(h) & set(t)) / 10 for h, t in zip(ids, truth, strict=True)]))
                row[name] |= {"recall": recall, "ratio": took[name]["min"] / took["whole"]["min"]}
            found.append(row)
            said = ", ".join(f"{name} {row[name]['ratio']:.2f} times (recall {row[name]['recall']:.2f})" for name in made)
            print(f"{store:14} {count} rows, whole {took['whole']['min'] / 16 * 1e3:.3f} ms: {said}", flush=True)
    return found


def nested(count: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Old vectors, new ones whose beginnings are nearly the old ones, and the mean length of those beginnings.

    They vary mostly in 48 directions, as vectors of texts do; a graph over directions at random finds next to nothing.
    """
    draw = np.random.default_rng(0)
    mix = draw.standard_normal((48, DIM)).astype(np.float32)
    new = unit(draw.standard_normal((count, 48)).astype(np.float32) @ mix + draw.standard_normal((count, DIM)).astype(np.float32))
    start = new[:, : DIM - 32]
    old = unit(start + 0.02 * draw.standard_normal(start.shape).astype(np.float32) / np.sqrt(DIM))
    return old, new, float(np.linalg.norm(start, axis=1).mean())


def _stores(
    store: str, folder: Path, old: np.ndarray, new: np.ndarray, norm: float, stack: contextlib.ExitStack
) -> dict[str, Index]:
    """An index of new rows alone, and ones of which half the rows have moved."""
    from instar.retrieval.journalled import JournalledIndex
    from instar.retrieval.padded import pad

    server: Any = None
    if store.startswith("postgres"):
        import pgserver

        server = pgserver.get_server(folder / "pg")
        stack.callback(server.cleanup)
        server.psql("CREATE EXTENSION IF NOT EXISTS vector")
    first, second = (Generation(i, name, rows.shape[1], name) for i, (name, rows) in enumerate((("old", old), ("new", new))))
    made = {"whole": _filled(store, folder, "whole", new, dataclasses.replace(second, number=0), server)}
    stack.callback(made["whole"].close)
    for name in ("apart", "padded"):
        index = _filled(store, folder, name, old, first, server)
        stack.callback(index.close)
        if name == "padded":
            if not isinstance(index, JournalledIndex) or store == "usearch":
                continue
            pad(index, DIM, norm)
        index.begin(second)
        moved = np.random.default_rng(3).permutation(len(old))[: len(old) // 2]
        for start in range(0, len(moved), 10_000):
            part = moved[start : start + 10_000]
            index.move([int(i) for i in part], new[part], 1)
        made[name] = index
    return made


def _filled(store: str, folder: Path, name: str, rows: np.ndarray, generation: Generation, server: Any) -> Index:
    from instar.retrieval.opening import open_index

    if "faiss" in store:
        return _faiss(folder / f"{name}.faiss", store, rows, generation)
    address = {
        "exact": f"exact:{folder / name}",
        "exact, fewer": f"exact:{folder / name}",
        "usearch": f"usearch:{folder / name}.usearch",
        "lancedb": f"lancedb:{folder / 'lance'}#{name}",
        "postgres hnsw": f"{server.get_uri()}#{name}" if server else "",
    }
    index = open_index(address[store], create=generation)
    for start in range(0, len(rows), 10_000):
        part = rows[start : start + 10_000]
        index.add(list(range(start, start + len(part))), part, 0)
    if server is not None:
        server.psql(f'CREATE INDEX ON "{name}" USING hnsw (vector vector_cosine_ops); ANALYZE "{name}"')
    return index


def _faiss(path: Path, store: str, old: np.ndarray, generation: Generation) -> Index:
    import faiss

    from instar.retrieval.opening import adopt_index

    dim = old.shape[1]
    base = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT) if "hnsw" in store else faiss.IndexFlatIP(dim)
    base.add(old)
    faiss.write_index(base, str(path))
    return adopt_index(f"faiss:{path}", generation)


def backfill() -> list[dict[str, Any]]:
    """2,000 real texts: the encoder alone, and a backfill of the same texts in an exact index, verification included."""
    from instar.data.collecting import open_collection
    from instar.encoders.opening import open_encoder
    from instar.retrieval.backfill import Backfill
    from instar.retrieval.bridge import Bridge
    from instar.retrieval.opening import open_index

    some = open_collection("topics", sample=2000, seed=0)
    assert some.texts is not None
    encoder, small = open_encoder("all-MiniLM-L6-v2"), open_encoder("lsa", {"dims": 64}, texts=some.texts)
    vectors, texts = small.encode(some.texts), dict(zip(some.ids, some.texts, strict=True))
    batch = 128
    parts = [some.texts[i : i + batch] for i in range(0, len(some.texts), batch)]

    def alone() -> None:
        for part in parts:
            encoder.encode(part)

    def filled() -> None:
        first = Generation(0, small.fingerprint, small.dim, "lsa")
        with tempfile.TemporaryDirectory() as folder, open_index(f"exact:{folder}/store", create=first) as index:
            index.add(some.ids, vectors, 0)
            bridge = Bridge(encoder, old=small)
            outcome = Backfill(index, bridge.generation(index), bridge.documents, texts, batch=batch).run()
            assert outcome.left == 0

    took = rounds({"encoder": alone, "backfill": filled}, 3)
    row = {"texts": len(some), **took, "ratio": took["backfill"]["min"] / took["encoder"]["min"]}
    print(f"backfill {row['ratio']:.3f} times the encoder alone")
    return [row]


def report() -> list[dict[str, Any]]:
    """Every arm on 20,000 sentences of CLINC150 (labels); vectors are made before, since encoding is the user's in any case."""
    from instar.data.collecting import open_collection
    from instar.data.collection import Collection
    from instar.encoders.embedding import vectors_of
    from instar.encoders.opening import open_encoder
    from instar.upgrade.report import report as made

    parts = [open_collection(f"clinc150:{part}") for part in ("train", "val", "test")]
    texts = [t for part in parts for t in part.texts or ()][:20_000]
    labels = [x for part in parts for x in part.labels or ()][:20_000]
    whole = Collection("clinc150", [str(i) for i in range(len(texts))], texts, labels)
    sides = [vectors_of(whole, open_encoder("all-MiniLM-L6-v2", settings)) for settings in ({"layer": 3}, {})]
    begin, cpu = time.perf_counter(), time.process_time()
    found = made(whole, *sides)
    row = {"texts": len(texts), "seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
    row["fit_seconds"] = {arm.id: arm.fit_seconds for arm in found.arms}
    print(f"{row['seconds']:.0f} s (CPU {row['cpu_seconds']:.0f} s), of which fitting {sum(row['fit_seconds'].values()):.0f} s")
    return [row]


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main(sys.argv[1:])
