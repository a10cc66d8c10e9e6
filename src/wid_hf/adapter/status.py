"""The part of a wid model that PEFT's status functions look at.

PEFT composes a model's status from its adapter layers, one for each adapted weight. Here the whole student is one
adapter: this module represents it in the tuner, and has no weights.
"""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from ..layers import FoldedWeight


class Student(nn.Module, BaseTunerLayer):
    """The one adapter layer of a wid model, as PEFT sees it.

    Args:
        tuner: the tuner whose student it represents.
        adapter_name: PEFT's name for the adapter.
    """

    adapter_layer_names = ("folded_weights",)

    def __init__(self, tuner: BaseTuner, adapter_name: str) -> None:
        super().__init__()
        self._tuner = (tuner,)  # a tuple, since a module attribute would become a submodule
        self._active_adapter = adapter_name

    @property
    def folded_weights(self) -> nn.ModuleDict:
        """The student's current folded weights, by the adapter's name."""
        (tuner,) = self._tuner
        found = [module for module in tuner.model.modules() if isinstance(module, FoldedWeight)]
        return nn.ModuleDict({self._active_adapter: nn.ModuleList(found)})
