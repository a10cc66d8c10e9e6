"""Methods that PEFT's tuners have for adapters of single weights, refused here because the whole model is the adapter.

`WidModel` builds on it. Every method here is one that PEFT or transformers calls by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from ..errors import WidError
from ..layers import FoldedWeight
from .layer_guard import OTHER_LAYERS
from .status import Student

ONE_ADAPTER = (
    "A wid model is one student with one adapter, {!r}; adapters can be neither added nor deleted. Call "
    "get_wid_model on a fresh teacher for another student, or unload() for the teacher."
)
IN_PLACE = (
    "Teacher and student differ in shape, so the adapter cannot {} in place: merge_and_unload() returns the student "
    "as a stock model, unload() the teacher."
)


class OneAdapterTuner(BaseTuner):
    """A tuner that replaces one model by another: nothing can be added, switched off or undone in place.

    Attributes:
        student: the one adapter layer for PEFT's status functions.
    """

    student: Student
    prefix = "wid_"
    tuner_layer_cls = FoldedWeight
    uses_shared_state = True  # makes PEFT refuse inject_adapter_in_model, which would change the teacher
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("WID replaces the whole model in inject_adapter, not layer by layer.")

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Do nothing: compactors are float32 from the start."""

    def _refuse_other_names(self, names: object) -> None:
        if names not in (self.active_adapter, [self.active_adapter], (self.active_adapter,)):
            raise WidError(ONE_ADAPTER.format(self.active_adapter))

    def delete_adapter(self, adapter_name: str) -> None:
        """Refuse: there is no student without its compactors."""
        raise WidError(ONE_ADAPTER.format(self.active_adapter))

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Accept the one adapter that there is."""
        self._refuse_other_names(adapter_name)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Let the compactors train, or freeze them; the teacher's weights stay as they are."""
        self._refuse_other_names(adapter_names)
        self.student.folded_weights.requires_grad_(requires_grad)

    def disable_adapter_layers(self) -> None:
        """Refuse: the student without compactors is the teacher."""
        raise WidError(
            f"{IN_PLACE.format('be switched off')} For the teacher's outputs call model.base_model.teacher(...)."
        )

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Refuse: the product has other sizes than the teacher's weights."""
        raise WidError(IN_PLACE.format("be merged"))

    def unmerge_adapter(self) -> None:
        """Refuse: nothing can have been merged."""
        raise WidError(IN_PLACE.format("be merged or unmerged"))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return False: no sum of the teacher's weights and a LoRA has a student's sizes."""
        return False

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key  # keys have no adapter name; an adapter named "weight" must not change keys with that word

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *args: Any, **kwargs: Any
    ) -> nn.Module:
        """Return the input embeddings if the number of tokens stays; refuse another number."""
        table: Any = self.model.get_input_embeddings()
        rows = table.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            rows = -(-rows // pad_to_multiple_of) * pad_to_multiple_of
        if rows != table.num_embeddings:
            raise WidError(OTHER_LAYERS.format(f"The vocabulary cannot become {rows} tokens now"))
        return table

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Refuse: the table is computed from the teacher's."""
        raise WidError(OTHER_LAYERS.format("The input embeddings cannot be replaced now"))

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Refuse: the head is computed from the teacher's."""
        raise WidError(OTHER_LAYERS.format("The output embeddings cannot be replaced now"))
