"""The config of a model with some of the layers: counts, lists with an entry for each layer, and lists of layers.

Takes a config, the entry that counts layers and which of them stay; gives another config.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PretrainedConfig

from ...errors import PlanError
from ..sizes.config_names import LAYERS, own_name, stated
from ..sizes.student_config import with_sizes

Entry = tuple[str | int, ...]
"""What counts layers: names that lead into the config, and the place in it if it is a list (`depths`, 2)."""

OF_LAYERS = ("layer", "block", "type")  # in names of lists with an entry for each layer
NUMBERS = ("layer", "block", "idx", "indic", "index")  # in names of lists of some layers' numbers


class Way(NamedTuple):
    """What lists of a config mean, which their names do not tell; the model does.

    Attributes:
        renumbered: whether lists of some layers' numbers mean the layers that had these numbers.
        every: whether all lists as long as there are layers have an entry for each, whatever they are called.
    """

    renumbered: bool = True
    every: bool = False


WAYS = (Way(), Way(renumbered=False), Way(every=True), Way(renumbered=False, every=True))
"""Usual ones first."""


def shallow_config(config: PretrainedConfig, entry: Entry, kept: Sequence[int], way: Way = WAYS[0]) -> PretrainedConfig:
    """Return a copy of `config` for a model that keeps these layers.

    Args:
        config: of the model with all layers.
        entry: what counts them.
        kept: numbers of layers, ascending.
        way: what lists mean.

    Raises:
        PlanError: saved and loaded, the config would mean another model, or its class refuses it.
    """
    names, place = split(entry)
    part = _inside(config, names)
    sizes = nested = dict(_followed(part, names[-1], place, kept, way))
    for name in reversed(names[:-1]):
        nested = {name: nested}
    made = with_sizes(config, nested)
    own = {int(layer): each for layer, each in (part.to_dict().get(LAYERS) or {}).items()}  # no plain attribute
    if place is None and own:
        _inside(made, names).per_layer_config = {new: own[old] for new, old in enumerate(kept) if old in own}
    _refuse_unstable(made, names, sizes)
    return made


def _inside(config: PretrainedConfig, names: Sequence[str]) -> PretrainedConfig:
    """Return the part that states the last of these names."""
    for name in names[:-1]:
        config = getattr(config, name)
    return config


def _refuse_unstable(made: PretrainedConfig, names: Sequence[str], sizes: Mapping[str, Any]) -> None:
    """Raise if a class that completes its config would change these entries on loading, as one whose last layer is of
    one kind.

    Raises:
        PlanError: it would, or it refuses the config.
    """
    try:
        loaded = type(made).from_dict(made.to_dict())
    except Exception as refusal:  # each class checks its config in its own way
        raise PlanError(f"- {type(made).__name__} itself refuses this config once it is saved: {refusal}") from refusal
    for name, size in sizes.items():
        read = stated(_inside(loaded, names), name)
        if (list(read) if isinstance(read, (list, tuple)) else read) != size:
            raise PlanError(f"- {type(made).__name__} reads {name}={size} as {read}: its layers have kinds by place")


def split(entry: Entry) -> tuple[list[str], int | None]:
    """Return the names of an entry, and the place in its list if it is one."""
    names = [each for each in entry if isinstance(each, str)]
    return names, next((each for each in entry if isinstance(each, int)), None)


def count_of(config: PretrainedConfig, entry: Entry) -> Any:
    """Return what the config states there; None if there is nothing."""
    names, place = split(entry)
    value: Any = config
    for name in names:
        value = stated(value, name) if isinstance(value, PretrainedConfig) else None
    return value[place] if place is not None and isinstance(value, (list, tuple)) else value


def _followed(
    part: PretrainedConfig, name: str, place: int | None, kept: Sequence[int], way: Way
) -> Iterator[tuple[str, Any]]:
    """Yield the count and the lists of one config that follow it."""
    old = stated(part, name)
    if place is not None:
        yield name, [*old[:place], len(kept), *old[place + 1 :]]
        return
    yield name, len(kept)
    yield from _outputs_of_backbone(part, old, kept)
    for other, value in vars(part).items():
        if not other.startswith("_") and other != own_name(part, name) and isinstance(value, (list, tuple)):
            yield from _followed_list(other, value, old, kept, way)


def _followed_list(
    name: str, value: Sequence[Any], old: int, kept: Sequence[int], way: Way
) -> Iterator[tuple[str, list[Any]]]:
    """Yield a list as it is with the layers that stay, if it has to do with layers."""
    if len(value) == old and (way.every or any(word in name for word in OF_LAYERS)):
        yield name, [value[layer] for layer in kept]
    elif way.renumbered and _are_layers(name, value, old):
        yield name, [kept.index(layer) for layer in value if layer in kept]


def _outputs_of_backbone(part: PretrainedConfig, old: int, kept: Sequence[int]) -> Iterator[tuple[str, Any]]:
    """Yield the names of a backbone's stages, if these are its layers, and which of them it returns.

    What was returned behind a layer that goes is what comes out of the layers before it that stay. Without this the
    class refuses to load the saved config.
    """
    stages = vars(part).get("stage_names") or ()
    if len(stages) == old + 1 and vars(part).get("_out_indices"):
        indices = sorted({sum(layer < index for layer in kept) for index in part.out_indices})
        yield "stage_names", stages[: len(kept) + 1]
        yield "_out_indices", indices
        yield "_out_features", [stages[index] for index in indices]


def _are_layers(name: str, value: Sequence[Any], count: int) -> bool:
    """Return whether a list may hold numbers of some of the layers."""
    is_ascending = all(type(each) is int for each in value) and sorted(set(value)) == list(value)
    return bool(value) and is_ascending and value[-1] < count and any(word in name for word in NUMBERS)
