"""Tiny example inputs for any `PreTrainedModel`: enough to run its forward once.

Takes a model, gives keyword arguments. `tracing` uses them unless the user gave inputs, and then
`further_examples` for the weights that the first inputs do not reach.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PretrainedConfig, PreTrainedModel

from ..coupling import Example
from ..coupling.trace import output_tensors, quiet_forward

SAMPLES = 4000  # a quarter of a second: several frames after the usual convolutions
LONGER = "a longer text"  # used like the name of an optional argument
TIMES_LONGER = 16
BATCH, LENGTH = 3, 7  # odd and different, so that neither is mistaken for a model's own dimension
Inputs = dict[str, Any]
InputsT = TypeVar("InputsT", Inputs, "Inputs | None")


def example_inputs(model: PreTrainedModel) -> Inputs:
    """Return keyword arguments for one small forward of `model`, on its device.

    Tokens are `(3, 7)` integers below the vocabulary size, images `(3, channels, height, width)`, sound
    `(3, samples)` or `(3, bins, frames)` as the config says. A model that compares texts with images or sound (it has
    `get_text_features`) gets both.
    """
    accepted = inspect.signature(model.forward).parameters
    main = model.main_input_name
    if main not in accepted or main == "inputs":  # Perceiver's name for whatever its variant takes
        main = next((name for name in ("input_ids", "pixel_values") if name in accepted), main)
    inputs: Inputs = {main: _INPUTS.get(main, _tokens)(model)}
    if "decoder_input_ids" in accepted and main != "decoder_input_ids":
        inputs["decoder_input_ids"] = _tokens(model)
    for name in _ALWAYS.keys() & accepted.keys():
        inputs |= _ALWAYS[name](model)
    if hasattr(model, "get_text_features"):
        inputs |= _of_all_kinds(model, inputs)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return on_device(model, inputs)


def _all_kinds(model: PreTrainedModel) -> Inputs:
    """Text together with images or sound, for models that compare them."""
    inputs = example_inputs(model)
    return on_device(model, inputs | _of_all_kinds(model, inputs))


def _videos(model: PreTrainedModel) -> Inputs:
    """Images as videos of one frame: `(3, 1, channels, height, width)`."""
    inputs = _all_kinds(model)
    return {name: value.unsqueeze(1) if name == "pixel_values" else value for name, value in inputs.items()}


def _multiple_choice(model: PreTrainedModel) -> Inputs:
    """Two texts in each row, for multiple choice: `(3, 2, 7)`."""
    return {
        name: torch.stack([value, value.flip(0)], dim=1) if isinstance(value, Tensor) else value
        for name, value in example_inputs(model).items()
    }


def _one_row(model: PreTrainedModel) -> Inputs:
    """A batch of one: decoders that classify by the last token cannot find it among padding without a pad token."""
    return {name: v[:1] if isinstance(v, Tensor) else v for name, v in example_inputs(model).items()}


def _ended(model: PreTrainedModel) -> Inputs:
    """Texts with the token that ends them, where some encoder-decoders classify."""
    inputs = example_inputs(model)
    ids, end = inputs["input_ids"], model.config.eos_token_id
    return {**inputs, "input_ids": torch.cat([ids[:, :-1], torch.full_like(ids[:, :1], end)], 1)}


example_forms: tuple[Callable[[PreTrainedModel], Inputs], ...] = (
    example_inputs,
    _all_kinds,
    _videos,
    _multiple_choice,
    _one_row,
    _ended,
)
"""Forms of inputs, the usual one first. Which of them a model accepts is found by trying."""


def further_examples(model: PreTrainedModel, unreached: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of a part of the model and an optional argument that may reach further weights.

    A longer text comes last: it reaches what sees only distant tokens, and experts that got none.

    Args:
        model: the model.
        unreached: names of weights; only parts of the model that hold one of them are tried.
    """
    holders = {name[:at] for name in unreached for at in range(len(name)) if name[at] == "."} | {""}
    parts = [(p, m) for p, m in model.named_modules() if p in holders and isinstance(m, PreTrainedModel)]
    for part, module in parts:
        accepted = inspect.signature(module.forward).parameters.keys() - {model.main_input_name}
        yield from ((part, argument) for argument in _EXTRAS if argument in accepted)
    yield from ((part, LONGER) for part, module in parts if "input_ids" in inspect.signature(module.forward).parameters)


def further_example(model: PreTrainedModel, part: str, argument: str) -> Example:
    """Return the example in which `part` of `model` is also given `argument`.

    Raises:
        Exception: whatever the model raises where the argument cannot be made for it.
    """
    module = model.get_submodule(part)
    inputs = example_inputs(module)
    inputs |= _longer(module) if argument == LONGER else _EXTRAS[argument](module, inputs)
    streams = frozenset({argument} & {"encoder_hidden_states"})
    return Example(on_device(model, inputs), part, streams)


def on_device(model: PreTrainedModel, inputs: InputsT) -> InputsT:
    """Return `inputs` with every tensor on the model's device, lists and dictionaries included; None stays None."""
    return tree_map(lambda value: value.to(model.device) if isinstance(value, Tensor) else value, inputs)


