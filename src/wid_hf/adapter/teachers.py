"""The models that a student is made from: the given one, that with the tokens that stay, that with the layers as well.

Takes the given model, a config, and later batches or a saved adapter; gives models on the same tensors. Called by the
tuner. A plain object and no module: the parameters are in the student's module tree already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from transformers import PreTrainedModel

from ..calibration.batches import Batch
from ..calibration.report import Dropped
from ..config import WidConfig
from ..coupling import Example
from ..coupling.trace import aliases, named_weights
from ..planning.depth import Stack, can_be_deepened, deepened
from ..planning.student_plan import planned_teacher, settled_stacks, with_kept_tokens
from ..planning.tracing import plain_attention
from .fingerprint import Fingerprint
from .layers_kept import KEPT_LAYERS, chosen_stacks, named_layers, with_numbers
from .plain_call import as_if_called_plainly


class Teachers:
    """The given model, and what is left of it where a student has fewer tokens or layers.

    Args:
        given: the model that the caller has.
        config: which tokens and layers stay; a choice of layers that is open keeps some for now.

    Attributes:
        given: the model that the caller has.
        stacks: the layers that stay; empty if all do.
        planned: the model that the student's weights are folded from, with the tokens and layers that stay.
        fingerprint: of the weights of `planned`, when it was made.
    """

    def __init__(self, given: PreTrainedModel, config: WidConfig) -> None:
        self.given = given
        with as_if_called_plainly(next(given.parameters()).device):
            self._with_tokens = with_kept_tokens(given, config)
            self.stacks = settled_stacks(self._with_tokens, config)
            self.planned = planned_teacher(self._with_tokens, config, stacks=self.stacks)
        self.fingerprint = Fingerprint.of(named_weights(self.planned), aliases(self.planned))

    @property
    def is_smaller(self) -> bool:
        """Whether the student has fewer layers or tokens than the given model."""
        return bool(self.stacks) or self._with_tokens is not self.given

    @property
    def whole(self) -> PreTrainedModel:
        """The model with all layers, and the tokens that stay; `planned` itself where the student has them all."""
        return self._with_tokens if self.stacks else self.planned

    @property
    def unchanged(self) -> PreTrainedModel:
        """The model with all layers and tokens."""
        return self.given if self.is_smaller else self.planned

    @property
    def models(self) -> tuple[PreTrainedModel, ...]:
        """All of these models."""
        return self.given, self._with_tokens, self.planned

    @property
    def has_choice(self) -> bool:
        """Whether the config leaves to data which layers stay."""
        return any(stack.is_choice for stack in self.stacks)

    def chosen(self, batches: Sequence[Batch], config: WidConfig) -> tuple[tuple[Stack, ...], tuple[Dropped, ...]]:
        """Return the stacks with the layers that stay by these batches, and what was dropped, one after the other."""
        with as_if_called_plainly(self.whole.device), plain_attention(self.whole):
            return chosen_stacks(self.whole, self.stacks, batches, config)

    def saved(self, state: Mapping[str, Tensor]) -> tuple[Stack, ...]:
        """Return the stacks with the layers of a saved adapter, if it states any and they are open here."""
        return with_numbers(self.stacks, state[KEPT_LAYERS].tolist()) if KEPT_LAYERS in state else self.stacks

    def keep(self, stacks: tuple[Stack, ...], config: WidConfig) -> None:
        """Make `planned` anew with these layers, and let the config state them."""
        self.stacks = stacks
        self.planned = planned_teacher(self._with_tokens, config, stacks=stacks)
        self.fingerprint = Fingerprint.of(named_weights(self.planned), aliases(self.planned))
        config.teacher_fingerprint = self.fingerprint.value
        config.layers = named_layers(stacks)

    def computing_all(self, example: Example) -> AbstractContextManager[None]:
        """Let `planned` compute what the whole one does, where that is possible, so that a student makes up for it.

        Args:
            example: a small forward.
        """
        if not self.stacks or not can_be_deepened(self.planned, self.whole, self.stacks, example):
            return nullcontext()
        return deepened(self.planned, self.whole, self.stacks)
