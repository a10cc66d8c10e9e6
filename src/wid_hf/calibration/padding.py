"""Which positions of a tensor are padding, as far as a batch says.

Takes the keyword arguments of a forward; tells, for a tensor somewhere in that forward, which of its rows count. Called
by `walk` and `variance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

MASKS = ("attention_mask", "decoder_attention_mask")
NO_LABEL = -100  # transformers' mark for positions that are not predicted
SOUND = ("input_values", "input_features")


class Padding:
    """The masks of one batch.

    A mask goes with every tensor whose leading axes are those of the mask: `(batch, positions)` or their product,
    positions first or batch first. Where a text has several rows, as in multiple choice with `(batch, choices,
    positions)`, each row is a text of its own. Sound is read by convolutions that make one frame of many samples: there
    the mask of the samples is stretched to the frames.

    Args:
        batch: keyword arguments of the forward. `labels` stand for the mask of a decoder that gets its inputs of them.
    """

    def __init__(self, batch: Mapping[str, Any]) -> None:
        given = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        masks = [given[name] for name in MASKS if name in given]
        if "labels" in given and "decoder_attention_mask" not in given:
            masks.append(given["labels"].ne(NO_LABEL))
        self._masks: list[Tensor] = []
        for mask in (mask.reshape(-1, mask.shape[-1]).bool() for mask in masks if mask.ndim in (2, 3)):
            # Of two masks of one shape (encoder and decoder) nobody knows whose a tensor is: what both have counts.
            alike = next((at for at, each in enumerate(self._masks) if each.shape == mask.shape), None)
            if alike is None:
                self._masks.append(mask)
            else:
                self._masks[alike] = self._masks[alike] & mask
        self._samples = self._of_samples(given)
        lengths = {value.shape[-1] for name, value in given.items() if name.endswith("input_ids")}
        self._lengths = lengths | {mask.shape[-1] for mask in self._masks}

    @property
    def leaves_any(self) -> bool:
        """Whether some position of every mask is no padding."""
        return all(bool(mask.any()) for mask in self._masks)

    def rows(self, tensor: Tensor) -> Tensor:
        """Return `tensor (..., n)` as `(rows, n)`, padding left out."""
        attended, rows = self.attended(tensor), tensor.reshape(-1, tensor.shape[-1])
        return rows if attended is None else rows[attended]

    def attended(self, tensor: Tensor) -> Tensor | None:
        """Return which rows of `tensor (..., n)` count, flat `(rows,)`, or None where no mask goes with it."""
        shape = tensor.shape[:-1]
        for mask in self._masks:
            for each in (mask, mask.T):
                if shape[:2] == each.shape:
                    return _repeated(each, tensor)
                if len(shape) == 1 and len(tensor) == each.numel():
                    return each.reshape(-1)
        if self._samples is None:
            return None
        sounds, samples = self._samples.shape
        frames = (
            shape[1] if len(shape) > 1 and shape[0] == sounds else shape.numel() // sounds if len(shape) == 1 else 0
        )
        if not 1 < frames < samples or frames in self._lengths or sounds * frames != shape[:2].numel():
            return None
        heard = functional.interpolate(self._samples[:, None].float(), size=frames, mode="area")[:, 0] > 0.5
        return _repeated(heard, tensor) if len(shape) > 1 else heard.reshape(-1)

    def _of_samples(self, given: Mapping[str, Tensor]) -> Tensor | None:
        """Return the mask `(batch, samples)` of sound that nothing but the forward shortens."""
        mask = given.get("attention_mask")
        sound = next((given[name] for name in SOUND if name in given), None)
        if mask is None or sound is None or mask.ndim != 2 or len(mask) != len(sound):
            return None
        return mask.bool() if mask.shape[1] in sound.shape[1:] else None


def _repeated(mask: Tensor, tensor: Tensor) -> Tensor:
    """Return a mask of the two leading axes for all rows of `tensor`, flat."""
    more = tensor.shape[2:-1].numel()
    return mask.reshape(-1, 1).expand(-1, more).reshape(-1)