def _tokens(model: PreTrainedModel, times: int = 1) -> Tensor:
    chunk = getattr(model.config, "chunk_size_feed_forward", 0) or 1
    length = -(-LENGTH // chunk) * chunk * times  # chunks of positions must be full
    # Counting down from the end avoids padding and other special tokens, which are at the start.
    vocabulary = getattr(model.config.get_text_config(decoder=True), "vocab_size", 100)  # CANINE hashes characters
    return vocabulary - 1 - torch.arange(BATCH * length).view(BATCH, length) % (max(vocabulary // 2, 1))


def _longer(model: PreTrainedModel) -> Inputs:
    """As long a text as the model has positions for, up to 16 times the usual."""
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or LENGTH * TIMES_LONGER
    tokens = _tokens(model, max(min(TIMES_LONGER, most // (LENGTH + 1)), 1))
    accepted = inspect.signature(model.forward).parameters.keys() & {"input_ids", "decoder_input_ids"}
    return dict.fromkeys(accepted, tokens)


def _of_all_kinds(model: PreTrainedModel, inputs: Inputs) -> Inputs:
    """All kinds of inputs that a forward accepts and `inputs` lacks: text, images, sound."""
    accepted = inspect.signature(model.forward).parameters.keys() - inputs.keys()
    made = {name: make(model) for name, make in {"input_ids": _tokens, **_INPUTS}.items() if name in accepted}
    return {name: value for name, value in made.items() if name != "input_values" or "input_features" not in made}


def _images(model: PreTrainedModel) -> Tensor:
    config = _part_of(model.config, "vision_config")
    height, width = _pair(getattr(config, "image_size", None) or getattr(config, "input_size", None) or 32)
    return _waves(model, BATCH, getattr(config, "num_channels", 3), height, width)


def _sound(model: PreTrainedModel) -> Tensor:
    """Raw samples, or the spectrogram that the config describes."""
    config = _part_of(model.config, "audio_config", "encoder_config")
    bins = getattr(config, "num_mel_bins", None)
    if bins and getattr(config, "max_source_positions", None):
        return _waves(model, BATCH, bins, 2 * config.max_source_positions)  # Whisper halves the frames
    if bins and getattr(config, "max_length", None):
        return _waves(model, BATCH, config.max_length, bins)
    width = getattr(config, "feature_projection_input_dim", None) or getattr(config, "input_dim", None)
    if width:
        return _waves(model, BATCH, LENGTH * LENGTH, width)
    if bins:
        return _waves(model, BATCH, bins, 64)
    return _waves(model, BATCH, SAMPLES)


def _waves(model: PreTrainedModel, *shape: int) -> Tensor:
    return torch.arange(prod(shape), dtype=torch.float32).sin().view(shape).to(model.dtype)


_INPUTS: dict[str, Callable[[PreTrainedModel], Tensor]] = {
    "pixel_values": _images,
    "input_values": _sound,
    "input_features": _sound,
}


def _encoder_states(model: Any, inputs: Inputs) -> Inputs:
    """Hidden states of another model for the cross attention of a decoder."""
    config = model.config
    width = getattr(config, "cross_attention_hidden_size", None) or config.hidden_size
    return {"encoder_hidden_states": _waves(model, BATCH, LENGTH - 2, width)}


def _image_and_text(model: Any, inputs: Inputs) -> Inputs:
    """Images, and as many placeholder tokens for them as the model makes features of them."""
    images = _images(model)
    if width := getattr(model.config, "patch_dim", None):
        images = _waves(model, 2 * BATCH, width)  # the patches of all images, concatenated
    if "input_ids" not in inputs:
        return {"pixel_values": images}
    try:
        return _with_placeholders(model, inputs, {"pixel_values": images}, "image")
    except (ValueError, RuntimeError):
        return _with_placeholders(model, inputs, {"pixel_values": images.unsqueeze(1)}, "image")  # a list for each text


def _sound_and_text(name: str) -> Callable[[Any, Inputs], Inputs]:
    def make(model: Any, inputs: Inputs) -> Inputs:
        """Sound, its mask if the model takes one, and a placeholder token for each feature made of it."""
        sound: Inputs = {name: _sound(model)}
        features = getattr(model.base_model, "get_audio_features", model.forward)
        for mask in ("input_features_mask", "feature_attention_mask", "padding_mask"):
            if mask in inspect.signature(features).parameters:
                sound[mask] = torch.ones(BATCH, sound[name].shape[-1], dtype=torch.long)
        return _with_placeholders(model, inputs, sound, "audio") if "input_ids" in inputs else sound

    return make


def _with_placeholders(model: Any, inputs: Inputs, given: Inputs, kind: str) -> Inputs:
    """Return `given` with token ids and mask that begin with a row of `kind`'s placeholder tokens."""
    token = _placeholder(model.config, kind)
    if token is None:
        return given
    text = inputs["input_ids"]
    text = torch.where(text == token, text - 1, text)

    def beside(count: int) -> Inputs:
        ids = torch.cat([torch.full((BATCH, count), token, device=text.device), text], dim=1)
        return {**given, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return beside(_features(model, given, beside(2), kind) // BATCH)


def _placeholder(config: Any, kind: str) -> int | None:
    found = (getattr(config, f"{kind}_token_{word}", None) for word in ("id", "index"))
    return next((token for token in found if token is not None), None)


def _features(model: Any, given: Inputs, guess: Inputs, kind: str) -> int:
    """Return the number of feature rows that replace placeholder tokens in the model.

    Raises:
        Exception: whatever the model raises where it cannot make any of `given`.
    """
    given, guess = on_device(model, given), on_device(model, guess)
    with quiet_forward(model):
        try:
            features = getattr(model, f"get_{kind}_features")(**given)
        except (AttributeError, TypeError):  # it has no such method, or one that needs the tokens as well
            return _features_in_refusal(model, guess)
    pooled = getattr(features, "pooler_output", None)
    tensors = output_tensors(features if pooled is None else pooled)
    return sum(tensor.numel() // tensor.shape[-1] for tensor in tensors)


def _features_in_refusal(model: Any, guess: Inputs) -> int:
    """Return the number that the model names when it refuses a wrong one."""
    try:
        with quiet_forward(model):
            model(**guess)
    except ValueError as refusal:
        if number := re.search(r"features: (\d+)", str(refusal)):
            return int(number[1])
        raise
    return guess["input_ids"].shape[0] * 2


def _masked_patches(model: Any, inputs: Inputs) -> Inputs:
    """Hide every other patch of the images, so that the mask embedding is used."""
    size, patch = model.config.image_size, model.config.patch_size
    sides = [s // p for s, p in zip(_pair(size), _pair(patch), strict=True)]
    return {"bool_masked_pos": torch.arange(BATCH * prod(sides)).view(BATCH, -1) % 2 == 0}


def _masked_frames(model: Any, inputs: Inputs) -> Inputs:
    """Hide every other frame of the sound."""
    with quiet_forward(model):
        frames = output_tensors(model(**inputs))[0].shape[1]
    return {"mask_time_indices": torch.arange(BATCH * frames).view(BATCH, frames) % 2 == 0}


def _predicted_positions(model: Any, inputs: Inputs) -> Inputs:
    """Predict the first two positions without showing them (XLNet)."""
    return {"target_mapping": torch.eye(LENGTH)[:2].expand(BATCH, 2, LENGTH).contiguous()}


def _entities(model: Any, inputs: Inputs) -> Inputs:
    """Two entities of three words each (LUKE)."""
    positions = torch.arange(3).expand(BATCH, 2, 3).contiguous()
    return {"entity_ids": torch.ones(BATCH, 2, dtype=torch.long), "entity_position_ids": positions}


def _languages(model: Any, inputs: Inputs) -> Inputs:
    """A row in each language (X-MOD has adapters for each)."""
    count = len(model.config.languages)
    rows = torch.arange(count)
    return {"input_ids": inputs["input_ids"][rows % BATCH], "lang_ids": rows}


def _seen_by_all(model: Any) -> Inputs:
    """Let the first token see all others and be seen by all (Longformer)."""
    mask = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    mask[:, 0] = 1
    return {"global_attention_mask": mask}


def _regions(model: Any) -> Inputs:
    """Features and boxes of four regions of an image (LXMERT)."""
    features = _waves(model, BATCH, 4, model.config.visual_feat_dim)
    return {"visual_feats": features, "visual_pos": _waves(model, BATCH, 4, model.config.visual_pos_dim)}


def _patches(model: Any) -> Inputs:
    """Images as rows of 3 x 2 patches, with their shapes (SigLIP 2)."""
    config = _part_of(model.config, "vision_config")
    values = _waves(model, BATCH, 6, config.num_channels * prod(_pair(config.patch_size)))
    return {
        "pixel_values": values,
        "pixel_attention_mask": torch.ones(BATCH, 6, dtype=torch.long),
        "spatial_shapes": torch.tensor([[3, 2]] * BATCH),
    }


def _part_of(config: Any, *names: str) -> Any:
    """Return the part of a composite config that has one of these names, however deep; else the whole."""
    parts = [part for part in vars(config).values() if isinstance(part, PretrainedConfig)]
    own = [part for name in names if isinstance(part := getattr(config, name, None), PretrainedConfig)]
    below = (found for part in parts if (found := _part_of(part, *names)) is not part)
    return next(iter(own), None) or next(below, config)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


_EXTRAS: dict[str, Callable[[nn.Module, Inputs], Inputs]] = {
    "encoder_hidden_states": _encoder_states,
    "pixel_values": _image_and_text,
    "input_features": _sound_and_text("input_features"),
    "input_values": _sound_and_text("input_values"),
    "bool_masked_pos": _masked_patches,
    "mask_time_indices": _masked_frames,
    "target_mapping": _predicted_positions,
    "entity_ids": _entities,
    "lang_ids": _languages,
}
_ALWAYS: dict[str, Callable[[PreTrainedModel], Inputs]] = {
    "global_attention_mask": _seen_by_all,
    "visual_feats": _regions,
    "spatial_shapes": _patches,
}
