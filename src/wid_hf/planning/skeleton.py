"""A model without memory for its weights, where the shapes are asked for that a class makes of a config."""

from __future__ import annotations

from copy import deepcopy

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights


def skeleton(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Return `model_class(config)` on the meta device, tied as a loaded model is; `config` is not changed.

    What the class raises for a config that it refuses is not caught: each has errors of its own.
    """
    with no_init_weights(), torch.device("meta"):
        model = model_class(deepcopy(config))
    model.tie_weights()  # skipped together with the initialisation
    return model
