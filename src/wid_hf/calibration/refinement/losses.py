"""How far a student's tensor is from the teacher's: of a layer's stream and of a model's outputs.

Takes tensors and the padding of their batch, gives scalars. Called by `layer_by_layer` and `head`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..padding import Padding


def relative_error(made: Tensor, wanted: Tensor, padding: Padding) -> Tensor:
    """Return the mean over positions of `|made - wanted|^2 / |wanted|^2`, padding left out.

    Each position counts by its own size: a norm that reads the stream divides by it, and a few positions of a stream
    without norms are a hundred times as large as all others.
    """
    wanted = padding.rows(wanted).float()
    made = padding.rows(made).to(wanted.dtype)
    size = wanted.square().sum(-1)
    return ((made - wanted).square().sum(-1) / size.clamp(min=torch.finfo(size.dtype).tiny)).mean()


def divergence(made: Tensor, wanted: Tensor, padding: Padding) -> Tensor:
    """Return the mean Kullback-Leibler divergence of the softmax over the last axis from the teacher's, in nats."""
    wanted = padding.rows(wanted).float().log_softmax(-1)
    made = padding.rows(made).to(wanted.dtype).log_softmax(-1)
    return (wanted.exp() * (wanted - made)).nan_to_num().sum(-1).mean()
