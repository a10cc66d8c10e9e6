"""A student is not saved into a folder that holds an adapter: `from_pretrained` would load the adapter there.

Takes a merged student, a stock model; gives it a `save_pretrained` that looks first. Called where it is merged.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME

from ..errors import OutputError


class SaveApart:
    """`save_pretrained` of one model. A copy of the model, also a pickled one, has the method of its class again."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Save the model as its class does.

        Raises:
            OutputError: the folder holds an adapter.
        """
        if (Path(save_directory) / ADAPTER_CONFIG_NAME).exists():
            raise OutputError(
                f"The folder {save_directory} holds an adapter ({ADAPTER_CONFIG_NAME}), which from_pretrained would "
                f"load instead of the student. Save the student in a folder of its own, such as "
                f"{Path(save_directory) / 'student'}."
            )
        return type(self.model).save_pretrained(self.model, save_directory, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.model, "save_pretrained")  # of the copy, which has no other than its class's yet


def saved_apart(student: PreTrainedModel) -> PreTrainedModel:
    """Return `student`, which from now on refuses to be saved beside an adapter."""
    student.save_pretrained = SaveApart(student)
    return student
