"""Which configs of a student a `WidConfig` may mean: the sizes that it states, and those that follow from them.

Takes the teacher's config and a `WidConfig`; gives the configs, the best first, or refuses names and numbers.
`student` lets the plan judge each. Nothing here looks at a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from itertools import islice, product
from math import gcd
from typing import Any, Literal

from transformers import PretrainedConfig

from ..config import HeadStrategy, WidConfig
from ..errors import ConfigError, PlanError

LAYERS = "per_layer_config"  # transformers' name for sizes that differ from layer to layer
MOST = 48  # meanings of one request that are tried; composite models multiply those of their parts
COMBINED = 4096  # combinations of the meanings of parts that are sorted
NEAREST = 6  # hidden sizes that are tried in place of one that has no layout of heads

Sizes = dict[str, Any]
Strategy = Literal["dim", "head"]


class Way(IntEnum):
    """What becomes of heads when the hidden size shrinks, in the order in which `head_strategy="auto"` prefers it."""

    NARROWER = 0
    FEWER = 1
    AS_THEY_ARE = 2
    OTHER_COUNT = 3
    NEAREST_SIZE = 4

    @property
    def words(self) -> str:
        """What messages call it."""
        return ("narrower heads", "fewer heads", "heads as they are", "other head counts", "other hidden sizes")[self]


@dataclass(frozen=True)
class Meaning:
    """One meaning of a request.

    Attributes:
        sizes: those asked for and those that follow, nested as the config is.
        way: what becomes of heads; of several parts, the way that is preferred least.
        strategy: the explicit head strategy that it amounts to; None where no heads are concerned.
        ways: of all parts that have heads.
    """

    sizes: Sizes
    way: Way = Way.NARROWER
    strategy: Strategy | None = None
    ways: tuple[Way, ...] = ()


class Request:
    """A `WidConfig` together with the teacher's config: all that it may mean.

    Attributes:
        meanings: the best first; at least one.
        closed: which ways are out of the question before a model is looked at, and why.

    Raises:
        ConfigError: lists every name and size that cannot be.
    """

    def __init__(self, teacher: PretrainedConfig, wanted: WidConfig) -> None:
        self.teacher, self.wanted = teacher, wanted
        problems = _size_problems(teacher, wanted.requested)
        if problems:
            raise ConfigError(_joined(teacher, problems))
        self.closed: dict[Way, str] = {}
        self.meanings = _meanings(teacher, wanted.requested, wanted.head_strategy, self.closed)
        if not self.meanings:
            raise ConfigError(_joined(teacher, list(dict.fromkeys(self.closed.values()))))

    def configs(self) -> Iterator[tuple[Meaning, PretrainedConfig | PlanError]]:
        """Yield the student's config for each meaning, those left out that equal an earlier one.

        A config whose own class refuses it comes as that refusal.
        """
        seen: list[dict[str, Any]] = []
        for meaning in self.meanings:
            try:
                config = _rewritten(self.teacher, meaning.sizes)
                stated = config.to_dict()
            except Exception as refusal:  # each class checks its entries in its own way, with errors of its own
                yield meaning, PlanError(f"- the config itself refuses these sizes: {refusal}")
                continue
            if stated not in seen:
                seen.append(stated)
                yield meaning, config

    def pinned(self, meaning: Meaning, student: PretrainedConfig) -> Sizes:
        """Return all sizes that were asked for or could have followed, as `student` has them.

        A request with these sizes leaves nothing open: it means the same student in every later version.
        """
        return _pinned(self.teacher, student, meaning.sizes, [other.sizes for other in self.meanings])

    def moved(self, meaning: Meaning) -> list[str]:
        """Return the sizes of `meaning` that are not those asked for, as `hidden_size=32 instead of 31`."""
        return _moved(self.wanted.requested, meaning.sizes)

    def other_sizes(self) -> list[str]:
        """Return the hidden sizes that are tried in place of those asked for, the nearest first."""
        others = [self.moved(meaning) for meaning in self.meanings if meaning.way is Way.NEAREST_SIZE]
        return list(dict.fromkeys(text.partition(" instead")[0] for moved in others for text in moved))

    def changes(self, meaning: Meaning, student: PretrainedConfig) -> list[str]:
        """Return in words what becomes of heads, and which other sizes follow from those asked for."""
        return _changes(self.teacher, student, self.wanted.requested, meaning.sizes)


def _meanings(
    config: PretrainedConfig,
    requested: Mapping[str, Any],
    strategy: HeadStrategy,
    closed: dict[Way, str],
    prefix: str = "",
) -> list[Meaning]:
    """Return what `requested` may mean together with the sizes that follow from it, parts of `config` included."""
    parts = {name: sizes for name, sizes in requested.items() if isinstance(sizes, Mapping) and name != LAYERS}
    inside = [
        _meanings(getattr(config, name), sizes, strategy, closed, f"{prefix}{name}.") for name, sizes in parts.items()
    ]
    own = [
        Meaning({**twins, **expanded, **one.sizes}, one.way, one.strategy, one.ways)
        for one in _own_meanings(config, requested, strategy, closed, prefix)
        for asked in [{name: one.sizes[name] for name in requested}]
        for twins in _twins(config, asked)
        for expanded in _expanded_heads(config, asked, one.strategy or strategy)
    ]
    if not parts:
        return sorted(own, key=_preference)[:MOST]
    most = int(COMBINED ** (1 / (1 + len(parts))))
    together = product(own[:most], *(one[:most] for one in inside))
    return sorted((_together(one, parts, chosen) for one, *chosen in together), key=_preference)[:MOST]


def _preference(meaning: Meaning) -> tuple[int, int]:
    return meaning.way, sum(meaning.ways)


def _together(own: Meaning, parts: Iterable[str], inside: list[Meaning]) -> Meaning:
    sizes = {**own.sizes, **{name: one.sizes for name, one in zip(parts, inside, strict=True)}}
    strategies = [one.strategy for one in (own, *inside) if one.strategy is not None]
    strategy = max(strategies, default=None)  # "head" where any part has fewer heads
    return Meaning(
        sizes,
        max(one.way for one in (own, *inside)),
        strategy,
        tuple(way for one in (own, *inside) for way in one.ways),
    )


def _own_meanings(
    config: PretrainedConfig, requested: Mapping[str, Any], strategy: HeadStrategy, closed: dict[Way, str], prefix: str
) -> list[Meaning]:
    """Return what may become of the heads of one config, its parts left out.

    Raises:
        ConfigError: an explicit strategy whose sizes do not divide; names the nearest that do.
    """
    heads = _Heads.of(config, requested)
    if heads is None:
        return [Meaning(dict(requested)), *(_of_stages(config, requested) if strategy == "auto" else [])]
    if strategy != "auto":
        try:
            return [heads.meaning(one, Way.NARROWER, strategy) for one in heads.by(strategy)]
        except _Indivisible as problem:
            raise ConfigError(_joined(config, [f"{prefix}{problem}"])) from None
    found: list[Meaning] = []
    for way in list(Way)[:-1]:
        try:
            found += [heads.meaning(one, way) for one in heads.layouts(way)]
        except _Indivisible as problem:
            closed.setdefault(way, f"{prefix}{problem}")
    for size in heads.nearest_sizes():
        other = heads.at(size)
        for way in list(Way)[:-1]:
            with suppress(_Indivisible):
                found += [other.meaning(one, Way.NEAREST_SIZE) for one in other.layouts(way)]
    sizes = [meaning.sizes for meaning in found]
    return [meaning for at, meaning in enumerate(found) if meaning.sizes not in sizes[:at]]


def _of_stages(config: PretrainedConfig, requested: Mapping[str, Any]) -> Iterator[Meaning]:
    """Yield what may become of heads that are counted stage by stage: fewer of them, or other numbers.

    Stages have a list of widths, or widths in proportion to one number (Swin).
    """
    counts = {name: list(n) for name, n in vars(config).items() if name.endswith("heads") and _is_list(n)}
    widths = {config.attribute_map.get("hidden_size", "hidden_size"), "embed_dim"}
    for name, size in requested.items():
        old = _stated(config, name)
        for heads, each in counts.items():
            if _is_list(size) and _is_list(old) and len(size) == len(each):
                stages = list(zip(each, old, size, strict=True))
            elif _is_size(size) and _is_size(old) and name in widths:
                stages = [(n, old, size) for n in each]
            else:
                continue
            fewer = [n * new // old if n * new % old == 0 else 0 for n, old, new in stages]
            others = [
                max((m for m in range(1, n + 1) if new % m == 0 and new * n <= old * m), default=0)
                for n, old, new in stages
            ]
            for way, found in ((Way.FEWER, fewer), (Way.OTHER_COUNT, others)):
                if all(found):
                    yield Meaning({heads: found, **requested}, way, "head", (way,))


class _Indivisible(Exception):
    """Sizes that do not divide into heads; says which are the nearest that do."""


@dataclass(frozen=True)
class _Heads:
    """The heads of one config, and what a request may make of them.

    Attributes:
        config: the teacher's.
        requested: sizes asked for.
        hidden: the teacher's hidden size.
        count: its number of (query) heads.
        groups: its number of key/value heads, None where it does not say.
        stated: the width of a head, None where it follows from the others.
    """

    config: PretrainedConfig
    requested: Mapping[str, Any]
    hidden: int
    count: int
    groups: int | None
    stated: int | None

    @classmethod
    def of(cls, config: PretrainedConfig, requested: Mapping[str, Any]) -> _Heads | None:
        """Return the heads of a config that states a hidden size and a number of heads, each as one number."""
        hidden, count = _stated(config, "hidden_size"), _stated(config, "num_attention_heads")
        if not _is_size(hidden) or not _is_size(count) or count > hidden:
            return None
        width = _stated(config, "head_dim") if _has(config, "head_dim") else None
        groups = _stated(config, "num_key_value_heads")
        return cls(config, requested, hidden, count, *(n if _is_size(n) else None for n in (groups, width)))

    @property
    def hidden_name(self) -> str:
        """Under which name the hidden size was asked for."""
        own = self.config.attribute_map.get("hidden_size", "hidden_size")
        return own if own in self.requested else "hidden_size"

    @property
    def new(self) -> int:
        """The hidden size asked for."""
        return _lookup(self.config, self.requested, "hidden_size", self.hidden)

    @property
    def asked(self) -> int | None:
        """The number of heads asked for."""
        return _lookup(self.config, self.requested, "num_attention_heads", None)

    @property
    def free(self) -> bool:
        """Whether the number of heads follows from the hidden size."""
        return self.asked is None and self.new != self.hidden

    @cached_property
    def width(self) -> int:
        """The teacher's width of a head."""
        return self.stated or self.hidden // self.count

    def by(self, strategy: Strategy) -> list[Sizes]:
        """Return the sizes that follow by an explicit strategy, in order of preference.

        Where the config states a head width of its own and heads stay, the width is scaled first; if the plan
        refuses that because the width is frozen (rotary positions), it stays.
        """
        if strategy == "head" and self.free:
            return [self._fewer()]
        if not self.stated:
            return self._narrower()
        with suppress(_Indivisible):
            narrower = self._narrower()
            return [*narrower, {}] if {} not in narrower else narrower
        return [{}]

    def layouts(self, way: Way) -> list[Sizes]:
        """Return the sizes that follow when heads go this way, in order of preference."""
        if way is Way.NARROWER:
            return self._with_groups([one for following in self._narrower() for one in self._everywhere(following)])
        if way is Way.AS_THEY_ARE:
            return self._with_groups(self._as_they_are())
        if not self.free:
            return []
        if way is Way.FEWER:
            return self._everywhere(self._fewer())
        return self._other_counts()

    def meaning(self, following: Sizes, way: Way, strategy: Strategy | None = None) -> Meaning:
        """Return the meaning of the request with these sizes that follow; by default of the strategy they amount to."""
        sizes = {**following, **self.requested}
        count = _lookup(self.config, sizes, "num_attention_heads", self.count)
        return Meaning(sizes, way, strategy or ("head" if count < self.count else "dim"), (way,))

    def nearest_sizes(self) -> list[int]:
        """Return hidden sizes near the one asked for that have a layout of heads, the nearest first.

        The next ones with heads as wide as the teacher's are among them: often no other width is possible.
        """
        if self.new == self.hidden:
            return []
        by_distance = sorted(set(range(1, self.hidden)) - {self.new}, key=lambda size: (abs(size - self.new), size))
        divisible = (size for size in by_distance if self.at(size)._divides())
        whole = (size for size in by_distance if self.at(size)._keeps_width())
        near = {*islice(divisible, NEAREST), *islice(whole, 2)}
        return [size for size in by_distance if size in near]

    def at(self, size: int) -> _Heads:
        """Return the same request with another hidden size."""
        return replace(self, requested={**self.requested, self.hidden_name: size})

    def _divides(self) -> bool:
        return self.new % (self.asked or self.count) == 0 or (self.free and bool(self._other_counts()))

    def _keeps_width(self) -> bool:
        if self.asked is not None:
            return self.new == self.asked * self.width
        return self.new % self.width == 0 and bool(self._groups(self.new // self.width))

    @property
    def _step(self) -> int:
        """By how much the hidden size shrinks when as many heads drop of each group."""
        return self.hidden // gcd(self.hidden, self.count, self.groups if self.groups not in (None, 1) else 0)

    def _narrower(self) -> list[Sizes]:
        count = self.asked or self.count
        if self.new == self.hidden and self.asked is None:
            return [{}]
        if not self.stated:
            if self.new % count:
                raise _Indivisible(_indivisible(self.new, count, self.hidden, f"does not divide into {count} heads"))
            return [{}]
        if self._is_asked("head_dim") or self.new == self.hidden:
            return [{}]
        scaled, rest = divmod(self.stated * self.new, self.hidden)
        if rest:
            raise _Indivisible(f"head_dim={self.stated} times {self.new} / {self.hidden} is no whole number")
        return [{"head_dim": scaled}]

    def _as_they_are(self) -> list[Sizes]:
        """Return heads that do not follow the hidden size: the config says so, or the model is asked whether it can."""
        sayable = not self.stated and "head_dim" in vars(self.config) and not self._is_asked("head_dim")
        return [{"head_dim": self.width}, {}] if sayable else [{}]

    def _fewer(self) -> Sizes:
        groups = self.groups if self.groups != 1 else None  # a single one is shared by however many heads are left
        if self.count * self.new % self.hidden or (groups or 0) * self.new % self.hidden:
            step = self._step
            raise _Indivisible(
                _indivisible(self.new, step, self.hidden, f"keeps heads of width {self.width} only in steps of {step}")
            )
        following = {"num_attention_heads": self.count * self.new // self.hidden}
        if groups:
            following["num_key_value_heads"] = groups * self.new // self.hidden
        return self._unasked(following)

    def _everywhere(self, following: Sizes) -> list[Sizes]:
        """Return `following` as it is, then also for what counts its heads apart.

        That is the decoder beside an encoder, a list by layer, and layers with sizes of their own.
        """
        found = dict(following)
        names = [self.config.attribute_map.get(name, name) for name in following]
        for name, value in vars(self.config).items():
            if name not in names and any(own in name or own.replace("encoder", "decoder") == name for own in names):
                found |= self._scaled({name: value})
        layers = (self.config.to_dict().get(LAYERS) or {}).items()
        single = {layer: self._scaled({name: own[name] for name in names if name in own}) for layer, own in layers}
        if any(single.values()):
            found[LAYERS] = {str(layer): sizes for layer, sizes in single.items() if sizes}  # as JSON spells it
        found = self._unasked(found)
        return [following, found] if found != following else [following]

    def _scaled(self, sizes: Sizes) -> Sizes:
        """Return each size, and each list of sizes, as much smaller as the hidden size, where it divides."""
        found: Sizes = {}
        for name, value in sizes.items():
            each = value if _is_list(value) else [value]
            if all(_is_size(one) and one * self.new % self.hidden == 0 for one in each):
                smaller = [one * self.new // self.hidden for one in each]
                found[name] = smaller if _is_list(value) else smaller[0]
        return found

    def _other_counts(self) -> list[Sizes]:
        """Return numbers of heads that divide the hidden size, heads as wide as the teacher's first, then many."""
        if self.stated:
            return []
        counts = [n for n in range(self.count, 0, -1) if self.new % n == 0 and self.new // n <= self.width]
        counts.sort(key=lambda n: self.new // n != self.width)
        return [
            self._unasked({"num_attention_heads": n} | ({"num_key_value_heads": g} if g is not None else {}))
            for n in counts
            for g in self._groups(n)
        ]

    def _groups(self, count: int) -> list[int | None]:
        """Return numbers of key/value heads that `count` query heads may have, the teacher's ratio first."""
        if self.groups is None or self.groups == 1 or self._is_asked("num_key_value_heads"):
            return [None]
        if self.groups == self.count:
            return [count]
        each = self.count // self.groups
        legal = [g for g in range(min(self.groups, count), 0, -1) if count % g == 0 and count // g <= each]
        return [*sorted(legal, key=lambda g: abs(count / g - each))]

    def _with_groups(self, layouts: list[Sizes]) -> list[Sizes]:
        """Return `layouts`, for a number of heads that was asked for also with fewer key/value heads."""
        if self.asked is None:
            return layouts
        counts = [{}, *({"num_key_value_heads": g} for g in self._groups(self.asked) if g is not None)]
        return [{**one, **groups} for one in layouts for groups in counts]

    def _is_asked(self, name: str) -> bool:
        return _lookup(self.config, self.requested, name, None) is not None

    def _unasked(self, sizes: Sizes) -> Sizes:
        return {name: size for name, size in sizes.items() if not self._is_asked(name)}


def _twins(config: PretrainedConfig, sizes: Mapping[str, Any]) -> list[Sizes]:
    """Return what else may have to change with the hidden size, as alternatives; nothing comes first.

    - Other sizes that equal the old hidden size. Some models have a projection only where their embedding size
      differs from the hidden size; where the two were equal, the plan refuses a hidden size that shrinks alone.
    - Other sizes that equal the new one, scaled as it was: the projection must not vanish either.
    - Multiples of the old one, where they are hidden sizes too: an attention that reads two streams (Zamba).
    - Lists of sizes that add up to the old one (axial positions), scaled as well.
    """
    old = _stated(config, "hidden_size")
    new = _lookup(config, sizes, "hidden_size", old)
    if type(old) is not int or type(new) is not int or new == old:
        return [{}]
    asked = {config.attribute_map.get(name, name) for name in sizes}
    others = {
        name: value
        for name, value in vars(config).items()
        if name != config.attribute_map.get("hidden_size", "hidden_size") and name not in {"vocab_size", *asked}
        if any(word in name for word in ("size", "dim", "width", "d_")) and not name.endswith("_id")
    }
    follows = {name: new for name, value in others.items() if type(value) is int and value == old}
    scaled = {
        name: value * new // old
        for name, value in others.items()
        if type(value) is int and value == new and value * new % old == 0
    }
    multiples = {
        name: value * new // old
        for name, value in others.items()
        if "hidden_size" in name and type(value) is int and value > old and value % old == 0
    }
    shares = {
        name: [share * new // old for share in value]
        for name, value in others.items()
        if isinstance(value, (list, tuple)) and all(type(share) is int for share in value) and sum(value) == old
        if all(share * new % old == 0 for share in value)
    }
    return [{}, *(one for one in (follows, scaled, multiples, shares) if one)]


def _expanded_heads(config: PretrainedConfig, requested: Mapping[str, Any], strategy: str) -> list[dict[str, int]]:
    """Return what becomes of heads that fill a multiple of the hidden size, as those of state spaces do.

    `expand * hidden_size = heads * head width` is an equation of Mamba 2 and its kin that their configs do not
    solve: nothing follows by itself. As the strategy says, heads become narrower or fewer; or they stay.
    """
    old = getattr(config, "hidden_size", None)
    new = _lookup(config, requested, "hidden_size", old)
    sizes = {name: size for name, size in vars(config).items() if type(size) is int and size > 0}
    expand = next((size for name, size in sizes.items() if name.split("_")[-1] == "expand"), None)
    if expand is None or not isinstance(old, int) or new == old:
        return [{}]
    counts = {name for name in sizes if "heads" in name}
    widths = {name for name in sizes if "head" in name} - counts
    filling = [
        (n, w) for n in counts for w in widths if sizes[n] * sizes[w] == expand * old and not {n, w} & {*requested}
    ]
    found = {name: sizes[name] * new // old for pair in filling for name in pair if sizes[name] * new % old == 0}
    by_width = {name: size for name, size in found.items() if name in widths}
    by_count = {name: size for name, size in found.items() if name in counts}
    ways = (by_count, by_width) if strategy == "head" else (by_width, by_count)
    return [*(way for way in ways if way), {}]


def _rewritten(config: PretrainedConfig, sizes: Mapping[str, Any]) -> PretrainedConfig:
    new = deepcopy(config)
    new.name_or_path = ""  # the student is not what its teacher's name loads
    if hasattr(new, "quantization_config"):  # of a file that was dequantized on loading, such as GGUF
        del new.quantization_config
    _write(new, sizes)
    with suppress(Exception):  # a config that its own class refuses: the plan will say so
        _settle(new, type(new).from_dict(new.to_dict()))
    return new


def _settle(config: PretrainedConfig, loaded: PretrainedConfig) -> None:
    """Give `config` the numbers that it has once saved and loaded, where its class computes some from others."""
    for name, value in vars(loaded).items():
        own = vars(config).get(name)
        if isinstance(own, PretrainedConfig):
            _settle(own, value)
        elif own != value and type(own) is type(value) and isinstance(value, (int, float, list)):
            setattr(config, name, value)


def _write(config: PretrainedConfig, sizes: Mapping[str, Any]) -> None:
    for name, size in sizes.items():
        if name == LAYERS:
            own = {int(layer): inside for layer, inside in (config.to_dict().get(LAYERS) or {}).items()}
            asked = {int(layer): {**own.get(int(layer), {}), **inside} for layer, inside in size.items()}
            config.per_layer_config = {**own, **asked}
        elif isinstance(size, Mapping):
            _write(getattr(config, name), size)
        else:
            old = _stated(config, name)
            setattr(config, name, type(old)(size) if isinstance(old, (list, tuple)) else size)  # configs check types


def _size_problems(config: PretrainedConfig, sizes: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return what is wrong with each size taken by itself: unknown, wider, or all of them equal."""
    problems = []
    smaller = False
    seen: dict[str, str] = {}
    for name, size in sizes.items():
        if name == LAYERS and isinstance(size, Mapping):
            problems += _layer_problems(config, size, prefix)
            smaller = True
            continue
        if name not in {*vars(config), *config.attribute_map}:
            problems.append(_unknown_name(config, name, prefix))
            continue
        old = _stated(config, name)
        twin = seen.setdefault(config.attribute_map.get(name, name), name)
        if twin != name:
            problems.append(f"{prefix}{twin} and {prefix}{name} are one size; give one of them")
        if isinstance(size, Mapping):
            if isinstance(old, PretrainedConfig):
                problems += _size_problems(old, size, f"{prefix}{name}.")
            else:
                problems.append(f"{prefix}{name} is not a nested config of {type(config).__name__}")
            smaller = True
        elif isinstance(old, (list, tuple)) or isinstance(size, (list, tuple)):
            faults = _list_problems(f"{prefix}{name}", old, size)
            problems += faults
            smaller = smaller or (not faults and list(size) != list(old))
        elif old is None:
            smaller = True  # derived from another size by the model, as n_inner in GPT-2
        elif isinstance(old, bool) or not isinstance(old, int):
            problems.append(f"{prefix}{name} is no size: the teacher's value is {old!r}")
        elif size > old:
            problems.append(f"{prefix}{name}={size} is wider than the teacher's {old}; a student can only be narrower")
        smaller = smaller or (isinstance(old, int) and isinstance(size, int) and size < old)
    if not problems and not smaller:
        problems.append("every size equals the teacher's; ask for at least one smaller size")
    return problems


def _list_problems(name: str, old: object, sizes: object) -> list[str]:
    """Return what is wrong with a list of sizes, such as the widths of the stages of a hierarchical model."""
    if not isinstance(old, (list, tuple)):
        return [f"{name}={sizes!r} is a list, the teacher's is {old!r}; give one number"]
    if not isinstance(sizes, (list, tuple)) or len(sizes) != len(old):
        return [f"{name}={sizes!r} is not a list of {len(old)} sizes, as the teacher's {list(old)} is"]
    if not all(type(of) is int for of in old):
        return [f"{name} is no list of sizes: the teacher's value is {old!r}"]
    wider = [at for at, (size, of) in enumerate(zip(sizes, old, strict=True)) if size > of]
    return [
        f"{name}[{at}]={sizes[at]} is wider than the teacher's {old[at]}; a student can only be narrower"
        for at in wider
    ]


def _layer_problems(config: PretrainedConfig, layers: Mapping[Any, Any], prefix: str) -> list[str]:
    """Return what is wrong with sizes asked for single layers, by the number of the layer."""
    problems = []
    own = list(config.per_layer_config) if config.to_dict().get(LAYERS) else []
    for layer, sizes in layers.items():
        where = f"{prefix}{LAYERS}[{layer}]"
        if not own:
            problems.append(f"{where}: the layers of this {type(config).__name__} have no sizes of their own")
        elif not str(layer).isdigit() or int(layer) >= len(own):
            problems.append(f"{where}: the layers are 0 to {len(own) - 1}")
        elif not isinstance(sizes, Mapping):
            problems.append(f"{where} is {sizes!r}; give a dictionary of sizes")
        else:
            problems += _size_problems(own[int(layer)], sizes, f"{where}.")
    return problems


def _unknown_name(config: PretrainedConfig, name: str, prefix: str) -> str:
    own = {key for key, value in vars(config).items() if type(value) is int or _is_list(value)}
    # Sizes that the model derives from others as long as nobody states them, as n_inner in GPT-2.
    words = ("size", "dim", "inner", "width")
    own |= {key for key, value in vars(config).items() if value is None and any(word in key for word in words)}
    nested = [key for key, value in vars(config).items() if isinstance(value, PretrainedConfig)]
    names = sorted((own | set(config.attribute_map)) - {"transformers_version"})
    names = [known for known in names if not known.startswith("_") and not known.endswith("_id")]
    hint = f"; for parts of it use overrides={{{nested[0]!r}: {{...}}}}" if nested else ""
    return f"{type(config).__name__} has no {prefix}{name}; its sizes are {', '.join(names)}{hint}"


def _stated(config: PretrainedConfig, name: str) -> Any:
    """Return an entry of `config`, None where it has none; one that layers override is what it is for the others.

    A config with `per_layer_config` raises when such an entry is read as an attribute.
    """
    own = config.attribute_map.get(name, name)
    return vars(config)[own] if own in vars(config) else getattr(config, name, None)


def _lookup(config: PretrainedConfig, requested: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return a requested size under its common name or the teacher's own."""
    return requested.get(name, requested.get(config.attribute_map.get(name, name), default))


def _indivisible(hidden: int, step: int, below: int, problem: str) -> str:
    lower, upper = hidden // step * step, (hidden // step + 1) * step
    nearest = [size for size in (lower, upper) if 0 < size < below]
    return f"hidden_size={hidden} {problem}; nearest legal: {', '.join(map(str, nearest)) or 'none'}"


def _joined(config: PretrainedConfig, problems: list[str]) -> str:
    return f"No student of this {type(config).__name__}:\n" + "\n".join(f"- {problem}" for problem in problems)


def _has(config: PretrainedConfig, name: str) -> bool:
    return name in {*vars(config), *config.attribute_map}


def _pinned(teacher: PretrainedConfig, student: PretrainedConfig, sizes: Sizes, others: list[Sizes]) -> Sizes:
    """Return `sizes` and every other size that one of `others` or a head strategy could set, as `student` has it."""
    pinned: Sizes = {}
    for name, size in sizes.items():
        below = isinstance(size, Mapping) and name != LAYERS
        inside = [other[name] for other in others if below and isinstance(other.get(name), Mapping)]
        pinned[name] = _pinned(getattr(teacher, name), getattr(student, name), dict(size), inside) if below else size
    stated = {teacher.attribute_map.get(name, name) for name in pinned}
    old, new = _stated(teacher, "hidden_size"), _stated(student, "hidden_size")
    follow = ["num_attention_heads", "num_key_value_heads", "head_dim"] if old != new else []
    for name in dict.fromkeys([*follow, *(name for other in others for name in other)]):
        own = teacher.attribute_map.get(name, name)
        value = _stated(student, name)
        if own not in stated and own in vars(teacher) and (_is_size(value) or _is_list(value)):
            stated.add(own)
            pinned[name] = list(value) if _is_list(value) else value
    return pinned


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_is_size, value))


def _moved(requested: Mapping[str, Any], sizes: Mapping[str, Any], prefix: str = "") -> list[str]:
    moved = []
    for name, size in requested.items():
        if isinstance(size, Mapping) and name != LAYERS:
            moved += _moved(size, sizes[name], f"{prefix}{name}.")
        elif sizes[name] != size:
            moved.append(f"{prefix}{name}={sizes[name]} instead of {size}")
    return moved


def _changes(
    teacher: PretrainedConfig,
    student: PretrainedConfig,
    requested: Mapping[str, Any],
    sizes: Mapping[str, Any],
    part: str = "",
) -> list[str]:
    words = []
    inside = f" in {part}" if part else ""
    old, new = (_Heads.of(config, {}) for config in (teacher, student))
    if old is not None and new is not None and old.hidden != new.hidden:
        shared = old.groups not in (None, old.count)
        before, after = (f" and {heads.groups} of keys and values" if shared else "" for heads in (old, new))
        now = f"{new.count} of width {new.width}{after}"
        words.append(f"{old.count} heads of width {old.width}{before} become {now}{inside}")
    told = {"num_attention_heads", "num_key_value_heads", "head_dim"} if words else set()
    told = {teacher.attribute_map.get(name, name) for name in (*told, *requested)}
    for name, size in sizes.items():
        own = teacher.attribute_map.get(name, name)
        if isinstance(size, Mapping) and name != LAYERS:
            below = f"{part}.{name}".lstrip(".")
            words += _changes(getattr(teacher, name), getattr(student, name), requested[name], size, below)
        elif name == LAYERS:
            words += [f"sizes of single layers follow{inside}"] if name not in told else []
        elif own not in told and _stated(teacher, name) != size:
            words.append(f"{name} {_stated(teacher, name)} becomes {size}{inside}")
    return words
