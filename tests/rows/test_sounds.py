from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from wid_hf.errors import DataError
from wid_hf.rows.sounds import resampled, samples


def tone(hertz: float, rate: int, seconds: float = 0.1) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("stored", ["path", "bytes"])
def test_samples_are_the_tone_that_was_written(tmp_path: Path, width: int, channels: int, stored: str) -> None:
    wanted = 0.5 * tone(440, 8000)
    integers = np.round(wanted * 2 ** (8 * width - 1)).astype("<i4")
    content = (integers + 128 if width == 1 else integers).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :width]
    path = tmp_path / "tone.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, 8000, 0, "NONE", ""))
        file.writeframes(np.repeat(content, channels, axis=0).tobytes())
    sound = {"path": str(path), "bytes": None} if stored == "path" else {"path": None, "bytes": path.read_bytes()}
    found, rate = samples(sound)
    assert (rate, found.dtype) == (8000, np.float32)
    np.testing.assert_allclose(found, wanted, atol=1.01 / 2 ** (8 * width - 1))


def test_channels_are_averaged(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.array([2**14, 0, 2**13, 2**13], "<i2").tobytes())
    np.testing.assert_allclose(samples({"path": str(path), "bytes": None})[0], [0.25, 0.25])


def test_what_is_no_sound_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "odd.wav"
    path.write_text("no sound at all")
    with pytest.raises(DataError, match=r"odd\.wav cannot be read: "):
        samples({"path": str(path), "bytes": None})


@pytest.mark.parametrize(("rate", "wanted"), [(8000, 16000), (44100, 16000), (16000, 8000), (8000, 8000)])
def test_a_tone_stays_the_same_at_another_rate(rate: int, wanted: int) -> None:
    found = resampled(tone(200, rate).astype(np.float32), rate, wanted)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, tone(200, wanted), atol=1e-4)


def test_of_the_shortest_sound_something_is_left_at_a_lower_rate() -> None:
    np.testing.assert_allclose(resampled(np.full(2, 0.5, np.float32), 48000, 2000), [0.5])


def test_what_the_new_rate_cannot_hold_is_left_out() -> None:
    both = tone(200, 16000) + tone(7000, 16000)
    np.testing.assert_allclose(resampled(both, 16000, 8000), tone(200, 8000), atol=1e-9)
