"""Spoken words: who is in which split, what a network hears of a recording, and how soon it answers."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from instar import catalogue
from instar.bench import costs
from instar.bench.run import lift
from instar.data import speech as files
from instar.data.log_mel import log_mel
from instar.errors import DataError, ShapeError
from instar.interfaces import Data
from instar.mixers.lif import LIF
from instar.problems.sequence_classes import SequenceClassesProblem, Sequences
from instar.problems.speech import BANDS, SEEN, SpeechProblem, _stretch

SMALL = {"width": 16, "depth": 1, "heads": 2, "batch": 16}
WORDS = {"low": 300.0, "high": 1800.0, "rising": 600.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve voices that say three words four times: tones with noise, of different lengths and loudness."""
    place, draw = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for voice in range(12):
        for word, hertz in WORDS.items():
            for take in range(4):
                time = np.arange(int(draw.integers(1200, 6400))) / 8000
                pitch = hertz * (1 + 0.02 * voice) * (1 + time if word == "rising" else 1)
                wave = np.sin(2 * np.pi * np.cumsum(pitch * np.ones_like(time)) / 8000) + 0.1 * draw.normal(size=len(time))
                samples = (3000 * draw.uniform(0.1, 1) * wave).astype(np.int16)
                wavfile.write(place / f"{word}_voice{voice}_{take}.wav", 8000, samples)
    return place


@pytest.fixture(scope="module")
def problem(folder: Path) -> SpeechProblem:
    return SpeechProblem(data=str(folder), **SMALL, lr=1e-2)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data(problem: SpeechProblem) -> Data:
    return problem.load(0)


def test_no_speaker_is_in_two_splits_and_every_recording_in_one(folder: Path, data: Data) -> None:
    from instar.problems.speech import divided

    found = files.recordings(str(folder))
    parts, facts = divided(found)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(found.waves)))
    assert found.speakers is not None
    heard = [{found.speakers[i] for i in part} for part in parts]
    assert [len(group) for group in heard] == [6, 2, 4]
    assert not heard[0] & heard[1]
    assert not heard[0] & heard[2]
    assert not heard[1] & heard[2]
    assert facts["speaker_disjoint"]
    assert (data.facts["train_items"], data.facts["valid_items"], data.facts["test_items"]) == (72, 24, 48)
    assert set(data.facts["test_speakers"].split(", ")) == heard[2]
    assert SpeechProblem(data=str(folder)).load(1).sha256 == data.sha256


