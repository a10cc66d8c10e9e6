"""How large and how fast a model is: parameters, bytes on disk, seconds per forward.

Takes a model (sizes also on the meta device); gives a ModelSize and a latency. Called by the report and
the commands, before and after.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from transformers import PreTrainedModel

from wid_hf.evaluation.eval_mode import eval_mode

WARM_UP = 2


@dataclass(frozen=True)
class ModelSize:
    """Parameters in all (`total`) and outside embeddings and head (`encoder`); `bytes` of weights on disk."""

    total: int
    encoder: int
    bytes: int


def model_size(model: PreTrainedModel) -> ModelSize:
    """Sizes of `model`, real or on the meta device; a tied tensor counts once.

    `encoder` leaves out the tables of nn.Embedding modules, with their tied copies, and whatever lies
    outside `model.base_model`. `bytes` are the tensors of the safetensors file, without its header.
    """
    tables = {
        id(table)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for table in module.parameters(recurse=False)
    }
    # keep_vars keeps object identity, which shows ties even on the meta device, where nothing has an address
    stored = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return ModelSize(
        total=sum(parameter.numel() for parameter in model.parameters()),
        encoder=sum(p.numel() for p in model.base_model.parameters() if id(p) not in tables),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in stored.values()),
    )


def latency(model: nn.Module, batch: Mapping[str, Tensor], repeats: int = 10) -> float:
    """Median seconds of `repeats` forwards `model(**batch)` in eval mode, after a warm-up of two."""
    seconds = []
    # without auto_refresh no drawing thread competes with the forward that is being timed
    bar = Progress(auto_refresh=False, transient=True, console=Console(stderr=True))
    with eval_mode(model) as device, bar:
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        for _ in bar.track(range(WARM_UP + repeats), description="Timing"):
            start = time.perf_counter()
            model(**inputs)
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return median(seconds[WARM_UP:])
