"""One progress line for a whole comparison, at most four refreshes a second, silent without a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from instar.bench.plan import Plan


def answers(quiet: bool = False) -> Progress:
    """Progress of versions that answer items; each gets a task."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed} of {task.total} items"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=Console(stderr=True, highlight=False),
        refresh_per_second=4,
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )


class Line:
    """A listener of `compare` that draws to standard error."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            refresh_per_second=4,
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task: TaskID | None = None
        self._done: dict[str, float] = {}

    def __enter__(self) -> Line:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        if kind is KeyboardInterrupt:
            self.console.print("Interrupted. What is finished is kept; the same command goes on from there.")

    def plan(self, plan: Plan, missing: int, total: int) -> None:
        """Say what will be done before it is done."""
        names = ", ".join(entry.address + (" (baseline)" if entry.baseline else "") for entry in plan.entries)
        data = plan.data.get("name") or plan.problem
        self.console.print(f"{plan.problem} on {data}: {names}", markup=False)
        if not total:
            return
        seconds = sum(plan.steps[e.address] * plan.calibration[e.address]["step_seconds"] for e in plan.entries)
        memory = max(plan.calibration[e.address].get("peak_rss_bytes", 0.0) for e in plan.entries)
        steps = ", ".join(f"{e.address} {plan.steps[e.address]}" for e in plan.entries)
        trials = f" + {plan.trials} tuning trials each" if plan.trials > 1 else ""
        self.console.print(
            f"{total} runs ({plan.seeds} seeds{trials}), {missing} to do; budget {plan.budget}; steps: {steps}; "
            f"about {seconds * missing / len(plan.entries) / 60:.1f} core-minutes of training, {memory / 2**20:.0f} MiB a run",
            markup=False,
        )

    def begin(self, stage: str, seconds: float) -> None:
        """A new stage with its expected work."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._done = {}
        self._task = self._bar.add_task(stage, total=seconds or None, text="") if seconds else None

    def progress(self, name: str, seconds: float, text: str) -> None:
        """One run has come so far."""
        self._done[name] = seconds
        if self._task is not None:
            self._bar.update(self._task, completed=sum(self._done.values()), text=text)

    def note(self, text: str) -> None:
        """Something to know."""
        self.console.print(f"! {text}", markup=False)
