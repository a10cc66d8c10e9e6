"""Classifiers of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from pictures import load_pictures
from subject import CALIBRATION_BATCH, SCORE_BATCH, Batch, Subject
from torch import Tensor

from wid_hf.scores.eval_mode import eval_mode


@dataclass(frozen=True)
class Classifier(Subject):
    """A classifier of pictures; its figures are accuracy and the agreement of its classes with the teacher's."""

    figures: ClassVar[Mapping[str, str]] = {"accuracy": ".1%", "agreement": ".1%"}

    def calibration(self, seed: int, count: int | None = None) -> list[Batch]:
        """Return batches of pictures drawn from the training set; fewer are the first of more."""
        order = torch.randperm(len(self._train_pixels), generator=torch.Generator().manual_seed(seed))
        drawn = self._train_pixels[order[: count or self.calibration_texts]]
        return [{"pixel_values": part} for part in drawn.split(CALIBRATION_BATCH)]

    @cached_property
    def _train_pixels(self) -> Tensor:
        return load_pictures(self.train)[0]

    @cached_property
    def _scored(self) -> tuple[Tensor, Tensor]:
        return load_pictures(self.held_out, self.scored_texts)

    @cached_property
    def _wanted(self) -> Tensor:
        return self._classes(self.teacher())

    def _classes(self, model: Any) -> Tensor:
        with eval_mode(model) as device:
            parts = self._scored[0].split(SCORE_BATCH)
            return torch.cat([model(pixel_values=part.to(device)).logits.argmax(-1).cpu() for part in parts])

    def score(self, model: Any) -> dict[str, float]:
        """Return how often a model is right, and how often it says the same as its teacher."""
        found, labels = self._classes(model), self._scored[1]
        return {
            "accuracy": float((found == labels).float().mean()),
            "agreement": float((found == self._wanted).float().mean()),
        }
