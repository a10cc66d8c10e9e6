"""Which sizes a teacher's students may have: `Space`, found by asking the teacher's class and the plan.

Takes a teacher; gives shapes, and for a shape its `WidConfig` and its skeleton on the meta device. Nothing here knows
an architecture: a size is an entry of the config that changes shapes of weights, and that `plan_student` lets shrink.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from math import lcm
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..config import COUNT, SIZES, WidConfig
from ..errors import ConfigError, PlanError
from ..planning.depth import requested_stacks
from ..planning.depth.shallow_config import shallow_config
from ..planning.sizes import Request
from ..planning.sizes.config_names import is_list, own_name, stated
from ..planning.sizes.following import WORDS_OF_WIDTHS
from ..planning.sizes.student_config import with_sizes
from ..planning.skeleton import skeleton
from ..planning.student_plan import MOVED, StudentPlan, check_teacher, plan_student
from .head_layouts import MANNERS, PAIR, HeadLayouts, Manner
from .layer_order import LayerOrder

Shape = Mapping[str, int]
"""Sizes by the names of the teacher's config, with dots before those of its parts: `text_config.hidden_size`."""

HIDDEN, INNER, HEADS, DEPTH = "width", "inner", "heads", "depth"
WORDS_OF_INNER_WIDTHS = (*WORDS_OF_WIDTHS, "inner")
TIMES = (4, 2, 3, 1, 8)  # what an inner width that a config leaves out may be of the hidden size
STEPS = {"cpu": 8}  # by device: what sizes are multiples of, where the teacher is wide enough
STEP = 64  # on any other device: matrix units of accelerators work in tiles
WIDE = 8  # steps that a teacher's hidden size must have; of a narrower teacher sizes are multiples of 8


@dataclass(frozen=True)
class Mix:
    """In what proportion sizes shrink: at the scale `s` an axis has the share `s ** power` of the teacher's size.

    Attributes:
        powers: by axis, from 0 (stays) to 1.
        manner: how heads change.
    """

    powers: Mapping[str, float]
    manner: Manner


