"""Training of the merged student: a stock model, which starts from the teacher's weights and then trains by itself.

Takes a wid model at its start, merges it, and trains the result towards the teacher's outputs. It has fewer weights
than factors have; the teacher is in memory as well, frozen. Called by `compress`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments

from .accumulation import Reduction
from .imitation import Imitating, Imitation
from .losses.distillation import Distillation
from .losses.registry import INNER, refuse_unknown


class MergedTrainer(Imitating):
    """Train the stock model that a wid model merges into towards the outputs of the teacher.

    Args:
        model: what `get_wid_model` returned, at its start; it stays as it is, for its maps and its teacher.
        args: plain `TrainingArguments`.
        imitation: the loss from the teacher.
        reduction: over what it is a mean: "labels" stands for attended positions, "rows" for examples.
        label_weight: w of `(1 - w) * imitation + w * the model's own loss on labels`, from 0 to less than 1; with 0 no
            labels are used.
        distillation: losses that compare inner states, `"hidden"` and `"relations"`: hidden states through the
            compactors or maps of the start.
        distillation_weight: of these beside the others.
        **kwargs: what else `Trainer` takes.

    Raises:
        WidError: the model cannot be merged yet: it is not calibrated, or its schedule is not done.
        ConfigError: a weight is not legal, or there is no such loss.
        TeacherError: the teacher has no inner states that could be compared.
    """

    def __init__(
        self,
        model: PeftModel,
        args: TrainingArguments | None = None,
        *others: Any,
        imitation: Imitation,
        reduction: Reduction = "labels",
        label_weight: float = 0.0,
        distillation: Collection[str] = (),
        distillation_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        refuse_unknown(distillation, INNER, "distillation")
        self.imitate(imitation, reduction, label_weight)
        self._wid_model = model
        super().__init__(merged(model), args, *others, **kwargs)
        model.base_model.to(self.args.device).requires_grad_(False)
        self.distillation_weight = distillation_weight
        if distillation:
            self._distillation = Distillation(model, distillation, student=self.model)

    @property
    def wid_model(self) -> PeftModel:
        """The model whose student trains, at its start."""
        return self._wid_model


def merged(model: PeftModel) -> PreTrainedModel:
    """Return the stock model that a wid model merges into, all of whose weights train.

    Raises:
        WidError: the model cannot be merged yet.
    """
    return model.merge_and_unload().requires_grad_(True)
