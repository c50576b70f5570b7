"""Runs on other machines give the records that they give here, and a worker that dies loses nothing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cluster_jobs
import pytest

from instar.bench import clusters, remote
from instar.bench.compare import compare
from instar.bench.executor import Executor, Job, Outcome
from instar.bench.plan import Request
from instar.bench.record import Store
from instar.errors import PlanError

# A cluster of three nodes is two dozen processes: one worker has it.
pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(300)]

SMALL = {"length": 24, "pairs": 2, "vocab": 16, "width": 16, "batch": 4, "test_sequences": 20}
REQUEST = Request(problem="recall", methods=("gru",), settings=SMALL, seeds=2, budget="4steps")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the jobs of this folder."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default: beside other tests they would never get their turn
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
        )
        cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        yield cluster
        import ray

        ray.shutdown()
        cluster.shutdown()


def outcomes(executor: Executor, *jobs: Job) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    executor.run(jobs, lambda o: found.__setitem__(o.name, o), lambda *_: None)
    return found


def same_records(one: Path, two: Path) -> None:
    """All but clocks and places."""
    records = [{r["id"]: r for r in Store(root).all() if r["kind"] == "run"} for root in (one, two)]
    assert records[0].keys() == records[1].keys()
    for name, record in records[0].items():
        other = records[1][name]
        assert record.keys() == other.keys()
        for key in ("metrics", "costs", "data", "spec", "status", "address"):
            assert record[key] == other[key], key


def running(process: str) -> bool:
    stat = Path("/proc", process, "stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def ends(executor: Executor) -> None:
    found = outcomes(
        executor,
        Job("fine", cluster_jobs.double, (21,), 60),
        Job("killed", cluster_jobs.die, (), 60),
        Job("alone", cluster_jobs.double, (1,), 60, alone=True),
    )
    assert (found["fine"].status, found["fine"].value) == ("ok", 42)
    assert found["killed"].status == "killed"
    assert found["alone"].value == 2


def test_ray_gives_the_records_of_this_machine(ray_cluster: Any, tmp_path: Path) -> None:
    executor = clusters.executor(ray_cluster.address, tmp_path / "queue")
    ends(executor)
    compare(REQUEST, tmp_path / "here", jobs=2, timed=False)
    result = compare(REQUEST, tmp_path / "there", timed=False, executor=executor)
    assert (result.ran, result.failed) == (4, 0)
    same_records(tmp_path / "here", tmp_path / "there")


def test_workers_of_another_version_are_refused(ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = dict(remote.versions())
    monkeypatch.setattr(
        remote.Home, "here", classmethod(lambda cls: cls(str(Path.cwd()), tuple({**there, "torch": "1.0"}.items())))
    )
    with pytest.raises(PlanError, match=r"torch .* instead of 1\.0"):
        outcomes(clusters.executor(ray_cluster.address, tmp_path), Job("fine", cluster_jobs.double, (21,), 60))


def test_a_machine_that_dies_loses_no_run(ray_cluster: Any, tmp_path: Path) -> None:
    import threading

    node = ray_cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    release = tmp_path / "release"
    jobs = [Job(str(n), cluster_jobs.first_time_never_ends, (str(tmp_path / f"marker{n}"), str(release)), 120) for n in range(3)]

    def processes() -> list[str]:
        return [path.read_text() for path in tmp_path.glob("marker*")]

    def kill() -> None:
        end = time.monotonic() + 90
        while sum(map(bool, processes())) < 3 and time.monotonic() < end:
            time.sleep(0.1)
        ray_cluster.remove_node(node, allow_graceful=False)
        while all(map(running, processes())) and time.monotonic() < end:  # a job outlives its machine by a moment
            time.sleep(0.1)
        release.touch()

    killer = threading.Thread(target=kill)
    killer.start()
    found = outcomes(clusters.executor(ray_cluster.address, tmp_path), *jobs)
    killer.join()
    assert {o.status for o in found.values()} == {"ok"}
    assert sorted(o.value for o in found.values()) == [0, 0, 1]  # one was run again


def test_submitit_gives_the_records_of_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    executor = clusters.executor("submitit", tmp_path / "queue")
    ends(executor)
    compare(REQUEST, tmp_path / "here", jobs=2, timed=False)
    result = compare(REQUEST, tmp_path / "there", timed=False, executor=executor)
    assert (result.ran, result.failed) == (4, 0)
    same_records(tmp_path / "here", tmp_path / "there")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("submitit")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(PlanError, match=f"No cluster answers at 127.0.0.1:{port}"):
        clusters.executor(f"127.0.0.1:{port}", tmp_path)
    assert time.monotonic() - start < 30
    for text, match in (("nowhere", "HOST:PORT"), ("slurm:partition", "key=value"), ("  ", "nothing")):
        with pytest.raises(PlanError, match=match):
            clusters.executor(text, tmp_path)
    with pytest.raises(PlanError, match="slurm takes no jobs here"):
        outcomes(clusters.executor("slurm:partition=gpu", tmp_path), Job("fine", cluster_jobs.double, (21,), 60))
