"""One vector per text: the mean of its tokens' hidden states."""

from __future__ import annotations

from torch import Tensor


def mean_pool(last_hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
    """`(b, s, h)` and `(b, s)` -> `(b, h)` float32: the mean over the positions that are attended to.

    A row whose mask is all 0 gives zeros.
    """
    mask = attention_mask.unsqueeze(-1).float()  # (b, s, 1)
    return (last_hidden_state.float() * mask).sum(1) / mask.sum(1).clamp(min=1)
