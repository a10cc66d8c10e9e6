"""What classifiers of anything share: a student learns the teacher's scores, and labels if there are some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from ..adapter.tuner import WidModel
from ..arithmetic import in_float64
from ..inputs import Batch
from ..rows.roles import LABEL, LABELS, Role
from ..scores.figures import accuracy, f1, macro_f1, pearson, spearman
from .divergences import sigmoid_divergence, softmax_divergence, squared_error
from .labels import REGRESSION, SEVERAL_LABELS, Labels, names_of
from .logits import logits_of
from .objective import Figures, Objective


class Classification(Objective):
    """Give each row scores: of classes that exclude each other, of labels by themselves, or numbers.

    Which of these follows from `config.problem_type`; without one, a single score is a number, and several are classes.
    """

    reduction = "rows"
    takes_labels = True
    figures_need_eval = True

    @property
    def target(self) -> Role:
        """A label, or a list of labels or numbers."""
        several = self.problem == SEVERAL_LABELS or (self.problem == REGRESSION and self.teacher.config.num_labels > 1)
        return LABELS if several else LABEL

    @property
    def problem(self) -> str:
        """What scores mean, in the words of `config.problem_type`."""
        return Labels(self.teacher.config).problem

    @property
    def divergence(self) -> Callable[[Tensor, Tensor], Tensor]:
        """How far scores of a student are from the teacher's, row by row."""
        return {REGRESSION: squared_error, SEVERAL_LABELS: sigmoid_divergence}.get(self.problem, softmax_divergence)

    def features(self, rows: Dataset, max_length: int) -> Dataset:
        """Return inputs and, if there are some, labels.

        Raises:
            DataError: nothing can be read, or a label is none of the teacher's.
        """
        column = self.target.name
        if column not in (rows.column_names or ()):
            return self.inputs.features(rows, max_length)
        labels = Labels(self.teacher.config, names_of(rows, column))  # and no `self`: its teacher would be hashed
        return self.inputs.features(
            rows, max_length, lambda columns, _: {"labels": [labels.target(value) for value in columns[column]]}
        )

    def wanted(self, batches: Sequence[Batch]) -> Tensor:
        """Return the teacher's scores `(rows, labels)`."""
        return torch.cat([*logits_of(self.teacher, batches)])

    def score(self, model: Any, batches: Sequence[Batch], wanted: Tensor | None) -> Figures:
        """Return figures on labels, if there are some, the agreement with the teacher and the divergence from it.

        Agreement is the share of rows with the same most probable class, or of labels that are on or off as the
        teacher's; for numbers it is their correlation, and the divergence the squared error as a share of their
        variance. On labels: accuracy and mean F1 of classes; F1 over all labels; Spearman's and Pearson's correlation.
        """
        found = torch.cat([*logits_of(model, batches)])
        right = [batch["labels"] for batch in batches if "labels" in batch]
        own = self._own(found, torch.cat(right)) if right else {}
        return own if wanted is None else own | self._fidelity(found, wanted)

    def loss(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return the mean divergence over rows."""
        return self.divergence(student.logits, teacher.logits).mean()

    def _own(self, found: Tensor, right: Tensor) -> Figures:
        """Return figures of scores `(rows, labels)` on right labels."""
        if self.problem == REGRESSION:
            pair = found.flatten().numpy(), right.float().flatten().numpy()
            return {"spearman": spearman(*pair), "pearson": pearson(*pair)}
        if self.problem == SEVERAL_LABELS:
            return {"f1": f1((found > 0).flatten().numpy(), right.bool().flatten().numpy())}
        pair = found.argmax(-1).numpy(), right.numpy()
        return {"accuracy": accuracy(*pair), "macro_f1": macro_f1(*pair)}

    def _fidelity(self, found: Tensor, wanted: Tensor) -> Figures:
        divergence = float(self.divergence(found, wanted).mean())
        if self.problem == REGRESSION:
            spread = (wanted - wanted.mean(0)).square().sum(-1).mean()
            pair = torch.stack([found.flatten(), wanted.flatten()])
            return {
                "correlation_with_teacher": float(torch.corrcoef(pair)[0, 1]),
                "squared_error_share": divergence / max(float(spread), torch.finfo(wanted.dtype).tiny),
            }
        same = (found > 0) == (wanted > 0) if self.problem == SEVERAL_LABELS else found.argmax(-1) == wanted.argmax(-1)
        return {"agreement": float(in_float64(same).mean()), "divergence": divergence}
