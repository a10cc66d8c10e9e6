"""What shapes need, and how much of a target that is.

Takes a `Space` and a `Target`; counts on skeletons, and measures only where a target asks for it. Each shape is counted
and measured once. Called by `front`.
"""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig, PreTrainedModel

from ..errors import ConfigError
from ..hub.model_size import model_size
from ..planning.student_plan import empty_student
from .latency import Stopwatch, Timer
from .memory import peak_memory
from .shapes import Shape, Space
from .stock_models import sized_inputs
from .targets import Target, in_words

NAMED = 3  # largest weights that a refusal names


class Costs:
    """What the shapes of a space need.

    Args:
        space: of the teacher.
        target: the most that a student may need.
        timer: measures latency; by default a `Stopwatch`.

    Attributes:
        teacher: what the teacher needs, by name.
        limits: the most that a student may need, by name.

    Raises:
        ConfigError: see `Target.limits`.
        WidError: the machine is too noisy to measure a latency.
    """

    def __init__(self, space: Space, target: Target, timer: Timer | None = None) -> None:
        self._space, self._target = space, target
        self._timer = timer or Stopwatch(space.teacher, target.batch, target.length)
        self._counted: dict[tuple[tuple[str, int], ...], dict[str, float]] = {}
        self._measured: dict[tuple[tuple[str, int], ...], dict[str, float]] = {}
        measured = self._measure(space.teacher.config)
        self.teacher: Mapping[str, float] = _sizes(space.teacher) | measured
        self.limits = target.limits(self.teacher)

    @property
    def measures(self) -> bool:
        """Whether a forward of each shape is needed."""
        return not {"latency_ms", "memory"}.isdisjoint(self._target.amounts)

    def counts(self, shape: Shape) -> Mapping[str, float]:
        """Return the parameters and bytes of a shape.

        Raises:
            PlanError: the teacher's class cannot be made at these sizes.
        """
        key = tuple(sorted(shape.items()))
        if key not in self._counted:
            self._counted[key] = _sizes(self._space.skeleton(shape))
        return self._counted[key]

    def needs(self, shape: Shape) -> Mapping[str, float]:
        """Return all that a shape needs, measured where the target asks for it."""
        counted, key = self.counts(shape), tuple(sorted(shape.items()))
        if self.measures and key not in self._measured:
            self._measured[key] = self._measure(self._space.student_config(shape))
        return {**counted, **self._measured.get(key, {})}

    def ratio(self, shape: Shape) -> float:
        """Return the largest share that a shape needs of what it may need; more than 1 is too much.

        A shape with too many parameters is not measured.
        """
        counted = self._largest(self.counts(shape))
        return self._largest(self.needs(shape)) if self.measures and counted <= 1 else counted

    def measure_again(self, shape: Shape) -> Mapping[str, float]:
        """Return what a shape needs after one more measurement of its latency; the smaller of both counts.

        Other work of the machine only ever makes a forward slower.
        """
        found = dict(self.needs(shape))
        if "latency_ms" in found:
            again = self._timer(self._space.student_config(shape)).ms
            found["latency_ms"] = min(found["latency_ms"], again)
        self._measured[tuple(sorted(shape.items()))] = found
        return found

    def refuse(self, least: Shape) -> ConfigError:
        """Return the refusal of a target that not even the smallest shape fulfils: what it needs, and for what."""
        needs, model = self.needs(least), self._space.skeleton(least)
        over = [name for name, most in self.limits.items() if needs[name] > most]
        asked = ", ".join(f"{name}={getattr(self._target, name)!r}" for name in over)
        has = " and ".join(in_words(name, needs[name]) for name in over)
        total = sum(weight.numel() for weight in model.parameters())
        largest = sorted(model.named_parameters(), key=lambda each: -each[1].numel())[:NAMED]
        parts = ", ".join(f"{name} {weight.numel():,} ({weight.numel() / total:.0%})" for name, weight in largest)
        sizes = ", ".join(f"{name}={size}" for name, size in least.items())
        return ConfigError(
            f"Target: {asked} cannot be reached: the smallest student of this teacher ({sizes}) has {has}. Of its "
            f"{total:,} parameters most are in {parts}. Give a larger target, or cut what is largest: the vocabulary "
            "where it is a table of tokens."
        )

    def _largest(self, needs: Mapping[str, float]) -> float:
        return max((needs[name] / most for name, most in self.limits.items() if name in needs), default=0.0)

    def _measure(self, config: PretrainedConfig) -> dict[str, float]:
        found: dict[str, float] = {}
        if "latency_ms" in self._target.amounts:
            found["latency_ms"] = self._timer(config).ms
        if "memory" in self._target.amounts:
            model = empty_student(self._space.teacher, config).eval()
            inputs = sized_inputs(model, self._target.batch, self._target.length)
            found["memory"] = float(peak_memory(model, inputs))
        return found


def _sizes(model: PreTrainedModel) -> dict[str, float]:
    size = model_size(model)
    return {"params": float(size.total), "encoder_params": float(size.encoder), "bytes": float(size.bytes)}
