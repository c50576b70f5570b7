"""From network to program to file: the same answers, whole and pruned, explained and saved."""

from __future__ import annotations

import ast
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_networks import LABELS, SHAPES, TOKENS, network, said, sequences

from instar.checks.labeller import world
from instar.checks.program import executed
from instar.errors import CheckpointError, DataError
from instar.lab.programs import TransformerPrograms, discretise, python
from instar.lab.programs.discretise import _branches
from instar.lab.programs.explaining import as_text, explain, trace
from instar.lab.programs.printing import quoted
from instar.lab.programs.program import Head, Table, Thresholds
from instar.lab.programs.pruning import prune, sweep
from instar.lab.programs.saved import load, save
from instar.lab.programs.tables import as_json, write
from instar.models import checkpoint


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_program_and_file_say_what_the_network_says(name: str, seed: int) -> None:
    model = network(seed, **SHAPES[name])
    program = discretise(model, TOKENS, LABELS)
    run = executed(python(program))
    rows = sequences(1000, seed)
    for row, expected in zip(rows, said(model, rows), strict=True):
        assert program.run(row) == expected
        assert run(row) == expected


def test_every_table_is_its_network_on_all_inputs() -> None:
    model = network(5)
    program = discretise(model, TOKENS, LABELS)
    tables = model.blocks[0]["mlp"]  # type: ignore[index]
    step = program.step("mlp_0_0")
    assert isinstance(step, Table)
    domain = {"tokens": list(TOKENS), "positions": list(range(5))}
    attn = {s.name: domain[s.value] for s in program.steps if isinstance(s, Head) and not s.counts and s.value in domain}
    domains = [({**domain, **attn})[name] for name in step.reads]
    names = ["tokens", "positions", "attn_0_0", "attn_0_1"]
    chosen = [names[int(g.argmax())] for g in tables.gates[0]]  # type: ignore[union-attr]
    for key in itertools.product(*domains):
        values = dict(zip(step.reads, key, strict=True))
        index = [TOKENS.index(values[n]) if isinstance(values[n], str) else values[n] for n in chosen]
        read = torch.nn.functional.one_hot(torch.tensor(index), 6).double().flatten()
        assert step.outputs.get(key, step.default) == int(tables.logits(read.view(1, 1, 1, -1)).argmax())  # type: ignore[operator]


def test_nested_thresholds_are_the_grid() -> None:
    generator = np.random.default_rng(0)
    for shape in ((7,), (5, 4), (3, 4, 5)):
        grid = generator.integers(0, 2, shape)
        step = Thresholds("t", tuple("abc"[: len(shape)]), _branches(grid))
        for key in itertools.product(*map(range, shape)):
            assert step.run({n: [v] for n, v in zip(step.reads, key, strict=True)}, False) == [grid[key]]


