"""Sounds, by a feature extractor."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoFeatureExtractor, AutoProcessor, FeatureExtractionMixin, PreTrainedTokenizerBase

from ..errors import WidWarning
from ..rows.roles import AUDIO
from ..rows.sounds import resampled, samples
from .inputs import Columns, More
from .stored import StoredInputs


class SoundInputs(StoredInputs):
    """What a feature extractor makes of sounds at its own rate; other rates are resampled, which a warning tells once.

    Args:
        processor: a feature extractor, or a processor that has one and a tokenizer.
        argument: of the forward.

    Attributes:
        extractor: the feature extractor.
        tokenizer: of transcripts, if the model has one.
    """

    unit = "sounds"
    roles = (AUDIO,)
    loaders = (AutoProcessor, AutoFeatureExtractor)

    def __init__(self, processor: Any, argument: str) -> None:
        super().__init__(processor, argument)
        self.extractor = getattr(processor, "feature_extractor", processor)
        self.tokenizer: PreTrainedTokenizerBase | None = getattr(processor, "tokenizer", None)
        usual = inspect.signature(type(self.extractor).__call__).parameters.get("padding")
        # Some pad always, and Whisper's to 30 seconds, which its model needs.
        self._padding = {"padding": True} if usual is not None and usual.default is False else {}
        self._told_rates: set[int] = set()

    @classmethod
    def can_use(cls, processor: Any) -> bool:
        """Return whether it is, or has, a feature extractor."""
        return isinstance(getattr(processor, "feature_extractor", processor), FeatureExtractionMixin)

    def features(self, rows: Dataset, max_length: int, more: More | None = None) -> Dataset:
        """Return rows with the column `argument`, as `StoredInputs` does; a first sound of another rate is told of.

        Raises:
            DataError: the first sound cannot be read.
        """
        self.heard(next(iter(rows))[AUDIO.name])
        return super().features(rows, max_length, more)

    def encode(self, columns: Columns, max_length: int) -> dict[str, Any]:
        """Return what the extractor makes of sounds as `datasets` stores them; `max_length` has no effect.

        Raises:
            DataError: one cannot be read.
        """
        heard = [self.heard(sound) for sound in columns[AUDIO.name]]
        rate = self.extractor.sampling_rate
        return dict(self.extractor(heard, sampling_rate=rate, return_tensors="pt", **self._padding))

    def heard(self, sound: dict[str, Any]) -> np.ndarray:
        """Return the samples `(n,)` of a stored sound at the extractor's rate.

        Raises:
            DataError: it cannot be read.
        """
        values, rate = samples(sound)
        wanted = self.extractor.sampling_rate
        if rate != wanted and rate not in self._told_rates:
            self._told_rates.add(rate)
            warnings.warn(
                f"Sounds of {rate:,} samples per second are resampled to {wanted:,}, the rate that the model hears.",
                WidWarning,
                stacklevel=2,
            )
        return resampled(values, rate, wanted)
