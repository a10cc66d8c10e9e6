"""`get_wid_model`: from a teacher and a config to a `PeftModel` that trains as the student."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy

from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from ..calibration.batches import Batch
from ..config import WidConfig
from ..errors import ConfigError
from ..planning.student_plan import check_teacher, prove_couplings
from ..stored_inputs import as_arguments
from .calibration_data import refuse_unused_data
from .plain_call import as_if_called_plainly


def get_wid_model(
    model: PreTrainedModel,
    config: WidConfig,
    *,
    calibration_data: Iterable[Batch] | None = None,
    example_inputs: Batch | None = None,
    verify: bool = False,
    adapter_name: str = "default",
) -> PeftModel:
    """Return a model that trains as the small student, with weights folded from the teacher's.

    The teacher is not copied: its tensors are the originals from which the student's weights are computed
    at each step, and training them (learning rate above 0) changes the teacher.

    Args:
        model: the teacher, any stock `PreTrainedModel` with weights.
        config: the student's sizes.
        calibration_data: keyword dictionaries for the teacher's forward, a few hundred texts in all; labels are
            not used. Without it, call `calibrate` later, or let `WidTrainer` take it from the training set.
        example_inputs: keyword arguments for one forward of the teacher, if those made from its config
            do not fit.
        verify: prove the coupled dimensions by permutation on the real weights first.
        adapter_name: PEFT's name for the adapter.

    Returns:
        A `PeftModel`, as `peft.get_peft_model(model, config)` returns.

    Raises:
        TeacherError: the model is wrapped, on the meta device, or not a `PreTrainedModel`.
        ConfigError: a name or size that its config cannot express, or example inputs that are not a dictionary.
        PlanError: sizes that contradict each other or shrink a frozen dimension.
        ProofError: the permutation proof failed.
        DataError: calibration data that cannot be used.
    """
    if not isinstance(config, WidConfig):
        raise ConfigError(
            f"get_wid_model takes a WidConfig, not a {type(config).__name__}. Pass WidConfig(hidden_size=...)."
        )
    if calibration_data is not None:
        refuse_unused_data(config)
    check_teacher(model)
    config = copy(config)  # PEFT writes the teacher's name into it
    if example_inputs is not None:
        config.example_inputs = as_arguments(example_inputs)
    if verify:
        with as_if_called_plainly(model.device):
            prove_couplings(model, config)
    wrapped = get_peft_model(model, config, adapter_name=adapter_name)
    wrapped.base_model.wrapper.remember(wrapped)
    if calibration_data is not None:
        wrapped.base_model.calibrate(calibration_data)
    return wrapped
