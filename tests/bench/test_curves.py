"""Costs by length: counted bytes are what closed forms say, records are found again, a failure ends a curve with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from instar import catalogue
from instar.bench import curves
from instar.bench.curves import Curve
from instar.bench.record import Store
from instar.cli.app import app
from instar.errors import PlanError, UnknownNameError
from instar.interfaces import Mixer
from instar.mixers.softmax import Softmax


class _Square(nn.Module):
    """y = (W x)², of which autograd keeps x and W x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.linear(x).square(), None


def test_saved_bytes_are_those_of_the_tensors_that_backward_needs() -> None:
    x = torch.randn(1, 10, 8)
    assert curves.saved_bytes(_Square(8), x) == 2 * x.numel() * 4


def test_saved_bytes_of_a_quadratic_mixer_grow_with_the_square() -> None:
    def saved(address: str, length: int) -> int:
        return curves.saved_bytes(catalogue.get(address)(32, heads=2), torch.randn(1, length, 32))

    assert saved("clipped_softmax", 512) / saved("clipped_softmax", 256) > 3
    assert saved("gla", 512) / saved("gla", 256) == pytest.approx(2, rel=0.05)


def test_points_agree_with_the_card_and_are_found_again(tmp_path: Path) -> None:
    layer = curves.Layer(width=32, heads=2)
    (curve,) = curves.measure(["softmax"], tmp_path, lengths=[16, 32], layer=layer)
    for length in (16, 32):
        card = catalogue.Build(catalogue.method("softmax"), Softmax, {}).cost(length, 32, heads=2)
        assert card is not None
        assert curve.points[length]["state_bytes"] == card[1]
        assert curve.points[length].keys() == curves.FIGURES.keys()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*.json")}
    again = curves.measure(["softmax"], tmp_path, lengths=[16, 32], layer=layer)
    assert again == [curve] == curves.load(list(Store(tmp_path).all()), layer)
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*.json")}


class _Counting(Mixer):
    """The state is how many tokens have been read; every state that a single token is given is remembered."""

    given: ClassVar[list[int]] = []
    tags = ("causal", "streaming")

    def __init__(self, width: int, *, heads: int = 1) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def init_state(self, batch: int) -> torch.Tensor:
        return torch.zeros(batch, dtype=torch.int64)

    def forward(self, x: torch.Tensor, state: torch.Tensor | None = None, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
        state = self.init_state(len(x)) if state is None else state
        if x.shape[1] == 1:
            self.given.append(int(state[0]))
        return x * self.scale, state + x.shape[1]

    reference = forward


def test_each_token_that_is_timed_goes_on_from_the_one_before() -> None:
    card = catalogue.minimal(_Counting, Path("counting.toml"))
    _Counting.given.clear()
    with catalogue.holding(card, _Counting):
        found = curves.point("counting", 8, curves.Layer(8, 2), lambda *_: None)
    assert len(_Counting.given) == 1 + len(found["rounds"]["decode_seconds"])
    assert _Counting.given == list(range(8, 8 + len(_Counting.given)))  # from an older handle a cache is copied each time


def test_a_point_without_time_enough_ends_its_curve_with_the_reason(tmp_path: Path) -> None:
    (curve,) = curves.measure(["softmax"], tmp_path, lengths=[16, 4096], layer=curves.Layer(32, 2), seconds=0.001)
    assert curve.points == {}
    assert "timeout" in curve.ended
    assert [one["spec"]["length"] for one in Store(tmp_path).all()] == [16]


def test_a_point_that_had_more_time_counts_whatever_ended_an_earlier_try(tmp_path: Path) -> None:
    layer = curves.Layer(width=32, heads=2)
    (short,) = curves.measure(["gla"], tmp_path, lengths=[16], layer=layer, seconds=0.01)
    (long,) = curves.measure(["gla"], tmp_path, lengths=[16], layer=layer, seconds=60.0)
    assert short.ended
    assert [long] == curves.load(list(Store(tmp_path).all()), layer)


def test_the_command_says_where_a_curve_ends_and_why(tmp_path: Path) -> None:
    """Quietly, too: beside a crossing there was no room for it, and without a point no line."""
    line = ["costs", "gla", "--lengths", "1000000", "--seconds", "0.1", "--out", str(tmp_path), "-q"]
    shown = CliRunner().invoke(app, line).output
    assert "softmax ends at 1000000 tokens: timeout" in shown
    assert "gla ends at 1000000 tokens: timeout" in shown


def test_slope_is_the_exponent() -> None:
    points = {n: {"train_seconds": 3e-6 * n**1.5} for n in (256, 512, 2048)}
    assert curves.slope(Curve("made", points), "train_seconds") == pytest.approx(1.5)
    assert curves.slope(Curve("made", {256: {"train_seconds": 1.0}}), "train_seconds") is None


@pytest.mark.parametrize("lengths", [[], [0, 4], [8, 4], [4, 4]])
def test_lengths_that_make_no_curve_are_refused(tmp_path: Path, lengths: list[int]) -> None:
    with pytest.raises(PlanError, match="rising"):
        curves.measure(["softmax"], tmp_path, lengths=lengths)


def test_only_mixers_have_costs_by_length(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="mixers"):
        curves.measure(["lora"], tmp_path)
    with pytest.raises(UnknownNameError):
        curves.measure(["softmaks"], tmp_path)


def test_the_command_prints_and_gives_json(tmp_path: Path) -> None:
    line = ["costs", "gla", "--lengths", "16,64", "--width", "32", "--heads", "2", "--out", str(tmp_path / "costs")]
    shown = CliRunner().invoke(app, line)
    assert shown.exit_code == 0, shown.output
    assert "Bytes of state" in shown.output
    found = json.loads(CliRunner().invoke(app, [*line, "--json"]).output)
    assert [curve["address"] for curve in found["curves"]] == ["softmax", "gla"]
    assert found["curves"][1]["points"]["16"]["state_bytes"] == found["curves"][1]["points"]["64"]["state_bytes"]
    wrong = CliRunner().invoke(app, ["costs", "gla", "--lengths", "16,many"])
    assert wrong.exit_code != 0
