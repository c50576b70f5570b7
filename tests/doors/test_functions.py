"""Functions as versions: where they come from, what they are given, and what becomes of what they return."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instar.doors.functions import Function
from instar.errors import DataError, ModelError, ShapeError, UnknownNameError
from instar.gate.predictions import Cases


def cases(*texts: str, **more: Any) -> Cases:
    texts = texts or ("one", "two", "three", "four", "five")
    return Cases("cases", [f"i{n}" for n in range(len(texts))], list(texts), **more)


def upper(text: str, mark: str = "") -> str:
    return text.upper() + mark


def write(folder: Path, body: str, name: str = "model.py") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(body)
    return f"{folder / name}:predict"


# where a function comes from


def test_a_file_a_module_and_an_object(tmp_path: Path) -> None:
    source = write(tmp_path, "def predict(text):\n    return text[::-1]\n")
    found = Function(source).run(cases(labels=["x"] * 5, columns={"c": list("abcde")}), "generation")
    assert found.outputs == ["eno", "owt", "eerht", "ruof", "evif"]
    assert (found.labels, found.columns) == (["x"] * 5, {"c": list("abcde")})
    assert len(found.facts["sha256"]) == 64
    assert Function("json:dumps").run(cases("a"), "generation").outputs == ['"a"']
    made = Function.of(upper, name="loud", mark="!")
    assert made.name == "loud (mark=!)"
    assert made.run(cases("a"), "generation").outputs == ["A!"]
    assert Function.of(len).run(cases("abc"), "regression").outputs == [3]
    assert Function.of(upper).name == "upper"


def test_old_and_new_may_have_helpers_of_one_name(tmp_path: Path) -> None:
    for side in ("old", "new"):
        write(tmp_path / side, f"NAME = '{side}'\n", "helper.py")
        (tmp_path / side / "parts").mkdir()
        (tmp_path / side / "parts" / "__init__.py").write_text(f"from parts.one import PART\nSIDE = '{side}'\n")
        (tmp_path / side / "parts" / "one.py").write_text(f"PART = '{side}'\n")
    body = "import helper, parts\ndef predict(text):\n    return [helper.NAME, parts.PART, parts.SIDE]\n"
    versions = [Function(write(tmp_path / side, body)) for side in ("old", "new")]
    assert [v.run(cases("a"), "generation").outputs[0] for v in versions] == [["old"] * 3, ["new"] * 3]


@pytest.mark.parametrize(
    ("body", "error", "match"),
    [
        ("def predict(:\n", ModelError, "SyntaxError"),
        ("import no_such_module_here\n", ModelError, "no_such_module_here"),
        ("raise SystemExit(3)\n", ModelError, "SystemExit: 3"),
        ("def predicts(text): return text\n", UnknownNameError, "Did you mean predicts"),
        ("predict = 3\n", ModelError, "an object of type int"),
        ("class predict: pass\n", ModelError, "the class predict"),
    ],
)
def test_what_cannot_be_loaded(tmp_path: Path, body: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Function(write(tmp_path, body))


def test_sources_that_name_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        Function(str(tmp_path / "none.py:predict"))
    with pytest.raises(UnknownNameError, match="there is no module no_such_package_here"):
        Function("no_such_package_here.module:predict")
    for source in ("model.py", "model.py:", ":predict", ""):
        with pytest.raises(UnknownNameError, match="must read"):
            Function(source)
    with pytest.raises(UnknownNameError, match="task"):
        Function.of(upper).run(cases(), "translation")


# what a function is given


def test_settings_are_checked_against_the_signature() -> None:
    with pytest.raises(UnknownNameError, match="mark"):
        Function.of(upper, marc="!")
    with pytest.raises(UnknownNameError):
        Function.of(upper, text="!")  # the input itself
    with pytest.raises(ShapeError):
        Function.of(upper, batch=-1)
    assert Function.of(lambda text, **more: more, name="f", any=1).run(cases("a"), "generation").outputs == [{"any": 1}]


def test_settings_from_a_command_line_take_the_type_of_the_default() -> None:
    def told(text: str, k: int = 1, scale: float = 1.0, loud: bool = False, word: str = "x", any: object = None) -> list:
        return [k, scale, loud, word, any]

    given = Function.of(told, k="3", scale="0.5", loud="true", word="4", any="5")
    assert given.run(cases("a"), "generation").outputs == [[3, 0.5, True, "4", "5"]]
    for wrong in ({"k": "0.5"}, {"scale": "much"}, {"loud": "yes"}):
        with pytest.raises(ShapeError, match="The setting"):
            Function.of(told, **wrong)


def test_choices_and_documents_go_to_who_asks_for_them() -> None:
    found = Function.of(lambda text, choices: choices[-1]).run(cases("a", "b", choices=[["x", "y"], ["z"]]), "multiple_choice")
    assert found.outputs == ["y", "z"]
    documents = [("d1", "a"), ("d2", "b")]
    found = Function.of(lambda text, documents: [i for i, t in documents if t == text]).run(
        cases("b", documents=documents), "retrieval"
    )
    assert found.outputs == [["d2"]]
    given = Function.of(lambda texts, choices: [c[0] for c in choices], batch=2)
    assert given.run(cases("a", "b", "c", choices=[["x"], ["y"], ["z"]]), "multiple_choice").outputs == ["x", "y", "z"]


@given(st.integers(1, 12), st.integers(1, 8))
def test_batches_hold_every_item_once_and_in_order(total: int, batch: int) -> None:
    sizes: list[int] = []

    def predict(texts: list[str]) -> list[str]:
        sizes.append(len(texts))
        return [text + "!" for text in texts]

    predict.batch = batch  # type: ignore[attr-defined]
    told: list[int] = []
    found = Function.of(predict).run(cases(*map(str, range(total))), "generation", lambda done, _: told.append(done))
    assert found.outputs == [f"{n}!" for n in range(total)]
    assert max(sizes) <= batch
    assert sum(sizes) == total
    assert told[-1] == total
    assert found.seconds is not None
    assert np.isfinite(found.seconds).all()


# failures


def fails_on_t(text: str) -> str:
    if text.startswith("t"):
        raise ValueError(f"bad {text}\x1b[31m")
    return text


def test_an_exception_costs_its_item() -> None:
    found = Function.of(fails_on_t).run(cases(), "generation")
    assert found.outputs == ["one", None, None, "four", "five"]
    assert found.errors == {"i1": "ValueError: bad two�[31m", "i2": "ValueError: bad three�[31m"}
    assert found.seconds is not None
    assert np.isnan(found.seconds).tolist() == [False, True, True, False, False]


def test_one_bad_item_costs_its_batch_nothing() -> None:
    found = Function.of(lambda texts: [fails_on_t(text) for text in texts], batch=4).run(cases(), "generation")
    assert found.outputs == ["one", None, None, "four", "five"]
    assert set(found.errors) == {"i1", "i2"}


def test_first_items_that_fail_alike_end_the_run() -> None:
    asked: list[str] = []

    def broken(text: str) -> str:
        asked.append(text)
        raise KeyError("weights")

    with pytest.raises(ModelError, match="broken answers none of the first 3 items: KeyError: 'weights'"):
        Function.of(broken, name="broken").run(cases(), "generation")
    assert len(asked) == 3
    with pytest.raises(ModelError, match="2 outputs for 1 texts"):
        Function.of(lambda texts: ["a", "b"], batch=9).run(cases(), "generation")
    with pytest.raises(ModelError, match="must return a list"):
        Function.of(lambda texts: "one", batch=2).run(cases(), "generation")
    with pytest.raises(ModelError, match="TypeError"):
        Function.of(lambda: "one").run(cases(), "generation")


def test_an_interrupt_passes_through() -> None:
    def stopped(text: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Function.of(stopped).run(cases(), "generation")


# what becomes of what is returned


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([1, 2]), [1, 2]),
        (torch.tensor([[1.0]]), [[1.0]]),
        (torch.tensor(2), 2),
        (("a", None, [1]), ["a", None, [1]]),
        ({"a": np.float64(1.5)}, {"a": 1.5}),
        (10**400, 10**400),
        (True, True),
        ("a\ud800", "a?"),
        ("", ""),
        ([], []),
    ],
)
def test_outputs_become_json(value: Any, held: Any) -> None:
    found = Function.of(lambda text: value).run(cases("a"), "generation")
    assert found.outputs == [held]
    assert type(found.outputs[0]) is type(held)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "returned None"),
        (math.nan, "returned nan"),
        ([1.0, math.inf], "returned inf"),
        ({1, 2}, "type set"),
        (object(), "type object"),
        (int, "the class int"),
        (b"bytes", "type bytes"),
        ({1: "a"}, "keys that are no text"),
        (torch.tensor([1.0]).to_sparse(), "Error"),
        ([[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]], "type list"),
    ],
)
def test_what_json_cannot_hold_is_missing_with_a_reason(value: Any, reason: str) -> None:
    found = Function.of(lambda text: value if text == "two" else "fine").run(cases(), "generation")
    assert found.outputs == ["fine", None, "fine", "fine", "fine"]
    assert reason in found.errors["i1"]


def test_arrays_of_a_batch_are_outputs_one_by_one() -> None:
    given = Function.of(lambda texts: np.arange(2.0 * len(texts)).reshape(-1, 2), batch=2).run(cases("a", "b", "c"), "regression")
    assert given.outputs == [[0.0, 1.0], [2.0, 3.0], [0.0, 1.0]]
    given = Function.of(lambda texts: torch.ones(len(texts)), batch=2).run(cases("a", "b", "c"), "regression")
    assert given.outputs == [1.0, 1.0, 1.0]


def test_facts_can_be_recorded() -> None:
    found = Function.of(lambda text, model: "x", name="f", model=object()).run(cases(), "generation")
    assert json.dumps(found.facts)
    assert found.facts["settings"] == {"model": "an object of type object"}
    assert found.costs["wall_seconds"] >= 0
