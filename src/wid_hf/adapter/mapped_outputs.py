"""What a student's outputs are of its teacher's: all of them, some coordinates, or combinations.

The part of the tuner that callers, heads and losses ask for the map of outputs; `WidModel` builds on it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..coupling import Dim
from ..coupling.index_sets import IndexSets, axis_indices
from ..errors import WidError
from ..planning.student_plan import StudentPlan
from ..progressive.progress import Progress
from .one_adapter import OneAdapterTuner
from .turned import TurnedStreams, turn

Outputs = Literal["whole", "coordinates", "turned"]


class MappedOutputs(OneAdapterTuner):
    """A tuner that knows how its student's first outputs follow from the teacher's.

    Attributes:
        student_plan: the plan that the student was made from.
        progress: the state of a progressive training; None with the narrow schedule.
        kept: the index set of the first output's last axis, `(k,)` int64; without meaning where that was turned.
        turned: the maps of streams that calibration turned.
    """

    student_plan: StudentPlan
    progress: Progress | None
    kept: Tensor
    turned: TurnedStreams

    @property
    def teacher(self) -> PreTrainedModel:
        """The model that the student is folded from."""
        raise NotImplementedError

    @property
    def is_wide(self) -> bool:
        """Whether a progressive training still has the teacher's widths."""
        raise NotImplementedError

    @property
    def outputs(self) -> Outputs:
        """What the last axis of the first output is: as wide as the teacher's, some of its coordinates, or turned."""
        dim = self._output_dim
        if dim is None or self.student_plan.plan.size(dim) == dim.size:
            return "whole"
        return "turned" if self.turned.touches(dim) else "coordinates"

    @property
    def output_map(self) -> Tensor | None:
        """The map `(n, k)` from the teacher's first outputs `(..., n)` to the student's: `y_s ~ y_t @ output_map`.

        Where outputs are coordinates of the teacher's, it selects them: those kept now, with a progressive schedule.
        A head with the weight `W (labels, n)` serves the student as `W @ output_map`. None where the outputs are as
        wide as the teacher's. In float32, or float64 for a float64 teacher.
        """
        dim = self._output_dim
        if dim is None or self.outputs == "whole":
            return None
        return self.turned.axis_map(dim, self._kept_now(), self._map_dtype)

    def map_outputs(self, outputs: Tensor) -> Tensor:
        """Return first outputs of the teacher `(..., n)` as the student has them: `outputs @ output_map`, `(..., k)`.

        A model that is still wide has outputs as the teacher does: they are mapped as well before both are compared.
        """
        found = self.outputs
        if found == "coordinates":
            return outputs[..., self._kept_now().to(outputs.device)]
        output_map = self.output_map
        return outputs if output_map is None else turn(outputs, output_map.to(outputs.device))

    def kept_outputs(self) -> list[int]:
        """Return the index set of the first output's last axis, at the student's start or as it is now.

        Raises:
            WidError: the outputs are turned: they are combinations of the teacher's coordinates.
        """
        if self.outputs == "turned":
            raise WidError(
                "This student's outputs are turned: none of them is a coordinate of the teacher's. Use output_map, or "
                'calibrate with CalibrationConfig(output="coordinates").'
            )
        return self._kept_now().tolist()

    @property
    def _map_dtype(self) -> torch.dtype:
        return torch.promote_types(self.teacher.dtype, torch.float32)

    @property
    def _output_dim(self) -> Dim | None:
        # The first output may be a scalar: a loss of routers.
        return next((dims[-1] for dims in self.student_plan.trace.output_dims if dims), None)

    def _axis_map(self, dim: Dim, sets: IndexSets) -> Tensor:
        """Return the map `(n, k)` of any axis, with these index sets where it was not turned."""
        indices = torch.tensor(axis_indices(self.student_plan.plan, dim, sets), device=self.kept.device)
        return self.turned.axis_map(dim, indices, self._map_dtype)

    def _kept(self, sets: IndexSets) -> Tensor:
        last = self._output_dim
        found = axis_indices(self.student_plan.plan, last, sets) if last is not None else []
        return torch.tensor(found, dtype=torch.long)

    def _kept_now(self) -> Tensor:
        """Return the index set of the outputs, with a progressive schedule as it is now."""
        if self.progress is not None and self.is_wide:
            return self._kept(self.progress.index_sets()).to(self.kept.device)
        return self.kept