@dataclass(frozen=True)
class Space:
    """The sizes that students of one teacher may have.

    Attributes:
        teacher: the teacher.
        hidden: widths of streams, with the teacher's sizes.
        inner: widths inside layers, with the teacher's sizes.
        layers: numbers of layers that students may have; empty where the config does not count them.
        manners: in which ways heads may change as streams become narrower.
        step: what sizes are multiples of, `round_to`.
        one_scale: whether all sizes shrink by one scale, as those of composite models and encoder-decoders do.
    """

    teacher: PreTrainedModel
    hidden: Shape
    inner: Shape
    layers: tuple[int, ...]
    manners: tuple[Manner, ...]
    step: int
    one_scale: bool

    @classmethod
    def of(cls, teacher: PreTrainedModel, *, round_to: int | None = None, layers: Sequence[int] | None = None) -> Space:
        """Find the sizes of a teacher that may shrink, by planning a student with each of them halved.

        Args:
            teacher: a stock transformers model with real weights.
            round_to: what sizes are multiples of. By default 8 on a CPU, and 64 on other devices if the teacher's
                hidden size is 512 or more.
            layers: numbers of layers that students may have; by default all up to the teacher's, where
                `num_hidden_layers` counts layers of a model of one stack.

        Raises:
            TeacherError: the teacher cannot be planned with; see `plan_student`.
            ConfigError: `round_to` is no positive integer, or a number of layers that the teacher does not have.
            PlanError: none of its sizes may shrink.
        """
        check_teacher(teacher)
        config = teacher.config
        hidden = dict(_hidden_sizes(config))
        step = _step(teacher, min(hidden.values(), default=0), round_to)
        one_scale = len(hidden) > 1 or bool(getattr(config, "is_encoder_decoder", False)) or "hidden_size" not in hidden
        found = cls(teacher, hidden, {}, _layers(teacher, layers, one_scale), (), step, one_scale)
        found = found._with(inner={n: s for n, s in found._inner_sizes() if found._allows({n: found._half(s)})})
        found = found._with(manners=tuple(found._manners()))
        if not found.manners:
            found = found._with(hidden={}, manners=MANNERS[:1])
        if not found.hidden and not found.inner and len(found.layers) < 2:
            raise PlanError(
                f"No size of this {type(teacher).__name__} may shrink, so no target can be filled. "
                "plan_student(teacher, WidConfig(...)) says why for the sizes that you give."
            )
        return found

    @cached_property
    def heads(self) -> HeadLayouts:
        """The heads that students may have; those of one scale follow by the plan's own preference."""
        return HeadLayouts(None) if self.one_scale else HeadLayouts.of(self.teacher.config)

    @cached_property
    def lists(self) -> Mapping[str, int]:
        """How many layers have an entry in each list of the config that states one size for all of them."""
        config = self.teacher.config
        return {name: len(value) for name, value in vars(config).items() if _is_size_by_layer(config, value)}

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes along which sizes shrink independently of each other."""
        if self.one_scale:
            return (HIDDEN,)
        free = {HIDDEN: self.hidden, INNER: self.inner, HEADS: self.heads.is_free, DEPTH: len(self.layers) > 1}
        return tuple(axis for axis, there in free.items() if there)

    def shape(self, mix: Mix, scale: float) -> Shape:
        """Return the sizes at a scale, from above 0 to the teacher's at 1; each is rounded down to a step."""

        def share(axis: str) -> float:
            return scale ** mix.powers.get(HIDDEN if self.one_scale else axis, 0.0)

        steps = self._steps
        hidden = {name: self._rounded(size, share(HIDDEN), steps[name]) for name, size in self.hidden.items()}
        inner = {name: self._rounded(size, share(INNER), self.step) for name, size in self.inner.items()}
        depth = {COUNT: self._depth(share(DEPTH))} if self.layers else {}
        return {**self._with_heads(hidden, share(HEADS), mix.manner), **inner, **depth}

    def grown(self, shape: Shape, name: str, manner: Manner) -> Shape | None:
        """Return `shape` with the next larger width, and heads that fit it; None if the teacher's is reached."""
        whole = {**self.hidden, **self.inner}[name]
        for size in [*range(shape[name] + self.step, whole, self.step), whole] if shape[name] < whole else []:
            if name in self.inner or self.one_scale or self.heads.is_free:
                return {**shape, name: size}
            if (heads := self.heads.sizes(size, 1.0, manner, self.heads.grains[0])) is not None:
                return {**shape, name: size, **heads}
        return None

    def config(
        self, shape: Shape, order: LayerOrder | None = None, widths: Mapping[str, Sequence[int]] | None = None
    ) -> WidConfig:
        """Return the request for a shape.

        Args:
            shape: the sizes.
            order: in which layers go; without it calibration data decides which stay.
            widths: of each layer, in place of inner widths that all have.
        """
        if self.one_scale:  # parts are refused where nothing of them is smaller
            shape = self._smaller(shape)
        listed = self._listed(shape) | {name: list(each) for name, each in (widths or {}).items()}
        named: dict[str, Any] = {n: size for n, size in shape.items() if n in SIZES and n not in listed}
        others = {name: size for name, size in shape.items() if name not in {*SIZES, COUNT}} | listed
        if self.is_shallow(shape):
            depth = shape[COUNT]
            named |= {COUNT: depth} if order is None else {"layers": order.kept(depth)}
        return WidConfig(**named, overrides=_nested(others))

    def is_shallow(self, shape: Shape) -> bool:
        """Return whether a shape has fewer layers than the teacher."""
        return COUNT in shape and shape[COUNT] != self._all_layers

    def skeleton(self, shape: Shape) -> PreTrainedModel:
        """Return the student on the meta device: shapes without numbers, in the teacher's dtype.

        Raises:
            PlanError: the teacher's class cannot be made at these sizes.
        """
        return student_skeleton(self.teacher, self.student_config(shape))

    def student_config(self, shape: Shape) -> PretrainedConfig:
        """Return the student's config, as the best meaning of the request has it."""
        widths = {name: size for name, size in shape.items() if name != COUNT}
        config: Any = self.teacher.config
        if self._smaller(widths):
            config = next(iter(Request(config, self.config(widths)).configs()))[1]
        if isinstance(config, PlanError):
            raise config
        if not self.is_shallow(shape):
            return config
        return shallow_config(config, (own_name(config, COUNT),), range(shape[COUNT]))

    def plan(self, shape: Shape) -> StudentPlan:
        """Plan the student of a shape.

        Raises:
            PlanError: there is no such student.
        """
        with exact_sizes():
            return plan_student(self.teacher, self.config(shape))

    def _listed(self, shape: Shape) -> dict[str, list[int]]:
        """Return the sizes of a shape that the config states as lists, one entry for each layer."""
        return {name: [shape[name]] * shape.get(COUNT, n) for name, n in self.lists.items() if name in shape}

    def _smaller(self, shape: Shape) -> Shape:
        """Return the sizes of a shape that are not the teacher's."""
        whole = {**self.hidden, **self.inner}
        return {n: s for n, s in shape.items() if s != (whole[n] if n in whole else stated(self.teacher.config, n))}

    @property
    def _all_layers(self) -> int | None:
        return stated(self.teacher.config, COUNT)

    def _with(self, **changed: Any) -> Space:
        return Space(**{**{each.name: getattr(self, each.name) for each in fields(self)}, **changed})

    @cached_property
    def _steps(self) -> Mapping[str, int]:
        """What each width of a stream is a multiple of: of one scale it must still divide into the teacher's heads."""
        parts = dict(_parts(self.teacher.config)) if self.one_scale else {}
        return {name: lcm(self.step, *_heads(parts, name, size)) for name, size in self.hidden.items()}

    def _half(self, size: int) -> int:
        half = self._rounded(size, 0.5, self.step)
        return half if half < size else max(size // 2, 1)

    def _rounded(self, size: int, share: float, step: int) -> int:
        return size if share >= 1 else max(int(size * share + 1e-9) // step * step, min(step, size))

    def _depth(self, share: float) -> int:
        """Return the most layers among those allowed that are no more than a share of the teacher's."""
        most = max(self.layers) * share + 1e-9
        return max((count for count in self.layers if count <= most), default=min(self.layers))

    def _with_heads(self, hidden: Shape, share: float, manner: Manner) -> Shape:
        """Return widths of streams and heads; a width that does not divide into friendly heads goes down by steps."""
        name, width = next(iter(hidden.items()), ("hidden_size", stated(self.teacher.config, "hidden_size") or 0))
        if self.one_scale:
            return hidden
        for grain in self.heads.grains:
            for lower in range(width, 0, -self.step) if hidden else [width]:
                if (heads := self.heads.sizes(lower, share, manner, grain)) is not None:
                    return {**({name: lower} if hidden else {}), **heads}
        raise PlanError(f"- no {name} up to {width} in steps of {self.step} divides into heads")

    def _manners(self) -> Iterator[Manner]:
        """Yield the manners of heads with which the plan lets streams shrink."""
        for manner in MANNERS[:1] if self.heads.heads is None else MANNERS:
            mix = Mix({HIDDEN: 1.0, HEADS: 1.0}, manner)
            shape = {name: size for name, size in self.shape(mix, 0.5).items() if name not in {*self.inner, COUNT}}
            if self.hidden and self._allows(shape):
                yield manner

    def _inner_sizes(self) -> Iterator[tuple[str, int]]:
        """Yield the entries that change shapes of weights, but neither their number nor any table's rows."""
        config = self.teacher.config
        whole = _shapes(student_skeleton(self.teacher, config))
        for name, size in _widths(config, self.hidden):
            for now in [size] if size is not None else self._computed(name, whole):
                with_half = self._shapes_with({name: self._half(now)})
                if with_half is not None and _narrows(whole, with_half):
                    yield name, now
                    break

    def _computed(self, name: str, whole: Mapping[str, tuple[bool, torch.Size]]) -> Iterator[int]:
        """Yield the size that an entry stands for where the config leaves it out."""
        if (hidden := self.hidden.get("hidden_size")) is not None:
            yield from (times * hidden for times in TIMES if self._shapes_with({name: times * hidden}) == whole)

    def _shapes_with(self, sizes: Shape) -> dict[str, tuple[bool, torch.Size]] | None:
        try:
            config = self.teacher.config
            written = {n: [s] * len(old) if is_list(old := stated(config, n)) else s for n, s in sizes.items()}
            return _shapes(student_skeleton(self.teacher, with_sizes(config, _nested(written))))
        except Exception:  # each class checks its config in its own way, and raises other errors
            return None

    def _allows(self, shape: Shape) -> bool:
        try:
            self.plan(shape)
        except PlanError:
            return False
        return True


@contextmanager
def exact_sizes() -> Iterator[None]:
    """Refuse students of other sizes than those asked for.

    Raises:
        PlanError: the teacher's config has no such sizes, or the nearest ones would be taken.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", MOVED, UserWarning)
        try:
            yield
        except (UserWarning, ConfigError) as other:
            raise PlanError(f"- {other}") from other


def student_skeleton(teacher: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """Return `type(teacher)(config)` on the meta device, in the teacher's dtype.

    Raises:
        PlanError: the class cannot be made of this config.
    """
    try:
        return skeleton(type(teacher), config).to(teacher.dtype)
    except Exception as cause:  # each class checks its config in its own way, and raises other errors
        raise PlanError(f"- {type(teacher).__name__} cannot be made at these sizes: {cause}") from cause


def words_of(shape: Shape) -> str:
    """Return a shape as it is printed: `hidden_size=184, intermediate_size=368`."""
    return ", ".join(f"{name}={size}" for name, size in shape.items())


def _step(teacher: PreTrainedModel, hidden: int, round_to: int | None) -> int:
    if round_to is None:
        step = STEPS.get(teacher.device.type, STEP)
        return step if hidden >= WIDE * step else STEPS["cpu"]
    if type(round_to) is not int or round_to < 1:
        raise ConfigError(f"round_to={round_to!r} is not a positive integer. Legal: such as 8 or 64.")
    return round_to


def _layers(teacher: PreTrainedModel, layers: Sequence[int] | None, one_scale: bool) -> tuple[int, ...]:
    own = stated(teacher.config, COUNT)
    if type(own) is not int:
        if layers:
            raise ConfigError(
                f"layers={[*layers]}: {type(teacher.config).__name__} does not count its layers. Leave them out."
            )
        return ()
    asked = [*(layers or ())]
    if wrong := [each for each in asked if type(each) is not int or not 0 < each <= own]:
        raise ConfigError(f"layers={asked}: the teacher has {own} layers, so {wrong[0]!r} is none of 1 to {own}.")
    if layers is None and not one_scale and _counts_layers(teacher, own):
        return tuple(range(1, own + 1))
    return tuple(sorted(asked)) or (own,)


def _counts_layers(teacher: PreTrainedModel, own: int) -> bool:
    """Return whether a smaller number there gives the same model with fewer layers."""
    try:
        return own > 1 and bool(requested_stacks(teacher, WidConfig(num_hidden_layers=own - 1)))
    except ConfigError:
        return False


def _parts(config: PretrainedConfig, prefix: str = "") -> Iterator[tuple[str, PretrainedConfig]]:
    """Yield a config and its parts, each with the prefix of its entries."""
    yield prefix, config
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            yield from _parts(value, f"{prefix}{name}.")


def _hidden_sizes(config: PretrainedConfig) -> Iterator[tuple[str, int]]:
    for prefix, part in _parts(config):
        own = stated(part, "hidden_size")
        if type(own) is int and own_name(part, "hidden_size") in vars(part):
            yield f"{prefix}hidden_size", own


def _heads(parts: Mapping[str, PretrainedConfig], name: str, hidden: int) -> Iterator[int]:
    """Yield what must divide the hidden size of a part: its numbers of heads, twice each where heads are even."""
    prefix = name.removesuffix("hidden_size")
    for entry, count in vars(parts[prefix]).items() if prefix in parts else ():
        if entry.endswith("heads") and type(count) is int and count > 0 and hidden % count == 0:
            yield count if hidden // count % PAIR else count * PAIR


def _widths(config: PretrainedConfig, hidden: Iterable[str]) -> Iterator[tuple[str, int | None]]:
    """Yield every entry whose name is that of a width, except hidden sizes and those of heads."""
    for prefix, part in _parts(config):
        taken = {own_name(part, name) for name in ("hidden_size", "head_dim", "num_attention_heads", "vocab_size")}
        for name, value in vars(part).items():
            is_width = any(word in name for word in WORDS_OF_INNER_WIDTHS) and not name.endswith("_id")
            size = value if prefix else _one_size(part, value)
            if is_width and name not in taken and (size is None or (type(size) is int and size > 1)):
                yield f"{prefix}{name}", size


def _one_size(config: PretrainedConfig, value: Any) -> Any:
    """Return the size that a list states once for each layer; anything else as it is."""
    return value[0] if _is_size_by_layer(config, value) else value


def _is_size_by_layer(config: PretrainedConfig, value: object) -> bool:
    """Return whether an entry states one size, once for each layer."""
    return isinstance(value, (list, tuple)) and is_list(value) and [*value] == [value[0]] * (stated(config, COUNT) or 0)


def _shapes(model: PreTrainedModel) -> dict[str, tuple[bool, torch.Size]]:
    """Return the shape of every weight, and whether it is a table."""
    tables = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return {n: (n.rpartition(".")[0] in tables, weight.shape) for n, weight in model.state_dict().items()}


def _narrows(whole: Mapping[str, tuple[bool, torch.Size]], other: Mapping[str, tuple[bool, torch.Size]]) -> bool:
    """Return whether `other` has the same weights, some of them smaller, and tables of as many rows."""
    if whole.keys() != other.keys() or whole == other:
        return False
    rows_stay = all(other[name][1][0] == shape[0] for name, (is_table, shape) in whole.items() if is_table)
    return rows_stay and all(
        len(shape) == len(other[name][1]) and all(a >= b for a, b in zip(shape, other[name][1], strict=True))
        for name, (_, shape) in whole.items()
    )


def _nested(shape: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for path, size in shape.items():
        *parents, name = path.split(".")
        level = result
        for parent in parents:
            level = level.setdefault(parent, {})
        level[name] = size
    return result
