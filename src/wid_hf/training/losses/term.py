"""One term of the training loss that compares a student with the teacher that it is folded from.

Takes a wid model and the inputs and outputs of modules in one tiny forward of its teacher; gives the loss of each
batch. Each subclass has a file with the name of its loss; `Distillation` adds the terms up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from ...adapter.tuner import WidModel
from ...errors import TeacherError
from .counting import shares
from .registry import DISTILLED, quoted
from .watching import Seen, refuse_detached


@dataclass(frozen=True)
class Setup:
    """What terms are made from.

    Attributes:
        wid: the wid model.
        seen: a forward of the teacher on a small example, with inputs and outputs of all its modules.
        rows: how many rows the example has.
        temperature: of logits.
    """

    wid: WidModel
    seen: Seen
    rows: int
    temperature: float

    def is_batch(self, tensor: Tensor) -> bool:
        """Return whether `tensor` is `(batch, positions, width)`."""
        return tensor.ndim == 3 and len(tensor) == self.rows

    def refuse(self, name: str, why: str) -> NoReturn:
        """Refuse the loss `name` for this teacher."""
        raise TeacherError(
            f'{type(self.wid.teacher).__name__} {why}, so distillation cannot compare "{name}". Remove "{name}"; '
            f"distillation also takes {quoted(other for other in DISTILLED if other != name)}."
        )


class Term(ABC):
    """A loss between a student and its teacher: a mean over the labels of a batch.

    Attributes:
        name: the loss's name.
        forward_arguments: keyword arguments for the small forward of the teacher.
        at_all_positions: whether the language-model head must run on positions without labels as well.
        input_modules: names of the modules whose inputs it compares.
        output_modules: names of the modules whose outputs it compares.
    """

    name: ClassVar[str]
    forward_arguments: ClassVar[Mapping[str, Any]] = {}
    at_all_positions: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, setup: Setup) -> None:
        """Find what is compared.

        Raises:
            TeacherError: the teacher has nothing of that kind.
        """

    @property
    def input_modules(self) -> Collection[str]:
        """None, if the subclass names none."""
        return frozenset()

    @property
    def output_modules(self) -> Collection[str]:
        """None, if the subclass names none."""
        return frozenset()

    @abstractmethod
    def of_batch(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any], counted: Tensor | None) -> Tensor:
        """Return the loss of one batch.

        Args:
            student: recorded in the student's forward.
            teacher: recorded in the teacher's forward.
            inputs: keyword arguments of both forwards.
            counted: which positions or rows have labels; None if all count.
        """


class RowTerm(Term):
    """A loss of whole rows, weighted by the number of labels of each row.

    Raises:
        TeacherError: the teacher has two sequences, an encoder's and a decoder's.
    """

    def __init__(self, setup: Setup) -> None:
        self.wid = setup.wid
        if setup.wid.teacher.config.is_encoder_decoder:
            raise TeacherError(
                f'{type(setup.wid.teacher).__name__} is an encoder-decoder model. Distillation "{self.name}" supports '
                'encoder-only and decoder-only models: remove "hidden" and "relations", which leaves "logits".'
            )

    @property
    def device(self) -> torch.device:
        """The teacher's current device."""
        return self.wid.teacher.device

    def of_batch(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any], counted: Tensor | None) -> Tensor:
        """Return the mean over rows.

        Raises:
            TrainingError: the student's forward lacks outputs that the teacher's has, or has them without gradients.
        """
        refuse_detached(student)
        share = shares(counted, inputs).to(self.device)
        return (share * self.of_rows(student, teacher, inputs)).sum()

    @abstractmethod
    def of_rows(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return the loss of each row `(b,)`."""
