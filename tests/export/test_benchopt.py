"""A problem as a benchmark of benchopt: the folder is of its form, its code is right, and benchopt itself runs it."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from instar import catalogue
from instar.bench.plan import build_problem
from instar.bench.run import lift
from instar.errors import BudgetError, InstarError, OutputError, PlanError, UnknownNameError
from instar.export import benchopt

SMALL: dict[str, Any] = {"length": 24, "pairs": 2, "vocab": 16, "width": 16, "batch": 4}


def written(folder: Path, **changes: Any) -> Path:
    given: dict[str, Any] = {"methods": ["gla:no_gate"], "settings": SMALL, "budget": "3steps", "seeds": 2}
    benchopt.write("recall", folder, **{**given, **changes})
    return folder


def utilities(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_utils", folder / "benchmark_utils" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_folder_is_of_the_form(tmp_path: Path) -> None:
    folder = written(tmp_path / "benchmark")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    solvers = {"solvers/softmax.py", "solvers/gla_no_gate.py"}
    assert names == {"objective.py", "datasets/recall.py", "benchmark_utils/__init__.py", "README.md", *solvers}
    wanted = {
        "objective.py": ("Objective", {"set_data", "get_objective", "evaluate_result", "get_one_result"}),
        "datasets/recall.py": ("Dataset", {"get_data"}),
        **{name: ("Solver", {"set_objective", "run", "get_result"}) for name in solvers},
    }
    for name, (title, functions) in wanted.items():
        text = (folder / name).read_text("utf-8")
        found = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
        assert [node.name for node in found] == [title]
        assert functions <= {node.name for node in found[0].body if isinstance(node, ast.FunctionDef)}
        assert len(text.splitlines()) <= 26


def test_all_methods_that_a_problem_takes_are_wrapped(tmp_path: Path) -> None:
    benchopt.write("recall", tmp_path / "b")
    fitting = {s for s, c in catalogue.methods().items() if c.interface == "Mixer" and not c.capability("bidirectional")}
    assert {path.stem for path in (tmp_path / "b" / "solvers").iterdir()} == fitting


def test_its_code_computes_what_the_engine_does(tmp_path: Path) -> None:
    used = utilities(written(tmp_path / "b"))
    problem = used.opened()
    data = problem.load(1)
    theirs = used.scores(problem, data, used.train("gla:no_gate", problem, data, 1, 3))
    own = build_problem("recall", SMALL)
    subject = lift(own, "gla", catalogue.parse("gla:no_gate").arguments, own.load(1), 1)
    own.fit(subject, own.load(1).train, steps=3, seed=1)
    ours = {name: items.value for name, items in own.evaluate(subject, own.load(1).test).items()}
    assert theirs == ours
    card = catalogue.problem("recall")
    assert used.value(theirs) == (-1 if card.metric(card.primary).direction == "higher" else 1) * ours[card.primary]
    assert used.untrained(problem, data, 1).keys() == ours.keys()


@pytest.mark.timeout(600)
def test_benchopt_runs_it(tmp_path: Path) -> None:
    pytest.importorskip("benchopt", reason="benchopt is not installed; the form and the code are tested above")
    arrow = pytest.importorskip("pyarrow.parquet")
    folder = written(tmp_path / "benchmark", seeds=1)
    done = subprocess.run(
        [sys.executable, "-m", "benchopt", "run", ".", "-n", "1", "--no-plot", "--no-display"],
        cwd=folder, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = (folder / "outputs").glob("*.parquet")
    rows = arrow.read_table(result).to_pylist()
    assert {row["solver_name"].partition("[")[0] for row in rows} == {"softmax", "gla:no_gate"}
    used = utilities(folder)
    problem = used.opened()
    data = problem.load(0)
    for row in rows:
        address = row["solver_name"].partition("[")[0]
        assert row["objective_value"] == used.value(used.scores(problem, data, used.train(address, problem, data, 0, 3)))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"methods": ["ridge"]}, PlanError, "Mixer"),
        ({"methods": ["glaa"]}, UnknownNameError, "gla"),
        ({"methods": ["bidirectional_performer"]}, PlanError, "cannot be compared"),
        ({"budget": "2m"}, PlanError, "steps"),
        ({"budget": "soon"}, BudgetError, "soon"),
        ({"seeds": 0}, PlanError, "seeds"),
        ({"settings": {"lenght": 3}}, UnknownNameError, "length"),
        ({"settings": {"length": "__import__('os')"}}, InstarError, "length"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        written(tmp_path / "b", **changes)
    assert not (tmp_path / "b").exists()


def test_nothing_of_the_users_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "objective.py").write_text("mine")
    with pytest.raises(OutputError, match="empty"):
        written(tmp_path)
    assert (tmp_path / "objective.py").read_text() == "mine"
