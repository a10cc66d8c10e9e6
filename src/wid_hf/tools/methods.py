"""The ways to a student of a given shape that `wid-hf compress --method` offers: WID and what it is compared with.

Takes names and a `WidConfig`; gives what a method starts from, what it is trained on and how fast, or a refusal.
`compress` does what it says, cards tell it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..config import WidConfig
from ..errors import ConfigError, TeacherError
from ..progressive.schedule import WidSchedule


@dataclass(frozen=True)
class Method:
    """One way to make a student.

    Attributes:
        name: of `--method`.
        title: what tables and cards call it.
        weights: `"folded"` from the teacher's while it trains (WID); `"cut"` out of the teacher's before training; or
            `"random"`.
        losses: from the teacher beside the model's own: of `WidTrainer` where weights are folded, else of
            `DistillingTrainer`.
        selection: which indices are cut out.
        headless: whether it applies to an encoder without a head, which has neither logits nor a loss of its own.
    """

    name: str
    title: str
    weights: Literal["folded", "cut", "random"]
    losses: tuple[str, ...] = ()
    selection: Literal["first", "variance"] = "first"
    headless: bool = True

    @property
    def folds(self) -> bool:
        """Whether compactors train."""
        return self.weights == "folded"

    def configured(self, config: WidConfig) -> WidConfig:
        """Return `config` with what the method decides: the start, and whether the student becomes narrow by steps.

        Raises:
            ConfigError: a progressive schedule for a method that has none.
        """
        progressive = isinstance(config.schedule, WidSchedule)
        if self.name == "wid-progressive" and not progressive:
            return replace(config, init=None, selection=None, schedule=WidSchedule())
        if self.folds:
            return config
        if progressive:
            raise ConfigError(
                f"method={self.name!r} is narrow from the first step: leave the progressive schedule out, or pass "
                "method='wid-progressive'."
            )
        return replace(config, init="identity", selection=self.selection)

    def check_objective(self, objective: str, teacher: str) -> None:
        """Raise TeacherError if the method needs logits or a loss that a headless `teacher` does not have."""
        if objective == "following" and not self.headless:
            others = ", ".join(method.name for method in METHODS.values() if method.headless)
            raise TeacherError(
                f"The method {self.name} needs logits or a training loss of the model's own, and {teacher} is a "
                f"headless encoder. These apply: {others}."
            )


_ALL = (
    Method("scratch", "from scratch", "random", headless=False),
    Method("slice", "slicing, then fine-tuning", "cut"),
    Method("variance", "pruning by variance, then fine-tuning", "cut", selection="variance"),
    Method("logit-kd", "distillation of logits", "random", ("logits",), headless=False),
    Method("minilm", "MiniLMv2", "random", ("relations",)),
    Method("tinybert", "TinyBERT", "random", ("layers",)),
    Method("wid-progressive", "WID, progressive", "folded"),
    Method("wid", "WID", "folded"),
    Method("wid-kd", "WID with distillation", "folded", ("logits", "hidden", "relations"), headless=False),
)
METHODS = {method.name: method for method in _ALL}

# Learning rates (compactors, teacher weights) of WID by objective and start: the best of the sweep in docs/starts.md.
# Lifts are dense, so that one step of their compactors moves a weight further than from an identity start.
LEARNING_RATES = {
    ("masked-lm", "calibrated"): (1e-4, 3e-4),
    ("masked-lm", "identity"): (3e-4, 3e-4),
    ("following", "calibrated"): (5e-5, 0.0),
    ("following", "identity"): (2e-4, 0.0),
}
# Of students without compactors, by where their weights come from: those that benchmarks/calibration used, random
# weights at the best of ../shared/design.md's coarse sweep. `python benchmarks/methods sweep` measures better ones.
STOCK_LEARNING_RATES = {"random": 1e-3, "cut": 3e-4}


def find_method(name: str, config: WidConfig) -> Method:
    """Return the method of this name; WID with a progressive schedule is `wid-progressive`.

    Raises:
        ConfigError: there is none.
    """
    if name not in METHODS:
        raise ConfigError(f"there is no method {name!r}. Known: {', '.join(METHODS)}.")
    if name == "wid" and isinstance(config.schedule, WidSchedule):
        name = "wid-progressive"
    return METHODS[name]


def learning_rates(
    method: Method, objective: str, config: WidConfig, *, student: float | None, compactors: float | None,
    teacher: float | None,
) -> dict[str, float]:  # fmt: skip
    """Return the learning rate of each kind of weight that the method trains: those given, else the defaults.

    Args:
        method: how the student is made.
        objective: `masked-lm` or `following`.
        config: as the method configured it.
        student: of a student without compactors.
        compactors: of compactors.
        teacher: of the teacher's weights; only 0 where they are followed.

    Raises:
        ConfigError: one that the method has no such weights for, or a followed teacher that would train.
    """
    if not method.folds:
        if compactors is not None or teacher is not None:
            raise ConfigError(
                f"method={method.name!r} trains a stock student without compactors: pass learning_rate= instead of "
                "compactor_learning_rate= and teacher_learning_rate=."
            )
        return {"student": STOCK_LEARNING_RATES[method.weights] if student is None else student}
    if student is not None:
        raise ConfigError(
            f"method={method.name!r} trains compactors and the teacher's weights: pass compactor_learning_rate= and "
            "teacher_learning_rate= instead of learning_rate=."
        )
    default = LEARNING_RATES[objective, str(config.init)]
    if method.losses:
        if teacher:
            raise ConfigError(f"method={method.name!r} follows the teacher's weights: pass teacher_learning_rate=0.")
        default = default[0], 0.0
    return {
        "compactors": default[0] if compactors is None else compactors,
        "teacher": default[1] if teacher is None else teacher,
    }