def test_where_nobody_knows_the_speakers_recordings_are_drawn(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        word, _, rest = path.stem.partition("_")
        (tmp_path / word).mkdir(exist_ok=True)
        (tmp_path / word / f"{rest.replace('_', '')}.wav").write_bytes(path.read_bytes())
    found = SpeechProblem(data=str(tmp_path)).load(0)
    assert found.facts["speaker_disjoint"] is False
    assert found.facts["speakers"] is None
    assert [found.facts[f"{part}_items"] for part in ("train", "valid", "test")] == [72, 24, 48]
    for number in range(9):  # one of them is drawn for the test
        lay = tmp_path / f"rare{number}" / "once.wav"
        lay.parent.mkdir()
        lay.write_bytes((tmp_path / "low" / "voice00.wav").read_bytes())
    with pytest.raises(DataError, match=r"no recording in the training split says rare.*record more of each word"):
        SpeechProblem(data=str(tmp_path)).load(0)


def test_frames_are_scaled_by_the_training_split(data: Data) -> None:
    heard = np.concatenate(data.train.rows)
    assert heard.dtype == np.float32
    assert float(heard.mean()) == pytest.approx(0, abs=1e-3)
    assert float(heard.std()) == pytest.approx(0.5, abs=1e-3)
    assert all(row.shape[1] == BANDS for row in data.test.rows)


def test_what_training_hides_is_a_stretch_of_what_is_real(problem: SpeechProblem, data: Data) -> None:
    frames, mask, labels = data.train.batch(range(32))
    kept = frames.clone()
    assert mask is not None
    seen, same_mask, same_labels = problem.seen((frames, mask, labels), torch.Generator().manual_seed(0))
    assert torch.equal(frames, kept)
    assert same_mask is mask
    assert same_labels is labels
    hidden = (seen != frames) & mask.unsqueeze(2)
    assert 0.05 < float(hidden[mask].float().mean()) < 0.3
    lengths = torch.full((500,), 50)
    stretch = _stretch(lengths, 60, torch.Generator().manual_seed(0))
    assert not stretch[:, 50:].any()
    assert set(stretch.sum(1).tolist()) == set(range(11))
    assert bool((stretch.long().diff(dim=1).abs().sum(1) <= 2).all())


@pytest.mark.parametrize("address", ["lmuformer", "spiking_lmuformer", "softmax", "bidirectional_performer"])
def test_it_is_learnt_and_read_after_some_frames(address: str, problem: SpeechProblem, data: Data) -> None:
    model = lift(problem, address, {}, data, 0)
    problem.fit(model, data.train, steps=40, seed=0)
    found = problem.evaluate(model, data.test)
    assert set(found) - {"firing_rate"} == {"accuracy", *(f"accuracy@{n}" for n in SEEN)}
    assert found["accuracy"].value > 0.5
    begun = Sequences([row[:20] for row in data.test.rows], data.test.labels)
    assert SequenceClassesProblem.evaluate(problem, model, begun)["accuracy"] == found["accuracy@20"]
    assert ("firing_rate" in found) == (address == "spiking_lmuformer")


def test_the_firing_rate_is_what_the_neurons_do(problem: SpeechProblem, data: Data) -> None:
    """Recording by recording, without padding, from the outputs themselves."""
    model = lift(problem, "spiking_lmuformer", {"order": 8}, data, 0)
    problem.fit(model, data.train, steps=40, seed=0)
    counted = problem.evaluate(model, data.test)["firing_rate"].value
    counts: Counter[str] = Counter()

    def count(layer: object, given: object, out: tuple[torch.Tensor, torch.Tensor]) -> None:
        counts["spikes"] += int(out[0].sum())
        counts["all"] += out[0].numel()

    for layer in model.modules():
        if isinstance(layer, LIF):
            layer.register_forward_hook(count)
    model.eval()
    with torch.no_grad():
        for row in data.test.rows:
            model(torch.from_numpy(row).unsqueeze(0))
    assert counts["spikes"] > 0
    assert counted == pytest.approx(counts["spikes"] / counts["all"], rel=0.02)


def test_costs_name_every_metric_of_the_card(problem: SpeechProblem, data: Data) -> None:
    found = costs.measure(problem, lift(problem, "lmuformer", {}, data, 0), data, 0)
    card = catalogue.problem("speech")
    assert {m.id for m in card.metrics if m.kind == "cost"} == {name for name in found if "." not in name}
    assert {m.id for m in card.metrics if m.kind == "quality"} == {"accuracy", "firing_rate", *(f"accuracy@{n}" for n in SEEN)}


def test_too_few_and_words_that_training_lacks(folder: Path, tmp_path: Path) -> None:
    some = sorted(folder.iterdir())
    for path in some[:20]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"20 recordings are too few|nothing to tell apart"):
        SpeechProblem(data=str(tmp_path)).load(0)
    for path in some:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    held = SpeechProblem(data=str(folder)).load(0).facts["test_speakers"].split(", ")[0]
    (tmp_path / f"never_{held}_0.wav").write_bytes(some[0].read_bytes())
    with pytest.raises(DataError, match="nobody in the training split says never"):
        SpeechProblem(data=str(tmp_path)).load(0)


def test_the_digits_of_three_speakers_are_learnt_and_of_two_tested() -> None:
    place = os.environ.get("INSTAR_DATA")
    if place is None or not (Path(place) / files.FSDD).is_file():
        pytest.skip(f"INSTAR_DATA holds no {files.FSDD}")
    problem = SpeechProblem(width=32, depth=1, lr=8e-3)
    data = problem.load(0)
    assert [data.facts[f"{part}_items"] for part in ("train", "valid", "test")] == [1500, 500, 1000]
    model = lift(problem, "softmax", {}, data, 0)
    problem.fit(model, data.train, steps=60, seed=0)
    chosen = Sequences(data.test.rows[::5], data.test.labels[::5])
    assert (
        SequenceClassesProblem.evaluate(problem, model, chosen)["accuracy"].value
        > 2 * data.facts["accuracy_of_the_majority_class"]
    )


@pytest.mark.parametrize("bad", [{"frames": 0}, {"batch": 0}, {"depth": 0}])
def test_bad_settings(bad: dict[str, int]) -> None:
    with pytest.raises(ShapeError, match="received"):
        SpeechProblem(**bad)  # type: ignore[arg-type]


def test_titles_say_how_much_sound_has_been_heard() -> None:
    """The milliseconds of a title are where the last of its frames ends."""
    rate, wave = 8000, np.zeros(8000, dtype=np.float32)
    for n in SEEN:
        wave[:] = 0
        title = catalogue.problem("speech").metric(f"accuracy@{n}").title
        end = round(int(title.split()[-2]) / 1000 * rate)
        silent = log_mel(wave, rate, BANDS)[:n]
        wave[end:] = 1.0
        assert np.array_equal(log_mel(wave, rate, BANDS)[:n], silent)
        wave[end - rate // 100 :] = 1.0
        assert not np.array_equal(log_mel(wave, rate, BANDS)[:n], silent)
