"""What PEFT's status functions read of a wid model.

PEFT puts a model's status together from its adapter layers, one beside each weight that is adapted. Here the whole
student is one adapter: this module stands for it in the tuner, and holds no weights.
"""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from ..layers import FoldedWeight


class Student(nn.Module, BaseTunerLayer):
    """The one adapter layer of a wid model, as PEFT sees it.

    Args:
        tuner: the tuner whose student it stands for.
        adapter_name: PEFT's name for the adapter.
    """

    adapter_layer_names = ("folded_weights",)

    def __init__(self, tuner: BaseTuner, adapter_name: str) -> None:
        super().__init__()
        self._tuner = (tuner,)  # a tuple, since a module would become a part of this one
        self._active_adapter = adapter_name

    @property
    def folded_weights(self) -> nn.ModuleDict:
        """The folded_weights that the student has now, by the adapter's name."""
        (tuner,) = self._tuner
        found = [module for module in tuner.model.modules() if isinstance(module, FoldedWeight)]
        return nn.ModuleDict({self._active_adapter: nn.ModuleList(found)})
