"""Wav files: what is said and by whom, other rates and channels, files that are none, hostile archives, and log-mel frames."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import wavfile

from instar.data import speech
from instar.data.log_mel import HOP, WINDOW, filters, log_mel
from instar.errors import DataError


def tone(hertz: float = 440.0, seconds: float = 0.2, rate: int = 8000) -> NDArray[np.int16]:
    return (8000 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.int16)


def wav(samples: NDArray[np.generic], rate: int = 8000) -> bytes:
    stream = io.BytesIO()
    wavfile.write(stream, rate, samples)
    return stream.getvalue()


def lay(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def test_folders_are_labels(tmp_path: Path) -> None:
    names = ["yes/ann_nohash_0.wav", "yes/bob_1.wav", "no/ann_0.WAV", "_background_noise_/hum.wav", "no/.hidden.wav", "README.md"]
    found = speech.recordings(lay(tmp_path, dict.fromkeys(names, wav(tone()))))
    said = {(found.classes[label], speaker) for label, speaker in zip(found.labels, found.speakers or [], strict=True)}
    assert said == {("yes", "ann"), ("yes", "bob"), ("no", "ann")}
    assert speech.recordings(lay(tmp_path, {"no/plain.wav": wav(tone())})).speakers is None


def test_names_tell_label_and_speaker(tmp_path: Path) -> None:
    files = {"3_mary_ann_12.wav": wav(tone()), "seven_bob_0.wav": wav(tone(300))}
    found = speech.recordings(lay(tmp_path, files))
    assert (found.classes, found.labels.tolist(), found.speakers) == (["3", "seven"], [0, 1], ["mary_ann", "bob"])
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"recordings/{name}", content)
    packed = speech.recordings(str(tmp_path / "all.zip"))
    assert (packed.classes, packed.speakers) == (found.classes, found.speakers)
    for one, other in zip(packed.waves, found.waves, strict=True):
        assert np.array_equal(one, other)
    lay(tmp_path, {"what.wav": wav(tone())})
    with pytest.raises(DataError, match=r"nothing says what is spoken in 'what\.wav'.*LABEL_SPEAKER_NUMBER"):
        speech.recordings(str(tmp_path))


@pytest.mark.parametrize("name", ["noise.wav", "yes/noise.wav", "all/noise.wav"])
def test_a_recording_beside_folders_of_recordings_has_no_label(name: str, tmp_path: Path) -> None:
    """It made a class of its own: without a name, or of the name of the folder above."""
    names = {"noise.wav": ["yes/a_1.wav", "no/a_1.wav"], "yes/noise.wav": ["yes/more/a_1.wav", "no/a_1.wav"]}
    names["all/noise.wav"] = ["all/yes/a_1.wav", "all/no/a_1.wav"]
    given = lay(tmp_path, dict.fromkeys([*names[name], name], wav(tone())))
    with pytest.raises(DataError, match=rf"'{name}' stands beside folders of recordings"):
        speech.recordings(given)


def test_one_folder_with_a_label_says_that_it_is_the_only_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"in 'ann_x\.wav', and all recordings are in the folder 'yes'"):
        speech.recordings(lay(tmp_path, {"yes/ann_x.wav": wav(tone())}))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32])
def test_kinds_of_samples_are_one_wave(kind: type, tmp_path: Path) -> None:
    wave = np.sin(2 * np.pi * 440 * np.arange(1600) / 8000) * 0.5
    of_integers = {np.uint8: 128 + 127 * wave, np.int16: 32767 * wave, np.int32: 2147483647 * wave}
    samples = of_integers.get(kind, wave).astype(kind)  # type: ignore[call-overload]
    found = speech.recordings(lay(tmp_path, {"a_x_0.wav": wav(samples), "b_x_0.wav": wav(tone())}))
    assert found.waves[0] == pytest.approx(wave, abs=0.02)


def test_other_rates_and_channels_are_brought_to_one_and_counted(tmp_path: Path) -> None:
    """A tone keeps its pitch; what is above half of the rate is filtered away, not folded back."""
    both = np.stack([tone(rate=44100), np.zeros_like(tone(rate=44100))], axis=1)
    high = tone(7000, rate=44100)
    files = {"a_x_0.wav": wav(tone()), "b_x_0.wav": wav(both, 44100), "c_x_0.wav": wav(high, 44100)}
    found = speech.recordings(lay(tmp_path, files))
    assert found.facts == {"resampled": 2, "of_several_channels": 1}
    inner = slice(200, 1400)
    assert found.waves[1][inner] == pytest.approx(found.waves[0][inner] / 2, abs=0.01)
    assert float(np.abs(found.waves[2][inner]).max()) < 0.01


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as a wav file"),
        (b"text, and no sound at all", "cannot be read as a wav file"),
        (wav(tone())[:30], "cannot be read as a wav file|truncated"),
        (wav(tone())[:-800], "truncated"),
        (wav(tone()[:0]), "holds no sample|cannot be read"),
        (wav(tone(), 10), "10 samples a second"),
        (wav(np.array([0.1, np.nan], dtype=np.float32)), "not finite"),
    ],
)
def test_files_that_are_none(content: bytes, words: str, tmp_path: Path) -> None:
    lay(tmp_path, {"a_x_0.wav": wav(tone()), "b_x_0.wav": content})
    with pytest.raises(DataError, match=rf"b_x_0\.wav.*({words})"):
        speech.recordings(str(tmp_path))


def test_places_without_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"holds no wav file.*LABEL/NAME\.wav"):
        speech.recordings(str(tmp_path))
    with pytest.raises(DataError, match=r"neither a folder nor a \.zip"):
        speech.recordings(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="one folder"):
        speech.recordings([str(tmp_path)])  # type: ignore[arg-type]
    lay(tmp_path, {"a_x_0.wav": wav(tone()), "a_y_0.wav": wav(tone())})
    with pytest.raises(DataError, match="nothing to tell apart"):
        speech.recordings(str(tmp_path))
    monkeypatch.setattr(speech, "_LARGEST", 1000)
    with pytest.raises(DataError, match="at most 1000"):
        speech.recordings(str(tmp_path))


@pytest.mark.parametrize("name", ["../a_x_0.wav", "/tmp/a_x_0.wav", "r/../../a_x_0.wav", "..\\a_x_0.wav", "c:/a_x_0.wav"])
def test_names_that_lead_out_of_an_archive(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("b_x_0.wav", wav(tone()))
        archive.writestr(name, wav(tone()))
    with pytest.raises(DataError, match="leads out of the archive"):
        speech.recordings(str(tmp_path / "all.zip"))


def test_archives_that_are_none_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "all.zip"
    path.write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"cannot be read as a \.zip"):
        speech.recordings(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a_x_0.wav", wav(tone()))
    path.write_bytes(path.read_bytes().replace(wav(tone())[100:110], b"0123456789", 1))
    with pytest.raises(DataError, match=r"cannot be read as a \.zip.*CRC"):
        speech.recordings(str(path))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a_x_0.wav", wav(tone()))
    whole = path.read_bytes()
    for seed in range(8):
        spoilt = np.frombuffer(whole, dtype=np.uint8).copy()
        spoilt[np.random.default_rng(seed).integers(45, 150, 6)] ^= 0x55
        path.write_bytes(spoilt.tobytes())
        with pytest.raises(DataError, match=r"cannot be read as a \.zip"):
            speech.recordings(str(path))
    monkeypatch.setattr(speech, "_LARGEST", 1000)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a_x_0.wav", bytes(100_000))
    with pytest.raises(DataError, match="holds 100000 bytes"):
        speech.recordings(str(path))


def test_the_digits_are_the_pinned_ones_or_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.environ.get("INSTAR_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("INSTAR_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"curl -L --create-dirs -o .*fsdd_recordings\.zip https://github\.com"):
        speech.recordings(None)
    (tmp_path / "speech").mkdir()
    with zipfile.ZipFile(tmp_path / speech.FSDD, "w") as archive:
        archive.writestr("recordings/0_x_0.wav", wav(tone()))
    with pytest.raises(DataError, match="does not hold the pinned recordings"):
        speech.recordings(None)
    if real is None or not (Path(real) / speech.FSDD).is_file():
        pytest.skip(f"INSTAR_DATA holds no {speech.FSDD}")
    monkeypatch.setenv("INSTAR_DATA", real)
    found = speech.recordings(None)
    assert (len(found.waves), found.classes, len(set(found.speakers or []))) == (3000, [str(d) for d in range(10)], 6)


def test_how_it_is_packed_does_not_matter_to_the_hash() -> None:
    files = {"recordings/0_a_0.wav": b"one", "recordings/1_a_0.wav": b"two"}
    moved = {f"archive-26eb/{name}": content for name, content in reversed(files.items())}
    assert speech.content_hash(moved) == speech.content_hash(files)
    assert speech.content_hash({**files, "recordings/1_a_0.wav": b"twO"}) != speech.content_hash(files)


def test_a_tone_lies_in_its_band() -> None:
    top = 2595 * np.log10(1 + 4000 / 700)
    for hertz in (500.0, 1500.0, 3000.0):
        frames = log_mel(tone(hertz).astype(np.float32) / 32768, 8000, 40)
        band = 2595 * np.log10(1 + hertz / 700) / top * 41 - 1
        assert set(frames[:-3].argmax(1)) <= {int(np.floor(band)), int(np.ceil(band))}


def test_frames_are_made_as_sound_arrives_and_loudness_does_not_matter() -> None:
    wave = np.random.default_rng(0).normal(size=4000).astype(np.float32) * np.linspace(0.1, 1, 4000, dtype=np.float32)
    frames = log_mel(wave, 8000, 40)
    assert frames.shape == (1 + -(-(4000 - 256) // 80), 40)
    assert log_mel(wave * 0.03, 8000, 40) == pytest.approx(frames, abs=1e-4)
    for t in (1, 7, 30):
        begun = log_mel(wave[: t * 80 + 256], 8000, 40)
        assert len(begun) == t + 1
        assert np.array_equal(begun, frames[: t + 1])


def test_silence_and_a_single_sample_have_frames() -> None:
    for wave in (np.zeros(1, dtype=np.float32), np.zeros(800, dtype=np.float32), np.ones(1, dtype=np.float32)):
        assert np.isfinite(log_mel(wave, 8000, 40)).all()
    assert (round(WINDOW * 8000), round(HOP * 8000)) == (256, 80)


@pytest.mark.parametrize("bands", [8, 40, 128])
def test_every_band_hears_something(bands: int) -> None:
    found = filters(8000, bands)
    assert found.shape == (bands, 129)
    assert found.sum(1) == pytest.approx(1.0)
    assert (np.diff((found * np.arange(129)).sum(1)) >= 0).all()
