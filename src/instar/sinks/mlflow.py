"""MLflow: a run a run, through its client, in the experiment of the problem."""

from __future__ import annotations

from typing import Any

from instar import extras
from instar.errors import OutputError
from instar.sinks.sink import Run, Sink

_BATCH = 500
_LONGEST = 500
"""Characters of a parameter's value that every MLflow store takes."""


class MLflowSink(Sink):
    """Writes to a tracking store: `mlflow:sqlite:///mlflow.db`, a folder, or the address of a server.

    A run carries the record's id in the tag `instar.id`; one that is there whole is not written again.

    Args:
        where: the tracking URI. Raises OutputError for a store that does not answer, MissingExtraError.
    """

    def __init__(self, where: str) -> None:
        self._mlflow = extras.require("mlflow", "mlflow")
        entities = extras.require("mlflow.entities", "mlflow")
        self._metric, self._param = entities.Metric, entities.Param
        try:
            self._client: Any = self._mlflow.MlflowClient(tracking_uri=where)
            self._client.search_experiments(max_results=1)
        except Exception as error:  # every kind of store raises its own
            raise OutputError(f"The MLflow store '{where}' cannot be opened ({type(error).__name__}: {error}).") from error

    def put(self, run: Run) -> None:
        experiment = self._experiment(f"instar-{run.group or 'runs'}")
        if self._client.search_runs([experiment], filter_string=f"tags.`instar.id` = '{run.id}'", max_results=1):
            return
        tags = {"mlflow.runName": run.name, "instar.status": run.reason}
        made = self._client.create_run(experiment, start_time=int(1000 * run.started), tags=tags)
        name = made.info.run_id
        last, at = (run.curve[-1][0] if run.curve else 0), int(1000 * run.ended)
        points = [self._metric("train/loss", loss, at, step) for step, loss in run.curve]
        points += [self._metric(_key(key), value, at, last) for key, value in run.figures.items()]
        params = [self._param(_key(key), value[:_LONGEST]) for key, value in run.settings.items()]
        for first in range(0, max(len(points), 1), _BATCH):
            self._client.log_batch(name, metrics=points[first : first + _BATCH], params=params if first == 0 else [])
        self._client.set_terminated(name, status="FINISHED" if run.ok else "FAILED", end_time=at)
        self._client.set_tag(name, "instar.id", run.id)  # last, so that what was cut off is sent again

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))


def _key(name: str) -> str:
    """MLflow's keys have no @."""
    return name.replace("@", " at ")
