"""Finds the `PeftModel` around a tuner, which PEFT's constructors and copies do not pass to the tuner."""

from __future__ import annotations

import gc
from typing import Any
from weakref import ref

from peft import PeftModel
from torch import nn


class Wrapper:
    """Remembers the `PeftModel` around one tuner, and searches for it if it was not told.

    Args:
        tuner: the `base_model` of the `PeftModel`.
    """

    def __init__(self, tuner: nn.Module) -> None:
        self._tuner = tuner
        self._model: ref[PeftModel] | None = None

    def remember(self, model: PeftModel) -> None:
        """Remember the `PeftModel` around the tuner."""
        self._model = ref(model)

    @property
    def known(self) -> PeftModel | None:
        """The `PeftModel` if it is known, without a search."""
        model = self._model() if self._model is not None else None
        return model if model is not None and model.base_model is self._tuner else None

    def find(self) -> PeftModel | None:
        """Return the `PeftModel`, if there is one; if it is not known, search all objects of the process."""
        if self.known is None:
            every = (thing for thing in gc.get_objects() if issubclass(type(thing), PeftModel))
            found = next((model for model in every if model._modules.get("base_model") is self._tuner), None)
            self._model = ref(found) if found is not None else None
        return self.known

    def attribute(self, name: str, model: nn.Module) -> Any:
        """Return an attribute of `model` as its user sees it: one assigned to the `PeftModel` has priority."""
        outer = self.find()
        given = vars(outer) if outer is not None else {}
        return given[name] if name in given else getattr(model, name, None)
