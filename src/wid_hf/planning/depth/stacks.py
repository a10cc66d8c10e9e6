"""Which entries of a config count layers, and which modules these are.

Takes a teacher and a `WidConfig`; gives the stacks of layers that its student has fewer of. An entry counts layers if a
skeleton of the class with a smaller number there is the teacher without the last members of some lists of modules, and
no weight has another shape. No model is named, and no entry but transformers' common one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ...config import COUNT, SIZES, WidConfig
from ...coupling.trace import saved_tensors
from ...errors import ConfigError
from ..sizes.config_names import LAYERS, is_list, is_size, own_name
from ..skeleton import skeleton
from .shallow_config import WAYS, Entry, count_of, shallow_config

LISTS = (nn.ModuleList, nn.Sequential)


@dataclass(frozen=True)
class Stack:
    """Layers of which a student has fewer.

    Attributes:
        entry: what counts them.
        lists: names of the lists of modules that hold them, usually one; none if all layers are one module that runs
            several times.
        old: how many layers the teacher has.
        new: how many the student has.
        kept: numbers of the teacher's layers that stay; None while nothing has decided.
        given: whether the request names them.
    """

    entry: Entry
    lists: tuple[str, ...]
    old: int
    new: int
    kept: tuple[int, ...] | None = None
    given: bool = False

    def __str__(self) -> str:
        """Return in words what happens to the layers."""
        changed = f"{self.title} {self.old} -> {self.new}"
        if not self.lists:
            return f"{changed}: one layer that runs fewer times."
        if self.is_choice:
            return f"{changed}: calibration data decides which layers stay."
        return f"{changed}: layers {', '.join(map(str, self.kept or ()))} stay."

    @property
    def title(self) -> str:
        """The entry as a user writes it."""
        return ".".join(map(str, self.entry))

    @property
    def is_choice(self) -> bool:
        """Whether calibration data decides which layers stay: it makes a difference, and the request leaves it open."""
        return not self.given and bool(self.lists)

    @property
    def spread(self) -> tuple[int, ...]:
        """As many layers, as far from each other as possible, with the first and the last."""
        return tuple(round(at * (self.old - 1) / max(self.new - 1, 1)) for at in range(self.new))


def requested_stacks(teacher: PreTrainedModel, config: WidConfig) -> tuple[Stack, ...]:
    """Return the stacks that `config` makes shorter.

    Raises:
        ConfigError: an entry that counts no layers, more layers than there are, or layers out of order or range.
    """
    named = _named_entries(teacher, config)
    problems: list[str] = []
    stacks = [_named_stack(teacher, entry, *asked, problems) for entry, asked in named.items()]
    problems += _given_twice(named, config.overrides)
    if problems:
        raise ConfigError("WidConfig: " + "; ".join(problems))
    for entry, new in _counts(config.overrides):
        found = _stack(teacher, entry, new) if entry not in named else None
        stacks.append(found if found is not None and found.lists else None)
    return tuple(stack for stack in stacks if stack is not None and stack.new < stack.old)


def _given_twice(named: Mapping[Entry, tuple[int, Any]], overrides: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong where overrides give another number to an entry that is named otherwise too."""
    for entry, new in _counts(overrides):
        if entry in named and named[entry][0] != new:
            yield f"{'.'.join(map(str, entry))} is {named[entry][0]} and, in overrides, {new}; give it once"


def _named_entries(teacher: PreTrainedModel, config: WidConfig) -> dict[Entry, tuple[int, tuple[int, ...] | None]]:
    """Return the entries that `config` says to count layers, each with how many stay and, if it names them, which."""
    layers = {COUNT: config.layers} if isinstance(config.layers, list) else config.layers or {}
    named: dict[Entry, tuple[int, tuple[int, ...] | None]] = {
        _entry(teacher.config, title): (len(kept), tuple(kept)) for title, kept in layers.items()
    }
    if config.num_hidden_layers is not None:
        named.setdefault(_entry(teacher.config, COUNT), (config.num_hidden_layers, None))
    return named


