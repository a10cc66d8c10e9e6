"""Which positions of a tensor are padding, by the masks of a batch.

Takes the keyword arguments of a forward; gives, for a tensor in that forward, which of its rows count. Called by
`forward_thread` and `variance`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

MASKS = ("attention_mask", "decoder_attention_mask")
NO_LABEL = -100  # transformers' mark for positions that are not predicted
SOUND = ("input_values", "input_features")


class Padding:
    """The masks of one batch.

    A mask belongs to every tensor whose leading axes are those of the mask: `(batch, positions)` or their product,
    positions first or batch first. If a text has several rows, as in multiple choice with `(batch, choices,
    positions)`, each row counts as a text. Convolutions make one frame of many samples of sound: the mask of the
    samples is resized to the frames.

    Args:
        batch: keyword arguments of the forward. If the decoder's inputs are made from `labels`, these are its mask.
    """

    def __init__(self, batch: Mapping[str, Any]) -> None:
        given = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        self._masks = _one_of_each_shape(_masks(given))
        self._samples = _mask_of_samples(given)
        lengths = {value.shape[-1] for name, value in given.items() if name.endswith("input_ids")}
        self._lengths = lengths | {mask.shape[-1] for mask in self._masks}

    @property
    def leaves_any(self) -> bool:
        """Whether every mask has a position that is not padding."""
        return all(bool(mask.any()) for mask in self._masks)

    def rows(self, tensor: Tensor) -> Tensor:
        """Return `tensor (..., n)` as `(rows, n)`, padding left out."""
        attended, rows = self._attended(tensor), tensor.reshape(-1, tensor.shape[-1])
        # Indices copy whole rows; a mask in brackets takes twice as long.
        return rows if attended is None else rows.index_select(0, attended.nonzero().squeeze(1).to(tensor.device))

    def attended(self, tensor: Tensor) -> Tensor | None:
        """Return which rows of `tensor (..., n)` count, flat `(rows,)`, or None if no mask belongs to it."""
        found = self._attended(tensor)
        return found.to(tensor.device) if found is not None else None

    def _attended(self, tensor: Tensor) -> Tensor | None:
        """Return the same on the device of the batch, which may be another."""
        shape = tensor.shape[:-1]
        for mask in self._masks:
            for each in (mask, mask.T):
                if shape[:2] == each.shape:
                    return _repeated(each, tensor)
                if len(shape) == 1 and len(tensor) == each.numel():
                    return each.reshape(-1)
        return self._attended_frames(tensor)

    def _attended_frames(self, tensor: Tensor) -> Tensor | None:
        """Return which rows of `tensor` are frames of sound without padding, or None if they are not frames."""
        if self._samples is None:
            return None
        shape = tensor.shape[:-1]
        sounds, samples = self._samples.shape
        frames = 0
        if len(shape) == 1:
            frames = shape.numel() // sounds
        elif len(shape) > 1 and shape[0] == sounds:
            frames = shape[1]
        if not 1 < frames < samples or frames in self._lengths or sounds * frames != shape[:2].numel():
            return None
        heard = functional.interpolate(self._samples[:, None].float(), size=frames, mode="area")[:, 0] > 0.5
        return _repeated(heard, tensor) if len(shape) > 1 else heard.reshape(-1)


def _masks(given: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Yield the masks `(texts, positions)` of a batch; each answer of multiple choice counts as a text."""
    masks = [given[name] for name in MASKS if name in given]
    if "labels" in given and "decoder_attention_mask" not in given:
        masks.append(given["labels"].ne(NO_LABEL))
    for mask in masks:
        if mask.ndim in (2, 3):
            yield mask.reshape(-1, mask.shape[-1]).bool()


def _one_of_each_shape(masks: Iterable[Tensor]) -> list[Tensor]:
    """Return one mask of each shape; of several (encoder and decoder, labels) a position counts if it does in all."""
    found: dict[tuple[int, ...], Tensor] = {}
    for mask in masks:
        found[mask.shape] = found[mask.shape] & mask if mask.shape in found else mask
    return list(found.values())


def _mask_of_samples(given: Mapping[str, Tensor]) -> Tensor | None:
    """Return the mask `(batch, samples)` of sound that the forward makes shorter."""
    mask = given.get("attention_mask")
    sound = next((given[name] for name in SOUND if name in given), None)
    if mask is None or sound is None or mask.ndim != 2 or len(mask) != len(sound):
        return None
    return mask.bool() if mask.shape[1] in sound.shape[1:] else None


def _repeated(mask: Tensor, tensor: Tensor) -> Tensor:
    """Return a mask of the two leading axes for all rows of `tensor`, flat."""
    more = tensor.shape[2:-1].numel()
    return mask.reshape(-1, 1).expand(-1, more).reshape(-1)
