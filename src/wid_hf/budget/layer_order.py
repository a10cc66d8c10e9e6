"""In which order layers go as students of one teacher become shallower: found once, for all candidates of a search.

Takes a teacher and batches; gives a `LayerOrder`. Called by `halving`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from ..adapter.layers_kept import chosen_stacks
from ..calibration.batches import Batch
from ..calibration.layer_choice import AGAIN, SCORED, TRIED
from ..config import CalibrationConfig, LayerChoice, WidConfig
from ..planning.depth import requested_stacks


@dataclass(frozen=True)
class LayerOrder:
    """The layers that go, the first that goes first.

    Attributes:
        count: layers of the teacher.
        gone: numbers of layers, as many as the shallowest candidate lacks.
        by: how they were chosen; see `CalibrationConfig.layer_choice`.
    """

    count: int
    gone: tuple[int, ...]
    by: LayerChoice

    def kept(self, count: int) -> list[int]:
        """Return the numbers of the layers that are left when `count` are left."""
        return sorted({*range(self.count)} - {*self.gone[: self.count - count]})


def layer_order(teacher: PreTrainedModel, least: int, batches: Sequence[Batch], by: LayerChoice) -> LayerOrder | None:
    """Return the order in which layers go until `least` are left; None if they are one layer that runs several times.

    Args:
        teacher: a model whose `num_hidden_layers` counts layers, more than `least`.
        least: how many stay at the end.
        batches: keyword dictionaries for the teacher's forward.
        by: `"greedy"` or `"influence"`; see `CalibrationConfig.layer_choice`.

    Raises:
        DataError: the forward raised on a batch.
        PlanError: layers differ in kind, and without any one of them others stand in wrong places.
    """
    config = WidConfig(num_hidden_layers=least, calibration_config=CalibrationConfig(layer_choice=by))
    stacks = requested_stacks(teacher, config)
    if not any(stack.is_choice for stack in stacks):
        return None
    _, dropped = chosen_stacks(teacher, stacks, batches, config)
    return LayerOrder(stacks[0].old, tuple(int(each.layer.rpartition(".")[2]) for each in dropped), by)


def texts_of_greedy(count: int, least: int) -> int:
    """Return about how many texts run through the teacher while layers go one after the other, greedily."""
    return SCORED * (1 + min(count, TRIED) + AGAIN * (count - least - 1))