def _named_stack(
    teacher: PreTrainedModel, entry: Entry, new: int, kept: tuple[int, ...] | None, problems: list[str]
) -> Stack | None:
    """Return the stack of an entry that is said to count layers, or None and a problem."""
    title, old = ".".join(map(str, entry)), count_of(teacher.config, entry)
    name = type(teacher).__name__
    if not is_size(old):
        places = f"; its parts are {title}.0 to {title}.{len(old) - 1}" if is_list(old) else ""
        problems.append(f"{type(teacher.config).__name__} counts no layers as {title}{places}")
    elif kept is not None and (list(kept) != sorted(set(kept)) or kept[-1] >= old):
        problems.append(
            f"layers={list(kept)}: give numbers from 0 to {old - 1}, each once and in ascending order; {name} has "
            f"{old} layers"
        )
    elif new > old:
        problems.append(f"{title}={new} is more than the teacher's {old} layers; a student can only be shallower")
    elif new < old:
        stack = _stack(teacher, entry, new, kept)
        if stack is None:
            problems.append(
                f"{title}={new}: with another number there {name} does not simply have fewer layers. Name the entry "
                "of its config that counts layers, in overrides or layers"
            )
        elif kept is not None and not stack.lists:
            problems.append(
                f"layers={list(kept)}: {name} has one layer, which runs {old} times, so that none can be chosen. Give "
                f"how often it runs in place of layers: {_count_argument(teacher.config, entry)}={new}"
            )
        return stack
    return None


def _count_argument(config: PretrainedConfig, entry: Entry) -> str:
    """Return what `WidConfig` calls the entry: its own argument if transformers' common name means it."""
    return COUNT if entry == _entry(config, COUNT) else f"overrides {'.'.join(map(str, entry))}"


def _stack(teacher: PreTrainedModel, entry: Entry, new: int, kept: tuple[int, ...] | None = None) -> Stack | None:
    """Return the layers that an entry counts, or None if it does not count layers."""
    old = count_of(teacher.config, entry)
    if not is_size(old) or new >= old:
        return None
    tried = [(*range(new),), (*range(old - new, old),), Stack(entry, (), old, new).spread, *([kept] if kept else [])]
    for some, way in product(tried, WAYS):
        try:
            small = skeleton(type(teacher), shallow_config(teacher.config, entry, some, way))
        except Exception:  # each class checks its config in its own way: it may want other layers, or none less
            continue
        found = Stack(entry, tuple(_shortened(teacher, small, old, new)), old, new, kept, given=kept is not None)
        if _is_part(teacher, small, replace(found, kept=some)):
            return found
        if not found.lists:  # no layers: a size
            return None
    return None


def _is_part(teacher: PreTrainedModel, small: PreTrainedModel, stack: Stack) -> bool:
    """Return whether a skeleton has the weights of the layers that stay, and all others of the teacher."""
    whole, part = ({name: t.shape for name, t in saved_tensors(model).items()} for model in (teacher, small))
    taken = {source(name, [stack]): shape for name, shape in part.items()}
    gone = [name for name in whole if name not in taken]
    are_members = all(any(name.startswith(f"{each}.") for each in stack.lists) for name in gone)
    return are_members and all(whole.get(name) == shape for name, shape in taken.items())


def source(name: str, stacks: Sequence[Stack]) -> str:
    """Return the teacher's name of a weight, or module, of the shallow model."""
    for stack in stacks:
        for each in stack.lists:
            place, dot, rest = name.removeprefix(f"{each}.").partition(".")
            if name.startswith(f"{each}.") and place.isdigit() and stack.kept is not None:
                return f"{each}.{stack.kept[int(place)]}{dot}{rest}"
    return name


def _shortened(teacher: PreTrainedModel, small: PreTrainedModel, old: int, new: int) -> Iterator[str]:
    modules = dict(small.named_modules())
    for name, module in teacher.named_modules():
        if isinstance(module, LISTS) and len(module) == old and len(modules.get(name, ())) == new:
            yield name


def _entry(config: PretrainedConfig, title: str) -> Entry:
    """Return the path that a dotted name means, with the config's own names."""
    parts: list[str | int] = []
    inside: Any = config
    for word in title.split("."):
        parts.append(int(word) if word.isdigit() else own_name(inside, word) if inside is not None else word)
        inside = getattr(inside, word, None) if isinstance(inside, PretrainedConfig) else None
        inside = inside if isinstance(inside, PretrainedConfig) else None
    return tuple(parts)


def _counts(sizes: Mapping[str, Any], path: Entry = ()) -> Iterator[tuple[Entry, int]]:
    """Yield every number in overrides that may count layers, with its path."""
    for name, size in sizes.items():
        if isinstance(size, Mapping) and name != LAYERS:
            yield from _counts(size, (*path, name))
        elif isinstance(size, (list, tuple)):
            yield from (((*path, name, at), each) for at, each in enumerate(size) if is_size(each))
        elif is_size(size) and name not in SIZES:
            yield (*path, name), size