def test_the_file_is_laid_out_and_runs_alone(tmp_path: Path) -> None:
    for seed, name in enumerate(SHAPES):
        text = python(discretise(network(seed, **SHAPES[name]), TOKENS, LABELS))
        (tmp_path / f"{name}.py").write_text(text)
    ruff = Path(sys.executable).with_name("ruff")
    if ruff.exists():
        done = subprocess.run(
            [ruff, "format", "--isolated", "--line-length", "88", "--check", tmp_path], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
    isolated = [sys.executable, "-I", str(tmp_path / "plain.py")]
    rows = [["<s>", "a", "b"]]
    done = subprocess.run([*isolated, *rows[0]], capture_output=True, text=True)
    assert done.stdout.split() == said(network(0), rows)[0]
    done = subprocess.run([*isolated, "<s>", "zebra"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "'zebra'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["", "a", "'", '"', "'\"", "\\", "\n\t\0", "\ud800", "é", "\u2028", '"""', "{x}", "# no"])
def test_literals_come_back(text: str) -> None:
    assert ast.literal_eval(quoted(text)) == text
    assert quoted(text).isprintable()


def test_pruning_keeps_the_answers_that_it_was_shown() -> None:
    for name in ("plain", "pooled", "causal"):
        program = discretise(network(4, **SHAPES[name]), TOKENS, LABELS)
        rows = sequences(60)
        found = prune(program, rows)
        assert [found.program.run(row) for row in rows] == [program.run(row) for row in rows]
        assert found.changed == 0
        run = executed(python(found.program))
        assert [run(row) for row in rows] == [program.run(row) for row in rows]
        loose = prune(program, rows, tolerance=0.5)
        assert loose.changed <= 0.5 * loose.asked
        assert len(loose.dropped) >= len(found.dropped)
        assert len(loose.program.steps) <= len(program.steps)
        assert sweep(program) == program
    with pytest.raises(DataError, match="received none"):
        prune(program, [])


def test_a_variable_without_a_say_is_pruned_for_every_input() -> None:
    model = network(6)
    k, names = model.shape.k, ["tokens", "positions", "attn_0_0"]
    with torch.no_grad():
        model.classifier[:, k * (len(names) - 1) :] = 0.0
    program = discretise(model, TOKENS, LABELS)
    rows = sequences(300, seed=9)
    found = prune(program, rows)
    assert {"attn_0_0", "mlp_1_0", "num_attn_1_0", "ones"} <= set(found.dropped)
    assert found.program.steps == ()
    assert [found.program.run(row) for row in rows] == [program.run(row) for row in rows]


def test_explanations_sum_to_the_scores_and_traces_to_the_stream() -> None:
    program = discretise(network(7), TOKENS, LABELS)
    for row in sequences(20):
        scores, stream = program.scores(row), program.stream(row)
        for place, one in enumerate(explain(program, row)):
            for i, label in enumerate(LABELS):
                assert sum(part.added[label] for part in one.contributions) == scores[place][i]
            assert one.label == program.run(row)[place]
            assert one.margin >= 0
        for moment in trace(program, row):
            assert stream[moment.step][moment.place] == moment.output
            step = program.step(moment.step)
            if isinstance(step, Head) and step.counts:
                assert moment.output == sum(stream[step.value][j] for j in moment.looked_at)  # type: ignore[misc]
        assert "says" in as_text(program, row, 0)
    with pytest.raises(DataError, match="places 0 to 1"):
        trace(program, ["<s>", "a"], 2)


def test_tables_are_written(tmp_path: Path) -> None:
    program = discretise(network(8), TOKENS, LABELS)
    for path in write(program, tmp_path / "csv"):
        assert path.read_text().count("\n") >= 2
    assert len(list((tmp_path / "csv").iterdir())) == len(program.steps) + 1
    (path,) = write(program, tmp_path / "json", "json")
    assert json.loads(path.read_text()) == json.loads(json.dumps(as_json(program)))


def test_saved_and_loaded_it_prints_the_same(tmp_path: Path) -> None:
    learner = TransformerPrograms(layers=1, rare=1)
    learner.fit(world(), world(), steps=3, batch=8)
    save(learner, tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors")
    assert python(again.program()) == python(learner.program())
    assert again.tries == learner.tries
    rows = [*world().tokens, ["<s>", "zebra"]]
    assert again.predict(rows) == learner.predict(rows)
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(data[: len(data) // 2])
    (tmp_path / "c.safetensors").write_bytes(data.replace(b"transformer_programs", b"transformer_programz"))
    for name in ("b", "c", "none"):
        with pytest.raises(CheckpointError):
            load(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("shape", "k", 80.5),
        ("shape", "reads", 400_000_000),
        ("shape", "layers", 10**9),
        ("vocabulary", "labels", [f"{i}" for i in range(9)]),
        ("vocabulary", "length", 20),
        ("vocabulary", "pooled", True),
        ("vocabulary", "unknown", "nowhere"),
    ],
)
def test_a_file_whose_parts_disagree_is_refused_before_it_is_built(part: str, name: str, value: Any, tmp_path: Path) -> None:
    learner = TransformerPrograms(layers=1)
    learner.fit(world(), world(), steps=1, batch=8)
    save(learner, tmp_path / "a.safetensors")
    tensors, metadata = checkpoint.read(tmp_path / "a.safetensors")
    facts = json.loads(metadata["transformer_programs"])
    facts[part][name] = value
    if part == "shape":  # said in both places, so that only the tensors speak against it
        facts["arguments"][name] = value
    checkpoint.write(tmp_path / "b.safetensors", tensors, {"transformer_programs": json.dumps(facts)})
    with pytest.raises(CheckpointError):
        load(tmp_path / "b.safetensors")
