"""Training without dropout.

Takes a model; gives a context in which its dropout does nothing, so that a narrow student is compared with its teacher
and not with noise. Called by `StudentTrainer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.dropout import _DropoutNd
from transformers import PretrainedConfig, PreTrainedModel

# In the names of all probabilities that transformers' classes keep: of dropout and layer dropout, and of masks over
# what is heard (SpecAugment).
NAMED = ("drop", "mask_time_prob", "mask_feature_prob")


@contextmanager
def without_dropout(model: PreTrainedModel) -> Iterator[None]:
    """Set every probability of dropout and masks in `model` to 0, in modules and configs; afterwards all are as before.

    The training mode stays on: gradient checkpointing depends on it.
    """
    places: list[Any] = [*model.modules(), *_configs(model.config)]
    kept = [
        (place, name, value) for place in places for name, value in vars(place).items() if _drops(place, name, value)
    ]
    for place, name, _ in kept:
        setattr(place, name, 0.0)
    try:
        yield
    finally:
        for place, name, value in kept:
            setattr(place, name, value)


def _drops(place: Any, name: str, value: Any) -> bool:
    return (
        isinstance(value, float)
        and value > 0
        and (any(part in name for part in NAMED) or (name == "p" and isinstance(place, _DropoutNd)))
    )


def _configs(config: PretrainedConfig) -> list[PretrainedConfig]:
    """Return a config and all that it is composed of."""
    parts = [value for value in vars(config).values() if isinstance(value, PretrainedConfig)]
    return [config, *(inner for part in parts for inner in _configs(part))]
