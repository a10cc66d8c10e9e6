"""One vector per text from the hidden states of its tokens, in each of the ways of sentence-transformers.

Takes last hidden states `(b, s, h)` and their attention mask `(b, s)`; gives vectors `(b, h)` in float32. Called by the
pooling module and, for means, by losses and scores of encoders.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def mean_pool(last_hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
    """`(b, s, h)` and `(b, s)` -> `(b, h)` float32: the mean over the positions that are attended to.

    A row whose mask is all 0 gives zeros.
    """
    return _sum(last_hidden_state, attention_mask.float()) / _length(attention_mask)


def _mean_by_root_of_length(states: Tensor, mask: Tensor) -> Tensor:
    return _sum(states, mask.float()) / _length(mask).sqrt()


def _weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    """A position counts by its number in the batch, from 1: later tokens of a decoder have read more."""
    weights = mask.float() * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return _sum(states, weights) / weights.sum(1, keepdim=True).clamp(min=1)


def _max(states: Tensor, mask: Tensor) -> Tensor:
    return states.float().masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(1)


def _first(states: Tensor, mask: Tensor) -> Tensor:
    """The first token that is not padding, which may stand on the left."""
    return _at(states, mask.int().argmax(1))


def _last(states: Tensor, mask: Tensor) -> Tensor:
    return _at(states, mask.shape[1] - 1 - mask.int().flip(1).argmax(1))


def _at(states: Tensor, positions: Tensor) -> Tensor:
    return states[torch.arange(len(states), device=states.device), positions].float()


def _sum(states: Tensor, weights: Tensor) -> Tensor:
    return (states.float() * weights.unsqueeze(-1)).sum(1)


def _length(mask: Tensor) -> Tensor:
    return mask.float().sum(1, keepdim=True).clamp(min=1)


# By their names in `pooling_mode`, in the order in which vectors of several modes stand behind each other.
POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _max,
    "mean": mean_pool,
    "mean_sqrt_len_tokens": _mean_by_root_of_length,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
# The same in the layout before version 5 of sentence-transformers, where each mode is a key that is true or false.
KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
LINEAR = frozenset(POOLINGS) - {"max"}  # the vector of turned states is the turned vector
