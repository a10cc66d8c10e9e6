"""Sounds: folders of them, and the samples in one.

Takes what `datasets` stores of a sound, its bytes or its path; gives samples in numpy. Whatever torchcodec decodes is
read where that is installed, and .wav files also without it. Called by `load_rows`, `prepare` and objectives.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Audio
from datasets.config import TORCHCODEC_AVAILABLE
from datasets.data_files import get_data_patterns
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder

from ..errors import DataError


@dataclass
class StoredSound(Audio):
    """`datasets.Audio` that stays undecoded: its paths are stored without torchcodec, which `Audio` imports first."""

    decode: bool = False

    def encode_example(self, value: str | dict[str, Any]) -> dict[str, Any]:
        """Return what is stored of a file at a path, or is stored already."""
        return {"bytes": None, "path": value} if isinstance(value, str) else value


class SoundFolder(AudioFolder):
    """The builder `audiofolder` of `datasets`, which works where torchcodec is not installed."""

    BASE_FEATURE = StoredSound

    @classmethod
    def of(cls, folder: Path) -> SoundFolder:
        """Return the builder of all files in `folder`, whose names tell their splits."""
        return cls(data_files=get_data_patterns(str(folder)), base_path=str(folder))


def samples(sound: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """Return the samples `(n,)` of a sound, float32 between -1 and 1, channels averaged, and its rate per second.

    Args:
        sound: its `bytes`, or the `path` of its file.

    Raises:
        DataError: it cannot be read, or only by torchcodec, which is not installed.
    """
    name = sound["path"] or "a sound"
    try:
        if TORCHCODEC_AVAILABLE:
            decoded = Audio().decode_example(dict(sound)).get_all_samples()
            return decoded.data.mean(0).numpy(), int(decoded.sample_rate)
        content = sound["bytes"]
        with wave.open(io.BytesIO(content) if content is not None else sound["path"], "rb") as file:
            values = _integers(file.readframes(file.getnframes()), file.getsampwidth())
            mono = values.reshape(-1, file.getnchannels()).mean(1) / 2**31
            return mono.astype(np.float32), file.getframerate()
    except Exception as error:  # decoders raise errors of every class
        advice = "" if TORCHCODEC_AVAILABLE else " Only .wav files of integers are read without torchcodec: install it."
        raise DataError(f"{name} cannot be read: {str(error) or type(error).__name__}.{advice}") from error


def _integers(content: bytes, width: int) -> np.ndarray:
    """Return the samples of a .wav file, `width` bytes each, as the upper bytes of 32-bit integers."""
    given = np.frombuffer(content, np.uint8).reshape(-1, width)
    wide = np.zeros((len(given), 4), np.uint8)
    wide[:, 4 - width :] = given ^ 0x80 if width == 1 else given  # samples of one byte have no sign
    return wide.view("<i4")


def resampled(values: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Return samples `(n,)` taken `rate` times per second as `(round(n * wanted / rate),)`, by their spectrum.

    At least one is left of some.
    """
    if rate == wanted:
        return values
    count = max(1, round(len(values) * wanted / rate))
    spectrum = np.fft.rfft(values)[: count // 2 + 1]
    return (np.fft.irfft(spectrum, count) * (count / len(values))).astype(values.dtype)
